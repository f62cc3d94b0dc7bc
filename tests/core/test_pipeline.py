"""The whole run in one process: a result folder that is complete, or none."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flattengpt_core import evaluate as evaluation_module
from flattengpt_core.calibration import cut_windows, token_ids
from flattengpt_core.errors import CalibrationNotFound, InvalidRequest
from flattengpt_core.models import Checkpoint
from flattengpt_core.options import Budget, Calibration, Evaluation, Recovery
from flattengpt_core.pipeline import compress, evaluate
from flattengpt_core.progress import STAGES, Progress, Silent
from flattengpt_core.tasks import TaskNotFound
from jobs.spec import JobSpec
from tests.imports import imported
from tests.task_files import ANSWERS, CHOICES, task_file
from tests.tiny_models import tiny_checkpoint

CALIBRATION = Calibration("python-docs", samples=8, sequence_length=64)
EVALUATION = Evaluation(("python-docs",), sequence_length=64, windows=4, benchmark=False)


class Stopped(Exception):
    """What a caller raises to stop a run."""


class Recorder(Silent):
    """Keeps the stages and their steps, and stops at a stage, or at a stage's step, if told to."""

    def __init__(self, stop_at: str | None = None, *, stop_in: tuple[str, int] | None = None) -> None:
        self.stages: list[str] = []
        self.steps: list[tuple[str, int]] = []
        self._stop_at, self._stop_in = stop_at, stop_in

    def stage(self, name: str) -> None:
        self.stages.append(name)
        if name == self._stop_at:
            raise Stopped

    def step(self, done: int, total: int) -> None:
        self.steps.append((self.stages[-1], done))
        if self.steps[-1] == self._stop_in:
            raise Stopped


def run(
    tmp_path: Path,
    out: Path,
    *,
    goal: int | Budget = 4,
    progress: Progress | None = None,
    calibration: Calibration = CALIBRATION,
    evaluation: Evaluation = EVALUATION,
    recovery: Recovery | None = None,
    dtype: str = "auto",
    work: Path | None = None,
) -> dict[str, Any]:
    source = tmp_path / "tiny"
    if not source.exists():
        tiny_checkpoint(source, tie_word_embeddings=True)
    return compress(
        source,
        out,
        goal=goal,
        method="flattengpt",
        calibration=calibration,
        recovery=recovery or Recovery(),
        evaluation=evaluation,
        device="cpu",
        dtype=dtype,
        progress=progress or Silent(),
        request=JobSpec(model="local:tiny", layers=4).as_request(),
        base_model="tiny",
        work=work,
    )


def test_what_trains_comes_in_for_a_job_that_trains() -> None:
    training = {"peft", "datasets", "lm_eval", "matplotlib", "transformers.trainer"}
    assert not training & imported("import flattengpt_core.pipeline")


def test_the_folder_holds_what_was_done(tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = run(tmp_path, out)
    manifest = json.loads((out / "flattengpt.json").read_text())
    assert manifest["metrics"] == metrics
    assert manifest["request"]["layers"] == 4
    assert [tuple(group) for group in manifest["groups"]] == [tuple(group) for group in metrics["groups"]]
    kept = [len(group["kv_groups"]) for group in manifest["merged"]]
    assert (set(kept), {len(group["channels"]) for group in manifest["merged"]}) == ({2}, {48})
    others = [file for file in out.iterdir() if file.name != "flattengpt.json"]
    assert manifest["sha256"] == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in others}
    assert {file.name for file in others} >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_what_is_reported_can_be_measured_again(tmp_path: Path) -> None:
    metrics = run(tmp_path, tmp_path / "out")
    for name, folder in (("dense", tmp_path / "tiny"), ("compressed", tmp_path / "out")):
        assert evaluate(folder, EVALUATION, device="cpu", progress=Silent()) == metrics[name]


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_stopped_leaves_no_result(tmp_path: Path, stage: str) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, tmp_path / "out", progress=Recorder(stage), recovery=Recovery("lora", steps=2))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_stages_come_in_order(tmp_path: Path) -> None:
    told = Recorder()
    run(tmp_path, tmp_path / "out", progress=told, recovery=Recovery("lora", steps=2))
    assert tuple(told.stages) == STAGES


def test_a_dtype_can_be_chosen(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "out", dtype="bfloat16")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_recovery_changes_weights_and_keeps_the_checkpoint_stock(tmp_path: Path) -> None:
    run(tmp_path, tmp_path / "plain")
    run(tmp_path, tmp_path / "trained", recovery=Recovery("lora", steps=20, rank=4, learning_rate=1e-2))
    plain, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "trained"))
    assert plain.keys() == trained.keys()
    assert "lm_head.weight" not in trained
    assert not torch.equal(plain["model.layers.0.mlp.down_proj.weight"], trained["model.layers.0.mlp.down_proj.weight"])


