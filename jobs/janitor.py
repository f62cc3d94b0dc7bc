"""Removes what was kept long enough: artifacts of jobs that ended `keep_artifacts_days` ago. The jobs themselves stay.

Files go first and the job's list of them after that, so whatever stops the janitor in between, its next round finishes.
Safe to run in several places at once.
"""

import structlog

from jobs.artifacts import ArtifactStore, NotRemoved
from jobs.settings import Settings
from jobs.store import JobStore

BATCH = 5
"""Jobs a round: who calls it has more to do than to wait for a slow store."""

log = structlog.get_logger()


def remove_old_artifacts(store: JobStore, settings: Settings) -> None:
    """Remove the artifacts of a few of the jobs whose time is over; the next call comes to the others."""
    days = settings.keep_artifacts_days
    old = store.with_old_artifacts(days=days, limit=BATCH) if days else []
    artifacts: ArtifactStore | None = None
    for job_id in old:
        try:
            artifacts = artifacts or ArtifactStore(settings.artifacts)
            artifacts.delete(job_id)
        except NotRemoved as error:
            log.warning("artifacts cannot be removed", job_id=job_id, error=str(error))
        except Exception as error:  # each store's client has errors of its own
            log.warning("the artifact store does not answer", job_id=job_id, error=type(error).__name__)
            return
        else:
            if store.artifacts_removed(job_id, kept_days=days):
                log.info("artifacts removed", job_id=job_id)
