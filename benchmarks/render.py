"""Puts the benchmarks' tables into the pages that show them, so that no number is typed by hand: `make tables`."""

import json
import re
from collections.abc import Callable
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


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"main_job": main_job}
PAGES = ("README.md",)


def rendered(page: str) -> str:
    """The page's text with each table between its markers made anew from `NAME.json`."""

    def table(match: re.Match[str]) -> str:
        name = match["name"]
        found = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
        return f"<!-- {name}:begin -->\n{TABLES[name](found)}\n<!-- {name}:end -->"

    return re.sub(r"<!-- (?P<name>\w+):begin -->.*?<!-- (?P=name):end -->", table, page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the pages."""
    for name in PAGES:
        page = ROOT / name
        page.write_text(rendered(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
