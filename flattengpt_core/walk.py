"""The one pass over the layers: two streams of hidden states, one layer at a time, one or several sizes at once.

The dense stream runs the original layers, and for each size a compressed one runs those that replace them. Sizes
whose first groups are the same share that work, and all share the dense stream. Memory holds one flattened layer, its
moments, and a few (tokens, width) tensors for each size, whatever the model's depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flattengpt_core.compressed import MergedGroup
from flattengpt_core.decoder import Decoder
from flattengpt_core.grouping import Group
from flattengpt_core.language_head import embed
from flattengpt_core.merge import GroupMerge
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import Pruner


@dataclass
class Size:
    """One partition of the layers into runs of neighbours, where its layers go, and what became of its groups."""

    groups: Sequence[Group]
    writer: CheckpointWriter
    merged: list[MergedGroup] = field(default_factory=list)

    @property
    def last_merge(self) -> int:
        """The last layer of the last group that merges; -1 if none does."""
        return max((group[-1] for group in self.groups if len(group) > 1), default=-1)

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

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets, e.g. one a text.
    """
    tokens = torch.cat(list(folds))
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    bounds = _fold_slices(folds)
    num_layers = source.info.num_layers
    dense = embed(source, tokens, device=device)
    streams: dict[tuple[Group, ...], Tensor] = {(): dense}  # by the groups behind it
    between: dict[int, Tensor] = {}  # by a group's first layer: the dense stream there plus the attention since
    for index in range(num_layers):
        alike: dict[tuple[Group, ...], list[Size]] = {}
        for size in sizes:
            alike.setdefault(size.until(index), []).append(size)
        before = dense
        if index <= max(size.last_merge for size in sizes):
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
            if len(group) > 1:
                assert stream is not None
                done = GroupMerge(source, group, decoder, bounds).merge(pruner, stream, between[group[0]], dense)
                weights, after[groups] = done.weights, done.stream
                for size in those:
                    size.merged.append(done.record)
                progress.event(
                    "merged",
                    layers=list(group),
                    attention_error=done.record.attention_error,
                    mlp_error=done.record.mlp_error,
                )
            else:
                weights = dict(source.layer(index))
                if stream is not None and any(index < size.last_merge for size in those):
                    after[groups] = dense if stream is before else decoder.run(weights, index, stream)
            for size in those:
                size.writer.add_layer(weights, first_member=group[0])
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