def test_recovery_is_told_in_metrics_card_and_figure(tmp_path: Path) -> None:
    recovery = Recovery("distill", steps=20, rank=4, learning_rate=1e-2)
    metrics = run(tmp_path, tmp_path / "out", recovery=recovery)["recovery"]
    assert (metrics["method"], metrics["steps"], metrics["kept"]) == ("distill", 20, True)
    assert metrics["loss_after"] < metrics["loss_before"]
    assert [step for step, _ in metrics["curve"]] == list(range(1, 21))
    assert json.loads((tmp_path / "out" / "flattengpt.json").read_text())["metrics"]["recovery"] == metrics
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 20 steps (distill)" in card
    assert "so the trained weights were kept" in card
    assert "](recovery.svg)" in card
    assert (tmp_path / "out" / "recovery.svg").read_text().startswith("<?xml")


def test_a_stopped_run_goes_on_in_its_work_folder(tmp_path: Path) -> None:
    recovery = Recovery("distill", steps=8, rank=4, learning_rate=1e-2)
    whole, out, work = tmp_path / "whole", tmp_path / "out", tmp_path / "work"
    expected = run(tmp_path, whole, recovery=recovery)
    with pytest.raises(Stopped):
        run(tmp_path, out, recovery=recovery, work=work, progress=Recorder(stop_in=("recovering", 5)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny", "whole", "work"]
    told = Recorder()
    metrics = run(tmp_path, out, recovery=recovery, work=work, progress=told)
    assert [step for stage, step in told.steps if stage == "compressing"] == []
    assert next(step for stage, step in told.steps if stage == "recovering") == 5
    for name in ("recovery", "groups", "compressed"):
        assert metrics[name] == expected[name]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize("goal", [4, Budget(1000.0)])
def test_a_run_stopped_between_layers_goes_on_after_them(tmp_path: Path, goal: int | Budget) -> None:
    whole, out, work = tmp_path / "whole", tmp_path / "out", tmp_path / "work"
    expected = run(tmp_path, whole, goal=goal)
    with pytest.raises(Stopped):
        run(tmp_path, out, goal=goal, work=work, progress=Recorder(stop_in=("compressing", 4)))
    assert list((work / "parts").rglob("*.safetensors"))
    assert not out.exists()
    metrics = run(tmp_path, out, goal=goal, work=work)
    assert not (work / "parts").exists()
    assert metrics["groups"] == expected["groups"]
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_a_run_stopped_while_it_evaluates_measures_only_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def watched(kind: str, measure: Callable[..., Any]) -> None:
        monkeypatch.setattr(
            evaluation_module, kind, lambda *given, **named: measured.append(kind) or measure(*given, **named)
        )

    choices, answers = task_file(tmp_path / "choices.jsonl", CHOICES), task_file(tmp_path / "answers.jsonl", ANSWERS)
    asked = dataclasses.replace(EVALUATION, tasks=(choices, answers), task_items=2)
    work = tmp_path / "work"
    expected = run(tmp_path, tmp_path / "whole", evaluation=asked)
    watched("ask", evaluation_module.ask)
    watched("perplexity", evaluation_module.perplexity)
    with pytest.raises(Stopped):  # after 8 windows and the dense model's 2 tasks of 2 items, in the other's first
        run(tmp_path, tmp_path / "out", evaluation=asked, work=work, progress=Recorder(stop_in=("evaluating", 14)))
    assert measured == ["perplexity", "perplexity", "ask", "ask", "ask"]
    metrics = run(tmp_path, tmp_path / "out", evaluation=asked, work=work)
    assert measured[5:] == ["ask", "ask"]
    assert metrics["compressed"] == expected["compressed"]
    assert metrics["dense"] == expected["dense"]


def test_a_run_goes_on_in_the_files_of_its_work_folder(tmp_path: Path) -> None:
    """As a store of objects gives them back: it keeps no empty folders."""
    work, files = tmp_path / "work", tmp_path / "files"
    with pytest.raises(Stopped):
        run(tmp_path, tmp_path / "out", work=work, progress=Recorder(stop_in=("evaluating", 4)))
    shutil.copytree(work, files)
    empty = [folder for folder in files.rglob("*") if folder.is_dir() and not any(folder.iterdir())]
    assert empty
    for folder in empty:
        folder.rmdir()
    run(tmp_path, tmp_path / "out", work=files)
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_what_was_measured_on_another_text_is_measured_anew(tmp_path: Path) -> None:
    text, work = tmp_path / "text.txt", tmp_path / "work"
    evaluation = dataclasses.replace(EVALUATION, perplexity=(str(text),))
    found = []
    for words in ("One text here. ", "Another text. "):
        text.write_text(words * 100)
        metrics = run(tmp_path, tmp_path / f"out{len(found)}", evaluation=evaluation, work=work)
        found.append(metrics["dense"]["perplexity"][str(text)])
    assert found[0] != found[1]


def test_a_work_folder_belongs_to_one_request(tmp_path: Path) -> None:
    work = tmp_path / "work"
    run(tmp_path, tmp_path / "out", work=work)
    with pytest.raises(InvalidRequest, match=r"another request \(other: dtype, recovery\)"):
        run(tmp_path, tmp_path / "other", work=work, dtype="bfloat16", recovery=Recovery("lora", steps=2))
    run(tmp_path, tmp_path / "again", work=work, evaluation=dataclasses.replace(EVALUATION, windows=2))
    tiny_checkpoint(tmp_path / "tiny", seed=1, tie_word_embeddings=True)
    with pytest.raises(InvalidRequest, match="other: model"):
        run(tmp_path, tmp_path / "other", work=work)
    with pytest.raises(InvalidRequest, match="no work folder"):
        run(tmp_path, tmp_path / "other", work=tmp_path / "tiny")


def test_what_is_calibrated_on_is_not_reported_on(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    with pytest.raises(InvalidRequest, match="report on another text"):
        run(
            tmp_path,
            tmp_path / "out",
            calibration=dataclasses.replace(CALIBRATION, dataset=str(text)),
            evaluation=dataclasses.replace(EVALUATION, perplexity=(str(text),)),
        )


def test_a_wrong_task_is_said_before_any_layer_is_merged(tmp_path: Path) -> None:
    told = Recorder()
    wrong = dataclasses.replace(EVALUATION, tasks=(task_file(tmp_path / "mine.jsonl", [{"query": "a"}]),))
    with pytest.raises(TaskNotFound, match="line 1 of the task file"):
        run(tmp_path, tmp_path / "out", progress=told, evaluation=wrong)
    assert told.stages == ["loading"]


def test_tasks_are_in_the_metrics_and_on_the_card(tmp_path: Path) -> None:
    choices, answers = task_file(tmp_path / "choices.jsonl", CHOICES), task_file(tmp_path / "answers.jsonl", ANSWERS)
    metrics = run(tmp_path, tmp_path / "out", evaluation=dataclasses.replace(EVALUATION, tasks=(choices, answers)))
    assert (metrics["dense"]["retention"], metrics["compressed"]["retention"].keys()) == ({}, {choices, "mean"})
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| {choices}, acc_norm | 4 | 0.321 |" in card
    assert f"| {answers}, nats_per_token |" in card
    assert "256 tokens of python-docs (last fifth)" in card


def test_too_little_text_is_said_before_any_layer_is_merged(tmp_path: Path) -> None:
    told = Recorder()
    greedy = dataclasses.replace(CALIBRATION, samples=4096, sequence_length=4096)
    with pytest.raises(CalibrationNotFound, match="use fewer samples"):
        run(tmp_path, tmp_path / "out", progress=told, calibration=greedy)
    assert "compressing" not in told.stages


def test_a_quality_to_hold_finds_the_fewest_layers(tmp_path: Path) -> None:
    """A random model loses next to nothing with its layers, so all but one can go within a generous budget."""
    progress = Recorder()
    metrics = run(tmp_path, tmp_path / "out", goal=Budget(2.0), progress=progress)
    assert metrics["compressed"]["layers"] == 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_hidden_layers"] == 1
    assert [done for stage, done in progress.steps if stage == "compressing"] == sorted(
        done for stage, done in progress.steps if stage == "compressing"
    )


def test_a_quality_to_hold_needs_text_that_the_fit_has_not_seen(tmp_path: Path) -> None:
    file = tmp_path / "short.txt"
    file.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    windows = len(
        cut_windows(token_ids(Checkpoint(tiny_checkpoint(tmp_path / "tiny")).tokenizer(), file.read_text()), 64)
    )
    with pytest.raises(CalibrationNotFound, match="no window left") as caught:
        run(tmp_path, tmp_path / "out", goal=Budget(2.0), calibration=Calibration(str(file), windows, 64))
    assert caught.value.field == "calibration.samples"
    assert not (tmp_path / "out").exists()
