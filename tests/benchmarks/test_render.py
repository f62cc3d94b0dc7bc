"""The pages show what the benchmarks measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.render import HERE, PAGES, ROOT, _kept, ablations, bars, rendered

MAIN_JOB: dict[str, Any] = json.loads((HERE / "main_job.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES)
def test_each_page_is_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"<!-- (\w+):begin -->\n\|", text) == PAGES[page]
    assert rendered(text) == text


def test_a_table_between_markers_is_made_anew() -> None:
    page = "before\n<!-- main_job:begin -->\nold\n<!-- main_job:end -->\nafter"
    made = rendered(page)
    assert (made.startswith("before\n"), made.endswith("\nafter"), "old" in made) == (True, True, False)
    ours = next(row for row in MAIN_JOB["rows"] if row["method"] == "flattengpt")
    assert f"| {ours['perplexity']['WikiText-2']:.1f} |" in made


def test_what_is_shown_was_measured_on_the_test_split_and_held() -> None:
    assert MAIN_JOB["split"] == "test"
    assert MAIN_JOB["rows"][0]["method"] == "dense"
    assert [claim["what"] for claim in MAIN_JOB["claims"] if not claim["holds"]] == []
    assert Path(HERE / "main_job.svg").is_file()


QUALITY: dict[str, Any] = json.loads((HERE / "quality.json").read_text(encoding="utf-8"))


def test_what_a_method_keeps_is_measured_on_the_test_split_and_losses_are_shown_too() -> None:
    assert QUALITY["split"] == "test"
    assert QUALITY["rows"][0]["method"] == "dense"
    page = rendered("<!-- quality:begin -->\n<!-- quality:end -->\n<!-- bars:begin -->\n<!-- bars:end -->")
    for row in QUALITY["rows"]:
        assert f"{row['perplexity']['C4']:.1f} (" in page
    for claim in QUALITY["claims"]:
        assert f"| {claim['what']} | {claim['bound']} | " in page
    assert page.count("| **no** |") == sum(not claim["holds"] for claim in QUALITY["claims"])


@pytest.mark.parametrize(("bound", "shown"), [("<= 0.75", "0.868"), (">= 0.9", "0.867")])
def test_a_measured_bar_is_rounded_against_us(bound: str, shown: str) -> None:
    claim = {"what": "w", "bound": bound, "value": 0.8675, "holds": False}
    assert bars({"claims": [claim]}).endswith(f"| w | {bound} | {shown} | **no** |")


def test_percentages_are_rounded_down() -> None:
    row = {"retention": {"mean": {"raw": 0.91999, "raw_stderr": 0.012}}}
    assert _kept(row) == "91.9 % ± 1.2"
    assert _kept({"retention": {}}) == ""


def ablation(question: str, name: str, layers: int, wikitext: float, c4: float) -> dict[str, Any]:
    parts = {"attention": {"ridge": 0.3, "error": 0.25}, "mlp": {"ridge": 0.03, "error": 0.5}}
    merged = [{"members": [2, 3, 4], **parts}, {"members": [7, 8], **parts}]
    perplexity = {"WikiText-2": wikitext, "C4": c4}
    return {
        "question": question,
        "name": name,
        "layers": layers,
        "perplexity": perplexity,
        "merged": merged,
        "expected": 1.005,
    }


def test_the_least_perplexity_of_each_size_stands_out() -> None:
    found = {
        "dense": {"WikiText-2": 20.0, "C4": 40.0},
        "rows": [
            ablation("groups", "as it is", 24, 30.0, 61.0),
            ablation("groups", "other", 24, 31.0, 60.0),
            ablation("groups", "as it is", 20, 50.0, 90.0),
            ablation("regression", "none", 24, 10.0, 10.0),
        ],
    }
    head, _, ours, other, small = ablations(found, "groups").splitlines()
    assert head == "| layers | what is changed | merged | expected | WikiText-2 / C4 | missed |"
    assert ours == "| 24 | as it is | 2-4, 7-8 | 1.00 | **30.0** / 61.0 | 0.25 / 0.50 |"
    assert other == "| 24 | other | 2-4, 7-8 | 1.00 | 31.0 / **60.0** | 0.25 / 0.50 |"
    assert small == "| 20 | as it is | 2-4, 7-8 | 1.00 | **50.0** / **90.0** | 0.25 / 0.50 |"
    assert ablations(found, "regression").startswith("| what is changed | merged | WikiText-2")
    assert len(ablations(found, "not measured yet").splitlines()) == 2
