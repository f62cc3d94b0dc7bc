"""Second moments of a layer's features, and the ridge regressions that need nothing else. Pure linear algebra.

Features are the inputs of an output projection (heads or MLP channels), rows are tokens. Products are taken in
float32 and summed in float64, so that more calibration tokens cost no more memory and lose no precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

_GRAM_BLOCKS = 4
"""Blocks of columns in which a Gram matrix is taken, to spare most of what its symmetry says twice: 0.6 of the time."""


@dataclass(frozen=True)
class Moments:
    """What a set of tokens says about features Z (tokens, m) and targets Y (tokens, d).

    gram: ZᵀZ (m, m) float64. cross: ZᵀY (m, d) float64. energy: ‖Y‖² float64 scalar.
    magnitude: sum over tokens of |Z| (m,) float64. tokens: how many.
    """

    gram: Tensor
    cross: Tensor
    energy: Tensor
    magnitude: Tensor
    tokens: int

    @classmethod
    def zeros(cls, features: int, width: int, device: torch.device) -> "Moments":
        """The moments of no token."""
        options: dict[str, Any] = {"dtype": torch.float64, "device": device}
        return cls(
            torch.zeros(features, features, **options),
            torch.zeros(features, width, **options),
            torch.zeros((), **options),
            torch.zeros(features, **options),
            0,
        )

    def including(self, features: Tensor, target: Tensor) -> "Moments":
        """These moments with more tokens in them; the tensors are updated in place, so drop the old value."""
        width = -(-features.shape[1] // _GRAM_BLOCKS)
        for start in range(0, features.shape[1], width):
            block = slice(start, start + width)
            rows = features[:, block].T @ features[:, start:]
            self.gram[block, start:].add_(rows)
            self.gram[start + width :, block].add_(rows[:, width:].T)
        self.cross.add_(features.T @ target)
        self.energy.add_(target.square().sum(dtype=torch.float64))
        self.magnitude.add_(features.abs().sum(0))
        return replace(self, tokens=self.tokens + len(features))

    def restricted(self, kept: Tensor) -> "Moments":
        """The moments of the features at the indices `kept` alone."""
        return replace(self, gram=self.gram[kept][:, kept], cross=self.cross[kept], magnitude=self.magnitude[kept])

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.gram + other.gram,
            self.cross + other.cross,
            self.energy + other.energy,
            self.magnitude + other.magnitude,
            self.tokens + other.tokens,
        )

    def error(self, weight: Tensor) -> Tensor:
        """‖Y − Z W‖² for W (m, d), from the moments alone."""
        return self.energy - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()


def pooled(folds: Sequence[Moments]) -> Moments:
    """The moments of all folds' tokens together."""
    total = folds[0]
    for fold in folds[1:]:
        total = total + fold
    return total


def solve(gram: Tensor, right: Tensor, ridge: Tensor | float) -> Tensor:
    """(G + ridge I)⁻¹ R by Cholesky, in float64; `ridge` > 0 keeps it positive definite."""
    loaded = gram.clone()
    loaded.diagonal().add_(ridge)
    return torch.cholesky_solve(right, torch.linalg.cholesky(loaded))


def ridge_to_prior(moments: Moments, prior: Tensor, ridge: Tensor | float) -> Tensor:
    """The W (m, d) that minimises ‖Y − Z W‖² + ridge ‖W − prior‖².

    `W = W_0 + (ZᵀZ + ridge I)⁻¹ (ZᵀY − ZᵀZ W_0)` (the project's method page, section 7).
    """
    return prior + solve(moments.gram, moments.cross - moments.gram @ prior, ridge)


def mean_energy(gram: Tensor) -> Tensor:
    """The mean eigenvalue of a Gram matrix, the unit in which ridges are given."""
    return gram.diagonal().mean()


def held_out_ridge(folds: Sequence[Moments], priors: Sequence[Tensor], grid: Sequence[float]) -> float:
    """The ridge, in units of the mean eigenvalue, that predicts folds left out of the fit best.

    Each fold is predicted by a fit on all others; errors are summed relative to each fold's target energy, so that
    no fold counts more for being louder. With one text a fold, a large ridge wins where the fit does not carry over
    to other domains.

    Args:
        folds: two or more disjoint sets of tokens.
        priors: what each fit is drawn to, one for each fold left out.
        grid: the ridges to try.
    """
    total = pooled(folds)
    errors = torch.zeros(len(grid), dtype=torch.float64)
    for fold, prior in zip(folds, priors, strict=True):
        gram, residual = total.gram - fold.gram, total.cross - fold.cross
        residual = residual - gram @ prior
        eigenvalues, vectors = torch.linalg.eigh(gram)
        # In the eigenbasis each ridge is a division, and the fold's error a quadratic form. Float32 will do to choose.
        basis = vectors.float()
        rotated = basis.T @ residual.float()
        fold_gram = basis.T @ fold.gram.float() @ basis
        fold_cross = basis.T @ (fold.cross - fold.gram @ prior).float()
        eigenvalues, unit = eigenvalues.clamp(min=0).float(), mean_energy(gram).float()
        for index, ridge in enumerate(grid):
            step = rotated / (eigenvalues + ridge * unit)[:, None]
            change = (step * (fold_gram @ step - 2 * fold_cross)).sum()
            errors[index] += (change / fold.energy).item()
    return grid[int(errors.argmin())]
