"""Which heads and channels stay, against the definitions worked out the long way."""

import itertools

import numpy
import pytest
import torch

from flattengpt_core.prune import (
    ELIMINATION_RIDGE,
    PAPER_RIDGE,
    WideOutput,
    as_folded,
    contribution_magnitude,
    leverage,
    missed_heads,
    nystrom,
    published_channels,
    published_heads,
    regressed,
    rows_of,
    surviving_units,
    top_units,
)
from flattengpt_core.regression import Moments, mean_energy

UNITS, UNIT, WIDTH, TOKENS = 6, 3, 4, 300
FEATURES = UNITS * UNIT


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(FEATURES, FEATURES, generator=generator)
    z = torch.randn(TOKENS, FEATURES, generator=generator) @ mixing
    weight = torch.randn(FEATURES, WIDTH, generator=generator).double()
    return z, z @ weight.float() + torch.randn(TOKENS, WIDTH, generator=generator), weight


def moments_of(z: torch.Tensor, y: torch.Tensor) -> Moments:
    return Moments.zeros(z.shape[1], y.shape[1], z.device).including(z, y)


def test_rows_of_whole_groups_ascend() -> None:
    assert rows_of(torch.tensor([2, 0]), 3).tolist() == [0, 1, 2, 6, 7, 8]


def test_top_units_prefers_the_earlier_of_equals() -> None:
    assert top_units(torch.tensor([1.0, 2.0, 2.0, 2.0]), 2).tolist() == [1, 2]


def test_papers_head_importance(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    z, y, weight = data
    scores = contribution_magnitude(moments_of(z, y), weight, UNIT)
    expected = [
        sum(
            float(z[:, c].abs().mean()) * float((weight[c] @ weight[c]).sqrt()) for c in range(u * UNIT, (u + 1) * UNIT)
        )
        for u in range(UNITS)
    ]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_leverage_is_the_diagonal_of_the_smoother(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    gram = moments_of(data[0], data[1]).gram.numpy()
    ridge = 10 * numpy.trace(gram) / FEATURES
    expected = numpy.diag(gram @ numpy.linalg.inv(gram + ridge * numpy.eye(FEATURES)))
    assert numpy.allclose(leverage(torch.from_numpy(gram), ridge), expected)


def test_nystrom_tends_to_least_squares(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    z, _, weight = data
    rows = torch.tensor([0, 2, 3, 7, 8])
    gram = z.double().T @ z.double()
    expected = numpy.linalg.lstsq(z[:, rows].double().numpy(), (z.double() @ weight).numpy(), rcond=None)[0]
    assert numpy.allclose(nystrom(gram, weight, rows, 1e-9), expected, atol=1e-5)


def test_published_solution_equals_lstsq_on_the_augmented_system(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    z, y, weight = data
    narrow = published_channels(WideOutput([moments_of(z, y)], weight, 1, 7))
    gram = (z.double().T @ z.double()).numpy()
    ridge = PAPER_RIDGE * numpy.trace(gram) / FEATURES
    kept = narrow.rows.numpy()
    lost = weight.numpy().copy()
    lost[kept] = 0
    augmented = numpy.vstack([z[:, narrow.rows].double().numpy(), numpy.sqrt(ridge) * numpy.eye(7)])
    right = numpy.vstack([z.double().numpy() @ lost, numpy.zeros((7, WIDTH))])
    expected = weight.numpy()[kept] + numpy.linalg.lstsq(augmented, right, rcond=None)[0]
    assert numpy.allclose(narrow.folded, expected, atol=1e-4)


def test_published_heads_keep_whole_groups(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    z, y, weight = data
    narrow = published_heads(WideOutput([moments_of(z, y)], weight, UNIT, 2))
    assert narrow.rows.tolist() == rows_of(narrow.units, UNIT).tolist()
    assert torch.equal(narrow.folded, weight[narrow.rows])


def test_dropping_one_unit_is_the_least_harmful_choice(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    """The elimination score of one unit equals what refitting without it costs, tried for each."""
    z, y, _ = data
    moments = moments_of(z, y)
    ridge = ELIMINATION_RIDGE * float(mean_energy(moments.gram))
    costs = {}
    for units in itertools.combinations(range(UNITS), UNITS - 1):
        rows = rows_of(torch.tensor(units), UNIT)
        augmented = numpy.vstack([z[:, rows].double().numpy(), numpy.sqrt(ridge) * numpy.eye(len(rows))])
        right = numpy.vstack([y.double().numpy(), numpy.zeros((len(rows), WIDTH))])
        costs[units] = numpy.linalg.lstsq(augmented, right, rcond=None)[1].sum()
    best = min(costs, key=lambda units: costs[units])
    assert tuple(surviving_units(moments, UNIT, UNITS - 1, rounds=1).tolist()) == best


def test_regression_beats_the_published_choice_on_its_own_tokens(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    z, y, weight = data
    folds = [moments_of(z[:150], y[:150]), moments_of(z[150:], y[150:])]
    errors = {}
    for name, choose, refit in (("published", published_heads, as_folded), ("regressed", missed_heads, regressed)):
        kept = choose(WideOutput(folds, weight, UNIT, 3))
        left = [fold.restricted(kept.rows) for fold in folds]
        fit = refit(left, kept.folded)
        errors[name] = sum(float(fold.error(fit.weight)) for fold in left)
    assert errors["regressed"] < errors["published"]
