"""What an interrupted comparison or evaluation has finished, on disk, for the same request to go on from there.

Knows nothing of models or measures: entries are JSON, and a request is whatever tells one run from another.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flattengpt_core.errors import FlattenGPTError
from flattengpt_core.manifest import flush

_REQUEST, _ENTRIES = "request.json", "finished"


class Unfinished:
    """A folder with finished entries by key. Other files in it are the caller's, who says what to keep."""

    def __init__(self, folder: Path, request: Mapping[str, Any]) -> None:
        self.folder = folder
        self._entries = folder / _ENTRIES
        asked = json.dumps(request, sort_keys=True)
        if not _says(folder / _REQUEST, asked):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            (folder / _REQUEST).write_text(asked, encoding="utf-8")
        # A folder that came from elsewhere, file by file, has none before the first entry.
        self._entries.mkdir(exist_ok=True)

    def get(self, key: str) -> Any:
        """The entry called `key`, None if it is not finished."""
        file = self._entries / f"{key}.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def put(self, key: str, entry: Any, *, folder: Path | None = None) -> None:
        """Finish the entry, durably, after all of `folder`, if it speaks of one."""
        if folder is not None:
            flush(folder)
        file = self._entries / f"{key}.json"
        aside = file.with_suffix(".partial")
        aside.write_text(json.dumps(entry), encoding="utf-8")
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(aside, file)

    def __len__(self) -> int:
        return len(list(self._entries.glob("*.json")))

    def finish(self, out: Path) -> None:
        """Give the folder, without its entries, the name `out`."""
        shutil.rmtree(self._entries)
        (self.folder / _REQUEST).unlink()
        self.folder.rename(out)


@contextmanager
def unfinished_beside(out: Path, request: Mapping[str, Any], *, worth: int) -> Iterator[Unfinished]:
    """A hidden folder beside `out` for what is finished; it goes unless the run is interrupted.

    Args:
        request: what an earlier run must have been asked for, for its entries to be used.
        worth: with fewer entries than this, an interrupted run leaves nothing, either.
    """
    kept = Unfinished(out.with_name(f".{out.name}.unfinished"), request)
    try:
        yield kept
    except FlattenGPTError:  # the same request would fail again
        shutil.rmtree(kept.folder, ignore_errors=True)
        raise
    except BaseException:
        if len(kept) < worth:
            shutil.rmtree(kept.folder, ignore_errors=True)
        raise


def _says(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text(encoding="utf-8") == text
