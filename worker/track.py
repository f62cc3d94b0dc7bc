"""Tells an MLflow server of a job: `python -m worker.track JOB_ID ATTEMPT`, a process beside that of the attempt.

It reads what everyone may read of a job, the row and its events, and so cannot hold the job up: while the server is
away the job goes on, and what was missed is told once the server is back, by a later attempt, or by `track`.
"""

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from sqlalchemy.exc import OperationalError

from flattengpt_core.errors import FlattenGPTError
from jobs.artifacts import ArtifactStore
from jobs.database import make_engine
from jobs.errors import JobNotFound, LeaseLost, TrackingFailed
from jobs.logs import configure_logs
from jobs.records import Event, Lease
from jobs.settings import Settings
from jobs.store import JobStore
from worker.child_process import die_with_parent
from worker.mlflow_server import connect

if TYPE_CHECKING:
    from worker.mlflow_run import MlflowRun

LOOK_SECONDS = 3
"""How often a job is looked at while it runs."""
_AGAIN_SECONDS = 1
_FOUND, _FAILED = "mlflow_run", "mlflow_failed"
"""The events that say what became of it."""

log = structlog.get_logger()


class Tracker:
    """Tells what is new of one job each time that it is asked to.

    Raises:
        MissingExtra, TrackingFailed: there is no server to tell.
    """

    def __init__(self, store: JobStore, settings: Settings, job_id: str) -> None:
        self._store, self._settings, self._job_id = store, settings, job_id
        self._client = connect(settings)
        self._run: MlflowRun | None = None
        self._told = 0
        self.all_told = False
        """Whether the job has ended, and the server knows everything."""
        self.attempt = 0
        """The job's newest attempt, as last seen."""

    def tell(self) -> str:
        """Tell the server what it does not know yet; the id of the run.

        Raises:
            JobNotFound: the job was deleted.
            TrackingFailed: the server did not take it; all of it may be told again.
        """
        job = self._store.get(self._job_id)
        self.attempt = job.attempt
        try:
            run = self._run_of_the_job()
            while events := self._store.events(job.id, after=self._told):
                run.tell(job, events)
                self._told = events[-1].seq
            if job.ended and not run.has_ended:
                from worker.mlflow_run import source_of

                run.tell(job, [])
                run.end(job, ArtifactStore(self._settings.artifacts), source_of(job.id, self._settings.artifacts))
        except OperationalError:
            raise
        except Exception as error:  # MLflow's, its HTTP client's, and those of the artifact stores
            raise _refused(error) from None
        self.all_told = job.ended
        return run.id

    def _run_of_the_job(self) -> "MlflowRun":
        if self._run is None:
            from worker.mlflow_run import MlflowRun

            self._run = MlflowRun(self._client, self._settings.mlflow_experiment, self._store.get(self._job_id))
        return self._run


def track(settings: Settings, job_id: str) -> str:
    """Tell the server all that there is of a job now; the id of its run.

    Raises:
        JobNotFound, MissingExtra, TrackingFailed: as of `Tracker`.
    """
    return Tracker(JobStore(make_engine(settings.database)), settings, job_id).tell()


def follow(store: JobStore, settings: Settings, lease: Lease, over: threading.Event) -> None:
    """Tell the server of the job as it goes on, until the attempt is over and all of it is told.

    Args:
        over: set once the attempt is over; while the server is away this goes on until the process is killed.
    """
    tracker: Tracker | None = None
    known, complained = False, False
    while True:
        last = over.is_set()
        try:
            tracker = tracker or Tracker(store, settings, lease.job_id)
            run_id = tracker.tell()
        except JobNotFound:
            return
        except OperationalError as error:
            log.warning("the database does not answer", error=type(error).__name__)
        except FlattenGPTError as error:
            if not complained:
                log.warning("MLflow is not told of the job", reason=error.message)
                _record(store, lease, Event(_FAILED, {"reason": error.message}))
                complained = True
        else:
            if not known:
                _record(store, lease, Event(_FOUND, {"run_id": run_id, "experiment": settings.mlflow_experiment}))
                known = True
            if last or tracker.all_told or tracker.attempt != lease.attempt:
                return
        if last:
            threading.Event().wait(_AGAIN_SECONDS)
        else:
            over.wait(LOOK_SECONDS)


def _record(store: JobStore, lease: Lease, event: Event) -> None:
    with suppress(LeaseLost, OperationalError):  # the job may have ended
        store.record(lease, events=[event])


def _refused(error: Exception) -> TrackingFailed:
    """In words of ours: those of others may quote what they were sent."""
    match type(error).__name__:
        case "RestException":
            reason = f"The MLflow server refused what it was told ({getattr(error, 'error_code', 'no code')})."
        case "MlflowException":
            reason = "The MLflow server does not answer, or does not let its client in."
        case name:
            reason = f"Telling the MLflow server stopped on an unexpected error ({name})."
    return TrackingFailed(reason)


def main(job_id: str, attempt: int) -> None:
    """Follow one attempt to its end."""
    die_with_parent()
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    settings = Settings()
    configure_logs(settings, job_id=job_id, attempt=attempt)
    os.environ.pop("HF_TOKEN", None)
    follow(JobStore(make_engine(settings.database)), settings, Lease(job_id, attempt), over)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
