"""The one pass over the layers: two streams of hidden states, one layer at a time, one or several sizes at once.

The dense stream runs the original layers, and for each size a compressed one runs those that replace them. Sizes
whose first groups are the same share that work, and all share the dense stream. Memory holds one flattened layer, its
moments, and a few (tokens, width) tensors for each size, whatever the model's depth.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from flattengpt_core.compressed import MergedGroup
from flattengpt_core.decoder import Decoder
from flattengpt_core.flatten import LayerWeights
from flattengpt_core.grouping import Group
from flattengpt_core.language_head import embed
from flattengpt_core.merge import GroupMerge
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import Pruner

_GROUPS, _MERGED = "groups", "merged"
"""What a finished layer's file tells: the groups up to it, and what became of the last one."""


@dataclass
class Size:
    """One partition of the layers into runs of neighbours, where its layers go, and what became of its groups."""

    groups: Sequence[Group]
    writer: CheckpointWriter
    merged: list[MergedGroup] = field(default_factory=list)

    @property
    def last_fit(self) -> int:
        """The last layer of the last group that is still to be merged; -1 if none is."""
        return max((group[-1] for group in self.groups if len(group) > 1 and not self.finished(group[-1])), default=-1)

    def finished(self, layer: int) -> tuple[MergedGroup, dict[str, Tensor]] | None:
        """What an interrupted run made of the group that ends with `layer`, as it was stored."""
        groups = self.until(layer)
        record = self.writer.record(len(groups) - 1)
        if record.get(_GROUPS) != json.dumps(groups) or _MERGED not in record:
            return None
        return MergedGroup.from_json(json.loads(record[_MERGED])), self.writer.layer(len(groups) - 1)

    def add(self, layer: int, weights: LayerWeights, merged: MergedGroup | None) -> None:
        """Hand the writer what became of the group that ends with `layer`."""
        groups = self.until(layer)
        record = {_GROUPS: json.dumps(groups)}
        if merged is not None:
            self.merged.append(merged)
            record[_MERGED] = json.dumps(asdict(merged))
        self.writer.add_layer(weights, first_member=groups[-1][0], record=record)

    def opens_with(self, layer: int) -> bool:
        """Whether `layer` is the first of a group that merges."""
        return any(len(group) > 1 and group[0] == layer for group in self.groups)

    def until(self, layer: int) -> tuple[Group, ...]:
        """The groups that end with `layer` or before."""
        return tuple(group for group in self.groups if group[-1] <= layer)


@torch.no_grad()  # not inference_mode: `inner` takes derivatives of its tensors
def walk(
    source: Checkpoint,
    sizes: Sequence[Size],
    folds: Sequence[Tensor],
    pruner: Pruner,
    progress: Progress,
    *,
    device: torch.device,
) -> None:
    """Replace each group of layers by one layer of the stock width, and hand each size its layers in order.

    Layers that merge with no other are copied bit for bit. Layers after the last merge are not run.
    Merged layers that the writers find again are not merged anew; the run goes on after them, to the same bytes.

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets, e.g. one a text.
    """
    tokens = torch.cat(list(folds))
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    bounds = _fold_slices(folds)
    num_layers = source.info.num_layers
    last_fits = [size.last_fit for size in sizes]
    dense = embed(source, tokens, device=device)
    streams: dict[tuple[Group, ...], Tensor] = {(): dense}  # by the groups behind it
    between: dict[int, Tensor] = {}  # by a group's first layer: the dense stream there plus the attention since
    for index in range(num_layers):
        alike: dict[tuple[Group, ...], list[Size]] = {}
        fitted_on: set[tuple[Group, ...]] = set()  # those whose stream is needed after this layer
        for size, last in zip(sizes, last_fits, strict=True):
            alike.setdefault(size.until(index), []).append(size)
            if index < last:
                fitted_on.add(size.until(index))
        before = dense
        if index <= max(last_fits):
            if any(size.opens_with(index) for size in sizes):
                between[index] = dense.clone()
            dense = _advance(decoder, source, index, dense, list(between.values()))
        after: dict[tuple[Group, ...], Tensor] = {}
        for groups, those in alike.items():
            if not groups or groups[-1][-1] < index:
                if groups in streams:
                    after[groups] = streams[groups]
                continue
            group, stream = groups[-1], streams.get(groups[:-1])
            weights: LayerWeights = source.layer(index)
            merged = None
            if len(group) > 1:
                found = next((found for size in those if (found := size.finished(index))), None)
                if found is None:
                    assert stream is not None
                    narrow = GroupMerge(source, group, decoder, bounds)
                    found = narrow.merge(pruner, stream, between[group[0]], dense)
                    progress.event(
                        "merged",
                        layers=list(group),
                        attention_error=found[0].attention_error,
                        mlp_error=found[0].mlp_error,
                    )
                merged, weights = found
            for size in those:
                size.add(index, weights, merged)
            if groups in fitted_on:
                assert stream is not None
                same = merged is None and stream is before
                # As stored: what is fitted next makes up for the rounding, too, and a run that goes on meets the same.
                after[groups] = dense if same else decoder.run(those[0].writer.layer(len(groups) - 1), index, stream)
        streams = after
        opened = {group[0] for size in sizes for group in size.groups if group[-1] > index}
        between = {first: stream for first, stream in between.items() if first in opened}
        progress.step(index + 1, num_layers)


def _advance(decoder: Decoder, source: Checkpoint, index: int, dense: Tensor, between: Sequence[Tensor]) -> Tensor:
    """The dense stream after layer `index`, whose attention outputs are added to each of `between` in place."""
    layer = decoder.layer(source.layer(index), index)
    after = torch.empty_like(dense)
    for chunk in decoder.chunks(dense):
        attention = decoder.attend(layer, dense[chunk])
        for stream in between:
            stream[chunk] += attention
        middle = dense[chunk] + attention
        after[chunk] = middle + decoder.transform(layer, middle)
    return after


def _fold_slices(folds: Sequence[Tensor]) -> list[slice]:
    """Where each fold's windows stand in the concatenation of all."""
    slices, start = [], 0
    for fold in folds:
        slices.append(slice(start, start + len(fold)))
        start += len(fold)
    return slices
