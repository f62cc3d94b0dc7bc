"""What a recovery did, as a figure and in words, from the metrics' `recovery`. Imports no torch, needs no display."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FIGURE = "recovery.svg"
_LOSS = {"lora": "nats a token", "distill": "distance to the dense model, nats a token"}


def draw_curve(recovery: Mapping[str, Any], folder: Path) -> None:
    """Write recovery.svg to `folder`: the training loss by step, and the held-out losses in the title."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": FIGURE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        steps = [step for step, _ in recovery["curve"]]
        losses = [math.nan if loss is None else loss for _, loss in recovery["curve"]]
        axes.plot(steps, losses, marker="." if len(steps) < 2 else "", color="#4878a8")
        axes.set_title(
            f"Held-out loss {_number(recovery['loss_before'])} -> {_number(recovery['loss_after'])} nats a token"
        )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(f"training loss, {_LOSS[recovery['method']]}")
        figure.savefig(folder / FIGURE, metadata={"Date": None})  # the same numbers give the same file


def in_words(recovery: Mapping[str, Any]) -> str:
    """What training did, in a sentence or two."""
    before, after = _number(recovery["loss_before"]), _number(recovery["loss_after"])
    text = (
        f"Trained for {recovery['steps']} steps ({recovery['method']}); the loss on {recovery['held_out_tokens']:,} "
        f"held-out tokens went from {before} to {after} nats a token"
    )
    if recovery["kept"]:
        return f"{text}, so the trained weights were kept."
    return f"{text}, so training did not help and the weights from before it were kept."


def _number(loss: float | None) -> str:
    return "no number" if loss is None else f"{loss:.3f}"
