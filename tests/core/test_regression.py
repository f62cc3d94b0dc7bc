"""The regressions against numpy's least squares on the augmented system."""

import numpy
import pytest
import torch

from flattengpt_core.regression import (
    Moments,
    held_out_ridge,
    mean_energy,
    pooled,
    ridge_to_prior,
    solve,
)

FEATURES, WIDTH, TOKENS = 12, 5, 200


def moments_of(features: torch.Tensor, target: torch.Tensor) -> Moments:
    empty = Moments.zeros(features.shape[1], target.shape[1], features.device)
    return empty.including(features, target)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 50.0])
def test_ridge_equals_lstsq_on_the_augmented_system(ridge: float) -> None:
    z, y = torch.randn(TOKENS, FEATURES, dtype=torch.float64), torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    prior = torch.randn(FEATURES, WIDTH, dtype=torch.float64)
    augmented = numpy.vstack([z.numpy(), numpy.sqrt(ridge) * numpy.eye(FEATURES)])
    right = numpy.vstack([y.numpy(), numpy.sqrt(ridge) * prior.numpy()])
    expected = numpy.linalg.lstsq(augmented, right, rcond=None)[0]
    assert numpy.allclose(ridge_to_prior(moments_of(z, y), prior, ridge), expected, atol=1e-9)


def test_solve_equals_lstsq_without_a_prior() -> None:
    z, y = torch.randn(TOKENS, FEATURES, dtype=torch.float64), torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    augmented = numpy.vstack([z.numpy(), numpy.eye(FEATURES)])
    right = numpy.vstack([y.numpy(), numpy.zeros((FEATURES, WIDTH))])
    expected = numpy.linalg.lstsq(augmented, right, rcond=None)[0]
    assert numpy.allclose(solve(z.T @ z, z.T @ y, 1.0), expected, atol=1e-9)


def test_moments_of_parts_add_up_and_give_the_error() -> None:
    z, y = torch.randn(TOKENS, FEATURES), torch.randn(TOKENS, WIDTH)
    whole = moments_of(z, y)
    parts = pooled([moments_of(z[:70], y[:70]), moments_of(z[70:], y[70:])])
    assert parts.tokens == whole.tokens == TOKENS
    assert torch.allclose(parts.gram, whole.gram, rtol=1e-4, atol=1e-3)
    weight = torch.randn(FEATURES, WIDTH, dtype=torch.float64)
    expected = (y.double() - z.double() @ weight).square().sum()
    assert torch.allclose(whole.error(weight), expected, rtol=1e-4)
    kept = torch.tensor([1, 4, 7])
    expected = (y.double() - z[:, kept].double() @ weight[kept]).square().sum()
    assert torch.allclose(whole.restricted(kept).error(weight[kept]), expected, rtol=1e-4)


def test_held_out_ridge_is_the_best_of_the_grid() -> None:
    """Against fits and predictions done the long way."""
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(FEATURES, WIDTH, generator=generator)
    folds = []
    for _ in range(3):
        z = torch.randn(20, FEATURES, generator=generator)
        folds.append((z, z @ truth + 3 * torch.randn(20, WIDTH, generator=generator)))
    grid, prior = (1e-3, 0.1, 1.0, 10.0), torch.zeros(FEATURES, WIDTH, dtype=torch.float64)
    errors = []
    for ridge in grid:
        total = 0.0
        for left_out, (z, y) in enumerate(folds):
            rest = pooled([moments_of(*fold) for i, fold in enumerate(folds) if i != left_out])
            weight = ridge_to_prior(rest, prior, ridge * mean_energy(rest.gram))
            total += float((y.double() - z.double() @ weight).square().sum() / y.double().square().sum())
        errors.append(total)
    chosen = held_out_ridge([moments_of(*fold) for fold in folds], [prior] * 3, grid)
    assert chosen == grid[int(numpy.argmin(errors))]
    assert chosen > grid[0], "with so much noise the smallest ridge should lose, else this test tells nothing"
