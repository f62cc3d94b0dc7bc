"""Uploaded texts, `local:NAME` in a request: checked while they come in, as the core will read them."""

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from flattengpt_core.local_names import LOCAL, local_name
from flattengpt_core.texts import SUFFIXES, local_text, text_of_line
from jobs.errors import NotStored, UploadRefused
from jobs.settings import Settings
from jobs.shelf import Shelf

MAX_LINE = 10_000_000
"""Characters of a .jsonl file's line, which is held in memory as a whole."""


class TextFormat(StrEnum):
    """What a text file may be; the file's suffix."""

    PLAIN = "txt"
    JSON_LINES = "jsonl"


@dataclass(frozen=True)
class StoredText:
    """A text that jobs can name. size: bytes."""

    name: str
    format: TextFormat
    size: int
    created_at: datetime


class TextStore:
    """The texts of one data folder."""

    def __init__(self, settings: Settings) -> None:
        self._shelf = Shelf(settings.texts_dir, min_free_bytes=settings.min_free_disk_bytes)

    def put(self, name: str, form: TextFormat, blocks: Iterable[bytes]) -> tuple[StoredText, bool]:
        """Store a new text; with it, whether it is new, or the same as what is there already.

        Raises:
            UploadRefused: it is no such text, or has nothing in it; with the line.
            NameTaken, NoRoom: as `Shelf`.
        """
        with self._shelf.scratch() as scratch:
            file = scratch / f"{name}.{form}"
            self._shelf.write(file, _checked(blocks, form))
            is_new = self._shelf.place(file, [f"{name}{suffix}" for suffix in SUFFIXES if suffix != file.suffix])
        return self.get(name), is_new

    def all(self) -> list[StoredText]:
        """Every text, by name."""
        files = [Path(name) for name in self._shelf.names()]
        names = sorted({file.stem for file in files if file.suffix in SUFFIXES and local_name(f"{LOCAL}{file.stem}")})
        found = []
        for name in names:
            with suppress(NotStored, FileNotFoundError):  # it was removed just now
                found.append(self.get(name))
        return found

    def get(self, name: str) -> StoredText:
        """One text; raises NotStored."""
        file = self._file(name)
        seen = file.stat()
        return StoredText(
            name, TextFormat(file.suffix[1:]), seen.st_size, datetime.fromtimestamp(round(seen.st_mtime), UTC)
        )

    def remove(self, name: str) -> None:
        """Remove a text; raises NotStored."""
        if not self._shelf.remove(self._file(name).name):
            raise _not_stored(name)

    def _file(self, name: str) -> Path:
        file = local_text(f"{LOCAL}{name}", self._shelf.folder)
        if file is None:
            raise _not_stored(name)
        return file


def _not_stored(name: str) -> NotStored:
    return NotStored(f"There is no text {name!r}; GET /datasets lists those there are.")


def _checked(blocks: Iterable[bytes], form: TextFormat) -> Iterator[bytes]:
    """The blocks, while making sure that they are such a text and that it says something. Raises UploadRefused."""
    decode = codecs.getincrementaldecoder("utf-8")().decode
    look: _JsonLines | _PlainText = _JsonLines() if form is TextFormat.JSON_LINES else _PlainText()
    position = 0
    for block in blocks:
        look.feed(_decoded(decode, block, position, final=False))
        position += len(block)
        yield block
    look.feed(_decoded(decode, b"", position, final=True))
    look.end()
    if not look.has_text:
        raise UploadRefused("The text is empty: send one with something to read in it.", field="body")


def _decoded(decode: Callable[[bytes, bool], str], block: bytes, position: int, *, final: bool) -> str:
    try:
        return decode(block, final)
    except UnicodeDecodeError as error:
        raise UploadRefused(
            f"The text is not UTF-8 at about byte {position + error.start}: convert it first.", field="body"
        ) from None


class _PlainText:
    """Looks whether there is anything but white space."""

    has_text = False

    def feed(self, text: str) -> None:
        self.has_text = self.has_text or not (text.isspace() or not text)

    def end(self) -> None:
        """Nothing is held back."""


class _JsonLines:
    """Reads each line as the core does."""

    has_text = False

    def __init__(self) -> None:
        self._rest: list[str] = []
        self._held, self._number = 0, 0

    def feed(self, text: str) -> None:
        *lines, rest = text.split("\n")
        for line in lines:
            self._line("".join([*self._rest, line]))
            self._rest, self._held = [], 0
        self._rest.append(rest)
        self._held += len(rest)
        if self._held > MAX_LINE:
            raise UploadRefused(
                f"Line {self._number + 1} is longer than {MAX_LINE} characters: split it.", field="body"
            )

    def end(self) -> None:
        self._line("".join(self._rest))

    def _line(self, line: str) -> None:
        self._number += 1
        if not line.strip():
            return
        try:
            text = text_of_line(line)
        except json.JSONDecodeError as error:
            raise self._refused(f"no JSON: {error.msg} at character {error.pos}") from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._refused('no JSON object with a "text" that is a string of whole characters') from None
        self.has_text = self.has_text or bool(text.strip())

    def _refused(self, reason: str) -> UploadRefused:
        return UploadRefused(f"Line {self._number} is {reason}.", field="body")
