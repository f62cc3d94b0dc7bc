"""How alike the layers' inputs are: one dense pass over a subsample, and the mean cosine of each pair.

Source: FlattenGPT (arXiv 2602.08858), the similarity behind its layer grouping.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flattengpt_core.calibration import subsample
from flattengpt_core.decoder import Decoder
from flattengpt_core.language_head import embed
from flattengpt_core.models import Checkpoint

SIMILARITY_TOKENS = 4096
"""Tokens the similarity is averaged over; more changed no group on the demo model."""


@torch.inference_mode()
def unit_hidden_states(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> list[Tensor]:
    """The L + 1 hidden states before, between and after the layers, scaled to unit length, (tokens, width) each.

    From about SIMILARITY_TOKENS tokens, taken evenly from the folds.
    """
    tokens = subsample(folds, SIMILARITY_TOKENS)
    decoder = Decoder(source.config, window_length=tokens.shape[1], device=device)
    return [_unit(hidden) for hidden in hidden_states(source, decoder, tokens)]


def hidden_states(source: Checkpoint, decoder: Decoder, tokens: Tensor) -> Iterator[Tensor]:
    """The L + 1 hidden states before, between and after the layers, (windows, length, width) each."""
    hidden = embed(source, tokens, device=decoder.device)
    yield hidden
    for index in range(source.info.num_layers):
        hidden = decoder.run(source.layer(index), index, hidden)
        yield hidden


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


def _unit(hidden: Tensor) -> Tensor:
    return torch.nn.functional.normalize(hidden.flatten(0, 1), dim=-1)
