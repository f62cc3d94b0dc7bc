"""The result that an earlier attempt of a job has stored, for this one to go on from."""

import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

import structlog

from jobs.artifacts import Artifact, ArtifactStore, is_whole
from jobs.errors import ArtifactNotFound

log = structlog.get_logger()


class Source(StrEnum):
    """Where a result was found."""

    WORKER = "this worker's disk"
    STORE = "the artifact store"


def restore(store: ArtifactStore, job_id: str, artifacts: Sequence[Artifact], folder: Path) -> Source | None:
    """Make `folder` hold the stored artifacts, byte for byte; None if they are not all there, and the folder is gone.

    It is left as it is if it holds them already, else replaced.
    """
    if artifacts and folder.is_dir() and is_whole(folder, artifacts):
        return Source.WORKER
    shutil.rmtree(folder, ignore_errors=True)
    if not artifacts:
        return None
    try:
        store.get_folder(job_id, artifacts, folder)
    except ArtifactNotFound as error:
        log.warning("the stored result cannot be used", reason=error.message)
        return None
    return Source.STORE
