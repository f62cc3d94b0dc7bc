"""The training loss of a recovery as a figure. Needs no display: the figure is made without pyplot."""

import math
from pathlib import Path

from flattengpt_core.recovery.folder import Recovered

FIGURE = "recovery.svg"
_LOSS = {"lora": "nats a token", "distill": "distance to the dense model, nats a token"}


def draw_curve(recovered: Recovered, folder: Path) -> None:
    """Write recovery.svg to `folder`: the training loss by step, and the held-out losses in the title."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": FIGURE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [step for step, _ in recovered.curve]
        losses = [math.nan if loss is None else loss for _, loss in recovered.curve]
        axes.plot(steps, losses, marker="." if len(steps) < 2 else "", color="#4878a8")
        axes.set_title(
            f"Held-out loss {_number(recovered.loss_before)} -> {_number(recovered.loss_after)} nats a token"
        )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(f"training loss, {_LOSS[recovered.method]}")
        figure.savefig(folder / FIGURE, metadata={"Date": None})  # the same numbers give the same file


def in_words(recovered: Recovered) -> str:
    """What training did, in a sentence or two."""
    before, after = _number(recovered.loss_before), _number(recovered.loss_after)
    text = (
        f"Trained for {recovered.steps} steps ({recovered.method}); the loss on {recovered.held_out_tokens:,} held-out "
        f"tokens went from {before} to {after} nats a token"
    )
    if recovered.kept:
        return f"{text}, so the trained weights were kept."
    return f"{text}, so training did not help and the weights from before it were kept."


def _number(loss: float | None) -> str:
    return "no number" if loss is None else f"{loss:.3f}"
