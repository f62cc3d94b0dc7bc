"""Several methods on one model, side by side: one calibration set, one seed, one evaluation for all rows.

Each compression runs in a process of its own, so that its time and its peak memory are its own; speeds are measured
in this one, each model in turns with the dense one.
"""

import importlib.metadata
import json
import multiprocessing
import os
import shutil
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flattengpt_core.calibration import TextWindows, evaluation_windows
from flattengpt_core.compress import compress_layers, groups_to_merge
from flattengpt_core.device import peak_memory_bytes, pick_device
from flattengpt_core.evaluate import compare_speed, conventions, perplexity
from flattengpt_core.methods import UNPRUNED
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.pipeline import checkpoint_folder
from flattengpt_core.progress import Progress, Silent
from flattengpt_core.report import comparison_page
from flattengpt_core.retention import Answers, retention
from flattengpt_core.tasks import Task, load_tasks
from flattengpt_core.texts import refuse_reported_calibration, text_digest
from flattengpt_core.unfinished import Unfinished, unfinished_beside
from flattengpt_core.unpruned import unpruned_model
from flattengpt_core.zero_shot import ask


@dataclass(frozen=True)
class Cell:
    """One compression of the table. calibration: its `dataset` is one text or mix."""

    source: Path
    out: Path
    method: str
    layers: int
    calibration: Calibration
    device: str


@dataclass(frozen=True)
class Cost:
    """What a compression took."""

    seconds: float
    peak_memory_bytes: int


def compare(
    model: Path,
    out: Path,
    *,
    name: str,
    methods: Sequence[str],
    layers: int,
    calibrations: Sequence[Calibration],
    evaluation: Evaluation,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Compress `model` by each method with each calibration and write `compare.json` and `compare.html` into `out`.

    Each row is kept on disk as soon as it is measured: the same request after an interruption goes on from there.

    Args:
        out: a new folder; it also keeps the checkpoints, one a row.
        name: what the report calls the model.
        methods: keys of `methods.METHODS`, or UNPRUNED.

    Returns:
        What `compare.json` holds: `model`, `seed`, `calibration`, `evaluation` and `rows`, the dense model first.

    Raises:
        FlattenGPTError: the model, a text, a task or the target cannot be used, or a text is calibrated and reported
            on; nothing is then left.
        Exception: whatever `progress` raises to stop; nothing is then at `out`, and beside it the finished rows.
    """
    for calibration in calibrations:
        refuse_reported_calibration(calibration.dataset, evaluation.perplexity)
    where = pick_device(device)
    request = _identity(model, name, methods, layers, calibrations, evaluation, device)
    with unfinished_beside(out, request, worth=2) as kept:
        progress.stage("loading")
        shutil.rmtree(kept.folder / "source", ignore_errors=True)
        source = Checkpoint(checkpoint_folder(model, kept.folder / "source"))
        texts = evaluation_windows(source.tokenizer(), evaluation)
        tasks = load_tasks(evaluation.tasks)
        cells = [
            Cell(source.folder, kept.folder / _folder(method, calibration, calibrations), method, layers, calibration,
                 device)
            for calibration in calibrations
            for method in methods
        ]  # fmt: skip
        if len(kept):
            progress.event("resumed", rows=len(kept))
        progress.stage("comparing")
        table = _Table(source, texts, tasks, evaluation, where, kept)
        rows = [table.dense_row()]
        for done, cell in enumerate(cells):
            progress.step(done, len(cells))
            rows.append(table.row(cell))
        rows[0] |= table.dense_speed()
        found = {
            "model": name,
            "seed": calibrations[0].seed,
            "calibration": _described(calibrations),
            "evaluation": conventions(evaluation, texts),
            "rows": rows,
        }
        (kept.folder / "compare.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (kept.folder / "compare.html").write_text(comparison_page(found), encoding="utf-8")
        shutil.rmtree(kept.folder / "source", ignore_errors=True)
        kept.finish(out)
        progress.step(len(cells), len(cells))
        return found


class _Table:
    """Makes rows, each measured in turns with the dense model, which stays loaded; finished rows are taken as kept."""

    def __init__(
        self,
        source: Checkpoint,
        texts: dict[str, Tensor],
        tasks: Sequence[Task],
        evaluation: Evaluation,
        device: torch.device,
        kept: Unfinished,
    ) -> None:
        self._source, self._texts, self._tasks, self._evaluation = source, texts, tasks, evaluation
        self._device, self._kept = device, kept
        self._tokenizer = source.tokenizer()
        self._dense_speeds: list[tuple[float, float]] = []

    @cached_property
    def _dense(self) -> PreTrainedModel:
        return load_model(self._source.folder, device=self._device, dtype=torch.float32)

    def dense_row(self) -> dict[str, Any]:
        """The first row; its speed is known when the others are measured."""
        kept = self._kept.get("dense")
        if kept is None:
            row, choices = self._quality("dense", self._dense)
            row |= {"retention": {}, "calibration": None, "compress_seconds": None}
            row |= {"peak_memory_bytes": None, "checkpoint": None}
            kept = {"row": row, "choices": {task: asdict(answers) for task, answers in choices.items()}}
            self._kept.put("dense", kept)
        self._dense_choices = {task: Answers(**answers) for task, answers in kept["choices"].items()}
        row = dict(kept["row"])
        self._dense_parameters: int = row["parameters"]
        return row

    def row(self, cell: Cell) -> dict[str, Any]:
        """Compress and measure, unless that is done already."""
        kept = self._kept.get(cell.out.name)
        if kept is None:
            row, dense_speed = self._measured(cell)
            kept = {"row": row, "dense_speed": dense_speed}
            self._kept.put(cell.out.name, kept, folder=cell.out if cell.out.exists() else None)
        if kept["dense_speed"] is not None:
            self._dense_speeds.append(kept["dense_speed"])
        return dict(kept["row"])

    def _measured(self, cell: Cell) -> tuple[dict[str, Any], tuple[float, float] | None]:
        """The row, and the dense model's speed beside it."""
        shutil.rmtree(cell.out, ignore_errors=True)  # of a run that was killed
        if cell.method == UNPRUNED:
            folds = TextWindows(self._source.tokenizer(), cell.calibration).folds()
            groups = groups_to_merge(self._source, folds, layers=cell.layers, device=self._device)
            model, cost, folder = unpruned_model(self._source, groups, device=self._device), None, None
        else:
            cost, folder = _in_own_process(cell), cell.out.name
            model = load_model(cell.out, device=self._device, dtype=torch.float32)
        row, choices = self._quality(cell.method, model)
        speed, dense_speed = self._speed(model)
        row |= speed | {
            "retention": retention(choices, self._dense_choices),
            "calibration": cell.calibration.dataset,
            "compress_seconds": cost.seconds if cost else None,
            "peak_memory_bytes": cost.peak_memory_bytes if cost else None,
            "checkpoint": folder,
        }
        return row, dense_speed

    def dense_speed(self) -> dict[str, Any]:
        """The dense model's medians over all rows."""
        if not self._dense_speeds:
            return {"tokens_per_second": None, "latency_ms": None, "tokens_per_second_ratio": None}
        tokens, latency = (statistics.median(values) for values in zip(*self._dense_speeds, strict=True))
        return {"tokens_per_second": tokens, "latency_ms": latency, "tokens_per_second_ratio": 1.0}

    def _quality(self, method: str, model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Answers]]:
        """A row as far as the model alone says it, and its answers to the tasks that choose."""
        parameters = sum(parameter.numel() for parameter in model.parameters())
        dense = parameters if method == "dense" else self._dense_parameters
        chosen = {text: windows[: self._evaluation.windows] for text, windows in self._texts.items()}
        scores = ask(model, self._tokenizer, self._tasks, limit=self._evaluation.task_items)
        row = {
            "method": method,
            "layers": len(model.model.layers),
            "parameters": parameters,
            "sparsity": 1 - parameters / dense,
            "perplexity": {text: perplexity(model, windows) for text, windows in chosen.items()},
            **scores.as_metrics(),
        }
        return row, scores.choices

    def _speed(self, model: PreTrainedModel) -> tuple[dict[str, Any], tuple[float, float] | None]:
        """The model's speed, and the dense model's beside it."""
        if not self._evaluation.benchmark:
            return {"tokens_per_second": None, "latency_ms": None, "tokens_per_second_ratio": None}, None
        dense, own = compare_speed([self._dense, model], self._evaluation)
        return {
            "tokens_per_second": own.tokens_per_second,
            "latency_ms": own.latency_ms,
            "tokens_per_second_ratio": own.tokens_per_second / dense.tokens_per_second,
        }, (dense.tokens_per_second, dense.latency_ms)


