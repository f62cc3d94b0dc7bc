"""Texts by name or file, each named one in parts that never overlap. Imports no torch and knows no tokens.

A named text has a part to calibrate on, one to choose settings on and one to report on.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flattengpt_core.errors import CalibrationNotFound, InvalidRequest

Part = Literal["calibration", "validation", "evaluation"]

PYTHON_DOCS = "python-docs"
WIKITEXT2 = "wikitext2"
TEXTS = {
    WIKITEXT2: "WikiText-2 (raw) from the Hugging Face Hub: train, validation and test split",
    PYTHON_DOCS: "Python's own language reference, shipped with the interpreter: needs no network",
}
"""The texts that go by a name."""

REPORTED_PARTS = {WIKITEXT2: "test split", PYTHON_DOCS: "last fifth"}
"""What is reported on of a named text."""

_PYTHON_DOCS_SHARES: dict[Part, tuple[float, float]] = {
    "calibration": (0.0, 0.6),
    "validation": (0.6, 0.8),
    "evaluation": (0.8, 1.0),
}


def load_text(name: str, part: Part) -> str:
    """The text called `name`, or the whole of the .txt or .jsonl file of that path.

    Raises:
        CalibrationNotFound: no such name or file, or the Hub cannot be reached; says what to do.
    """
    if name == PYTHON_DOCS:
        return _python_docs(part)
    if name == WIKITEXT2:
        from flattengpt_core.hub import load_wikitext2  # imports `datasets`, which is slow

        return load_wikitext2(part)
    file = Path(name)
    if file.is_file():
        return _read_file(file)
    raise CalibrationNotFound(
        f"{name!r} is no text: known names are {', '.join(TEXTS)}; else give an existing .txt or .jsonl file."
    )


def reported_part(name: str) -> str:
    """Which part of the text a figure is on, in words."""
    return REPORTED_PARTS.get(name, "whole file")


def refuse_reported_calibration(dataset: str, reported: Sequence[str]) -> None:
    """Make sure that no file of `dataset` ('a' or 'a+b') is reported on; named texts keep their parts apart.

    Raises:
        InvalidRequest: a file is the same as a reported one, also under another name.
    """
    calibrated = {digest: name for name in dataset.split("+") if (digest := text_digest(name)) is not None}
    for name in reported:
        twin = calibrated.get(text_digest(name) or b"")
        if twin is not None:
            raise InvalidRequest(
                f"{name!r} is what is calibrated on, too ({twin!r}): report on another text, or the figure says "
                "nothing about new text.",
                field="evaluation.perplexity",
            )


def text_digest(name: str) -> bytes | None:
    """The SHA-256 of the file of that name; None if it is a text's name or no file."""
    if name in TEXTS or not Path(name).is_file():
        return None
    with Path(name).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def join_rows(rows: list[str]) -> str:
    """Rows of a dataset as one text, joined by blank lines: the GPTQ/SLEB convention."""
    return "\n\n".join(rows)


def _python_docs(part: Part) -> str:
    from pydoc_data.topics import topics

    # Topics quote each other: each paragraph is kept once, so that no part holds what another does.
    unique: dict[str, str] = {}
    for key in sorted(topics):
        for paragraph in topics[key].split("\n\n"):
            unique.setdefault(" ".join(paragraph.split()), paragraph)
    paragraphs = list(unique.values())
    start, end = (int(share * len(paragraphs)) for share in _PYTHON_DOCS_SHARES[part])
    return join_rows(paragraphs[start:end])


def _read_file(file: Path) -> str:
    """A text file as it is; of a .jsonl file the `text` of each line, joined by blank lines."""
    try:
        raw = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return raw
        return join_rows([json.loads(line)["text"] for line in raw.splitlines() if line.strip()])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise CalibrationNotFound(
            f"{file.name} cannot be read ({error!r}): a .txt file must be UTF-8, a .jsonl file must hold one "
            'object with a "text" a line.'
        ) from None
