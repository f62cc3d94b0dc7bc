"""What the benchmark of the API claims of what it measured."""

import pytest

from benchmarks.api import claims

GOOD = {
    "start": {"median": 2.0},
    "show": {"ratio": 0.6},
    "pages": {"ratio": 1 / 1.2},
    "submit": {"ratio": 5.0},
    "job": {"ratio": 1.05},
}


def test_every_claim_holds_up_to_its_bound() -> None:
    assert [claim.holds for claim in claims(GOOD)] == [True] * 5
    assert claims({}) == []


@pytest.mark.parametrize("figure", GOOD)
def test_a_figure_beyond_its_bound_does_not_hold(figure: str) -> None:
    worse = {name: value * (0.99 if figure in ("show", "pages") else 1.01) for name, value in GOOD[figure].items()}
    assert [claim.holds for claim in claims({figure: worse})] == [False]
