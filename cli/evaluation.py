"""`flattengpt evaluate`: one model measured on this machine."""

from typing import Any

from cli.fetch import fetch
from cli.screen import progress_bar
from cli.stage_bars import StageBars
from flattengpt_core.checkpoint import inspect
from flattengpt_core.options import Evaluation
from jobs.settings import Settings


def evaluate_here(
    model: str, evaluation: Evaluation, *, revision: str, device: str, settings: Settings
) -> dict[str, Any]:
    """The model's name and its metrics, as `evaluate.measure` gives them.

    Raises FlattenGPTError if the model, a text or a task cannot be used.
    """
    path = fetch(model, revision=revision, settings=settings)
    inspect(path)

    from flattengpt_core.pipeline import evaluate  # imports torch, so only once the model is known to be there

    with progress_bar() as bar:
        return {"model": model} | evaluate(path, evaluation, device=device, progress=StageBars(bar))
