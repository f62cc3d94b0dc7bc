"""Puts a result into a folder or a bucket, by fsspec, and never over what the service did not put there.

Whoever reads there goes by `flattengpt.json`, which names each file's SHA-256: it is the last to come, and the first to
go where a result is replaced. A marker beside it says whose result it is and which files are there already, so that a
later attempt sends only the others. Knows of the job only its id.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from stamina import RetryingCaller

from flattengpt_core.errors import InvalidRequest
from flattengpt_core.manifest import MANIFEST, sha256, write_atomically
from jobs.errors import MissingExtra, PublishConflict, PublishFailed
from worker.interruptible import LastStep, LeftBehind

TRIES = 4
MARKER = ".flattengpt-job.json"

Progress = Callable[[int, int], None]


class _Unfinished(PublishFailed):
    """One try failed. again: whether another one can help."""

    def __init__(self, message: str, *, again: bool) -> None:
        super().__init__(message, field="publish")
        self.again = again


def _inside(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError("the path leads out of the place")
    return path


class Marker(BaseModel):
    """Whose result a place holds. files: the SHA-256 of each file that is there, by its path."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    job: str
    files: dict[Annotated[str, AfterValidator(_inside)], str]


class Place:
    """The folder, or what stands for one in a bucket, at a URL.

    Args:
        root: the URL below which it is; a folder's links must not lead out of there.

    Raises:
        MissingExtra: what reads such URLs is not installed.
        InvalidRequest: a link leads elsewhere.
    """

    def __init__(self, url: str, root: str) -> None:
        self.url = url
        try:
            self._files, self._path = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtra(
                f"Publishing at {url} needs a library that is not installed: pip install 'flattengpt[s3]'.",
                field="publish.url",
            ) from error
        self._root = Path(root.removeprefix("file://"))
        if self._is_folder and not Path(self._path).resolve().is_relative_to(self._root.resolve()):
            raise InvalidRequest(f"{url} leads out of {root} by a link, which is refused.", field="publish.url")

    def names(self) -> set[str]:
        """The files right there; what is in folders below belongs to others."""
        with suppress(FileNotFoundError):
            entries: list[dict[str, Any]] = self._files.ls(self._path, detail=True)
            here = f"{self._path}/"
            found = {entry["name"].removeprefix(here) for entry in entries if entry["type"] == "file"}
            return {name for name in found if name and name != self._path}
        return set()

    def size(self, name: str) -> int | None:
        """The file's size in bytes; None if there is none."""
        with suppress(FileNotFoundError):
            return int(self._files.info(self._at(name))["size"])
        return None

    def marker(self) -> Marker | None:
        """Whose the place is; None if it is nobody's."""
        try:
            return Marker.model_validate_json(self._files.cat_file(self._at(MARKER)))
        except (FileNotFoundError, ValidationError):  # the latter if it is someone else's file
            return None

    def mark(self, marker: Marker) -> None:
        """Say whose the place is."""
        content = marker.model_dump_json(indent=2)
        if not self._is_folder:
            self._files.pipe_file(self._at(MARKER), content.encode())
            return
        if not self._root.is_dir():  # a disk that is not mounted
            raise FileNotFoundError
        Path(self._path).mkdir(parents=True, exist_ok=True)
        write_atomically(Path(self._at(MARKER)), content)

    def put(self, file: Path, name: str) -> None:
        """Store the file, which gets its name when it is whole."""
        if not self._is_folder:
            self._files.put_file(str(file), self._at(name))
            return
        target = Path(self._at(name))
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f"{target.name}.partial")
        with file.open("rb") as reader, aside.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 4 * 1024**2)
            writer.flush()
            os.fsync(writer.fileno())
        os.replace(aside, target)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            self._files.rm_file(self._at(name))

    @property
    def _is_folder(self) -> bool:
        return isinstance(self._files, LocalFileSystem)

    def _at(self, name: str) -> str:
        return f"{self._path}/{name}"


def check_place(place: Place, *, job_id: str, overwrite: bool) -> None:
    """Raises PublishConflict if something is there that this job did not put there, and must not be overwritten."""
    marker = place.marker()
    if overwrite or (marker is not None and marker.job == job_id):
        return
    if marker is not None or place.names():
        whose = f"job {marker.job}'s" if marker else "not this service's"
        raise PublishConflict(
            f"There is something at {place.url} already, which is {whose}: choose another place, empty it, or give "
            '"overwrite": true.',
            field="publish.url",
        )


def publish_files(
    folder: Path,
    place: Place,
    *,
    job_id: str,
    overwrite: bool,
    progress: Progress = lambda done, total: None,
    commit: LastStep | None = None,
) -> str:
    """Put all of `folder` there, `flattengpt.json` last, and give the URL.

    Doing it again for the same job sends only what is not there yet.

    Args:
        overwrite: whether what is there may be replaced, whoever put it there.
        progress: told the bytes that are there, of how many.
        commit: taken for the last file.

    Raises:
        PublishConflict: see `check_place`; or another job took the place meanwhile.
        PublishFailed: the folder or bucket cannot be written to; the message says what to do.
    """
    tries = RetryingCaller(attempts=TRIES, timeout=None, wait_initial=1, wait_max=30)
    return tries(_may_help, _try, folder, place, job_id, overwrite, progress, commit or LastStep())


def _may_help(error: Exception) -> bool:
    return isinstance(error, _Unfinished) and error.again


def _try(folder: Path, place: Place, job_id: str, overwrite: bool, progress: Progress, commit: LastStep) -> str:
    """One try. What it raises has nothing of the store's answers in its text or its chain."""
    try:
        check_place(place, job_id=job_id, overwrite=overwrite)
        _send(folder, place, job_id, progress, commit)
    except (PublishConflict, LeftBehind):
        raise
    except Exception as error:
        final = isinstance(error, (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError))
        raise _Unfinished(
            f"The result was not published at {place.url} ({type(error).__name__}): make sure that it exists up to the "
            "result's own name, and that the worker may list, read, write and delete there. The job's artifacts are "
            f"kept: `flattengpt download {job_id} --out result` gets them.",
            again=not final,
        ) from None
    return place.url


def _send(folder: Path, place: Place, job_id: str, progress: Progress, commit: LastStep) -> None:
    own = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    sizes = {name: file.stat().st_size for name, file in own.items()}
    digests = {name: sha256(file) for name, file in own.items()}
    before = place.marker() or Marker(job="", files={})
    stale = ({*place.names(), *before.files} - own.keys()) - {MARKER}
    there = {
        name: digest
        for name, digest in before.files.items()
        if before.job == job_id and digests.get(name) == digest and place.size(name) == sizes[name]
    }
    if there.keys() == own.keys() and not stale:
        return
    place.remove(MANIFEST)  # a reader must not take a part of this result for the whole
    there.pop(MANIFEST, None)
    place.mark(Marker(job=job_id, files=there))
    for name in stale:
        place.remove(name)
    for name in sorted(own.keys() - there.keys() - {MANIFEST}):
        progress(sum(sizes[name] for name in there), sum(sizes.values()))
        place.put(own[name], name)
        there[name] = digests[name]
        place.mark(Marker(job=job_id, files=there))
    with commit.taken():
        now = place.marker()
        if now is None or now.job != job_id:
            raise PublishConflict(
                f"Another job has taken {place.url} meanwhile; the result was not published.", field="publish.url"
            )
        place.put(own[MANIFEST], MANIFEST)
        place.mark(Marker(job=job_id, files=digests))
