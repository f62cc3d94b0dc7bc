"""The ablations' bookkeeping: each variant is the method with one thing changed, and is measured once."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch

from benchmarks.ablations import (
    AS_IT_IS,
    CPU,
    VARIANTS,
    Variant,
    digest_of,
    fixed_ridge,
    in_single_precision,
    merging,
)
from flattengpt_core.models import Checkpoint
from flattengpt_core.prune import regressed
from flattengpt_core.regression import Moments
from tests.tiny_models import tiny_checkpoint

REPORTED = {"WikiText-2": torch.zeros(2, 4, dtype=torch.long)}


def folds() -> list[Moments]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 3, generator=generator)
    made = []
    for _ in range(2):
        features = torch.randn(40, 6, generator=generator)
        noise = 0.1 * torch.randn(40, 3, generator=generator)
        made.append(Moments.zeros(6, 3, CPU).including(features, features @ weight + noise))
    return made


def test_a_variant_changes_one_thing_and_stands_beside_what_it_is_compared_with() -> None:
    baseline = Variant("", AS_IT_IS)
    for variant in VARIANTS:
        same = {(each.question, each.layers, each.name) for each in VARIANTS}
        assert (variant.question, variant.layers, AS_IT_IS) in same
        changed = [
            each.name
            for each in fields(Variant)
            if each.name not in ("question", "name", "layers")
            and getattr(variant, each.name) != getattr(baseline, each.name)
        ]
        assert len(changed) == (variant.name != AS_IT_IS), variant.key


def test_what_has_one_name_is_one_variant() -> None:
    by_key = {variant.key: variant for variant in VARIANTS}
    for variant in VARIANTS:
        twin = by_key[variant.key]
        assert (twin.choose, twin.pruner, twin.calibration) == (variant.choose, variant.pruner, variant.calibration)
    assert len({digest_of(variant, REPORTED) for variant in VARIANTS}) == len(by_key)


def test_runs_merge_and_the_others_stay(tmp_path: Path) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path, num_hidden_layers=7))
    groups = merging((1, 2), (4, 6))(source, [], [4], CPU)
    assert groups == [[(0,), (1, 2), (3,), (4, 5, 6)]]


def test_a_fixed_ridge_is_the_fit_that_the_held_out_one_makes_with_it() -> None:
    folded = torch.zeros(6, 3, dtype=torch.float64)
    held_out = regressed(folds(), folded)
    fixed = fixed_ridge(held_out.ridge)(folds(), folded)
    assert torch.equal(fixed.weight, held_out.weight)
    assert not torch.allclose(fixed_ridge(100 * held_out.ridge)(folds(), folded).weight, held_out.weight)


def test_single_precision_fits_the_same_but_for_rounding() -> None:
    folded = torch.zeros(6, 3, dtype=torch.float64)
    single, double = in_single_precision(folds(), folded), regressed(folds(), folded)
    assert single.ridge == double.ridge
    assert single.weight.dtype == torch.float64
    torch.testing.assert_close(single.weight, double.weight, rtol=1e-4, atol=1e-5)
    assert not torch.equal(single.weight, double.weight)


@pytest.mark.parametrize("question", ["selection", "regression", "groups", "calibration"])
def test_each_question_has_more_than_one_answer(question: str) -> None:
    assert len({variant.key for variant in VARIANTS if variant.question == question}) > 2
