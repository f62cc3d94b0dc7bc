"""A diagnosis as figures, one SVG file each. Needs no display: the figures are made without pyplot."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from flattengpt_core.diagnostics import ALIKE, Diagnosis
from flattengpt_core.grouping import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MEASURED, _FITTED, _MERGED, _OUTLINE = "#4878a8", "#c44e52", "#dd8452", "#e8112d"


def draw(found: Diagnosis, groups: Sequence[Group], model: str, folder: Path) -> None:
    """Write similarity.svg, variance.svg, jacobian.svg and influence.svg to `folder`.

    Args:
        model: what the titles call the model.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    plots: dict[str, Callable[[Axes, Diagnosis, Sequence[Group]], None]] = {
        "similarity": _similarity,
        "variance": _variance,
        "jacobian": _jacobian,
        "influence": _influence,
    }
    for name, plot in plots.items():
        with rc_context({"svg.hashsalt": name, "axes.spines.top": False, "axes.spines.right": False}):
            figure = Figure(figsize=(7, 6 if name == "similarity" else 4), layout="constrained")
            plot(figure.subplots(), found, groups)
            figure.suptitle(model, parse_math=False)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None})  # the same numbers give the same file


def _similarity(axes: "Axes", found: Diagnosis, groups: Sequence[Group]) -> None:
    image = axes.imshow(found.similarity.numpy(), cmap="Blues")
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes, label=f"mean cosine (the paper finds neighbours above {ALIKE})")
    for group in groups:
        if len(group) > 1:
            first, last = group[0] - 0.5, group[-1] + 0.5
            axes.plot([first, last, last, first, first], [first, first, last, last, first], color=_OUTLINE, linewidth=2)
    axes.plot([], [], color=_OUTLINE, linewidth=2, label="layers that would be merged")
    axes.figure.legend(loc="outside lower center")
    axes.set_title(f"Similarity of the layers' inputs, {len(found.similarity)} -> {len(groups)} layers")
    _label_layers(axes.xaxis)
    _label_layers(axes.yaxis)


def _variance(axes: "Axes", found: Diagnosis, groups: Sequence[Group]) -> None:
    depth = torch.arange(1, len(found.variance), dtype=torch.float64)
    measured = found.variance[1:].double()
    exponent = found.growth.exponent
    # Least squares goes through the mean of the logarithms.
    fitted = (measured.log().mean() + exponent * (depth.log() - depth.log().mean())).exp()
    axes.loglog(depth, measured, "o", color=_MEASURED, label="measured (median over tokens)")
    axes.loglog(
        depth, fitted, color=_FITTED, label=f"depth to the power of {exponent:.2f} (R² = {found.growth.r_squared:.2f})"
    )
    axes.legend()
    axes.set_title("Variance of the hidden states (the paper derives depth squared)")
    axes.set_xlabel("depth (layers passed)")
    axes.set_ylabel("variance over the width")
    for axis in (axes.xaxis, axes.yaxis):
        _plain_ticks(axis)


def _jacobian(axes: "Axes", found: Diagnosis, groups: Sequence[Group]) -> None:
    for layers, style in _by_fate(found, groups):
        axes.semilogy(layers, found.jacobian_distance[layers].tolist(), "o", **style)
    _label_layers(axes.xaxis)
    axes.legend()
    _plain_ticks(axes.yaxis)
    axes.set_title("Distance of each layer's Jacobian from the identity")
    axes.set_ylabel("‖(J − I) v‖ / ‖v‖, root mean square")


def _influence(axes: "Axes", found: Diagnosis, groups: Sequence[Group]) -> None:
    for layers, style in _by_fate(found, groups):
        axes.bar(layers, found.block_influence[layers].tolist(), **style)
    _label_layers(axes.xaxis)
    axes.legend()
    axes.set_title("Block influence: how far each layer turns its input")
    axes.set_ylabel("1 − mean cosine of input and output")


def _by_fate(found: Diagnosis, groups: Sequence[Group]) -> list[tuple[list[int], dict[str, Any]]]:
    """The layers that stay as they are and those that would be merged, each with how they are drawn."""
    merged = [layer for group in groups if len(group) > 1 for layer in group]
    kept = [layer for layer in range(len(found.block_influence)) if layer not in merged]
    return [
        (kept, {"color": _MEASURED, "label": "stays as it is"}),
        (merged, {"color": _MERGED, "label": "would be merged"}),
    ]


def _label_layers(axis: "Axis") -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_label_text("layer")
    axis.set_major_locator(MaxNLocator(integer=True))


def _plain_ticks(axis: "Axis") -> None:
    """Ticks of a logarithmic axis at 1, 2, 5, 10 ..., written out."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
