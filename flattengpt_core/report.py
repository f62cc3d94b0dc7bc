"""A comparison as one self-contained page: its table, quality against size, time and memory. Pure text from numbers."""

import io
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flattengpt_core.methods import UNPRUNED
from flattengpt_core.retention import share_kept

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIBI = 1024**3


def comparison_page(found: Mapping[str, Any]) -> str:
    """The page for what `compare.compare` returns; it loads nothing from anywhere."""
    rows = [dict(row, label=_label(row, found["calibration"]["datasets"])) for row in found["rows"]]
    texts = list(rows[0]["perplexity"])
    compressed = [row for row in rows if row["compress_seconds"] is not None]
    tasks = list(rows[0]["accuracy"])
    drawings = [partial(_quality, rows, text) for text in texts]
    if tasks:
        drawings.append(partial(_accuracies, rows, tasks))
    if compressed:
        drawings.append(partial(_bars, compressed, "compress_seconds", 1, "seconds to compress"))
        drawings.append(partial(_bars, compressed, "peak_memory_bytes", _GIBI, "peak memory, GiB"))
    environment = Environment(
        loader=PackageLoader("flattengpt_core"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("compare.html").render(
        found=found,
        rows=rows,
        texts=texts,
        tasks=tasks,
        answers=list(rows[0]["generative"]),
        short=_short,
        share=share_kept,
        unpruned=UNPRUNED if any(row["method"] == UNPRUNED for row in rows) else None,
        figures=[_svg(draw) for draw in drawings],
    )


def _label(row: Mapping[str, Any], datasets: list[str]) -> str:
    """The row's method, and its calibration where there are several."""
    if len(datasets) == 1 or row["calibration"] is None:
        return str(row["method"])
    return f"{row['method']} on {_short(row['calibration'])}"


def _short(dataset: str) -> str:
    """A text or mix without the folders of its files."""
    return "+".join(Path(name).name for name in dataset.split("+"))


def _quality(rows: list[dict[str, Any]], text: str, axes: "Axes") -> None:
    for row in rows:
        place = (row["parameters"] / 1e6, row["perplexity"][text])
        axes.scatter(*place)
        axes.annotate(row["label"], place, xytext=(4, 4), textcoords="offset points", fontsize=8, parse_math=False)
    axes.set(xlabel="parameters, millions", yscale="log")
    axes.set_ylabel(f"perplexity, {_short(text)}", parse_math=False)
    axes.margins(x=0.2)


def _accuracies(rows: list[dict[str, Any]], tasks: list[str], axes: "Axes") -> None:
    """A bar a row in each task's place, with its standard error, and chance as a line."""
    height = 0.8 / len(rows)
    for index, row in enumerate(rows):
        places = [place + (index - (len(rows) - 1) / 2) * height for place in range(len(tasks))]
        errors = [row["accuracy_stderr"][task] or 0 for task in tasks]
        bars = axes.barh(places, [row["accuracy"][task] for task in tasks], height, xerr=errors)
        bars.set_label(row["label"])
    for place, task in enumerate(tasks):
        if task in rows[0]["tasks"]:
            chance = rows[0]["tasks"][task]["chance"]
            axes.plot([chance, chance], [place - 0.45, place + 0.45], color="black", linestyle="dotted")
    axes.set_yticks(range(len(tasks)), [_short(task) for task in tasks], parse_math=False)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy (dotted: chance)", xlim=(0, 1))
    assert axes.figure is not None
    for text in axes.figure.legend(loc="outside upper center", ncols=3, fontsize=8).get_texts():
        text.set_parse_math(False)


def _bars(rows: list[dict[str, Any]], key: str, unit: float, label: str, axes: "Axes") -> None:
    places = range(len(rows))
    bars = axes.barh(places, [row[key] / unit for row in rows])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_yticks(places, [row["label"] for row in rows], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(xlabel=label)


def _svg(draw: Callable[["Axes"], None]) -> Markup:
    """What `draw` draws, to stand within a page; matplotlib escapes the texts in it."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.spines[["top", "right"]].set_visible(False)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None})
    svg = drawn.getvalue()[drawn.getvalue().index("<svg") :]
    return Markup(svg)  # nosec B704  # matplotlib's own, which escapes
