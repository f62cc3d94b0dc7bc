"""The workers that are alive, by what they serve: each says so again and again, for a while that the database counts.

Nothing depends on it but what is said of jobs that no worker may take, and how soon one is woken for the others.
"""

from sqlalchemy import ColumnElement, Engine, case, delete, exists, false
from sqlalchemy.dialects import postgresql, sqlite

from jobs.changes import OWNED
from jobs.clock import now_plus
from jobs.database import sessions
from jobs.queues import Serves
from jobs.states import JobStatus
from jobs.tables import Job, WorkerQueue

ALIVE = WorkerQueue.alive_until > now_plus()

_MAY_TAKE = (ALIVE, WorkerQueue.queue == Job.queue, WorkerQueue.gpu_memory_gib >= Job.min_gpu_memory_gib)

UNSERVED: ColumnElement[bool] = case((Job.status == JobStatus.QUEUED, ~exists().where(*_MAY_TAKE)), else_=false())
"""Of a job: it is queued, and no worker that is alive may take it."""


def idle_worker_for(job_id: str) -> ColumnElement[bool]:
    """Whether a worker that is alive and works on nothing may take the job."""
    working = Job.__table__.alias("working")
    busy = exists().where(working.c.worker == WorkerQueue.worker, working.c.status.in_(OWNED))
    return exists().where(Job.id == job_id, *_MAY_TAKE, ~busy)


class Roster:
    """The workers of one database."""

    def __init__(self, engine: Engine) -> None:
        self._write, _ = sessions(engine)

    def present(self, worker: str, serves: Serves, *, seconds: float) -> None:
        """Note that the worker is alive, and will be taken to be so for that long."""
        served = {"worker": worker, "gpu_memory_gib": serves.gpu_memory_gib, "alive_until": now_plus(seconds)}
        rows = [served | {"queue": queue} for queue in sorted(set(serves.queues))]
        with self._write.begin() as session:
            dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
            insert = dialect.insert(WorkerQueue).values(rows)
            renewed = {"alive_until": insert.excluded.alive_until, "gpu_memory_gib": insert.excluded.gpu_memory_gib}
            session.execute(
                insert.on_conflict_do_update(index_elements=[WorkerQueue.worker, WorkerQueue.queue], set_=renewed)
            )
            session.execute(delete(WorkerQueue).where(~ALIVE))

    def absent(self, worker: str) -> None:
        """Note that the worker has stopped."""
        with self._write.begin() as session:
            session.execute(delete(WorkerQueue).where(WorkerQueue.worker == worker))
