"""Texts by name or file, each named one in parts that never overlap. Imports no torch and knows no tokens.

A named text has a part to calibrate on, one to choose settings on and one to report on. `local:NAME` is the file
`NAME.txt` or `NAME.jsonl` of a folder that the caller gives, as a whole.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from flattengpt_core.errors import CalibrationNotFound, InvalidRequest
from flattengpt_core.local_names import LOCAL, local_name

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

SUFFIXES = (".txt", ".jsonl")
"""What text files may be: plain text, or one JSON object with a `text` a line."""

_PYTHON_DOCS_SHARES: dict[Part, tuple[float, float]] = {
    "calibration": (0.0, 0.6),
    "validation": (0.6, 0.8),
    "evaluation": (0.8, 1.0),
}


def load_text(name: str, part: Part, texts_dir: Path | None = None) -> str:
    """The text called `name`, or the whole of the .txt or .jsonl file of that path.

    Args:
        texts_dir: where the files of `local:NAME` are; there are none if it is None.

    Raises:
        CalibrationNotFound: no such name or file, or the Hub cannot be reached; says what to do.
    """
    if name == PYTHON_DOCS:
        return _python_docs(part)
    if name == WIKITEXT2:
        from flattengpt_core.hub import load_wikitext2  # imports `datasets`, which is slow

        return load_wikitext2(part)
    file = _file_of(name, texts_dir)
    if file is not None:
        return _read_file(file)
    if name.startswith(LOCAL):
        raise CalibrationNotFound(f"There is no local text {name!r} (any more): see which there are, or put it there.")
    raise CalibrationNotFound(
        f"{name!r} is no text: known names are {', '.join(TEXTS)}; else give an existing .txt or .jsonl file."
    )


def reported_part(name: str) -> str:
    """Which part of the text a figure is on, in words."""
    return REPORTED_PARTS.get(name, "whole file")


def local_text(name: str, texts_dir: Path) -> Path | None:
    """The file of `local:NAME` in `texts_dir`; None if it is not there, or is a link that leads out of it."""
    bare = local_name(name)
    found = [texts_dir / f"{bare}{suffix}" for suffix in SUFFIXES] if bare is not None else []
    inside = (file for file in found if file.is_file() and file.resolve().is_relative_to(texts_dir.resolve()))
    return next(inside, None)


def refuse_reported_calibration(dataset: str, reported: Sequence[str], texts_dir: Path | None = None) -> None:
    """Make sure that no file of `dataset` ('a' or 'a+b') is reported on; named texts keep their parts apart.

    Args:
        texts_dir: as for `load_text`.

    Raises:
        InvalidRequest: a file is the same as a reported one, also under another name.
    """
    calibrated = {digest: name for name in dataset.split("+") if (digest := text_digest(name, texts_dir))}
    for name in reported if calibrated else ():
        twin = calibrated.get(text_digest(name, texts_dir) or b"")
        if twin is not None:
            raise InvalidRequest(
                f"{name!r} is what is calibrated on, too ({twin!r}): report on another text, or the figure says "
                "nothing about new text.",
                field="evaluation.perplexity",
            )


def text_digest(name: str, texts_dir: Path | None = None) -> bytes | None:
    """The SHA-256 of the file of that name; None if it is a text's name or no file."""
    file = None if name in TEXTS else _file_of(name, texts_dir)
    if file is None:
        return None
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()


def text_of_line(line: str) -> str:
    """The `text` of a line of a .jsonl file.

    Raises:
        ValueError, KeyError, TypeError: it has none that is text.
    """
    text = json.loads(line)["text"]
    if not isinstance(text, str):
        raise TypeError('"text" is no string')
    text.encode()  # half a surrogate pair, which JSON may hold, is a ValueError: no tokenizer takes it
    return text


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


def _file_of(name: str, texts_dir: Path | None) -> Path | None:
    """The file that a name which is no text's stands for; None if there is none."""
    if name.startswith(LOCAL):
        return None if texts_dir is None else local_text(name, texts_dir)
    return Path(name) if Path(name).is_file() else None


def _read_file(file: Path) -> str:
    """A text file as it is; of a .jsonl file the `text` of each line, joined by blank lines."""
    try:
        raw = file.read_text(encoding="utf-8")
        if file.suffix != ".jsonl":
            return raw
        # Not splitlines(), which also splits at what JSON strings may hold as it is, such as U+2028.
        return join_rows([text_of_line(line) for line in raw.split("\n") if line.strip()])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CalibrationNotFound(
            f"{file.name} cannot be read ({error!r}): a .txt file must be UTF-8, a .jsonl file must hold one "
            'object with a "text" a line.'
        ) from None
