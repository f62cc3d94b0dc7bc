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


MASSIVE_GROWTH = 30.0
"""How many times the median token's growth a token must grow in a layer to be called a massive activation. On the demo
model layer 11 makes them (177 times), and no other layer lets a token grow more than 7 times as much as the median."""


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


@dataclass(frozen=True)
class Survey:
    """What one dense pass says of the layers that could merge.

    similarity: (L + 1, L + 1), mean cosine of the hidden states before, between and after the layers.
    growth: (L,), how many times the median token's growth the norm of the token that grows most grows in each layer.
    kinds: what each layer is; layers of different kinds never merge. All alike if None.
    """

    similarity: Tensor
    growth: Tensor
    kinds: Sequence[str] | None

    @property
    def inputs(self) -> Tensor:
        """(L, L), the similarity of the layers' inputs."""
        return self.similarity[:-1, :-1]

    @property
    def departure(self) -> Tensor:
        """What each run of layers would cost as one layer, (L, L): 1 - mean cosine of two hidden states.

        [first, last] compares the state after layer `first`, which the merged layer can reach, with that after
        `last`, which it should reach; so a single layer costs nothing. Entries below the diagonal are 0. A layer that
        makes massive activations costs infinitely much in a run: the cosine hardly sees the few tokens that carry
        them, yet every later layer attends to these (demo model, 20 layers: WikiText-2 perplexity 128 with layers
        8 to 18 as one, 57 with 2 to 6 and 12 to 18).
        """
        departure = (1 - self.similarity[1:, 1:]).clamp(min=0).triu()
        for layer in (self.growth > MASSIVE_GROWTH).nonzero().flatten().tolist():
            departure[: layer + 1, layer:] = math.inf
            departure[layer, layer] = 0
        return departure


@torch.inference_mode()
def survey(source: Checkpoint, folds: Sequence[Tensor], *, device: torch.device) -> Survey:
    """One dense pass over about SIMILARITY_TOKENS tokens of the calibration windows."""
    units: list[Tensor] = []
    growth: list[float] = []
    for run in dense_pass(source, folds, device=device):
        units = units or [unit_length(run.before)]
        units.append(unit_length(run.after))
        growth.append(token_growth(run))
    return Survey(layer_similarity(units), torch.tensor(growth), source.kinds)


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
