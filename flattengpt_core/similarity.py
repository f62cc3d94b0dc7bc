"""How alike the layers' inputs are: one dense pass over a subsample, and the mean cosine or angle of each pair.

Source: FlattenGPT (arXiv 2602.08858), the similarity behind its layer grouping.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.calibration import subsample
from flattengpt_core.decoder import Decoder, DecoderLayer
from flattengpt_core.language_head import embed
from flattengpt_core.models import Checkpoint

SIMILARITY_TOKENS = 4096
"""Tokens the similarity is averaged over, so that its pass costs a fraction of the walk's. Where pairs are about as
alike, which tokens these are can decide between them."""


@dataclass(frozen=True)
class LayerRun:
    """A layer of the dense model and the hidden states (windows, length, width) that enter and leave it."""

    layer: DecoderLayer
    before: Tensor
    after: Tensor


def dense_pass(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> Iterator[LayerRun]:
    """Run the layers on about SIMILARITY_TOKENS tokens, spread evenly over the folds."""
    tokens = subsample(folds, SIMILARITY_TOKENS)
    return layer_runs(source, Decoder(source.config, window_length=tokens.shape[1], device=device), tokens)


def layer_runs(source: Checkpoint, decoder: Decoder, tokens: Tensor) -> Iterator[LayerRun]:
    """Run the layers one after the other on token ids (windows, length); memory never holds more than two of them."""
    hidden = embed(source, tokens, device=decoder.device)
    for index in range(source.info.num_layers):
        layer = decoder.layer(source.layer(index), index)
        before, hidden = hidden, decoder.run_layer(layer, hidden)
        yield LayerRun(layer, before, hidden)


def hidden_states(runs: Iterator[LayerRun]) -> Iterator[Tensor]:
    """The L + 1 hidden states (windows, length, width) before, between and after the layers."""
    first = next(runs)
    yield first.before
    yield first.after
    for run in runs:
        yield run.after


@torch.inference_mode()
def unit_hidden_states(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> list[Tensor]:
    """The L + 1 hidden states of `dense_pass` before, between and after the layers, see `unit_length`."""
    return [unit_length(hidden) for hidden in hidden_states(dense_pass(source, folds, device=device))]


def layer_similarity(inputs: Sequence[Tensor]) -> Tensor:
    """Mean cosine similarity of each pair of hidden states, e.g. the inputs of the layers, (L, L) float32.

    Args:
        inputs: per layer, each (tokens, width), scaled to unit length per token.
    """
    num_layers = len(inputs)
    similarity = torch.eye(num_layers)
    for later in range(num_layers):
        for earlier in range(later):
            mean_cosine = torch.linalg.vecdot(inputs[earlier].float(), inputs[later].float()).mean()
            similarity[earlier, later] = similarity[later, earlier] = mean_cosine.item()
    return similarity


def token_growth(run: LayerRun) -> float:
    """How many times the median token's growth the norm of the token that grows most grows in the layer."""
    growth = run.after.norm(dim=-1) / run.before.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
    return (growth.max() / growth.median()).item()


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
