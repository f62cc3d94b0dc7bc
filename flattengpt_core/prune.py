"""Prune a flattened layer back to the stock width: which heads and channels stay, and what their output becomes.

Pure functions of the layer's second moments. Heads and MLP channels are one problem: features in units (a key/value
group with all its query heads, or one channel) that an output projection sums. Sources: FlattenGPT (arXiv
2602.08858) for `published`, the project's method page, section 7, for `regressed`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flattengpt_core.regression import (
    Moments,
    held_out_ridge,
    mean_energy,
    pooled,
    ridge_to_prior,
    solve,
)

PAPER_RIDGE = 10.0
"""The paper's lambda: ten times the mean eigenvalue."""

NYSTROM_RIDGE = 1e-3
ELIMINATION_RIDGE = 0.03
ELIMINATION_ROUNDS = 4
RIDGES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Candidates for the regression's ridge, in units of the mean eigenvalue."""


@dataclass(frozen=True)
class WideOutput:
    """An output projection n times too wide, and what calibration says about it.

    folds: moments of disjoint sets of tokens; the targets are what the layer should add to the residual stream.
    weight: (m, d) float64, rows are features. unit: features that stay or go together. keep: units to keep.
    """

    folds: Sequence[Moments]
    weight: Tensor
    unit: int
    keep: int


@dataclass(frozen=True)
class Kept:
    """What stays of a wide output: units and their feature rows, both ascending, and the rows' weights.

    folded: (kept rows, d) float64, with what the lost rows did folded in, as far as the method does that.
    """

    units: Tensor
    rows: Tensor
    folded: Tensor


@dataclass(frozen=True)
class Fit:
    """An output projection's new weight (kept rows, d) float64 and the ridge it was found with."""

    weight: Tensor
    ridge: float


Choice = Callable[[WideOutput], Kept]
Refit = Callable[[Sequence[Moments], Tensor], Fit]
"""From the folds' moments of the kept rows and their folded weights to the weights that are written."""


@dataclass(frozen=True)
class Pruner:
    """How a flattened layer becomes narrow.

    heads, channels: which stay. refit: what becomes of the output weights of those. rounds: from the number of a
    group's members to the order in which they enter the choice; what stays of one round competes in the next.
    alternations: how often v_proj and up_proj, and after each the output weights, are then fitted anew (see `inner`).
    """

    heads: Choice
    channels: Choice
    refit: Refit
    rounds: Callable[[int], list[range]]
    alternations: int = 0


def all_at_once(members: int) -> list[range]:
    """Every unit of every member competes at once; memory grows with the square of the members."""
    return [range(members)]


def one_by_one(members: int) -> list[range]:
    """The first two members compete, then what stays with the third, and so on: never more than two layers' units."""
    return [range(2), *(range(member, member + 1) for member in range(2, members))]


def rows_of(units: Tensor, unit: int) -> Tensor:
    """The feature indices of whole units, ascending."""
    offsets = torch.arange(unit, device=units.device)
    return (units.sort().values[:, None] * unit + offsets).flatten()


def top_units(score: Tensor, keep: int) -> Tensor:
    """The `keep` units of highest score, ascending; of equal scores the earlier stays."""
    return score.argsort(descending=True, stable=True)[:keep].sort().values


def contribution_magnitude(moments: Moments, weight: Tensor, unit: int) -> Tensor:
    """The paper's head importance, E[|z_c|] · ‖W_O,c‖ summed over a unit's features; (units,)."""
    return magnitude_times_norm(moments.magnitude / moments.tokens, weight, unit)


def magnitude_times_norm(magnitude: Tensor, weight: Tensor, unit: int) -> Tensor:
    """The features' mean magnitude (m,) times the norm of their rows of `weight` (m, d), summed by unit; (units,)."""
    return (magnitude * weight.norm(dim=1)).view(-1, unit).sum(1)


def leverage(gram: Tensor, ridge: Tensor | float) -> Tensor:
    """Ridge leverage scores, the diagonal of G (G + ridge I)⁻¹; (m,)."""
    inverse = solve(gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device), ridge)
    return 1 - ridge * inverse.diagonal()


def nystrom(gram: Tensor, weight: Tensor, rows: Tensor, ridge: Tensor | float) -> Tensor:
    """The kept rows with the lost ones folded in: W_S + (G_SS + ridge I)⁻¹ G_S,lost W_lost.

    For a ridge towards zero this is the least-squares answer (G_SS)⁻¹ G_S W.
    """
    lost = weight.clone()
    lost[rows] = 0
    return weight[rows] + solve(gram[rows][:, rows], gram[rows] @ lost, ridge)


