"""The whole job, top to bottom: load, calibrate, compress, recover, evaluate, save.

The result folder appears under its final name only when it is complete.
"""

import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from flattengpt_core import diagnostics, figures, gguf
from flattengpt_core.budget import fewest_within
from flattengpt_core.calibration import TextWindows, evaluation_windows
from flattengpt_core.card import card
from flattengpt_core.compress import cheapest_groups, compress_layers
from flattengpt_core.compressed import Compressed
from flattengpt_core.device import peak_memory_bytes, pick_device
from flattengpt_core.evaluate import measure
from flattengpt_core.licence import CARD, licence_of
from flattengpt_core.manifest import move_into_place, scratch_beside, write_manifest
from flattengpt_core.models import Checkpoint, CheckpointWriter, replace_weights
from flattengpt_core.options import Budget, Calibration, Evaluation, Recovery
from flattengpt_core.progress import Progress
from flattengpt_core.reading import reading
from flattengpt_core.recovery.curve import draw_curve
from flattengpt_core.recovery.folder import Recovered, Task
from flattengpt_core.recovery.launch import recover_launched
from flattengpt_core.recovery.precision import refuse_emulated
from flattengpt_core.tasks import load_tasks
from flattengpt_core.texts import refuse_reported_calibration
from flattengpt_core.work import WorkFolder, identity

