"""CoMe (Wang et al., arXiv 2510.15304): concatenate what matters most in two neighbouring layers, pair after pair.

Until the target is reached, the pair of neighbours whose joint input and output are closest in angle becomes one
layer. Of its n units (key/value groups with all their query heads; MLP channels) each of the two keeps a share in
proportion to its block influence, `n BI_1 / (BI_1 + BI_2)` rounded, and in it the units of greatest importance
`E[|z|] · ‖W‖`: mean magnitude of the unit's features times norm of their rows of the output projection. What is kept
stands side by side in the stock width. Norm gains, and the biases of the output projections, are averaged. Nothing is
folded or compensated: that is the method; the authors leave repair to a distillation that is not part of this file.

Chosen where the source leaves room: each layer keeps at least one unit (with a single key/value group the more
influential layer gives it); angles are averaged over all tokens, not taken at each window's last; a merged layer may
merge again; everything is measured anew on the layers as they are after each merge, on the tokens of
`similarity.dense_pass`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from flattengpt_core.baselines.shortgpt import block_influence
from flattengpt_core.calibration import subsample
from flattengpt_core.compressed import Compressed
from flattengpt_core.decoder import Decoder, without_outputs
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.families import DOWN, GATE, INPUT_NORM, KEY, MLP_NORM, OUTPUT, QUERY, UP, VALUE
from flattengpt_core.flatten import LayerWeights
from flattengpt_core.grouping import Group
from flattengpt_core.language_head import embed
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import magnitude_times_norm, rows_of, top_units
from flattengpt_core.similarity import SIMILARITY_TOKENS, angular_distance, unit_length


@dataclass(frozen=True)
class CurrentLayer:
    """A layer of the model as merged so far: the source layers behind it, its weights if it is none of them."""

    members: Group
    merged: LayerWeights | None = None

    def weights(self, source: Checkpoint) -> LayerWeights:
        return source.layer(self.members[0]) if self.merged is None else self.merged


@dataclass(frozen=True)
class Importance:
    """How much each unit of a layer adds to the residual stream: (key/value groups,) and (channels,), float64."""

    groups: Tensor
    channels: Tensor


def share_of_first(units: int, first: float, second: float) -> int:
    """How many of `units` the first of two layers keeps by their block influences; 1 to units - 1 where it can be."""
    first, second = max(first, 0.0), max(second, 0.0)  # rounding may take an influence below zero
    total = first + second
    share = round(units * first / total) if total > 0 else units // 2
    return share if units == 1 else min(max(share, 1), units - 1)


def concatenate(
    pair: tuple[LayerWeights, LayerWeights],
    groups: tuple[Tensor, Tensor],
    channels: tuple[Tensor, Tensor],
    *,
    heads_per_group: int,
    head_dim: int,
) -> dict[str, Tensor]:
    """One layer of the given units of two, the first layer's before the second's.

    Args:
        groups: the key/value groups to keep of each layer, ascending. Hugging Face orders query heads group by group,
            so that group g owns the `heads_per_group * head_dim` rows of q_proj from the g-th such block on.
        channels: the MLP channels to keep of each layer, ascending.
    """
    queries = tuple(rows_of(kept, heads_per_group * head_dim) for kept in groups)
    keys = tuple(rows_of(kept, head_dim) for kept in groups)
    rows = {QUERY: queries, KEY: keys, VALUE: keys, GATE: channels, UP: channels}
    merged = {
        f"{projection}.{part}": torch.cat(
            [layer[f"{projection}.{part}"][kept] for layer, kept in zip(pair, by_layer, strict=True)]
        )
        for projection, by_layer in rows.items()
        for part in ("weight", "bias")
        if f"{projection}.{part}" in pair[0]
    }
    for projection, by_layer in ((OUTPUT, queries), (DOWN, channels)):
        columns = [layer[f"{projection}.weight"][:, kept] for layer, kept in zip(pair, by_layer, strict=True)]
        merged[f"{projection}.weight"] = torch.cat(columns, dim=1)
    for name in (f"{INPUT_NORM}.weight", f"{MLP_NORM}.weight", f"{OUTPUT}.bias", f"{DOWN}.bias"):
        if name in pair[0]:
            merged[name] = (pair[0][name].float() + pair[1][name].float()) / 2
    return merged


@torch.inference_mode()
def compress(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    device: torch.device,
) -> Compressed:
    """Merge pairs of neighbours until `layers` layers are left; see `compress.Compressor`.

    Memory holds the hidden states before and after each layer, and the layers merged so far.

    Raises:
        InvalidTarget: `layers` is not 1 to L - 1, or needs a merge of layers of different kinds.
    """
    num_layers = source.info.num_layers
    layers_to_keep(num_layers, layers=layers)
    tokens = subsample(folds, SIMILARITY_TOKENS)
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    least = sum(1 for _ in groupby(range(num_layers), key=decoder.kind))
    if layers < least:
        raise InvalidTarget(
            f"{layers} layers cannot be reached: with {least} left no two neighbours are of the same kind.",
            field="layers",
        )
    current = [CurrentLayer((index,)) for index in range(num_layers)]
    states = [embed(source, tokens, device=device)]
    while len(current) > layers:
        for layer in current[len(states) - 1 :]:
            states.append(decoder.run(layer.weights(source), layer.members[0], states[-1]))
        at = _closest_pair(current, states, decoder)
        current[at : at + 2] = [_merge(source, current[at : at + 2], states[at : at + 3], decoder)]
        del states[at + 1 :]  # what the merged layer no longer puts out, and all that follows from it
        progress.step(num_layers - len(current), num_layers)
    for position, layer in enumerate(current):
        writer.add_layer(layer.weights(source), first_member=layer.members[0])
        progress.step(num_layers - layers + position + 1, num_layers)
    return Compressed([layer.members for layer in current], [])


def _closest_pair(current: Sequence[CurrentLayer], states: Sequence[Tensor], decoder: Decoder) -> int:
    """The first of the two neighbours of one kind whose joint input and output are closest; the earliest if equal."""
    kinds = [decoder.kind(layer.members[0]) for layer in current]
    candidates = [at for at in range(len(current) - 1) if kinds[at] == kinds[at + 1]]
    return min(candidates, key=lambda at: angular_distance(unit_length(states[at]), unit_length(states[at + 2])))


def _merge(
    source: Checkpoint, pair: Sequence[CurrentLayer], states: Sequence[Tensor], decoder: Decoder
) -> CurrentLayer:
    """One layer in place of two, by the residual streams (windows, length, width) before, between and after them."""
    first, second = (layer.weights(source) for layer in pair)
    influence, other = block_influence([unit_length(state) for state in states]).tolist()
    importance = [
        _importance(weights, layer.members[0], stream, decoder)
        for weights, layer, stream in zip((first, second), pair, states, strict=False)  # what comes after enters none
    ]
    groups = _kept([each.groups for each in importance], influence, other)
    channels = _kept([each.channels for each in importance], influence, other)
    merged = concatenate(
        (first, second),
        groups,
        channels,
        heads_per_group=decoder.config.num_attention_heads // decoder.config.num_key_value_heads,
        head_dim=decoder.head_dim,
    )
    return CurrentLayer(pair[0].members + pair[1].members, merged)


def _kept(scores: Sequence[Tensor], influence: float, other: float) -> tuple[Tensor, Tensor]:
    """The units of greatest score that each of two layers keeps, on the CPU, where the weights are."""
    units = len(scores[0])
    share = share_of_first(units, influence, other)
    return top_units(scores[0], share).cpu(), top_units(scores[1], units - share).cpu()


def _importance(weights: LayerWeights, index: int, stream: Tensor, decoder: Decoder) -> Importance:
    """How much each unit of the layer adds to the residual stream `stream` (windows, length, width)."""
    layer, features = decoder.layer(weights, index), without_outputs(decoder.layer(weights, index))
    heads = torch.zeros(layer.self_attn.o_proj.in_features, dtype=torch.float64, device=decoder.device)
    channels = torch.zeros(layer.mlp.down_proj.in_features, dtype=torch.float64, device=decoder.device)
    for chunk in decoder.chunks(stream):
        attended = decoder.attend(features, stream[chunk])
        between = stream[chunk] + layer.self_attn.o_proj(attended)
        heads += attended.abs().sum((0, 1))
        channels += decoder.transform(features, between).abs().sum((0, 1))
    tokens = stream.shape[0] * stream.shape[1]
    group_rows = len(heads) // decoder.config.num_key_value_heads
    return Importance(
        magnitude_times_norm(heads / tokens, layer.self_attn.o_proj.weight.T.double(), group_rows),
        magnitude_times_norm(channels / tokens, layer.mlp.down_proj.weight.T.double(), 1),
    )
