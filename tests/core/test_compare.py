"""Methods side by side on a tiny model: one table, and nothing that is not measured."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from flattengpt_core.compare import compare
from flattengpt_core.compress import groups_to_merge
from flattengpt_core.decoder import Decoder
from flattengpt_core.errors import InvalidRequest
from flattengpt_core.flatten import flatten
from flattengpt_core.methods import UNPRUNED
from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.pipeline import evaluate
from flattengpt_core.progress import Silent
from flattengpt_core.report import comparison_page
from flattengpt_core.texts import refuse_reported_calibration
from flattengpt_core.unpruned import unpruned_model
from tests.task_files import ANSWERS, CHOICES, task_file
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
CALIBRATION = Calibration("python-docs", samples=8, sequence_length=64)
EVALUATION = Evaluation(("python-docs",), sequence_length=64, windows=4, benchmark_repeats=1)


def run(tmp_path: Path, out: Path, **changes: Any) -> dict[str, Any]:
    source = tmp_path / "tiny"
    if not source.exists():
        tiny_checkpoint(source)
    settings: dict[str, Any] = {
        "name": "tiny",
        "methods": ["shortgpt", UNPRUNED, "flattengpt"],
        "layers": 4,
        "calibrations": [CALIBRATION],
        "evaluation": EVALUATION,
        "device": "cpu",
        "progress": Silent(),
    }
    return compare(source, out, **(settings | changes))


@pytest.mark.slow
def test_the_table(tmp_path: Path) -> None:
    found = run(tmp_path, tmp_path / "out")
    assert found == json.loads((tmp_path / "out" / "compare.json").read_text())
    dense, shortgpt, unpruned, ours = found["rows"]
    assert [row["method"] for row in found["rows"]] == ["dense", "shortgpt", UNPRUNED, "flattengpt"]
    assert [row["layers"] for row in found["rows"]] == [6, 4, 4, 4]
    assert shortgpt["parameters"] == ours["parameters"] < unpruned["parameters"]
    assert ours["sparsity"] == pytest.approx(1 - ours["parameters"] / dense["parameters"])
    assert (dense["compress_seconds"], unpruned["compress_seconds"]) == (None, None)
    assert min(row[key] for row in (shortgpt, ours) for key in ("compress_seconds", "peak_memory_bytes")) > 0
    assert found["evaluation"] == {
        "sequence_length": 64,
        "tokens": {"python-docs": 256},
        "split": {"python-docs": "last fifth"},
        "task_items": None,
        "benchmark": {
            "repeats": 1,
            "batch_size": 1,
            "prompt_tokens": 64,
            "new_tokens": 32,
            "prefill_batch_size": 1,
            "prefill_tokens": 512,
        },
    }
    assert all(row["tokens_per_second"] > 0 and row["latency_ms"] > 0 for row in found["rows"])
    assert dense["tokens_per_second_ratio"] == 1
    for row in (shortgpt, ours):
        again = evaluate(tmp_path / "out" / row["checkpoint"], EVALUATION, device="cpu", progress=Silent())
        assert again["perplexity"] == row["perplexity"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "compare.json", "compare.html", "shortgpt", "flattengpt",
    }  # fmt: skip


@pytest.mark.slow
def test_calibrations_are_compared_with_each_other(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("".join(f"{n * n} pages of prose, and then {n} more. " for n in range(400)))
    calibrations = [CALIBRATION, Calibration(str(other), samples=8, sequence_length=64)]
    evaluation = Evaluation(("python-docs",), sequence_length=64, windows=4, benchmark=False)
    found = run(tmp_path, tmp_path / "out", methods=["flattengpt"], calibrations=calibrations, evaluation=evaluation)
    rows = found["rows"]
    assert [row["calibration"] for row in rows] == [None, "python-docs", str(other)]
    assert rows[1]["perplexity"] != rows[2]["perplexity"]
    assert len({row["checkpoint"] for row in rows[1:]}) == 2
    assert "flattengpt on other.txt" in (tmp_path / "out" / "compare.html").read_text()


class Stops(Silent):
    """Stops at the first cell."""

    def step(self, done: int, total: int) -> None:
        raise KeyboardInterrupt


def test_a_comparison_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, tmp_path / "out", progress=Stops())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


class StopsAt(Silent):
    """Stops before one of the cells, and keeps what it was told."""

    def __init__(self, cell: int | None = None) -> None:
        self.cell, self.events = cell, dict[str, Any]()

    def step(self, done: int, total: int) -> None:
        if done == self.cell:
            raise KeyboardInterrupt

    def event(self, type: str, **data: Any) -> None:
        self.events[type] = data


def test_a_comparison_that_was_interrupted_goes_on(tmp_path: Path) -> None:
    choices, answers = task_file(tmp_path / "choices.jsonl", CHOICES), task_file(tmp_path / "answers.jsonl", ANSWERS)
    asked = {"methods": ["shortgpt", UNPRUNED], "evaluation": replace(EVALUATION, tasks=(choices, answers))}
    out, kept = tmp_path / "out", tmp_path / ".out.unfinished"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, out, progress=StopsAt(1), **asked)
    assert not out.exists()
    first = json.loads((kept / "finished" / "shortgpt.json").read_text())["row"]
    made = (kept / "shortgpt" / "model.safetensors").stat()
    (kept / UNPRUNED).mkdir()  # what a killed process leaves of a row
    again = StopsAt()
    found = run(tmp_path, out, progress=again, **asked)
    assert again.events == {"resumed": {"rows": 2}}
    assert found["rows"][1] == first
    assert [row["method"] for row in found["rows"]] == ["dense", "shortgpt", UNPRUNED]
    assert (out / "shortgpt" / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.html", "shortgpt"}
    assert not kept.exists()
    check_tasks(found, (out / "compare.html").read_text(), choices, answers)


def check_tasks(found: dict[str, Any], page: str, choices: str, answers: str) -> None:
    """They are in each row and on the page."""
    dense, ours, unpruned = found["rows"]
    for row in found["rows"]:
        assert row["accuracy"].keys() == row["accuracy_stderr"].keys() == {choices, "mean"}
        assert row["tasks"][choices]["items"] == len(CHOICES)
        assert row["generative"][answers]["nats_per_token"] > 0
        assert f"{row['accuracy'][choices]:.4f} ± {row['accuracy_stderr'][choices]:.4f}" in page
    assert (dense["retention"], ours["retention"].keys()) == ({}, {choices, "mean"})
    assert unpruned["retention"].keys() == {choices, "mean"}
    for words in ("choices.jsonl", "acc_norm, 4 items, chance 0.321", "above chance", "nats_per_token", "last fifth"):
        assert words in page
    assert page.count("<svg") == 4


def test_another_request_begins_anew(tmp_path: Path) -> None:
    asked = {"methods": [UNPRUNED, "shortgpt"], "evaluation": replace(EVALUATION, benchmark=False)}
    same, other = StopsAt(0), StopsAt(0)
    for progress, layers in ((StopsAt(1), 4), (same, 4), (other, 5)):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, tmp_path / "out", progress=progress, layers=layers, **asked)
    assert (same.events, other.events) == ({"resumed": {"rows": 2}}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]  # a dense row alone is not worth keeping


def test_an_error_of_a_method_comes_through(tmp_path: Path) -> None:
    kinds = ["full_attention", "sliding_attention"] * 3
    tiny_checkpoint(tmp_path / "tiny", "qwen2", layer_types=kinds, use_sliding_window=True, sliding_window=8)
    with pytest.raises(InvalidRequest, match="same kind") as raised:
        run(tmp_path, tmp_path / "out", methods=["flattengpt"], layers=2)
    assert raised.value.field == "layers"
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_the_unpruned_model_is_the_flattened_layers_in_a_row(tmp_path: Path, family: str) -> None:
    source = Checkpoint(tiny_checkpoint(tmp_path / "tiny", family))
    folds = [torch.randint(0, 256, (4, 32)) for _ in range(2)]
    groups = groups_to_merge(source, folds, layers=4, device=CPU)
    model = unpruned_model(source, groups, device=CPU)
    decoder = Decoder(source.config, window_length=32, device=CPU)
    with torch.inference_mode():
        hidden = model.model.embed_tokens(folds[0])
        for group in groups:
            members = [source.layer(index) for index in group]
            hidden = decoder.run(flatten(members) if len(group) > 1 else members[0], group[0], hidden)
        assert torch.allclose(model.model(folds[0]).last_hidden_state, model.model.norm(hidden), atol=1e-5)
        prompt = folds[0][:1, :8]
        settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
        texts = [model.generate(prompt, use_cache=cached, **settings).tolist() for cached in (True, False)]
    assert texts[0] == texts[1]


def test_nothing_to_merge_is_the_dense_model(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "tiny")
    model = unpruned_model(Checkpoint(folder), [(layer,) for layer in range(6)], device=CPU)
    ids = torch.randint(0, 256, (2, 16))
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, load_model(folder, device=CPU, dtype=torch.float32)(ids).logits)


class Links(HTMLParser):
    """Every address in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    text = "<script>alert('$x$')</script>.txt"
    row = {
        "method": "dense",
        "layers": 6,
        "parameters": 1000,
        "sparsity": 0.0,
        "perplexity": {text: 20.0},
        "accuracy": {},
        "generative": {},
        "tokens_per_second": None,
        "latency_ms": None,
        "tokens_per_second_ratio": None,
        "calibration": None,
        "compress_seconds": None,
        "peak_memory_bytes": None,
        "checkpoint": None,
    }
    ours = row | {"method": "flattengpt", "perplexity": {text: 30.0}, "compress_seconds": 2.0, "calibration": "a"}
    found = {
        "model": "<b>tiny</b>",
        "seed": 0,
        "calibration": {"datasets": ["a"], "samples": 8, "sequence_length": 64},
        "evaluation": {
            "sequence_length": 64,
            "tokens": {text: 256},
            "split": {text: "whole file"},
            "task_items": None,
            "benchmark": None,
        },
        "rows": [row, ours | {"peak_memory_bytes": 2**30}],
    }
    page = comparison_page(found)
    assert "30.00" in page
    assert "(1.50×)" in page
    assert "<b>tiny" not in page
    assert "<script>alert" not in page
    links = Links()
    links.feed(page)
    assert [link for link in links.found if not link.startswith("#")] == []
    assert re.search(r"url\((?!#)", page) is None
    assert page.count("<svg") == 3


def test_what_is_calibrated_on_is_not_reported_on(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("first.txt", "copy.txt", "other.txt"))
    for file in (first, copy):
        file.write_text("the same")
    other.write_text("something else")
    for reported in (first, copy):
        with pytest.raises(InvalidRequest, match=re.escape(repr(str(first)))) as refused:
            refuse_reported_calibration(f"python-docs+{first}", ["python-docs", str(reported)])
        assert refused.value.field == "evaluation.perplexity"
    refuse_reported_calibration(f"python-docs+{first}", ["python-docs", str(other)])
