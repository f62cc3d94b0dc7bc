"""From a dense checkpoint and calibration windows to fewer layers, by any of the methods.

One dense pass over a subsample says which layers are alike; then a method either drops layers or walks once over
them and merges groups. Knows nothing of texts, evaluation or where the result goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.baselines.shortgpt import block_influence, layers_kept
from flattengpt_core.decoder import Decoder
from flattengpt_core.errors import InvalidTarget
from flattengpt_core.grouping import Group, group_layers, layer_similarity
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.progress import Progress
from flattengpt_core.prune import published_channels, published_heads, regressed_channels, regressed_heads
from flattengpt_core.walk import MergedGroup, Pruner, walk

SIMILARITY_TOKENS = 4096
"""Tokens the similarity is averaged over; more changed no group on the demo model."""

PRUNERS = {
    "flattengpt": Pruner(regressed_heads, regressed_channels),
    "flattengpt-paper": Pruner(published_heads, published_channels),
}


@dataclass(frozen=True)
class Compressed:
    """What a method did: which source layers stand behind each new layer, and how each merged group came out."""

    groups: list[Group]
    merged: list[MergedGroup]


def compress_layers(
    source: Checkpoint,
    folds: Sequence[Tensor],
    writer: CheckpointWriter,
    progress: Progress,
    *,
    layers: int,
    method: str,
    device: torch.device,
) -> Compressed:
    """Hand `layers` layers to `writer`.

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets.
        method: a key of `methods.METHODS`.
    """
    states = unit_hidden_states(source, folds, device=device)
    if method == "shortgpt":
        kept = layers_kept(block_influence(states), layers)
        for position, index in enumerate(kept):
            writer.add_layer(source.layer(index), first_member=index)
            progress.step(position + 1, layers)
        return Compressed([(index,) for index in kept], [])
    kinds = getattr(source.config, "layer_types", None)
    try:
        groups = group_layers(layer_similarity(states[:-1]), layers, kinds)
    except ValueError as error:
        raise InvalidTarget(f"{layers} layers cannot be reached: {error}.", field="layers") from None
    merged = walk(source, groups, folds, PRUNERS[method], writer, progress, device=device)
    return Compressed(groups, merged)


@torch.inference_mode()
def unit_hidden_states(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> list[Tensor]:
    """The L + 1 hidden states before, between and after the layers, scaled to unit length, (tokens, width) each.

    From about SIMILARITY_TOKENS tokens, taken evenly from the folds.
    """
    length = folds[0].shape[1]
    share = max(1, SIMILARITY_TOKENS // length // len(folds))
    tokens = torch.cat([fold[:share] for fold in folds]).to(device)
    decoder = Decoder(source.config, window_length=length, device=device)
    hidden = torch.nn.functional.embedding(tokens, source.tensor("model.embed_tokens.weight").to(device, torch.float32))
    states = [_unit(hidden)]
    for index in range(source.info.num_layers):
        hidden = decoder.run(source.layer(index), index, hidden)
        states.append(_unit(hidden))
    return states


def _unit(hidden: Tensor) -> Tensor:
    return torch.nn.functional.normalize(hidden.flatten(0, 1), dim=-1)
