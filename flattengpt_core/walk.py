"""The one pass over the layers: two streams of hidden states, one group of layers at a time.

The dense stream runs the original layers, the compressed one the layers that replace them. For each group the dense
stream gives the target, the compressed stream the features, and their second moments decide the merged layer; so
each merged layer also repairs the error of those before it. Memory holds one flattened layer, its moments, and four
(tokens, width) tensors, whatever the model's depth. Knows nothing of which features stay: see `prune`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.compressed import MergedGroup
from flattengpt_core.decoder import Decoder, without_outputs
from flattengpt_core.families import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE
from flattengpt_core.flatten import flatten
from flattengpt_core.grouping import Group
from flattengpt_core.language_head import embed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import NarrowOutput, WideOutput, rows_of
from flattengpt_core.regression import Moments


@dataclass(frozen=True)
class Pruner:
    """How a flattened layer becomes narrow: one choice for its heads, one for its channels."""

    heads: Callable[[WideOutput], NarrowOutput]
    channels: Callable[[WideOutput], NarrowOutput]


@torch.inference_mode()
def walk(
    source: Checkpoint,
    groups: Sequence[Group],
    folds: Sequence[Tensor],
    pruner: Pruner,
    writer: CheckpointWriter,
    progress: Progress,
    *,
    device: torch.device,
) -> list[MergedGroup]:
    """Replace each group of layers by one layer of the stock width and hand it to `writer`, in order.

    Layers that merge with no other are copied bit for bit. Layers after the last merge are not run.

    Args:
        groups: a partition of the layers into runs of neighbours.
        folds: calibration windows (windows, length) of token ids, in disjoint sets, e.g. one a text.
    """
    tokens = torch.cat(list(folds))
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    bounds = _fold_slices(folds)
    last_merge = max((i for i, group in enumerate(groups) if len(group) > 1), default=-1)
    merged: list[MergedGroup] = []
    dense = embed(source, tokens, device=device)
    compressed = dense
    for position, group in enumerate(groups):
        if len(group) == 1:
            weights = source.layer(group[0])
            if position < last_merge:
                same = compressed is dense
                dense = decoder.run(weights, group[0], dense)
                compressed = dense if same else decoder.run(weights, group[0], compressed)
            writer.add_layer(weights, first_member=group[0])
        else:
            step = _GroupStep(source, group, decoder, bounds)
            merged_group, weights, dense, compressed = step.merge(pruner, dense, compressed)
            merged.append(merged_group)
            writer.add_layer(weights, first_member=group[0])
            progress.event(
                "merged",
                layers=list(group),
                attention_error=merged_group.attention_error,
                mlp_error=merged_group.mlp_error,
            )
        progress.step(position + 1, len(groups))
    return merged


class _GroupStep:
    """One group's step: dense members, flattened layer, heads, channels, narrow layer."""

    def __init__(self, source: Checkpoint, group: Group, decoder: Decoder, folds: Sequence[slice]) -> None:
        self.group, self.decoder, self.folds = group, decoder, folds
        self.members = [source.layer(index) for index in group]
        self.wide = {
            name: tensor.to(decoder.device)
            for name, tensor in flatten([{k: v.float() for k, v in member.items()} for member in self.members]).items()
        }
        self.config = source.config

    def merge(
        self, pruner: Pruner, dense: Tensor, compressed: Tensor
    ) -> tuple[MergedGroup, dict[str, Tensor], Tensor, Tensor]:
        """The merged group, its weights, and both streams after it."""
        dense_out, attention = self._run_members(dense)
        target = dense.add(attention)  # what the residual stream should hold between the sublayers
        features = without_outputs(self.decoder.layer(self.wide, self.group[0]))

        wide_attention = self._moments(OUTPUT, lambda x: self.decoder.attend(features, x), compressed, target)
        heads = pruner.heads(
            WideOutput(wide_attention, self._output(OUTPUT), self._head_rows, self.config.num_key_value_heads)
        )
        narrow = self.wide | self._narrow_attention(heads)
        layer = self.decoder.layer(narrow, self.group[0])
        residual = torch.empty_like(compressed)
        for chunk in self.decoder.chunks(compressed):
            residual[chunk] = compressed[chunk] + self.decoder.attend(layer, compressed[chunk])

        wide_mlp = self._moments(DOWN, lambda x: self.decoder.transform(features, x), residual, dense_out)
        channels = pruner.channels(WideOutput(wide_mlp, self._output(DOWN), 1, self.config.intermediate_size))
        narrow |= self._narrow_mlp(channels)
        layer = self.decoder.layer(narrow, self.group[0])
        for chunk in self.decoder.chunks(residual):
            residual[chunk] += self.decoder.transform(layer, residual[chunk])
        record = MergedGroup(
            members=self.group,
            kv_groups=heads.units.tolist(),
            channels=channels.units.tolist(),
            attention_ridge=heads.ridge,
            mlp_ridge=channels.ridge,
            attention_error=_relative_error(wide_attention, heads),
            mlp_error=_relative_error(wide_mlp, channels),
        )
        return record, narrow, dense_out, residual

    @property
    def _head_rows(self) -> int:
        """Rows of o_proj's input that one key/value group owns: its query heads, which stand side by side."""
        return self.config.num_attention_heads // self.config.num_key_value_heads * self.decoder.head_dim

    def _run_members(self, dense: Tensor) -> tuple[Tensor, Tensor]:
        """The dense stream after the group, and the sum of its members' attention outputs."""
        hidden, attention = dense.clone(), torch.zeros_like(dense)
        for index, weights in zip(self.group, self.members, strict=True):
            layer = self.decoder.layer(weights, index)
            for chunk in self.decoder.chunks(hidden):
                added = self.decoder.attend(layer, hidden[chunk])
                attention[chunk] += added
                between = hidden[chunk] + added
                hidden[chunk] = between + self.decoder.transform(layer, between)
        return hidden, attention

    def _moments(
        self, output: str, features: Callable[[Tensor], Tensor], stream: Tensor, target: Tensor
    ) -> list[Moments]:
        """Per fold, the moments of `features(stream)` against what is missing from `stream` to `target`."""
        width = stream.shape[-1]
        bias = self.wide.get(f"{output}.bias")
        moments = []
        for fold in self.folds:
            total = Moments.zeros(self.wide[f"{output}.weight"].shape[1], width, stream.device)
            for chunk in self.decoder.chunks(stream[fold]):
                part, missing = stream[fold][chunk], target[fold][chunk] - stream[fold][chunk]
                if bias is not None:
                    missing = missing - bias
                total = total.including(features(part).flatten(0, 1), missing.flatten(0, 1))
            moments.append(total)
        return moments

    def _output(self, projection: str) -> Tensor:
        return self.wide[f"{projection}.weight"].T.double()

    def _narrow_attention(self, heads: NarrowOutput) -> dict[str, Tensor]:
        rows_by_projection = {
            QUERY: heads.rows,
            KEY: rows_of(heads.units, self.decoder.head_dim),
            VALUE: rows_of(heads.units, self.decoder.head_dim),
        }
        return self._taken(rows_by_projection) | {f"{OUTPUT}.weight": heads.weight.T.float().contiguous()}

    def _narrow_mlp(self, channels: NarrowOutput) -> dict[str, Tensor]:
        taken = self._taken(dict.fromkeys((GATE, UP), channels.rows))
        return taken | {f"{DOWN}.weight": channels.weight.T.float().contiguous()}

    def _taken(self, rows_by_projection: dict[str, Tensor]) -> dict[str, Tensor]:
        """The given rows of the flattened layer's projections, weights and biases."""
        return {
            name: self.wide[name][rows]
            for projection, rows in rows_by_projection.items()
            for name in (f"{projection}.weight", f"{projection}.bias")
            if name in self.wide
        }


def _relative_error(folds: Sequence[Moments], output: NarrowOutput) -> float:
    """‖target − output‖² / ‖target‖² over all folds."""
    error = sum(fold.restricted(output.rows).error(output.weight).item() for fold in folds)
    return error / sum(fold.energy.item() for fold in folds)


def _fold_slices(folds: Sequence[Tensor]) -> list[slice]:
    """Where each fold's windows stand in the concatenation of all."""
    slices, start = [], 0
    for fold in folds:
        slices.append(slice(start, start + len(fold)))
        start += len(fold)
    return slices
