"""One group of neighbouring layers becomes one layer of the stock width.

The dense stream gives the target, the compressed stream the features, and their second moments decide the merged
layer; so each merged layer also repairs the error of those before it. Knows nothing of which features stay: see
`prune`, nor of the order of the groups: see `walk`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flattengpt_core.compressed import MergedGroup
from flattengpt_core.decoder import Decoder, DecoderLayer, without_outputs
from flattengpt_core.families import DOWN, GATE, KEY, OUTPUT, QUERY, UP, VALUE
from flattengpt_core.flatten import flatten
from flattengpt_core.grouping import Group
from flattengpt_core.inner import refit_inner
from flattengpt_core.models import Checkpoint
from flattengpt_core.prune import Choice, Pruner, WideOutput, rows_of
from flattengpt_core.regression import Moments


@dataclass(frozen=True)
class NarrowSublayer:
    """A pruned attention or MLP.

    units: what stays, indices into the flattened layer, ascending. weights: its tensors under a layer's names, float32.
    ridge: that of its output's fit. error: ‖target − output‖² / ‖target‖² over the calibration tokens.
    """

    units: Tensor
    weights: dict[str, Tensor]
    ridge: float
    error: float


class GroupMerge:
    """One group's way: flattened layer, heads, narrow attention, channels, narrow layer.

    Args:
        folds: where each fold's windows stand in the streams.
    """

    def __init__(self, source: Checkpoint, group: Group, decoder: Decoder, folds: Sequence[slice]) -> None:
        self.group, self.decoder, self.folds = group, decoder, folds
        members = [{name: tensor.float() for name, tensor in source.layer(index).items()} for index in group]
        self.wide = {name: tensor.to(decoder.device) for name, tensor in flatten(members).items()}
        self.config = source.config

    def merge(
        self, pruner: Pruner, stream: Tensor, between: Tensor, target: Tensor
    ) -> tuple[MergedGroup, dict[str, Tensor]]:
        """Prune the group's layer so that it carries the compressed stream to the dense one.

        Args:
            stream: the compressed residual stream that enters. between: the dense one that enters plus the members'
                attention outputs, which it should hold between the sublayers. target: the dense one after the group.
                All (windows, length, width).

        Returns:
            The group's record, and its layer's weights, float32.
        """
        heads = self._narrow(self._attention, pruner.heads, pruner, stream, between)
        narrow = self.wide | heads.weights
        residual = self._attended(narrow, stream)

        channels = self._narrow(self._mlp, pruner.channels, pruner, residual, target)
        narrow |= channels.weights
        record = MergedGroup(
            members=self.group,
            kv_groups=heads.units.tolist(),
            channels=channels.units.tolist(),
            attention_ridge=heads.ridge,
            mlp_ridge=channels.ridge,
            attention_error=heads.error,
            mlp_error=channels.error,
        )
        return record, narrow

    def _narrow(
        self, sublayer: "_Sublayer", choose: Choice, pruner: Pruner, stream: Tensor, target: Tensor
    ) -> NarrowSublayer:
        """Let the members' units compete for the sublayer's places, and fit those that stay."""
        units, folded, folds = self._chosen(sublayer, choose, pruner, stream, target)
        weights = sublayer.narrowed(units)
        fit = pruner.refit(folds, folded)
        for _ in range(pruner.alternations):
            weights[f"{sublayer.output}.weight"] = _as_parameter(fit.weight)
            weights[f"{sublayer.inner}.weight"] = self._inner(sublayer, weights, stream, target)
            folds = self._moments(sublayer, weights, stream, target)
            fit = pruner.refit(folds, folded)
        weights[f"{sublayer.output}.weight"] = _as_parameter(fit.weight)
        error = sum(fold.error(fit.weight).item() for fold in folds) / sum(fold.energy.item() for fold in folds)
        return NarrowSublayer(units, weights, fit.ridge, error)

    def _chosen(
        self, sublayer: "_Sublayer", choose: Choice, pruner: Pruner, stream: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, list[Moments]]:
        """The units that stay, their output rows with what is lost folded in, and the moments of their features."""
        output = self.wide[f"{sublayer.output}.weight"].T.double()
        owned = len(output) // sublayer.unit // len(self.group)
        units = torch.empty(0, dtype=torch.long, device=output.device)
        weight, folds = output[:0], []
        for members in pruner.rounds(len(self.group)):
            entering = torch.arange(members.start * owned, members.stop * owned, device=output.device)
            candidates = torch.cat([units, entering])
            weight = torch.cat([weight, output[rows_of(entering, sublayer.unit)]])
            folds = self._moments(sublayer, sublayer.narrowed(candidates), stream, target)
            kept = choose(WideOutput(folds, weight, sublayer.unit, sublayer.keep))
            units, weight = candidates[kept.units], kept.folded
            folds = [fold.restricted(kept.rows) for fold in folds]
        return units, weight, folds

    def _inner(self, sublayer: "_Sublayer", weights: dict[str, Tensor], stream: Tensor, target: Tensor) -> Tensor:
        """The sublayer's inner projection, fitted anew with all else as it is in `weights`."""
        layer = self.decoder.layer(self.wide | weights, self.group[0])
        inner, output = (layer.get_submodule(name) for name in (sublayer.inner, sublayer.output))
        parts = [(stream[chunk], target[chunk] - stream[chunk]) for chunk in self.decoder.chunks(stream)]
        return refit_inner(partial(sublayer.run, layer), inner, output, parts)

    @property
    def _attention(self) -> "_Sublayer":
        """A key/value group owns its query heads' rows of o_proj's input, which stand side by side."""
        heads, kv_groups = self.config.num_attention_heads, self.config.num_key_value_heads
        unit = heads // kv_groups * self.decoder.head_dim
        return _Sublayer(VALUE, OUTPUT, unit, kv_groups, self._with_heads, self.decoder.attend)

    @property
    def _mlp(self) -> "_Sublayer":
        return _Sublayer(UP, DOWN, 1, self.config.intermediate_size, self._with_channels, self.decoder.transform)

    def _attended(self, weights: dict[str, Tensor], stream: Tensor) -> Tensor:
        """The residual stream with the attention's output added."""
        layer = self.decoder.layer(weights, self.group[0])
        after = torch.empty_like(stream)
        for chunk in self.decoder.chunks(stream):
            after[chunk] = stream[chunk] + self.decoder.attend(layer, stream[chunk])
        return after

    def _moments(
        self, sublayer: "_Sublayer", weights: dict[str, Tensor], stream: Tensor, target: Tensor
    ) -> list[Moments]:
        """Per fold, the moments of the sublayer's features on `stream` against what it lacks to `target`."""
        features_count = weights[f"{sublayer.output}.weight"].shape[1]
        layer = without_outputs(self.decoder.layer(self.wide | weights, self.group[0]))
        bias = self.wide.get(f"{sublayer.output}.bias")
        moments = []
        for fold in self.folds:
            total = Moments.zeros(features_count, stream.shape[-1], stream.device)
            for chunk in self.decoder.chunks(stream[fold]):
                part, missing = stream[fold][chunk], target[fold][chunk] - stream[fold][chunk]
                if bias is not None:
                    missing = missing - bias
                features = sublayer.run(layer, part)
                total = total.including(features.flatten(0, 1), missing.flatten(0, 1))
            moments.append(total)
        return moments

    def _with_heads(self, kv_groups: Tensor) -> dict[str, Tensor]:
        """The attention of these key/value groups of the flattened layer, each with its query heads."""
        queries, keys = rows_of(kv_groups, self._attention.unit), rows_of(kv_groups, self.decoder.head_dim)
        return self._narrowed({QUERY: queries, KEY: keys, VALUE: keys}, OUTPUT, queries)

    def _with_channels(self, channels: Tensor) -> dict[str, Tensor]:
        """The MLP of these channels of the flattened layer."""
        return self._narrowed(dict.fromkeys((GATE, UP), channels), DOWN, channels)

    def _narrowed(self, rows: Mapping[str, Tensor], output: str, columns: Tensor) -> dict[str, Tensor]:
        """The given rows of the flattened layer's projections, weights and biases, and columns of its output."""
        taken = {
            name: self.wide[name][index]
            for projection, index in rows.items()
            for name in (f"{projection}.weight", f"{projection}.bias")
            if name in self.wide
        }
        return taken | {f"{output}.weight": self.wide[f"{output}.weight"][:, columns]}


@dataclass(frozen=True)
class _Sublayer:
    """Attention or the MLP of a flattened layer.

    inner: the projection that the features are linear in. output: the one that sums them. unit: features that stay or
    go together. keep: units of a stock layer. narrowed: the weights of some units alone. run: a layer's output for a
    stream.
    """

    inner: str
    output: str
    unit: int
    keep: int
    narrowed: Callable[[Tensor], dict[str, Tensor]]
    run: Callable[[DecoderLayer, Tensor], Tensor]


def _as_parameter(output: Tensor) -> Tensor:
    """A projection (features, d) float64 in the layout of a linear layer's weight, float32."""
    return output.T.float().contiguous()
