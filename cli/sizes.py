"""`flattengpt ladder`: one model at several sizes, on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.errors import BadUsage
from cli.fetch import fetch
from cli.screen import progress_bar
from cli.stage_bars import StageBars
from flattengpt_core.checkpoint import inspect
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.methods import METHODS
from flattengpt_core.options import Calibration, Evaluation
from jobs.settings import Settings


def ladder_here(
    model: str,
    folder: Path,
    *,
    method: str,
    sizes: str,
    calibration: Calibration,
    evaluation: Evaluation,
    revision: str,
    device: str,
    settings: Settings,
) -> dict[str, Any]:
    """Make the sizes into the new folder `folder` and give what its `ladder.json` holds.

    Args:
        sizes: numbers of layers to keep, joined by ','.

    Raises:
        FlattenGPTError: the method, a size, the model or a text cannot be used.
    """
    if method not in METHODS:
        raise BadUsage(f"unknown method {method!r}: choose among {', '.join(METHODS)}.", field="--method")
    wanted = _numbers(sizes)
    path = fetch(model, revision=revision, settings=settings)
    num_layers = inspect(path).num_layers
    for layers in wanted:
        layers_to_keep(num_layers, layers=layers)

    from flattengpt_core.ladder import ladder  # imports torch, which takes seconds

    with progress_bar() as bar:
        return ladder(
            path,
            folder,
            name=model,
            method=method,
            sizes=wanted,
            calibration=calibration,
            evaluation=evaluation,
            device=device,
            progress=StageBars(bar),
        )


def _numbers(sizes: str) -> Sequence[int]:
    try:
        numbers = [int(size) for size in sizes.split(",")]
    except ValueError:
        raise BadUsage(f"{sizes!r} are no numbers of layers; write them like 28,24,20.", field="--layers") from None
    if len(set(numbers)) < len(numbers):
        raise BadUsage("the same number is named twice.", field="--layers")
    return numbers
