"""Removes the stored artifacts of cancelled jobs. The rows say whose are left, so that an interruption loses none.

For the API and the workers, which use the artifact store anyway: one that looks in the wrong place finds nothing to
remove, and forgets what is elsewhere.
"""

import structlog

from jobs.artifacts import ArtifactStore
from jobs.store import JobStore

log = structlog.get_logger()


def discard(store: JobStore, artifacts: ArtifactStore, job_id: str) -> None:
    """Remove the artifacts of a cancelled job, also what its row does not list yet; if that fails, the row keeps them.

    A cancelled job stays so, hence nobody can come to need them again.
    """
    try:
        artifacts.delete(job_id)
    except Exception as error:  # whatever a store's client raises
        log.warning("artifacts not removed", job_id=job_id, error=type(error).__name__)
    else:
        store.forget_artifacts(job_id)


def discard_left_over(store: JobStore, artifacts: ArtifactStore) -> None:
    """Remove the artifacts of each cancelled job that still lists some; safe to run at once in several places."""
    for job_id in store.cancelled_with_artifacts():
        discard(store, artifacts, job_id)