def published_heads(wide: WideOutput) -> Kept:
    """As published: keep the key/value groups of greatest mean contribution, their output weights as they are."""
    units = top_units(contribution_magnitude(pooled(wide.folds), wide.weight, wide.unit), wide.keep)
    rows = rows_of(units, wide.unit)
    return Kept(units, rows, wide.weight[rows])


def published_channels(wide: WideOutput) -> Kept:
    """As published: keep the channels of greatest ridge leverage and fold the others in by Nystrom."""
    gram = pooled(wide.folds).gram
    ridge = PAPER_RIDGE * mean_energy(gram)
    rows = top_units(leverage(gram, ridge), wide.keep)
    return Kept(rows, rows, nystrom(gram, wide.weight, rows, ridge))


def as_folded(folds: Sequence[Moments], folded: Tensor) -> Fit:
    """As published: the folded weights are the result."""
    return Fit(folded, 0.0)


def missed_heads(wide: WideOutput) -> Kept:
    """Keep the key/value groups that the dense target misses most and fold the others in."""
    return _missed(wide, rounds=len(wide.weight))


def missed_channels(wide: WideOutput) -> Kept:
    """Keep the channels that the dense target misses most and fold the others in."""
    return _missed(wide, rounds=ELIMINATION_ROUNDS)


def regressed(folds: Sequence[Moments], folded: Tensor) -> Fit:
    """Ridge regression of the target on the kept rows, drawn to their folded weights; ridge by held-out folds."""
    ridge = held_out_ridge(folds, [folded] * len(folds), RIDGES)
    total = pooled(folds)
    return Fit(ridge_to_prior(total, folded, ridge * mean_energy(total.gram)), ridge)


def _missed(wide: WideOutput, *, rounds: int) -> Kept:
    total = pooled(wide.folds)
    units = surviving_units(total, wide.unit, wide.keep, rounds=rounds)
    rows = rows_of(units, wide.unit)
    return Kept(units, rows, nystrom(total.gram, wide.weight, rows, NYSTROM_RIDGE * mean_energy(total.gram)))


def surviving_units(moments: Moments, unit: int, keep: int, *, rounds: int) -> Tensor:
    """The `keep` units left when those whose loss raises the regression's error least go, in rounds; ascending.

    With W the ridge regression on all units that are left and H = (ZᵀZ + ridge I)⁻¹, dropping unit u alone raises
    the least error by tr(W_uᵀ (H_uu)⁻¹ W_u). Each round drops about the same number, at least one, and fits anew by
    the step of optimal brain surgery: with D what goes, H <- H - H_D (H_DD)⁻¹ H_Dᵀ and W <- W - H_D (H_DD)⁻¹ W_D.
    """
    gram = moments.gram.clone()
    gram.diagonal().add_(ELIMINATION_RIDGE * mean_energy(moments.gram))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    weight = inverse @ moments.cross
    units = torch.arange(len(gram) // unit, device=gram.device)
    start = len(units)
    rounds = min(rounds, start - keep)
    for round_ in range(1, rounds + 1):
        left = start - (start - keep) * round_ // rounds
        stays = top_units(_loss_without(inverse, weight, unit), left)
        units = units[stays]
        if round_ < rounds:
            inverse, weight = _refit(inverse, weight, rows_of(stays, unit))
    return units


def _loss_without(inverse: Tensor, weight: Tensor, unit: int) -> Tensor:
    """What dropping each unit alone adds to the squared error, tr(W_uᵀ (H_uu)⁻¹ W_u); (units,)."""
    if unit == 1:
        return weight.square().sum(1) / inverse.diagonal()
    units = len(weight) // unit
    parts = weight.view(units, unit, -1)
    own = inverse.view(units, unit, units, unit).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    return (parts * torch.linalg.solve(own, parts)).sum((1, 2))


def _refit(inverse: Tensor, weight: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """H and W of the features at the indices `stay` alone."""
    gone = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    gone[stay] = False
    go = gone.nonzero().flatten()
    across = inverse[stay][:, go]  # (stay, go)
    factor = torch.linalg.cholesky(inverse[go][:, go])
    carried = torch.cholesky_solve(torch.cat([across.T, weight[go]], dim=1), factor)
    left = torch.cat([inverse[stay][:, stay], weight[stay]], dim=1) - across @ carried
    return left[:, : len(stay)], left[:, len(stay) :]
