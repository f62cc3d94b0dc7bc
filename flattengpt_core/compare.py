"""Several methods on one model, side by side: one calibration set, one seed, one evaluation for all rows.

Each compression runs in a process of its own, so that its time and its peak memory are its own; speeds are measured
in this one, each model in turns with the dense one.
"""

import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flattengpt_core.calibration import TextWindows, evaluation_windows
from flattengpt_core.compress import compress_layers, groups_to_merge
from flattengpt_core.evaluate import compare_speed, perplexity
from flattengpt_core.manifest import scratch_beside
from flattengpt_core.methods import UNPRUNED
from flattengpt_core.models import Checkpoint, CheckpointWriter, load_model
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.pipeline import checkpoint_folder, peak_memory_bytes, pick_device
from flattengpt_core.progress import Progress, Silent
from flattengpt_core.report import comparison_page
from flattengpt_core.texts import refuse_reported_calibration
from flattengpt_core.unpruned import unpruned_model


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

    Args:
        out: a new folder; it also keeps the checkpoints, one a row.
        name: what the report calls the model.
        methods: keys of `methods.METHODS`, or UNPRUNED.

    Returns:
        What `compare.json` holds: `model`, `seed`, `calibration`, `evaluation` and `rows`, the dense model first.

    Raises:
        FlattenGPTError: the model, a text or the target cannot be used, or a text is calibrated and reported on.
        Exception: whatever `progress` raises to stop; nothing is then left under `out`.
    """
    for calibration in calibrations:
        refuse_reported_calibration(calibration.dataset, evaluation.perplexity)
    with scratch_beside(out) as aside:
        progress.stage("loading")
        source = Checkpoint(checkpoint_folder(model, aside / "source"))
        texts = evaluation_windows(source.tokenizer(), evaluation)
        cells = [
            Cell(source.folder, aside / _folder(method, calibration, calibrations), method, layers, calibration, device)
            for calibration in calibrations
            for method in methods
        ]
        progress.stage("comparing")
        table = _Table(source, texts, evaluation, pick_device(device))
        rows = [table.dense_row()]
        for done, cell in enumerate(cells):
            progress.step(done, len(cells))
            rows.append(table.row(cell))
        rows[0] |= table.dense_speed()
        found = {
            "model": name,
            "seed": calibrations[0].seed,
            "calibration": _described(calibrations),
            "evaluation": _reported(evaluation, texts),
            "rows": rows,
        }
        (aside / "compare.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        (aside / "compare.html").write_text(comparison_page(found), encoding="utf-8")
        shutil.rmtree(aside / "source", ignore_errors=True)
        aside.rename(out)
        progress.step(len(cells), len(cells))
        return found


class _Table:
    """Makes rows, each measured in turns with the dense model, which stays loaded."""

    def __init__(
        self, source: Checkpoint, texts: dict[str, Tensor], evaluation: Evaluation, device: torch.device
    ) -> None:
        self._source, self._texts, self._evaluation, self._device = source, texts, evaluation, device
        self._dense = load_model(source.folder, device=device, dtype=torch.float32)
        self._dense_speeds: list[tuple[float, float]] = []

    def dense_row(self) -> dict[str, Any]:
        """The first row; its speed is known when the others are measured."""
        return self._quality("dense", self._dense) | {
            "calibration": None,
            "compress_seconds": None,
            "peak_memory_bytes": None,
            "checkpoint": None,
        }

    def row(self, cell: Cell) -> dict[str, Any]:
        """Compress and measure."""
        if cell.method == UNPRUNED:
            folds = _folds(self._source, cell.calibration)
            groups = groups_to_merge(self._source, folds, layers=cell.layers, device=self._device)
            model, cost, folder = unpruned_model(self._source, groups, device=self._device), None, None
        else:
            cost, folder = _in_own_process(cell), cell.out.name
            model = load_model(cell.out, device=self._device, dtype=torch.float32)
        return (
            self._quality(cell.method, model)
            | self._speed(model)
            | {
                "calibration": cell.calibration.dataset,
                "compress_seconds": cost.seconds if cost else None,
                "peak_memory_bytes": cost.peak_memory_bytes if cost else None,
                "checkpoint": folder,
            }
        )

    def dense_speed(self) -> dict[str, Any]:
        """The dense model's medians over all rows."""
        if not self._dense_speeds:
            return {"tokens_per_second": None, "latency_ms": None, "tokens_per_second_ratio": None}
        tokens, latency = (statistics.median(values) for values in zip(*self._dense_speeds, strict=True))
        return {"tokens_per_second": tokens, "latency_ms": latency, "tokens_per_second_ratio": 1.0}

    def _quality(self, method: str, model: PreTrainedModel) -> dict[str, Any]:
        parameters = sum(parameter.numel() for parameter in model.parameters())
        dense = sum(parameter.numel() for parameter in self._dense.parameters())
        chosen = {text: windows[: self._evaluation.windows] for text, windows in self._texts.items()}
        return {
            "method": method,
            "layers": len(model.model.layers),
            "parameters": parameters,
            "sparsity": 1 - parameters / dense,
            "perplexity": {text: perplexity(model, windows) for text, windows in chosen.items()},
            "accuracy": {},
        }

    def _speed(self, model: PreTrainedModel) -> dict[str, Any]:
        if not self._evaluation.benchmark:
            return {"tokens_per_second": None, "latency_ms": None, "tokens_per_second_ratio": None}
        dense, own = compare_speed([self._dense, model], repeats=self._evaluation.benchmark_repeats)
        self._dense_speeds.append((dense.tokens_per_second, dense.latency_ms))
        return {
            "tokens_per_second": own.tokens_per_second,
            "latency_ms": own.latency_ms,
            "tokens_per_second_ratio": own.tokens_per_second / dense.tokens_per_second,
        }


def _in_own_process(cell: Cell) -> Cost:
    """Run the compression in a new process. Raises what it raised."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_compress, cell).result()


def _compress(cell: Cell) -> Cost:
    source, device = Checkpoint(cell.source), pick_device(cell.device)
    torch.manual_seed(cell.calibration.seed)
    folds = _folds(source, cell.calibration)
    scratch = cell.out.with_name(cell.out.name + ".work")
    started = time.perf_counter()
    writer = CheckpointWriter(source, scratch)
    compress_layers(source, folds, writer, Silent(), layers=cell.layers, method=cell.method, device=device)
    seconds = time.perf_counter() - started
    peak = peak_memory_bytes(device)
    writer.assemble(cell.out)
    shutil.rmtree(scratch)
    return Cost(seconds, peak)


def _folds(source: Checkpoint, calibration: Calibration) -> list[Tensor]:
    length, seed = calibration.sequence_length, calibration.seed
    return TextWindows(source.tokenizer(), calibration.dataset, length=length, seed=seed).folds(calibration.samples)


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


def _reported(evaluation: Evaluation, texts: dict[str, Tensor]) -> dict[str, Any]:
    tokens = {text: windows[: evaluation.windows].numel() for text, windows in texts.items()}
    return {"sequence_length": evaluation.sequence_length, "tokens": tokens}
