"""Perplexity and speed as they are reported."""

import math
from pathlib import Path

import pytest
import torch

from flattengpt_core.calibration import evaluation_windows
from flattengpt_core.errors import CalibrationNotFound
from flattengpt_core.evaluate import compare_speed, measure, perplexity
from flattengpt_core.models import Checkpoint, load_model
from flattengpt_core.options import Evaluation
from flattengpt_core.progress import Silent
from flattengpt_core.tasks import load_tasks
from tests.task_files import CHOICES, task_file
from tests.tiny_models import tiny_checkpoint

CPU = torch.device("cpu")
WINDOWS = torch.randint(0, 256, (9, 32), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny")


class Counted(Silent):
    """Keeps the steps."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def step(self, done: int, total: int) -> None:
        self.steps.append((done, total))


def test_perplexity_is_the_models_own_loss(folder: Path) -> None:
    model = load_model(folder, device=CPU, dtype=torch.float32)
    told: list[int] = []
    with torch.no_grad():
        expected = math.exp(float(model(WINDOWS, labels=WINDOWS).loss))
    assert perplexity(model, WINDOWS, told.append) == pytest.approx(expected, rel=1e-5)
    assert sum(told) == len(WINDOWS)


def test_windows_do_not_see_each_other(folder: Path) -> None:
    model = load_model(folder, device=CPU, dtype=torch.float32)
    each = [math.log(perplexity(model, window[None])) for window in WINDOWS]
    assert math.log(perplexity(model, WINDOWS)) == pytest.approx(sum(each) / len(each), rel=1e-5)


def test_both_models_are_measured_on_the_same(folder: Path) -> None:
    evaluation = Evaluation(("python-docs",), sequence_length=32, windows=4, benchmark_repeats=1)
    counted = Counted()
    texts = evaluation_windows(Checkpoint(folder).tokenizer(), evaluation)
    found = measure({"a": folder, "b": folder}, texts, evaluation, device=CPU, progress=counted)
    assert found["a"]["perplexity"] == found["b"]["perplexity"]
    assert (found["a"]["layers"], found["a"]["parameters"]) == (6, Checkpoint(folder).info.parameters)
    assert min(found[name][speed] for name in found for speed in ("tokens_per_second", "latency_ms")) > 0
    assert [done for done, _ in counted.steps] == sorted({done for done, _ in counted.steps})
    assert counted.steps[-1][0] == counted.steps[-1][1]


def test_what_is_not_asked_for_is_not_measured(folder: Path) -> None:
    found = measure({"a": folder}, {}, Evaluation((), benchmark=False), device=CPU, progress=Silent())
    assert (found["a"]["perplexity"], found["a"]["tokens_per_second"], found["a"]["latency_ms"]) == ({}, None, None)


def test_speeds_come_in_the_models_order(tmp_path: Path, folder: Path) -> None:
    deep = tiny_checkpoint(tmp_path / "deep", num_hidden_layers=48)
    models = [load_model(path, device=CPU, dtype=torch.float32) for path in (deep, folder)]
    slow, fast = compare_speed(models, Evaluation(benchmark_repeats=2))
    assert fast.tokens_per_second > 2 * slow.tokens_per_second
    assert slow.latency_ms > 2 * fast.latency_ms


def test_the_speed_protocols_sizes_are_kept_to(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    model = load_model(folder, device=CPU, dtype=torch.float32)
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    sizes = Evaluation(
        benchmark_repeats=1,
        benchmark_batch_size=3,
        benchmark_prompt_tokens=5,
        benchmark_new_tokens=4,
        benchmark_prefill_batch_size=2,
        benchmark_prefill_tokens=300,
    )
    [speed] = compare_speed([model], sizes)
    assert seen == [(3, 5), (3, 1), (3, 1), (3, 1), (2, 300)] * 2
    assert speed.tokens_per_second > 0


def test_tasks_are_measured_on_both_and_what_is_kept_is_said(tmp_path: Path, folder: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other", seed=5)
    name = task_file(tmp_path / "choices.jsonl", CHOICES)
    evaluation = Evaluation((), tasks=(name,), task_items=3, benchmark=False)
    counted = Counted()
    found = measure(
        {"a": folder, "b": other}, {}, evaluation, tasks=load_tasks(evaluation.tasks), device=CPU, progress=counted
    )
    assert found["a"]["tasks"][name]["items"] == 3
    assert (found["a"]["retention"], found["b"]["retention"].keys()) == ({}, {name, "mean"})
    assert counted.steps[-1] == (6, 6)
    assert found["a"]["evaluation"]["task_items"] == 3


def test_a_text_shorter_than_a_window_is_refused(tmp_path: Path, folder: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.")
    with pytest.raises(CalibrationNotFound, match="shorter than one window of 64 tokens"):
        evaluation_windows(Checkpoint(folder).tokenizer(), Evaluation((str(text),), sequence_length=64))
