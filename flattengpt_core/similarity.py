"""How alike the layers' inputs are: one dense pass over a subsample, and the mean cosine or angle of each pair.

Source: FlattenGPT (arXiv 2602.08858), the similarity behind its layer grouping.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.decoder import Decoder, DecoderLayer, embed
from flattengpt_core.models import Checkpoint

SIMILARITY_TOKENS = 4096
"""Tokens the similarity is averaged over; more changed no group on the demo model."""


@dataclass(frozen=True)
class LayerRun:
    """A layer of the dense model and the hidden states (windows, length, width) that enter and leave it."""

    layer: DecoderLayer
    before: Tensor
    after: Tensor


def dense_pass(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> Iterator[LayerRun]:
    """Run the layers one after the other, so that memory never holds more than two of them.

    On about SIMILARITY_TOKENS tokens, taken evenly from the folds.
    """
    length = folds[0].shape[1]
    tokens = subsample(folds, SIMILARITY_TOKENS).to(device)
    decoder = Decoder(source.config, window_length=length, device=device)
    hidden = embed(source, tokens, device)
    for index in range(source.info.num_layers):
        layer = decoder.layer(source.layer(index), index)
        before, hidden = hidden, decoder.run_layer(layer, hidden)
        yield LayerRun(layer, before, hidden)


def subsample(folds: Sequence[Tensor], tokens: int) -> Tensor:
    """About so many tokens in whole windows (n, length), spread over the folds: each holds its texts in a row."""
    length = folds[0].shape[1]
    share = max(1, tokens // length // len(folds))
    return torch.cat([fold[torch.linspace(0, len(fold) - 1, min(share, len(fold))).round().long()] for fold in folds])


@torch.inference_mode()
def unit_hidden_states(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> list[Tensor]:
    """The L + 1 hidden states of `dense_pass` before, between and after the layers, see `unit_length`."""
    states: list[Tensor] = []
    for run in dense_pass(source, folds, device=device):
        states = states or [unit_length(run.before)]
        states.append(unit_length(run.after))
    return states


def sampled(folds: Sequence[Tensor]) -> Tensor:
    """Windows of about SIMILARITY_TOKENS tokens, the first of each fold in equal shares; (windows, length)."""
    share = max(1, SIMILARITY_TOKENS // folds[0].shape[1] // len(folds))
    return torch.cat([fold[:share] for fold in folds])


def unit(hidden: Tensor) -> Tensor:
    """Hidden states (windows, length, width), each scaled to unit length; (tokens, width)."""
    return torch.nn.functional.normalize(hidden.flatten(0, 1), dim=-1)


def layer_similarity(inputs: Sequence[Tensor]) -> Tensor:
    """Mean cosine similarity of the inputs of each pair of layers, (L, L) float32.

    Args:
        inputs: per layer the hidden states that enter it, each (tokens, width), scaled to unit length per token.
    """
    num_layers = len(inputs)
    similarity = torch.eye(num_layers)
    for later in range(num_layers):
        for earlier in range(later):
            mean_cosine = torch.linalg.vecdot(inputs[earlier].float(), inputs[later].float()).mean()
            similarity[earlier, later] = similarity[later, earlier] = mean_cosine.item()
    return similarity


def unit_length(hidden: Tensor) -> Tensor:
    """Hidden states (windows, length, width) as (tokens, width), each token's scaled to unit length."""
    return torch.nn.functional.normalize(hidden.flatten(0, 1), dim=-1)


def angular_distance(before: Tensor, after: Tensor) -> float:
    """`E_t[arccos(cos(x_t, y_t))] / pi`, 0 for the same direction and 1 for opposite ones.

    Args:
        before, after: hidden states of the same tokens, each (tokens, width), scaled to unit length per token.
    """
    cosine = torch.linalg.vecdot(before.float(), after.float()).clamp(-1, 1)
    return cosine.arccos().mean().item() / math.pi
