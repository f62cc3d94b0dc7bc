"""How alike the layers' inputs are: one dense pass over a subsample, and the mean cosine or angle of each pair.

Source: FlattenGPT (arXiv 2602.08858), the similarity behind its layer grouping.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from flattengpt_core.decoder import Decoder, embed
from flattengpt_core.models import Checkpoint

SIMILARITY_TOKENS = 4096
"""Tokens the similarity is averaged over; more changed no group on the demo model."""


@torch.inference_mode()
def unit_hidden_states(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> list[Tensor]:
    """The L + 1 hidden states before, between and after the layers, scaled to unit length, (tokens, width) each.

    From the windows that `sampled` takes.
    """
    tokens = sampled(folds)
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    hidden = embed(source, tokens, device)
    states = [unit(hidden)]
    for index in range(source.info.num_layers):
        hidden = decoder.run(source.layer(index), index, hidden)
        states.append(unit(hidden))
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


def angular_distance(before: Tensor, after: Tensor) -> float:
    """`E_t[arccos(cos(x_t, y_t))] / pi`, 0 for the same direction and 1 for opposite ones.

    Args:
        before, after: hidden states of the same tokens, each (tokens, width), scaled to unit length per token.
    """
    cosine = torch.linalg.vecdot(before.float(), after.float()).clamp(-1, 1)
    return cosine.arccos().mean().item() / math.pi
