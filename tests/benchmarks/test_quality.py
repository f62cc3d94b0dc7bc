"""The quality benchmark's bookkeeping: what is measured anew, and what its claims say."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.cells import Cells
from benchmarks.quality import RECOVERED, ROWS, TASKS, Row, claims, digest_of, summary

REPORTED = {"WikiText-2": torch.zeros(2, 4, dtype=torch.long), "C4": torch.ones(2, 4, dtype=torch.long)}


def test_a_cell_counts_only_for_what_it_was_measured_on(tmp_path: Path) -> None:
    file = tmp_path / "cells.json"
    Cells(file).put("24 flattengpt/C4", "then", 60.5)
    again = Cells(file)
    assert again.get("24 flattengpt/C4", "then") == 60.5
    assert again.get("24 flattengpt/C4", "now") is None
    assert again.get("24 shortgpt/C4", "then") is None


def test_the_digest_tells_methods_settings_and_texts_apart() -> None:
    digests = {digest_of(Row(method, 24, tasks=False), REPORTED) for method in ("flattengpt", "shortgpt", "fcm")}
    digests.add(digest_of(Row(RECOVERED, 24, tasks=False), REPORTED))
    digests.add(digest_of(Row("flattengpt", 24, tasks=False), REPORTED | {"C4": REPORTED["C4"] + 1}))
    assert len(digests) == 5


def test_what_is_kept_is_not_measured_again(tmp_path: Path) -> None:
    cells, measured = Cells(tmp_path / "cells.json"), iter((30.0, 31.0))
    assert cells.made("dense", "then", lambda: next(measured)) == 30.0
    assert cells.made("dense", "then", lambda: next(measured)) == 30.0
    assert cells.made("dense", "now", lambda: next(measured)) == 31.0


def filled(tmp_path: Path, perplexities: dict[str, tuple[float, float]], right: dict[str, float]) -> Cells:
    """Cells as if measured: WikiText-2 and C4 by row, and the share of right answers of those that are asked."""
    cells = Cells(tmp_path / "cells.json")
    for row in ROWS:
        if row.key in perplexities:
            digest = digest_of(row, REPORTED)
            for text, value in zip(REPORTED, perplexities[row.key], strict=True):
                cells.put(f"{row.key}/{text}", digest, value)
            if row.key in right:
                answers = [1.0] * round(10 * right[row.key]) + [0.0] * round(10 * (1 - right[row.key]))
                for task in TASKS:
                    value = {"metric": "acc", "right": answers, "chances": [0.25] * 10}
                    cells.put(f"{row.key}/{task}", digest, value)
    return cells


def test_claims_compare_with_the_dense_model_and_the_best_peer(tmp_path: Path) -> None:
    measured = {
        "30 dense": (20.0, 40.0),
        "24 flattengpt": (28.0, 60.0),
        "24 replaceme": (35.0, 66.0),
        "24 shortgpt": (60.0, 64.0),
        "20 flattengpt": (50.0, 100.0),
        "20 shortgpt": (80.0, 120.0),
    }
    cells = filled(tmp_path, measured, {"30 dense": 0.8, "24 flattengpt": 0.6})
    found = summary(cells, REPORTED)
    assert [row["method"] for row in found["rows"]][:2] == ["dense", "flattengpt"]
    told = {claim["what"]: (claim["value"], claim["holds"]) for claim in found["claims"]}
    assert told["WikiText-2 perplexity / dense, no training"] == (pytest.approx(1.4), True)
    assert told["C4 perplexity / dense, no training"] == (pytest.approx(1.5), True)
    assert told["WikiText-2 perplexity / best peer's, no training"] == (pytest.approx(0.8), False)
    assert told["C4 perplexity / best peer's, no training"] == (pytest.approx(60 / 64), False)
    assert told["WikiText-2 perplexity / best peer's at 20 layers"] == (pytest.approx(0.625), True)
    assert told["accuracy kept, no training"] == (pytest.approx(0.75), False)
    assert json.loads(json.dumps(found))["claims"] == found["claims"]


def test_nothing_measured_claims_nothing() -> None:
    assert claims([]) == []