def _in_own_process(cell: Cell) -> Cost:
    """Run the compression in a new process. Raises what it raised."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_die_with_parent) as pool:
        return pool.submit(_compress, cell).result()


def _die_with_parent() -> None:
    """Called by the new process, so that it cannot write what a later run of the same request then writes, too."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="die-with-parent", daemon=True).start()


def _compress(cell: Cell) -> Cost:
    source, device = Checkpoint(cell.source), pick_device(cell.device)
    torch.manual_seed(cell.calibration.seed)
    folds = TextWindows(source.tokenizer(), cell.calibration).folds()
    scratch = cell.out.with_name(cell.out.name + ".work")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    started = time.perf_counter()
    writer = CheckpointWriter(source, scratch)
    compress_layers(source, folds, writer, Silent(), layers=cell.layers, method=cell.method, device=device)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes(device)
    writer.assemble(cell.out)
    shutil.rmtree(scratch)
    return Cost(seconds, peak)


def _folder(method: str, calibration: Calibration, calibrations: Sequence[Calibration]) -> str:
    """The checkpoint's folder, which names the calibration where there are several."""
    if len(calibrations) == 1:
        return method
    return f"{method}-calibration-{calibrations.index(calibration) + 1}"


def _described(calibrations: Sequence[Calibration]) -> dict[str, Any]:
    first = calibrations[0]
    return {
        "datasets": [calibration.dataset for calibration in calibrations],
        "samples": first.samples,
        "sequence_length": first.sequence_length,
    }


def _identity(
    model: Path,
    name: str,
    methods: Sequence[str],
    layers: int,
    calibrations: Sequence[Calibration],
    evaluation: Evaluation,
    device: str,
) -> dict[str, Any]:
    """What tells this comparison from another: the request, the files that it names, the versions that carry it out."""
    texts = [text for calibration in calibrations for text in calibration.dataset.split("+")]
    named = {file: text_digest(file) for file in (*texts, *evaluation.perplexity, *evaluation.tasks)}
    weights = [model] if model.is_file() else sorted(file for file in model.glob("*") if file.is_file())
    return {
        "model": name,
        "weights": [[file.name, (stat := file.stat()).st_size, stat.st_mtime_ns] for file in weights],
        "methods": list(methods),
        "layers": layers,
        "calibrations": [asdict(calibration) for calibration in calibrations],
        "evaluation": asdict(evaluation),
        "files": {file: digest.hex() for file, digest in named.items() if digest is not None},
        "device": device,
        "versions": {
            name: importlib.metadata.version(name) for name in ("flattengpt", "torch", "transformers", "lm-eval")
        },
    }
