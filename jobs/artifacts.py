"""Where results live: one folder a job behind fsspec, so that API and workers may be on different hosts.

An artifact appears under its name only when it is whole. On a file system so does the folder; a bucket knows no
folders, so there the files appear one after another, and the list of them in the job's row, which is written after the
last, is what says that all are there. Knows nothing of the database.
"""

import hashlib
import os
import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from jobs.errors import ArtifactNotFound, MissingExtra

_COPY_BYTES = 4 * 1024**2
_BUCKETS = frozenset(("s3", "s3a"))
"""Stores of objects, where there are no folders, and the top one is the operator's to make."""


@dataclass(frozen=True)
class Artifact:
    """A stored file. path: within the job's folder. size: bytes. sha256: hexadecimal."""

    path: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """The artifact as JSON."""
        return asdict(self)


class NotRemoved(OSError):
    """The artifact store answers, but keeps what was to be removed."""


class ArtifactStore:
    """Job results under one fsspec URL.

    Raises:
        MissingExtra: what reads such URLs is not installed.
    """

    def __init__(self, url: str) -> None:
        try:
            # What another process puts there is to be seen at once.
            self._files, self._root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except ImportError as error:
            raise MissingExtra(_what_to_install(url.partition(":")[0]), field="FLATTENGPT_ARTIFACTS_URL") from error
        self._has_folders = not _BUCKETS.intersection(_protocols(self._files))

    def put_folder(self, job_id: str, folder: Path) -> list[Artifact]:
        """Store all files of `folder`, replacing what an earlier attempt of the job left; in path order.

        What fails half way leaves none of it, and what the earlier attempt stored for as long as it can.
        """
        final, aside = self._path(job_id), self._path(f"{job_id}.partial")
        self._remove(aside)
        artifacts = []
        try:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = file.relative_to(folder).as_posix()
                artifacts.append(self._put(file, f"{aside}/{name}", name))
            self._remove(final)
            self._rename(aside, final, artifacts)
        except BaseException:
            self._remove(aside)  # on a full disk it would keep the next job from its room
            raise
        return artifacts

    def get_folder(self, job_id: str, artifacts: Sequence[Artifact], folder: Path) -> None:
        """Copy the job's artifacts into the new folder `folder`, which appears only when it is whole.

        Raises ArtifactNotFound if one is gone, or is not what was stored.
        """
        aside = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for artifact in artifacts:
            target = aside / artifact.path
            with self.open(job_id, artifact.path) as reader:
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as writer:
                    digest = _copy(reader, writer)
            if digest != artifact.sha256:
                raise ArtifactNotFound(f"Artifact {artifact.path!r} of job {job_id} is not what was stored.")
        aside.rename(folder)

    def open(self, job_id: str, path: str) -> IO[bytes]:
        """The artifact's bytes, seekable. Raises ArtifactNotFound."""
        return cast("IO[bytes]", self._files.open(self._existing(job_id, path), "rb", block_size=_COPY_BYTES))

    def delete(self, job_id: str) -> None:
        """Remove all of the job's artifacts, if there are any, also half stored ones.

        Raises NotRemoved if some are still there, and what the store's client raises if it does not answer.
        """
        for name in (job_id, f"{job_id}.partial"):
            self._remove(self._path(name))
        if self.holds(job_id):
            raise NotRemoved(
                f"Artifacts of job {job_id} cannot be removed from the artifact store: look at its rights."
            )

    def holds(self, job_id: str) -> bool:
        """Whether there is any file of the job, also of one that was half stored."""
        return any(self._files.exists(self._path(name)) for name in (job_id, f"{job_id}.partial"))

    @property
    def folder(self) -> Path | None:
        """Where on this machine the artifacts are; None if they are elsewhere."""
        return Path(self._root) if isinstance(self._files, LocalFileSystem) else None

    def ping(self) -> None:
        """Make sure the store can be written to; raises OSError if not."""
        if self._has_folders:
            self._files.makedirs(self._root, exist_ok=True)
        probe = self._path(".ready")
        self._files.pipe_file(probe, b"")
        self._files.rm_file(probe)

    def _put(self, source: Path, target: str, name: str) -> Artifact:
        if self._has_folders:
            self._files.makedirs(posixpath.dirname(target), exist_ok=True)
        with source.open("rb") as reader, self._files.open(target, "wb") as writer:
            digest = _copy(reader, writer)
            if isinstance(self._files, LocalFileSystem):
                writer.flush()
                os.fsync(writer.fileno())
        return Artifact(name, source.stat().st_size, digest)

    def _existing(self, job_id: str, path: str) -> str:
        clean = posixpath.normpath(path)
        full = f"{self._path(job_id)}/{clean}"
        if path != clean or path.startswith(("/", "..")) or "\\" in path or not self._files.isfile(full):
            raise ArtifactNotFound(f"Job {job_id} has no artifact {path!r}.")
        return full

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _rename(self, aside: str, final: str, artifacts: Sequence[Artifact]) -> None:
        if self._has_folders:
            self._files.mv(aside, final, recursive=True)
            return
        try:
            for artifact in artifacts:
                self._files.copy(f"{aside}/{artifact.path}", f"{final}/{artifact.path}")
        except BaseException:
            self._remove(final)
            raise
        self._remove(aside)

    def _remove(self, path: str) -> None:
        if isinstance(self._files, LocalFileSystem):
            shutil.rmtree(path, ignore_errors=True)
        elif self._files.exists(path):
            self._files.rm(path, recursive=True)


def is_whole(folder: Path, artifacts: Sequence[Artifact]) -> bool:
    """Whether the folder holds these files, by their SHA-256, and no others."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    if found.keys() != {artifact.path for artifact in artifacts}:
        return False
    return all(
        found[artifact.path].stat().st_size == artifact.size and _sha256(found[artifact.path]) == artifact.sha256
        for artifact in artifacts
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _copy(reader: IO[bytes], writer: IO[bytes]) -> str:
    """Write all that there is to read; its SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    while block := reader.read(_COPY_BYTES):
        digest.update(block)
        writer.write(block)
    return digest.hexdigest()


def _protocols(files: Any) -> list[str]:
    """All names that URLs of this file system may begin with."""
    return [files.protocol] if isinstance(files.protocol, str) else list(files.protocol)


def _what_to_install(scheme: str) -> str:
    """In words that hold nothing else of the URL, in which there may be a secret."""
    command = "pip install 'flattengpt[s3]'" if scheme in _BUCKETS else f"fsspec's implementation of {scheme}"
    return f"An artifact store at {scheme}:// needs a library that is not installed: {command}."


def as_json(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The artifacts as a job's `artifacts`."""
    return [artifact.as_dict() for artifact in artifacts]
