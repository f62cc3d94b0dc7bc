"""`flattengpt diagnose`: how well a model's layers can merge, measured on this machine."""

from pathlib import Path
from typing import Any

from cli.fetch import fetch
from cli.screen import progress_bar
from cli.stage_bars import StageBars
from flattengpt_core.checkpoint import inspect
from flattengpt_core.depth import layers_to_keep
from flattengpt_core.options import Calibration
from jobs.settings import Settings
from jobs.spec import JobSpec

SPARSITY = 0.2
"""The share of layers to remove that the groups are shown for, if no target is given."""


def diagnose_here(
    request: dict[str, Any], folder: Path, *, calibration: str | None, device: str, settings: Settings
) -> dict[str, Any]:
    """Diagnose the request's model for its target into the new folder `folder`, and give what `diagnose.json` holds.

    Args:
        calibration: a text's name or file that wins over the request's.

    Raises:
        FlattenGPTError, ValidationError: the request is wrong, or the model or the text cannot be used.
    """
    if request.get("sparsity") is None and request.get("layers") is None:
        # A quality to hold has no groups to show before sizes are tried.
        request = {key: value for key, value in request.items() if key != "target"} | {"sparsity": SPARSITY}
    spec = JobSpec.model_validate(request)
    model = fetch(spec.model, revision=spec.revision, settings=settings)
    layers = layers_to_keep(inspect(model).num_layers, sparsity=spec.sparsity, layers=spec.layers)

    from flattengpt_core.pipeline import diagnose  # imports torch, which takes seconds

    text = calibration or spec.calibration.dataset
    with progress_bar() as bar:
        return diagnose(
            model,
            folder,
            name=spec.model,
            layers=layers,
            calibration=Calibration(**(spec.calibration.model_dump() | {"dataset": text})),
            device=device,
            progress=StageBars(bar),
        )
