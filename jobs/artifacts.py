"""Where results live: one folder a job behind fsspec, so that API and workers may be on different hosts.

An artifact appears under its name only when it is whole. On a file system so does the folder; a bucket knows no
folders, so there the files appear one after another, and the list of them in the job's row, which is written after the
last, is what says that all are there. Knows nothing of the database.
"""

import hashlib
import posixpath
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from jobs.errors import ArtifactNotFound
from jobs.stored_files import StoredFiles, copy


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
        self._files = StoredFiles(url, setting="FLATTENGPT_ARTIFACTS_URL")

    def put_folder(self, job_id: str, folder: Path) -> list[Artifact]:
        """Store all files of `folder`, replacing what an earlier attempt of the job left; in path order.

        What fails half way leaves none of it, and what the earlier attempt stored for as long as it can.
        """
        aside = f"{job_id}.partial"
        self._files.remove(aside)
        artifacts = []
        try:
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                name = file.relative_to(folder).as_posix()
                artifacts.append(Artifact(name, file.stat().st_size, self._files.put(file, f"{aside}/{name}")))
            self._files.remove(job_id)
            self._files.move(aside, job_id, [artifact.path for artifact in artifacts])
        except BaseException:
            self._files.remove(aside)  # on a full disk it would keep the next job from its room
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
                    digest = copy(reader, writer)
            if digest != artifact.sha256:
                raise ArtifactNotFound(f"Artifact {artifact.path!r} of job {job_id} is not what was stored.")
        aside.rename(folder)

    def open(self, job_id: str, path: str) -> IO[bytes]:
        """The artifact's bytes, seekable. Raises ArtifactNotFound."""
        clean = posixpath.normpath(path)
        name = f"{job_id}/{clean}"
        if path != clean or path.startswith(("/", "..")) or "\\" in path or not self._files.is_file(name):
            raise ArtifactNotFound(f"Job {job_id} has no artifact {path!r}.")
        return self._files.open(name)

    def delete(self, job_id: str) -> None:
        """Remove all of the job's artifacts, if there are any, also half stored ones.

        Raises NotRemoved if some are still there, and what the store's client raises if it does not answer.
        """
        for name in (job_id, f"{job_id}.partial"):
            self._files.remove(name)
        if self.holds(job_id):
            raise NotRemoved(
                f"Artifacts of job {job_id} cannot be removed from the artifact store: look at its rights."
            )

    def holds(self, job_id: str) -> bool:
        """Whether there is any file of the job, also of one that was half stored."""
        return any(self._files.exists(name) for name in (job_id, f"{job_id}.partial"))

    @property
    def folder(self) -> Path | None:
        """Where on this machine the artifacts are; None if they are elsewhere."""
        return self._files.folder

    def ping(self) -> None:
        """Make sure the store can be written to; raises OSError if not."""
        self._files.ping()


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


def as_json(artifacts: Sequence[Artifact]) -> list[dict[str, Any]]:
    """The artifacts as a job's `artifacts`."""
    return [artifact.as_dict() for artifact in artifacts]
