"""What attempts have finished, kept where every worker finds it, for the next attempt of the job to go on from.

Each attempt keeps its own copy, `JOB/ATTEMPT/`: an earlier one that only seemed dead writes where nobody reads any
more. A file is stored under a number that is used once, and `index.json`, written last, says which numbers make up the
state: a copy is never half of one state and half of the next. Knows nothing of what the files hold.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.records import Lease
from jobs.stored_files import StoredFiles, copy

SETTING = "FLATTENGPT_STATE_URL"
_INDEX = "index.json"
_HALF_WRITTEN = ".partial"
_JOB = re.compile(r"[0-9A-Z]{26}")


@dataclass(frozen=True)
class _Kept:
    """A file of the state as it was stored. mtime_ns: on the machine that stored it. number: its name in the store."""

    size: int
    mtime_ns: int
    sha256: str
    number: int


class StateStore:
    """The states of jobs under one fsspec URL, and how far this process has stored one attempt's.

    Raises:
        MissingExtra: what reads such URLs is not installed.
    """

    def __init__(self, url: str) -> None:
        self._files = StoredFiles(url, setting=SETTING)
        self._kept: dict[str, _Kept] = {}
        self._numbers = 0

    def save(self, lease: Lease, folder: Path) -> bool:
        """Store what `folder` holds now; whether anything was new. Only what has changed since the last call goes out.

        To be called while nothing writes to the folder. What fails half way leaves the last state that was whole.
        """
        own = _place(lease.job_id, lease.attempt)
        found = {file.relative_to(folder).as_posix(): file for file in _whole_files(folder)}
        kept = {name: self._kept[name] for name, file in found.items() if self._is_kept(name, file)}
        if len(kept) == len(found) == len(self._kept):
            return False
        for name in found.keys() - kept.keys():
            stat = found[name].stat()
            self._numbers += 1
            digest = self._files.put(found[name], f"{own}/{self._numbers}")
            kept[name] = _Kept(stat.st_size, stat.st_mtime_ns, digest, self._numbers)
        index = {name: asdict(entry) for name, entry in sorted(kept.items())}
        self._files.put_bytes(json.dumps(index).encode(), f"{own}/{_INDEX}")
        gone = {entry.number for entry in self._kept.values()} - {entry.number for entry in kept.values()}
        self._kept = kept
        for number in gone:
            self._files.remove_file(f"{own}/{number}")
        for attempt in self._attempts(lease.job_id):
            if attempt < lease.attempt:
                self._files.remove(_place(lease.job_id, attempt))
        return True

    def restore(self, lease: Lease, folder: Path, *, after: int) -> int | None:
        """Replace `folder` by the newest state that an attempt later than `after` has stored, and before this one.

        Returns:
            That attempt's number; None if there is none, and the folder is as it was.
        """
        for attempt in reversed(self._attempts(lease.job_id)):
            if after < attempt < lease.attempt and self._fetch(_place(lease.job_id, attempt), folder):
                return attempt
        return None

    def remove(self, job_id: str) -> None:
        """Remove what all attempts of the job have stored."""
        self._files.remove(job_id)

    def job_ids(self) -> list[str]:
        """The jobs of which there is anything."""
        return [name for name in self._files.names() if _JOB.fullmatch(name)]

    def _attempts(self, job_id: str) -> list[int]:
        return sorted(int(name) for name in self._files.names(job_id) if name.isdecimal())

    def _is_kept(self, name: str, file: Path) -> bool:
        entry, stat = self._kept.get(name), file.stat()
        return entry is not None and (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns)

    def _fetch(self, place: str, folder: Path) -> bool:
        """Whether the state was whole; only then it is under the folder's name."""
        if not self._files.is_file(f"{place}/{_INDEX}"):
            return False
        aside = folder.with_name(f"{folder.name}{_HALF_WRITTEN}")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        with closing(self._files.open(f"{place}/{_INDEX}")) as reader:
            index = json.loads(reader.read())
        for name, fields in index.items():
            entry, target = _Kept(**fields), aside / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._files.open(f"{place}/{entry.number}") as reader, target.open("wb") as writer:
                    digest = copy(reader, writer)
            except FileNotFoundError:
                digest = ""
            if digest != entry.sha256:
                shutil.rmtree(aside)
                return False
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        return True


def _place(job_id: str, attempt: int) -> str:
    return f"{job_id}/{attempt}"


def _whole_files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(_HALF_WRITTEN))
