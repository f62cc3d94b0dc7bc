"""The pages show what the benchmarks measured."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.render import HERE, PAGES, ROOT, _kept, bars, rendered

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
