"""`flattengpt compress`: a request run on this machine, with its progress on standard error."""

from pathlib import Path
from typing import Any

from cli.fetch import fetch
from cli.screen import progress_bar
from cli.stage_bars import StageBars
from flattengpt_core.checkpoint import inspect
from flattengpt_core.options import Calibration, Evaluation, Recovery
from flattengpt_core.texts import TEXTS
from jobs.settings import Settings
from jobs.spec import JobSpec


def compress_here(
    request: dict[str, Any],
    folder: Path,
    *,
    calibration: str | None,
    texts: list[str] | None,
    tasks: list[str] | None,
    device: str,
    settings: Settings,
    work: Path | None = None,
    accelerate_config: Path | None = None,
) -> dict[str, Any]:
    """Run the request into the new folder `folder` and give its metrics.

    Args:
        calibration: a text's name or file that wins over the request's; a service knows no files.
        texts: names or files to report perplexity on, likewise.
        tasks: names or files of tasks, likewise.
        work, accelerate_config: as for `pipeline.compress`.

    Raises:
        FlattenGPTError, ValidationError: the request is wrong, or the model or a text cannot be used.
    """
    spec = JobSpec.model_validate(request)
    dataset = calibration or spec.calibration.dataset
    if texts is None:
        said = "perplexity" in request.get("evaluation", {}) or not calibration
        texts = list(spec.evaluation.perplexity) if said else [name for name in dataset.split("+") if name in TEXTS]
    model = fetch(spec.model, revision=spec.revision, settings=settings)
    goal = spec.goal(inspect(model).num_layers)

    from flattengpt_core.pipeline import compress  # imports torch, which takes seconds

    with progress_bar() as bar:
        return compress(
            model,
            folder,
            goal=goal,
            method=spec.method,
            calibration=Calibration(**(spec.calibration.model_dump() | {"dataset": dataset})),
            recovery=Recovery(**spec.recovery.model_dump()),
            evaluation=Evaluation(
                **(
                    spec.evaluation.model_dump()
                    | {"perplexity": tuple(texts), "tasks": tuple(spec.evaluation.tasks if tasks is None else tasks)}
                ),
            ),
            device=device,
            dtype=spec.dtype,
            progress=StageBars(bar),
            request=spec.as_published(),
            base_model=spec.model.removeprefix("local:"),
            texts_dir=settings.texts_dir,
            work=work,
            accelerate_config=accelerate_config,
        )
