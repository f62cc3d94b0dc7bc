"""What a model shows of the theory behind merging its layers, measured in one dense pass.

Source: FlattenGPT (arXiv 2602.08858), its motivation: in a pre-norm transformer the hidden states' variance grows
with depth, so a deep layer adds relatively little, its Jacobian nears the identity, and neighbours read alike inputs.
Knows nothing of texts or figures.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flattengpt_core.baselines.shortgpt import block_influence
from flattengpt_core.decoder import Decoder
from flattengpt_core.divergence import divergence
from flattengpt_core.grouping import group_layers, merge_costs
from flattengpt_core.models import Checkpoint
from flattengpt_core.progress import Progress
from flattengpt_core.similarity import dense_pass, layer_similarity, token_growth, unit_length

ALIKE = 0.9
"""The mean cosine above which the paper finds the inputs of neighbouring layers."""

MASSIVE_GROWTH = 30.0
"""How many times the median token's growth a token must grow in a layer to be called a massive activation. On the demo
model layer 11 makes them (177 times), and no other layer lets a token grow more than 7 times as much as the median."""

JACOBIAN_WINDOWS = 4
JACOBIAN_TOKENS = 256
"""Tokens of each of those windows, its first ones: they see no others, so the cut changes none of their outputs."""
JACOBIAN_VECTORS = 4
"""Random directions. On the demo model they agree within 4 %, but for the layer that makes the massive activations."""


@dataclass(frozen=True)
class PowerLaw:
    """`value ~ depth ** exponent`, and the share of the logarithms' variation that this explains."""

    exponent: float
    r_squared: float


@dataclass(frozen=True)
class Diagnosis:
    """What was measured of a model of L layers. All tensors are on the CPU, and none has a unit.

    states: (L + 1, L + 1), mean cosine of the hidden states before, between and after the layers.
    divergence: (L,), see `divergence.divergence`.
    token_growth: (L,), see `similarity.token_growth`; far above 1 where a layer makes massive activations.
    variance: (L + 1,), of the hidden states after 0 to L layers; see `token_variance`.
    growth: of the variance over the depths 1 to L. The paper derives an exponent of 2.
    jacobian_distance: (L,); see `jacobian_distance`.
    block_influence: (L,), 1 - mean cosine of each layer's input and output.
    """

    states: Tensor
    divergence: Tensor
    token_growth: Tensor
    variance: Tensor
    growth: PowerLaw
    jacobian_distance: Tensor
    block_influence: Tensor

    @property
    def similarity(self) -> Tensor:
        """(L, L), mean cosine of the layers' inputs."""
        return self.states[:-1, :-1]

    @property
    def costs(self) -> Tensor:
        """(L, L), what each run of layers would cost as one; see `grouping.merge_costs`."""
        return merge_costs(self.states, self.divergence)

    def as_dict(self) -> dict[str, Any]:
        """The measurements as JSON."""
        return {
            "similarity": self.similarity.tolist(),
            "divergence": self.divergence.tolist(),
            "token_growth": self.token_growth.tolist(),
            "variance": self.variance.tolist(),
            "variance_growth": asdict(self.growth),
            "jacobian_distance": self.jacobian_distance.tolist(),
            "block_influence": self.block_influence.tolist(),
        }


def diagnose(
    source: Checkpoint, folds: Sequence[Tensor], progress: Progress, *, seed: int, device: torch.device
) -> Diagnosis:
    """Measure the model on the tokens that the similarity behind its grouping is measured on.

    Args:
        folds: calibration windows (windows, length) of token ids, in disjoint sets.
        seed: which random directions the Jacobians are measured in.
    """
    length = min(JACOBIAN_TOKENS, folds[0].shape[1])
    probe = Decoder(source.config, window_length=length, device=device)
    directions: list[Tensor] = []
    units: list[Tensor] = []
    growth: list[float] = []
    variance: list[float] = []
    distances: list[float] = []
    for index, run in enumerate(dense_pass(source, folds, device=device)):
        if index == 0:
            units.append(unit_length(run.before))
            variance.append(token_variance(run.before))
        units.append(unit_length(run.after))
        growth.append(token_growth(run))
        variance.append(token_variance(run.after))
        sample = _evenly(run.before, JACOBIAN_WINDOWS)[:, :length]
        directions = directions or random_directions(JACOBIAN_VECTORS, sample, seed)
        distances.append(jacobian_distance(partial(probe.block, run.layer), sample, directions))
        progress.step(index + 1, source.info.num_layers)
    return Diagnosis(
        states=layer_similarity(units),
        divergence=divergence(source, folds, device=device),
        token_growth=torch.tensor(growth),
        variance=torch.tensor(variance),
        growth=power_law(variance[1:]),
        jacobian_distance=torch.tensor(distances),
        block_influence=block_influence(units).cpu(),
    )


def token_variance(hidden: Tensor) -> float:
    """The variance over the width of a token's hidden state, as the median over all tokens of (windows, length, width).

    The mean would show only the few tokens with massive activations: in the demo model's middle layers, the first of
    each window has some 20,000 times the variance of the others.
    """
    return hidden.var(dim=-1).median().item()


def power_law(values: Sequence[float]) -> PowerLaw:
    """Least squares of log value against log depth, for positive values at the depths 1, 2, 3 ..."""
    depth = torch.arange(1, len(values) + 1, dtype=torch.float64).log()
    level = torch.tensor(values, dtype=torch.float64).log()
    depth, level = depth - depth.mean(), level - level.mean()
    exponent = (depth @ level) / (depth @ depth)
    variation = (level @ level).item()
    missed = (level - exponent * depth).square().sum().item()
    constant = variation < 1e-20  # but for rounding; the fit misses nothing of it
    return PowerLaw(exponent.item(), 1.0 if constant else 1 - missed / variation)


def random_directions(count: int, like: Tensor, seed: int) -> list[Tensor]:
    """`count` vectors of the shape of `like`, of unit length, evenly distributed over the sphere."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, *like.shape, generator=generator)
    return [(vector / vector.norm()).to(like.device) for vector in drawn]


def jacobian_distance(block: Callable[[Tensor], Tensor], at: Tensor, directions: Sequence[Tensor]) -> float:
    """How far the Jacobian J of `block` at `at` is from the identity: the root mean square of `||(J - I) v|| / ||v||`.

    Over random directions its square estimates `||J - I||_F^2 / ||I||_F^2` without bias. The products J v are exact
    forward-mode derivatives. Attention takes its plain form for them: the fused kernels have no forward derivative.

    Args:
        at: what enters the block, (windows, length, width).
        directions: vectors v of the same shape.
    """
    squares = []
    with sdpa_kernel(SDPBackend.MATH):
        for vector in directions:
            product = torch.func.jvp(block, (at,), (vector,))[1]
            squares.append((product - vector).square().sum() / vector.square().sum())
    return torch.stack(squares).mean().sqrt().item()


def fewest_alike(similarity: Tensor, kinds: Sequence[str] | None = None) -> int:
    """The least number of groups to which merging goes while first and last layer of each are above ALIKE.

    Args:
        similarity, kinds: as for `group_layers`.
    """
    for target in range(len(similarity) - 1, 0, -1):
        try:
            groups = group_layers(similarity, target, kinds)
        except ValueError:
            return target + 1
        if any(similarity[group[0], group[-1]] <= ALIKE for group in groups):
            return target + 1
    return 1


def _evenly(windows: Tensor, count: int) -> Tensor:
    """At most `count` of the windows, evenly spaced, so that each text of a mix is among them."""
    return windows[:: max(1, len(windows) // count)][:count]
