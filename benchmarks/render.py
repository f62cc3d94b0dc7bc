"""Puts the benchmarks' tables into the pages that show them, so that no number is typed by hand: `make tables`."""

import json
import math
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent


def main_job(found: dict[str, Any]) -> str:
    """The README's first result."""
    dense = found["rows"][0]
    texts = list(dense["perplexity"])
    lines = [
        f"| SmolLM2-135M-Instruct, no training | layers | parameters | {' | '.join(f'{text} ppl' for text in texts)} |",
        f"| --- | {' | '.join(['---:'] * (2 + len(texts)))} |",
    ]
    for row in found["rows"]:
        name = f"**{row['method']}**" if row["method"] == "flattengpt" else row["method"]
        figures = " | ".join(f"{row['perplexity'][text]:.1f}" for text in texts)
        lines.append(f"| {name} | {row['layers']} | {row['parameters'] / 1e6:.1f} M | {figures} |")
    evaluation, calibration = found["evaluation"], found["calibration"]
    shares = ", ".join(f"{count} of {name}" for name, count in calibration["windows"].items())
    passes = found["compress_time_in_forward_passes"]["median"]
    lines += [
        "",
        f"The {found['rows'][-1]['layers']}-layer model generates **{found['tokens_per_second_ratio']:.2f}x** the "
        f"tokens/s of the dense one on {found['threads']} CPU threads (prompt latency "
        f"{found['latency_ratio']:.2f}x), and compressing took the time of {passes:.1f} dense forward passes over its "
        "calibration tokens. "
        f"Test text: the first {evaluation['windows']} windows of {evaluation['sequence_length']} tokens of each; "
        f"calibration for all rows: {sum(calibration['windows'].values())} windows of "
        f"{calibration['sequence_length']} tokens ({shares}).",
    ]
    return "\n".join(lines)


def quality(found: dict[str, Any]) -> str:
    """What each method keeps, those that keep most first, by size."""
    texts = list(found["rows"][0]["perplexity"])
    dense = found["rows"][0]["perplexity"]
    lines = [
        f"| layers | method | {' | '.join(f'{text} ppl (x dense)' for text in texts)} | accuracy | kept |",
        f"| ---: | --- | {' | '.join(['---:'] * (2 + len(texts)))} |",
    ]
    for row in sorted(found["rows"], key=lambda row: (-row["layers"], row["perplexity"][texts[0]])):
        name = f"**{row['method']}**" if row["method"].startswith("flattengpt") else row["method"]
        figures = " | ".join(
            f"{row['perplexity'][text]:.1f} ({row['perplexity'][text] / dense[text]:.2f})" for text in texts
        )
        lines.append(f"| {row['layers']} | {name} | {figures} | {_accuracy(row)} | {_kept(row)} |")
    evaluation, calibration = found["evaluation"], found["calibration"]
    shares = ", ".join(f"{count} of {name}" for name, count in calibration["windows"].items())
    tokens = ", ".join(f"{count:,} tokens of {text}" for text, count in evaluation["tokens"].items())
    lines += [
        "",
        f"{found['model']}, {found['split']} split: {tokens}, windows of {evaluation['sequence_length']}. Accuracy: "
        "mean of PIQA, WinoGrande, HellaSwag, ARC-e and ARC-c over the first "
        f"{evaluation['task_items']} items of each, with its standard error; kept: its share of the dense model's. "
        f"Calibration for all rows{_but_sleb(found)}: windows of {calibration['sequence_length']} tokens, {shares}."
        f"{_what_unpruned_is(found)}",
    ]
    return "\n".join(lines)


def _what_unpruned_is(found: dict[str, Any]) -> str:
    """In words, where it has a row: its figure is not that of a method."""
    if not any(row["method"] == "flattengpt-unpruned" for row in found["rows"]):
        return ""
    return (
        " flattengpt-unpruned: flattengpt's groups laid side by side at their full width, before anything is pruned or "
        "fitted ([why it is so far off](docs/research.md#flattening-and-pruning-apart))."
    )


def _but_sleb(found: dict[str, Any]) -> str:
    """SLEB's own calibration, where it has a row."""
    if not any(row["method"] == "sleb" for row in found["rows"]):
        return ""
    return f" but SLEB's, which has {sum(found['calibration']['sleb_windows'].values())} windows for its many passes"


def _accuracy(row: dict[str, Any]) -> str:
    if not row["accuracy"]:
        return ""
    return f"{100 * row['accuracy']['mean']:.1f} ± {100 * row['accuracy_stderr']['mean']:.1f}"


def _kept(row: dict[str, Any]) -> str:
    """Percentages are rounded down, so that no loss is rounded away."""
    if not row["retention"]:
        return ""
    kept = row["retention"]["mean"]
    return f"{math.floor(1000 * kept['raw']) / 10:.1f} % ± {100 * kept['raw_stderr']:.1f}"


def bars(found: dict[str, Any]) -> str:
    """What was to be reached, and what was, rounded against us."""
    lines = ["| figure | bound | measured | holds |", "| --- | ---: | ---: | --- |"]
    for claim in found["claims"]:
        rounded = math.ceil if claim["bound"].startswith("<=") else math.floor
        value = rounded(1000 * claim["value"]) / 1000
        lines.append(f"| {claim['what']} | {claim['bound']} | {value:.3f} | {'yes' if claim['holds'] else '**no**'} |")
    return "\n".join(lines)


