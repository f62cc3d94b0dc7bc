"""`flattengpt compare`: several methods on one model, on this machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cli.errors import BadUsage
from cli.fetch import fetch
from cli.screen import progress_bar
from cli.stage_bars import StageBars
from flattengpt_core.checkpoint import inspect
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.methods import METHODS, UNPRUNED
from flattengpt_core.options import Calibration, Evaluation
from jobs.settings import Settings


def compare_here(
    model: str,
    folder: Path,
    *,
    methods: Sequence[str],
    sparsity: float | None,
    layers: int | None,
    datasets: Sequence[str],
    calibration: Calibration,
    evaluation: Evaluation,
    revision: str,
    device: str,
    settings: Settings,
) -> dict[str, Any]:
    """Write the comparison into the new folder `folder` and give what its `compare.json` holds.

    Args:
        datasets: texts to calibrate on, one after the other; `calibration` holds the rest.

    Raises:
        FlattenGPTError: a method, the target, the model or a text cannot be used.
    """
    unknown = [method for method in methods if method not in (*METHODS, UNPRUNED)]
    if unknown:
        known = ", ".join((*METHODS, UNPRUNED))
        raise BadUsage(f"unknown method {unknown[0]!r}: choose among {known}.", field="--methods")
    for name, values in (("--methods", methods), ("--calibration", datasets)):
        if len(set(values)) < len(values):
            raise BadUsage("the same is named twice.", field=name)
    path = fetch(model, revision=revision, settings=settings)
    target = layers_to_keep(inspect(path).num_layers, sparsity=sparsity, layers=layers)

    from flattengpt_core.compare import compare  # imports torch, which takes seconds

    with progress_bar() as bar:
        return compare(
            path,
            folder,
            name=model,
            methods=methods,
            layers=target,
            calibrations=[replace(calibration, dataset=dataset) for dataset in datasets],
            evaluation=evaluation,
            device=device,
            progress=StageBars(bar),
        )