BUDGET_TOKENS = 8192
"""Held-out tokens that a quality budget is judged on."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compress(
    model: Path,
    out: Path,
    *,
    goal: int | Budget,
    method: str,
    calibration: Calibration,
    recovery: Recovery,
    evaluation: Evaluation,
    device: str,
    dtype: str,
    progress: Progress,
    request: dict[str, Any],
    base_model: str,
    texts_dir: Path | None = None,
    work: Path | None = None,
    accelerate_config: Path | None = None,
) -> dict[str, Any]:
    """Compress the checkpoint folder or .gguf file `model` to the goal, into the new folder `out`.

    Args:
        goal: a number of layers, or a quality to hold with as few as can be.
        device: `auto` takes a GPU if there is one, else the CPU.
        dtype: what the result is saved as; `auto` keeps the source's.
        request: what was asked for, recorded in the result as it is.
        base_model: the name the model card gives the source.
        texts_dir: where the texts `local:NAME` are.
        work: keeps intermediate state, so that the same call goes on where it stopped; nothing is kept if None.
        accelerate_config: starts recovery by `accelerate launch` with this file, else it runs in this process.

    Returns:
        The metrics: `dense` and `compressed` (each as `evaluate.measure` gives it), `compress_seconds`,
        `peak_memory_bytes`, `groups`, `recovery` (None, or the fields of `recovery.folder.Recovered`).

    Raises:
        FlattenGPTError: the model, a text, a task or the target cannot be used.
        Exception: whatever `progress` raises to stop the run; nothing is then left under `out`.
    """
    refuse_reported_calibration(calibration.dataset, evaluation.perplexity, texts_dir)
    where = pick_device(device)
    if accelerate_config is None:  # which says by itself where it trains
        refuse_emulated(recovery, where)
    torch.manual_seed(calibration.seed)
    with scratch_beside(out) as aside:
        progress.stage("loading")
        source = Checkpoint(checkpoint_folder(model, aside / "source"))
        tokenizer = source.tokenizer()
        reported = evaluation_windows(tokenizer, evaluation, texts_dir)
        tasks = load_tasks(evaluation.tasks)

        progress.stage("calibrating")
        text = TextWindows(tokenizer, calibration, texts_dir)
        folds = text.folds()

        windows = text.all()
        asked = {
            "goal": goal if isinstance(goal, int) else asdict(goal),
            "method": method,
            "calibration": asdict(calibration),
            "recovery": asdict(recovery),
        }
        state = WorkFolder(work or aside / "work", asked | {"dtype": dtype} | identity(model, [*folds, windows]))

        progress.stage("compressing")
        finished = state.layers_done()
        if finished is None:
            started = time.perf_counter()
            compress_to = partial(_compress_to, source, folds, state, method, DTYPES.get(dtype), where)
            if isinstance(goal, Budget):
                held_out = text.held_out(BUDGET_TOKENS)
                done = fewest_within(
                    goal, source, held_out, compress_to, state.compressed, state.trials, progress, device=where
                )
            else:
                done = compress_to(goal, state.compressed, progress)
            finished = done, time.perf_counter() - started
            state.finish_layers(*finished)
        done, compress_seconds = finished

        recovered = None
        if recovery.method != "none":
            progress.stage("recovering")
            task = Task(
                state.compressed.absolute(),
                source.folder.absolute(),
                done.groups,
                recovery,
                calibration.seed,
                where.type,
                resumable=work is not None,
            )
            recovered = _recover(state, task, windows, progress, accelerate_config)
        result = _result(state, aside / "result", recovered, keep=work is not None)

        progress.stage("evaluating")
        metrics = {
            **measure(
                {"dense": source.folder, "compressed": result},
                reported,
                evaluation,
                tasks=tasks,
                device=where,
                progress=progress,
                finished=state.evaluation(evaluation, reported.values()),
            ),
            "compress_seconds": compress_seconds,
            "peak_memory_bytes": peak_memory_bytes(where),
            "groups": [list(group) for group in done.groups],
            "recovery": recovered.as_dict() if recovered else None,
        }
        if recovered:
            draw_curve(recovered.as_dict(), result)
        licence = licence_of(source.folder)
        kept = licence.without_missing_file(result) if licence else None
        (result / CARD).write_text(card(metrics, request, base_model, kept), encoding="utf-8")
        write_manifest(result, request, metrics, done)
        move_into_place(result, out)
        return metrics


def _compress_to(
    source: Checkpoint,
    folds: Sequence[Tensor],
    state: WorkFolder,
    method: str,
    dtype: torch.dtype | None,
    device: torch.device,
    layers: int,
    out: Path,
    progress: Progress,
) -> Compressed:
    """Write the checkpoint of so many layers to the new folder `out`, after what an earlier run has finished of it."""
    writer = CheckpointWriter(source, state.parts / str(layers))
    done = compress_layers(source, folds, writer, progress, layers=layers, method=method, device=device)
    writer.assemble(out, dtype=dtype)
    shutil.rmtree(state.parts)
    return done


def evaluate(model: Path, evaluation: Evaluation, *, device: str, progress: Progress) -> dict[str, Any]:
    """Measure the checkpoint folder or .gguf file `model`: the metrics that `compress` gives of each of its two.

    Raises:
        FlattenGPTError: the model, a text or a task cannot be used.
    """
    with TemporaryDirectory() as scratch:
        progress.stage("loading")
        source = Checkpoint(checkpoint_folder(model, Path(scratch) / "source"))
        texts = evaluation_windows(source.tokenizer(), evaluation)
        tasks = load_tasks(evaluation.tasks)
        progress.stage("evaluating")
        folders, where = {"model": source.folder}, pick_device(device)
        return measure(folders, texts, evaluation, tasks=tasks, device=where, progress=progress)["model"]


def diagnose(
    model: Path, out: Path, *, name: str, layers: int, calibration: Calibration, device: str, progress: Progress
) -> dict[str, Any]:
    """Measure how well the layers of the checkpoint folder or .gguf file `model` can merge, into the new folder `out`.

    Args:
        name: what the result calls the model.
        layers: the target that the groups are chosen for, as `compress` by `flattengpt` would.

    Returns:
        What `diagnose.json` holds: `model`, its `layers`, `calibration`, the fields of `diagnostics.Diagnosis`,
        `groups` and the `reading`.

    Raises:
        FlattenGPTError: the model, the text or the target cannot be used; nothing is then left under `out`.
    """
    with scratch_beside(out) as aside:
        where = pick_device(device)
        progress.stage("loading")
        source = Checkpoint(checkpoint_folder(model, aside / "source"))

        progress.stage("calibrating")
        folds = TextWindows(source.tokenizer(), calibration).folds()

        progress.stage("diagnosing")
        found = diagnostics.diagnose(source, folds, progress, seed=calibration.seed, device=where)
        groups = cheapest_groups(found.costs, layers, source.kinds)
        report = {
            "model": name,
            "layers": source.info.num_layers,
            "calibration": asdict(calibration),
            "groups": [list(group) for group in groups],
            **found.as_dict(),
            "reading": reading(found, groups, diagnostics.fewest_alike(found.similarity, source.kinds)),
        }

        progress.stage("drawing")
        result = aside / "result"
        result.mkdir()
        (result / "diagnose.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        figures.draw(found, groups, name, result)
        move_into_place(result, out)
    return report


def checkpoint_folder(model: Path, folder: Path) -> Path:
    """The checkpoint folder itself; a .gguf file is first turned into one, at `folder`."""
    if model.suffix == ".gguf" and model.is_file():
        gguf.convert(model, folder)
        return folder
    return model


def _recover(
    state: WorkFolder, task: Task, windows: Tensor, progress: Progress, accelerate_config: Path | None
) -> Recovered:
    """Train the compressed checkpoint, in this process or in those that accelerate's config asks for."""
    state.recovery.prepare(task, windows)
    if accelerate_config is None:
        from flattengpt_core.recovery.run import recover  # the trainer's libraries take a second that most jobs save

        return recover(state.recovery, progress)
    return recover_launched(state.recovery, progress, accelerate_config)


def _weights_linked(source: str, target: str) -> None:
    """A copy, but of weights, which are never written in place, another name for the file, where that can be."""
    if source.endswith(".safetensors"):
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _result(state: WorkFolder, folder: Path, recovered: Recovered | None, *, keep: bool) -> Path:
    """The new folder `folder` with the compressed checkpoint, with trained weights if those are better.

    Its tensors keep their dtypes.

    Args:
        keep: whether the state is needed again.
    """
    trained = None
    if recovered and recovered.kept:
        from flattengpt_core.recovery.run import trained_weights

        trained = trained_weights(state.recovery)
    if keep:
        shutil.copytree(state.compressed, folder, copy_function=_weights_linked)
    else:
        os.rename(state.compressed, folder)
    if trained is not None:
        replace_weights(Checkpoint(folder), trained)
    return folder
