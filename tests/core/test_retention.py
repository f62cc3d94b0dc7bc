"""What a model keeps of another's accuracy, against figures worked out by hand."""

import math

import pytest

from flattengpt_core.retention import Answers, accuracies, retention, share_kept

DENSE = Answers("acc", (1, 1, 1, 0), (0.5, 0.5, 0.25, 0.25))
OURS = Answers("acc", (1, 0, 1, 0), (0.5, 0.5, 0.25, 0.25))


def test_accuracy_chance_and_standard_error() -> None:
    assert (DENSE.accuracy, DENSE.chance) == (0.75, 0.375)
    assert DENSE.stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))  # the sample's variance, as lm-eval has it
    assert Answers("acc", (1,), (0.5,)).stderr is None


def test_the_mean_is_over_tasks() -> None:
    found = accuracies({"a": DENSE, "b": OURS})
    assert found["accuracy"] == {"a": 0.75, "b": 0.5, "mean": 0.625}
    assert found["accuracy_stderr"]["mean"] == pytest.approx(math.sqrt(0.0625 + 1 / 12) / 2)
    assert found["tasks"]["a"] == {"metric": "acc", "items": 4, "chance": 0.375}


def test_retention_raw_and_above_chance() -> None:
    kept = retention({"a": OURS}, {"a": DENSE})["a"]
    assert kept["raw"] == pytest.approx(0.5 / 0.75)
    assert kept["above_chance"] == pytest.approx((0.5 - 0.375) / (0.75 - 0.375))
    # x - (2/3) y is 1/3, -2/3, 1/3, 0: its variance is (1/9 + 4/9 + 1/9) / 3 = 2/9.
    assert kept["raw_stderr"] == pytest.approx(math.sqrt(2 / 9 / 4) / 0.75)


def test_the_errors_are_paired() -> None:
    """A model that answers alike keeps all, for certain, however few items there are."""
    kept = retention({"a": DENSE}, {"a": DENSE})
    assert kept["a"] == {"raw": 1, "raw_stderr": 0, "above_chance": 1, "above_chance_stderr": 0}
    assert kept["mean"] == kept["a"]


def test_the_means_retention_is_that_of_the_mean_accuracies() -> None:
    kept = retention({"a": OURS, "b": DENSE}, {"a": DENSE, "b": DENSE})
    assert kept["mean"]["raw"] == pytest.approx(0.625 / 0.75)
    assert 0 < kept["mean"]["raw_stderr"] < kept["a"]["raw_stderr"]


def test_no_better_than_chance_is_not_divided_by() -> None:
    guessing = Answers("acc", (1, 0, 0, 0), (0.5, 0.5, 0.25, 0.25))
    kept = retention({"a": OURS}, {"a": guessing})["a"]
    assert (kept["raw"], kept["above_chance"], kept["above_chance_stderr"]) == (2, None, None)
    assert share_kept(kept, "above_chance") == "not defined"


@pytest.mark.parametrize(
    ("share", "shown"), [(0.99999, "99.9 %"), (1.0, "100.0 %"), (0.5004, "50.0 %"), (-0.01, "-1.0 %")]
)
def test_a_loss_is_never_rounded_away(share: float, shown: str) -> None:
    assert share_kept({"raw": share, "raw_stderr": None}, "raw") == shown


def test_nothing_asked_nothing_kept() -> None:
    assert retention({}, {}) == {}
    assert accuracies({}) == {"accuracy": {}, "accuracy_stderr": {}, "tasks": {}}