def ablations(found: dict[str, Any], question: str) -> str:
    """What changing one thing in the method does, the least perplexity of each size in bold.

    Where sizes are compared, the groups are what changes, and what the method expects of them stands beside it.
    """
    texts = list(found["dense"])
    rows = [row for row in found["rows"] if row["question"] == question]
    names = ["layers", "what is changed", "merged", "expected", " / ".join(texts), "missed"]
    if len({row["layers"] for row in rows}) <= 1:
        names = [name for name in names if name not in ("layers", "expected")]
    table = [names, ["---"] * len(names)]
    for row in rows:
        rivals = [other["perplexity"] for other in rows if other["layers"] == row["layers"]]
        figures = []
        for text in texts:
            shown = f"{row['perplexity'][text]:.1f}"
            least = min(rival[text] for rival in rivals)
            figures.append(f"**{shown}**" if row["perplexity"][text] == least else shown)
        errors = (statistics.mean(group[part]["error"] for group in row["merged"]) for part in ("attention", "mlp"))
        columns = {
            "layers": str(row["layers"]),
            "what is changed": row["name"],
            "merged": ", ".join(f"{group['members'][0]}-{group['members'][-1]}" for group in row["merged"]),
            "expected": f"{row['expected']:.2f}",
            " / ".join(texts): " / ".join(figures),
            "missed": " / ".join(f"{error:.2f}" for error in errors),
        }
        table.append([columns[name] for name in names])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def faults(found: dict[str, Any]) -> str:
    """What was broken, and what became of the jobs."""
    lines = [
        "| what happens | on | jobs | attempts | handed back | died | lease lost | held |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in found["scenarios"]:
        held = (
            f"not run: {row['not_run']}" if row["not_run"] else f"**no**: {row['failed']}" if row["failed"] else "yes"
        )
        counts = " | ".join(str(row[name]) for name in ("jobs", "attempts", "handed_back", "died", "lease_expired"))
        lines.append(f"| {row['what'].rstrip('.')} | {row['deployment'].split()[0]} | {counts} | {held} |")
    return "\n".join(lines)


def loads(found: dict[str, Any]) -> str:
    """How the service answered under load."""
    lines = [
        "| jobs | of what | clients | workers | kills | attempts | jobs/s | submit p50 / p99 | poll p50 / p99 |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if not found["loads"]:
        lines.append("| | not run yet | | | | | | | |")
    for row in found["loads"].values():
        times = " | ".join(f"{row[kind]['p50_ms']:.0f} / {row[kind]['p99_ms']:.0f} ms" for kind in ("submit", "poll"))
        lines.append(
            f"| {row['jobs']} | {row['job']} | {row['clients']} | {row['workers']} | {row['kills']} | "
            f"{row['attempts']} | {row['jobs_per_second']:.2f} | {times} |"
        )
    return "\n".join(lines)


def api(found: dict[str, Any]) -> str:
    """How fast the API is, and with how much in its database."""
    show, submit = found["show"], found["submit"]
    plain, ours = (statistics.median(turn) for turn in zip(*show["per_second"], strict=True))
    middle = {name: f"{statistics.median(submit[name]):.0f}" for name in ("per_second", "p50_ms", "p99_ms")}
    lines = [
        bars(found),
        "",
        f"{found['jobs']:,} jobs and {found['events']:,} events in PostgreSQL, which shares {found['processors']} "
        f"processors with the API (one process) and the load, and with whatever else made up the load average of "
        f"{found['load_average']:.1f} when it began. Medians of {len(show['per_second'])} turns: the plain "
        f"route {plain:.0f} requests/s, `GET /jobs/{{id}}` {ours:.0f}, both from {show['clients']} clients; "
        f"`POST /jobs` {middle['per_second']}, p50 {middle['p50_ms']} ms, p99 {middle['p99_ms']} ms.",
    ]
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "main_job": ("main_job.json", main_job),
    "quality": ("quality.json", quality),
    "bars": ("quality.json", bars),
    **{
        f"{question}_ablation": ("ablations.json", partial(ablations, question=question))
        for question in ("groups", "calibration", "selection", "regression")
    },
    "faults": ("faults.json", faults),
    "loads": ("faults.json", loads),
    "api": ("api.json", api),
}
PAGES = {
    "README.md": ["main_job", "quality"],
    "docs/research.md": [
        "groups_ablation",
        "calibration_ablation",
        "selection_ablation",
        "regression_ablation",
        "bars",
    ],
    "docs/reliability.md": ["faults", "loads"],
    "docs/speed.md": ["api"],
}
"""The pages, and which tables each shows."""


def rendered(page: str) -> str:
    """The page's text with each table between its markers made anew from its JSON."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        file, draw = TABLES[name]
        found = json.loads((HERE / file).read_text(encoding="utf-8"))
        return f"<!-- {name}:begin -->\n{draw(found)}\n<!-- {name}:end -->"

    return re.sub(r"<!-- (?P<name>\w+):begin -->.*?<!-- (?P=name):end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
