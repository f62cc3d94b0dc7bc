"""One model at several sizes by one method, from the same calibration windows: what each size costs in quality."""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from flattengpt_core.calibration import TextWindows, evaluation_windows
from flattengpt_core.compress import compress_sizes
from flattengpt_core.device import pick_device
from flattengpt_core.evaluate import measure
from flattengpt_core.manifest import scratch_beside
from flattengpt_core.models import Checkpoint, CheckpointWriter
from flattengpt_core.options import Calibration, Evaluation
from flattengpt_core.pipeline import checkpoint_folder
from flattengpt_core.progress import Progress
from flattengpt_core.tasks import load_tasks
from flattengpt_core.texts import refuse_reported_calibration

FIGURE = "ladder.svg"


def ladder(
    model: Path,
    out: Path,
    *,
    name: str,
    method: str,
    sizes: Sequence[int],
    calibration: Calibration,
    evaluation: Evaluation,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """Write the checkpoint of each size, `ladder.json` and `ladder.svg` into the new folder `out`.

    FlattenGPT's methods make all sizes in one pass over the calibration windows (see `walk`), the others one after
    the other. All models are loaded at once to be measured, so that their speeds are timed in turns.

    Args:
        name: what the report calls the model.
        sizes: numbers of layers to keep, each once.

    Returns:
        What `ladder.json` holds: `model`, `method`, `seed`, `calibration`, `compress_seconds` for all sizes together,
        and `rows`, the dense model first and then the most layers first, each with its metrics (see
        `evaluate.measure`), `groups` and `checkpoint`.

    Raises:
        FlattenGPTError: the model, a text, a task or a size cannot be used.
        Exception: whatever `progress` raises to stop; nothing is then at `out`.
    """
    refuse_reported_calibration(calibration.dataset, evaluation.perplexity)
    where = pick_device(device)
    torch.manual_seed(calibration.seed)
    with scratch_beside(out) as aside:
        progress.stage("loading")
        source = Checkpoint(checkpoint_folder(model, aside / "source"))
        tokenizer = source.tokenizer()
        reported = evaluation_windows(tokenizer, evaluation)
        tasks = load_tasks(evaluation.tasks)

        progress.stage("calibrating")
        folds = TextWindows(tokenizer, calibration).folds()

        progress.stage("compressing")
        started = time.perf_counter()
        writers = {layers: CheckpointWriter(source, aside / "work" / str(layers)) for layers in sizes}
        done = compress_sizes(source, folds, writers, progress, method=method, device=where)
        compress_seconds = time.perf_counter() - started
        result = aside / "result"
        folders = {"dense": source.folder}
        for layers in sorted(sizes, reverse=True):
            folders[str(layers)] = result / str(layers)
            writers[layers].assemble(folders[str(layers)])

        progress.stage("evaluating")
        metrics = measure(folders, reported, evaluation, tasks=tasks, device=where, progress=progress)
        found = {
            "model": name,
            "method": method,
            "seed": calibration.seed,
            "calibration": asdict(calibration),
            "compress_seconds": compress_seconds,
            "rows": [
                metrics[size]
                | {
                    "groups": [list(group) for group in done[int(size)].groups] if size != "dense" else None,
                    "checkpoint": size if size != "dense" else None,
                }
                for size in folders
            ],
        }
        (result / "ladder.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        draw(found, result / FIGURE)
        shutil.rmtree(aside / "source", ignore_errors=True)
        result.rename(out)
        return found


def draw(found: Mapping[str, Any], file: Path) -> None:
    """Perplexity as a multiple of the dense model's, and accuracy by task, against the number of layers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = found["rows"]
    layers = [row["layers"] for row in rows]
    kinds = [kind for kind in ("perplexity", "accuracy") if rows[0][kind]]
    with rc_context({"svg.hashsalt": file.name, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6 * max(1, len(kinds)), 4), layout="constrained")
        for kind, axes in zip(kinds, figure.subplots(1, len(kinds), squeeze=False)[0] if kinds else [], strict=True):
            for name in rows[0][kind]:
                unit = rows[0][kind][name] if kind == "perplexity" else 1
                axes.plot(layers, [row[kind][name] / unit for row in rows], marker="o", label=Path(name).name)
            axes.set(xlabel="layers", ylabel="perplexity / dense" if kind == "perplexity" else "accuracy")
            if kind == "perplexity":
                axes.set_yscale("log")
            axes.invert_xaxis()
            axes.legend()
        figure.suptitle(f"{found['model']}, {found['method']}", parse_math=False)
        figure.savefig(file, metadata={"Date": None})
