"""Every query on jobs. Each method is one short transaction; each change is one atomic, guarded update.

A worker's writes are fenced: they name the attempt that took the job and change nothing once another attempt owns
it, so they may be repeated, and are while the database does not answer. All times are the database's. Knows nothing
of brokers or processes.
"""

import copy
from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import stamina
from sqlalchemy import (
    ColumnElement,
    Engine,
    String,
    bindparam,
    case,
    cast,
    delete,
    func,
    literal,
    null,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session
from ulid import ULID

from flattengpt_core.errors import InvalidRequest
from jobs import changes, tallies, tracing
from jobs.clock import now_plus
from jobs.database import reader, sessions
from jobs.errors import Conflict, IdempotencyMismatch, JobNotFound, QueueFull, QuotaExceeded, TooManyJobs
from jobs.hub_token import HEADER, HubToken
from jobs.queues import DEFAULT, PLAIN, Serves
from jobs.records import Event, EventRecord, JobRecord, Lease, Overview, Page
from jobs.roster import ALIVE, UNSERVED, idle_worker_for
from jobs.spec import JobSpec
from jobs.states import TERMINAL, JobStatus, sources
from jobs.tables import Job, JobEvent, WorkerQueue

patiently = stamina.retry(on=OperationalError, attempts=None, timeout=30, wait_max=2)
"""Tries again for half a minute while the database restarts; what then goes wrong is for the sweeper to mend."""


_SHOWN = select(
    *(getattr(Job, field.name) for field in fields(JobRecord) if field.name != "unserved"), UNSERVED.label("unserved")
)
"""What a record of a job is made of."""
# Clients ask for one job much more often than for anything else, so these are made once.
_ONE = _SHOWN.where(Job.id == bindparam("job_id"))
_ONE_OF_OWNER = _ONE.where(Job.owner == bindparam("owner"))
_UNENDED = Job.status.in_([status for status in JobStatus if status not in TERMINAL])


class JobStore:
    """Jobs in one database.

    Args:
        max_queued: while so many jobs are queued, clients can add no other.
        max_per_owner: so many jobs of one owner may not have ended yet.
        idempotency_seconds: how long after a job was made its idempotency key leads to it.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queued: int | None = None,
        max_per_owner: int | None = None,
        idempotency_seconds: float = 86_400,
    ) -> None:
        self._write, self._read = sessions(engine)
        self._reader = reader(engine)
        self._max_queued, self._max_per_owner = max_queued, max_per_owner
        self._idempotency_seconds = idempotency_seconds
        self._owner, self._sees_all = "", True

    def of(self, owner: str, *, sees_all: bool = False) -> "JobStore":
        """The same jobs for one client: new ones are the `owner`'s, others' are as if they were not there.

        Args:
            owner: the id of an API key.
            sees_all: whether the client may see and change the jobs of every owner.
        """
        store = copy.copy(self)
        store._owner, store._sees_all = owner, sees_all
        return store

    @property
    def _seen(self) -> tuple[ColumnElement[bool], ...]:
        """The jobs that the client may see."""
        return () if self._sees_all else (Job.owner == self._owner,)

    # Clients

    def submit(
        self,
        spec: JobSpec,
        *,
        commit: str | None = None,
        idempotency_key: str | None = None,
        hub_token: HubToken | None = None,
    ) -> JobRecord:
        """Store a new job and its first event, or give back the job that this key made for this owner.

        The limits are looked at in the transaction of the insert. PostgreSQL may overshoot them, by at most the
        number of requests at once; SQLite writes one after another. A key that made a job is never refused by them.

        Args:
            commit: what the spec's revision of a Hub model means now.
            hub_token: kept, sealed, until the job ends.

        Raises:
            IdempotencyMismatch: the key was used for another request.
            QueueFull, QuotaExceeded: there is no room for another job.
            SealingUnavailable: there is no key to seal the token with.
        """
        return self._submit(spec, commit=commit, idempotency_key=idempotency_key, retry_of=None, hub_token=hub_token)

    def made_by(self, idempotency_key: str, spec: JobSpec, *, hub_token: HubToken | None = None) -> JobRecord | None:
        """The job that this key made for this owner by the same request; None if it made none.

        Raises:
            IdempotencyMismatch: the key was used for another request.
        """
        return self._by_key(idempotency_key, spec.as_request(), None, hub_token)

    def retry(self, job_id: str, *, idempotency_key: str | None = None, hub_token: HubToken | None = None) -> JobRecord:
        """Store a new job with the request of one that failed or was cancelled, and no attempts used up.

        Raises:
            JobNotFound, Conflict: no such job, or it has not ended so.
            InvalidRequest: it had a Hub token of its client, which is wiped by now, and there is none here.
            IdempotencyMismatch, QueueFull, QuotaExceeded, SealingUnavailable: as for `submit`.
        """
        job = self.get(job_id)
        if job.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            raise Conflict(
                f"Job {job_id} is {job.status.value}: only a job that failed or was cancelled can be retried."
            )
        if job.own_hub_token and hub_token is None:  # the worker's token has other rights
            raise InvalidRequest(
                f"Job {job_id} had a Hub token of its own, which was wiped when it ended: send it again.", field=HEADER
            )
        spec = JobSpec.model_validate(job.request)
        return self._submit(
            spec, commit=job.commit, idempotency_key=idempotency_key, retry_of=job_id, hub_token=hub_token
        )

    def delete(self, job_id: str) -> None:
        """Remove the job, its events and webhook messages; its artifacts are the caller's to remove before.

        Raises:
            JobNotFound, Conflict: no such job, or it has not ended.
        """
        _check_id(job_id)
        ended = delete(Job).where(Job.id == job_id, *self._seen, Job.status.in_(TERMINAL))
        with self._write.begin() as session:
            deleted = session.scalar(ended.returning(Job.id))
        if deleted is None:
            job = self.get(job_id)  # only now: another delete may have been faster
            raise Conflict(f"Job {job_id} is {job.status.value}: cancel it, and delete it once it has ended.")

    def get(self, job_id: str) -> JobRecord:
        """The job; raises JobNotFound."""
        _check_id(job_id)
        one = _ONE if self._sees_all else _ONE_OF_OWNER
        with self._reader.connect() as connection:  # no session: it would have nothing to keep
            found = connection.execute(one, {"job_id": job_id, "owner": self._owner}).first()
        if found is None:
            raise _not_found(job_id)
        return JobRecord.of(found)

    def has_ended(self, job_id: str) -> bool:
        """Whether the job needs no worker any more; so it does not, either, if it was deleted."""
        with self._read() as session:
            status = session.scalar(select(Job.status).where(Job.id == job_id))
        return status is None or JobStatus(status) in TERMINAL

    def any_unended_with(self, *, model: str | None = None, text: str | None = None) -> bool:
        """Whether a job of any owner that has not ended names this model or this text."""
        with self._read() as session:
            if model is not None:
                return _so_many(session, 1, _UNENDED, Job.model == model)
            # First by the words, which leave few rows to look into.
            worded = cast(Job.request, String).contains(text, autoescape=True)
            requests = session.scalars(select(Job.request).where(_UNENDED, worded))
            return any(text in JobSpec.model_validate(request).texts for request in requests)

    def page(
        self,
        *,
        status: JobStatus | None = None,
        label: tuple[str, str] | None = None,
        model: str | None = None,
        method: str | None = None,
        created_after: datetime | None = None,
        created_before: datetime | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Jobs newest first, only those older than the job id `before`: stable while new ones come in."""
        query = _SHOWN.where(*self._seen).order_by(Job.id.desc()).limit(limit + 1)
        if status is not None:
            query = query.where(Job.status == status)
        if model is not None:
            query = query.where(Job.model == model)
        if method is not None:
            query = query.where(Job.method == method)
        if created_after is not None:
            query = query.where(Job.created_at > created_after)
        if created_before is not None:
            query = query.where(Job.created_at < created_before)
        if label is not None:
            query = query.where(Job.labels[label[0]].as_string() == label[1])
        if before is not None:
            query = query.where(Job.id < before)
        with self._read() as session:
            jobs = [JobRecord.of(row) for row in session.execute(query)]
        more = len(jobs) > limit
        return Page(jobs[:limit], jobs[limit - 1].id if more else None)

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> list[EventRecord]:
        """The job's events with a sequence number above `after`, in order."""
        query = (
            select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after).order_by(JobEvent.seq).limit(limit)
        )
        if self._seen:
            query = query.where(select(Job.id).where(Job.id == job_id, *self._seen).exists())
        with self._read() as session:
            return [EventRecord.of(row) for row in session.scalars(query)]

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a queued job at once, or ask the worker of a running one to stop; repeating it changes nothing.

        Raises:
            JobNotFound, Conflict: no such job, or it has already ended.
        """
        _check_id(job_id)
        queued = Job.status == JobStatus.QUEUED
        statement = (
            update(Job)
            .where(Job.id == job_id, *self._seen, Job.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)))
            .values(
                status=case((queued, JobStatus.CANCELLED.value), else_=JobStatus.CANCELLING.value),
                finished_at=case((queued, now_plus()), else_=None),
                hub_token=case((queued, None), else_=Job.hub_token),
            )
        )
        with self._write.begin() as session:
            if status := session.scalar(statement.returning(Job.status)):
                changes.append(session, job_id, [Event(status, {})])
        job = self.get(job_id)
        if job.status not in (JobStatus.CANCELLED, JobStatus.CANCELLING):
            raise Conflict(
                f"Job {job_id} has already {job.status.value}: only a job that has not ended can be cancelled."
            )
        return job

    # Workers

    def take(self, job_id: str, *, worker: str, lease_seconds: float, serves: Serves = PLAIN) -> Lease | None:
        """Make `worker` the owner of a queued job by a new attempt.

        None if the job is not queued (any more), or is none of those that the worker serves.
        """
        statement = (
            update(Job)
            .where(Job.id == job_id, Job.status.in_(sources(JobStatus.RUNNING)), *_served_by(serves))
            .values(
                status=JobStatus.RUNNING,
                attempt=Job.attempt + 1,
                worker=worker,
                started_at=func.coalesce(Job.started_at, now_plus()),
                lease_expires_at=now_plus(lease_seconds),
            )
            .returning(Job.attempt, Job.traceparent)
        )
        with self._write.begin() as session:
            taken = session.execute(statement).first()
            if taken is None:
                return None
            attempt, traceparent = taken
            changes.append(session, job_id, [Event("started", {"attempt": attempt})])
            tallies.add(session, tallies.counted(tallies.ATTEMPTS_STARTED))
        return Lease(job_id, attempt, traceparent)

    def next_queued(self, serves: Serves = PLAIN) -> str | None:
        """The id of the most urgent job of those that a worker may take, and of these the one that came first."""
        mine = select(Job.id).where(Job.status == JobStatus.QUEUED, *_served_by(serves))
        with self._read() as session:
            return session.scalar(mine.order_by(Job.priority.desc(), Job.id).limit(1))

    def heartbeat(self, lease: Lease, *, lease_seconds: float) -> JobStatus:
        """Extend the lease; the status tells whether the job is to be cancelled. Raises LeaseLost."""
        with self._write.begin() as session:
            return changes.update_owned(session, lease, {"lease_expires_at": now_plus(lease_seconds)})

    def status(self, lease: Lease) -> JobStatus:
        """The status of the job that the attempt owns. Raises LeaseLost."""
        with self._read() as session:
            status = session.scalar(select(Job.status).where(*changes.owned_by(lease)))
        if status is None:
            raise changes.lost(lease)
        return JobStatus(status)

    def sealed_hub_token(self, lease: Lease) -> str | None:
        """The token that the job's client sent with it; None if it sent none. Raises LeaseLost."""
        with self._read() as session:
            row = session.execute(select(Job.hub_token).where(*changes.owned_by(lease))).first()
        if row is None:
            raise changes.lost(lease)
        sealed: str | None = row.hub_token
        return sealed

    @patiently
    def record(
        self, lease: Lease, *, stage: str | None = None, progress: float | None = None, events: Sequence[Event] = ()
    ) -> JobStatus:
        """Note how far the attempt is; progress never goes back. Raises LeaseLost."""
        values: dict[str, Any] = {}
        if progress is not None:
            values["progress"] = case((Job.progress < progress, progress), else_=Job.progress)
        with self._write.begin() as session:
            if stage is not None:
                return changes.enter_stage(session, lease, stage, values, events)
            return changes.update_owned(session, lease, values, events)

    @patiently
    def store_result(self, lease: Lease, *, metrics: dict[str, Any], artifacts: Sequence[dict[str, Any]]) -> None:
        """Note the finished result before it is published, so that a failed upload loses nothing. Raises LeaseLost."""
        values = {"metrics": metrics, "artifacts": list(artifacts)}
        with self._write.begin() as session:
            changes.update_owned(session, lease, values, [Event("stored", {})])
            if peak := metrics.get("peak_memory_bytes"):
                tallies.add(session, tallies.observed(tallies.PEAK_MEMORY_BYTES, peak))

    @patiently
    def succeed(self, lease: Lease, *, published_url: str | None = None) -> None:
        """End the job well; its result is stored already. Raises LeaseLost."""
        values = {"progress": 1.0, "stage": None, "published_url": published_url}
        data = {"published_url": published_url} if published_url else {}
        with self._write.begin() as session:
            changes.end(session, lease, JobStatus.SUCCEEDED, values, data)

    @patiently
    def fail(self, lease: Lease, error: dict[str, Any]) -> None:
        """End the job with an error (`FlattenGPTError.as_dict()`). Raises LeaseLost."""
        with self._write.begin() as session:
            changes.end(session, lease, JobStatus.FAILED, {"error": error}, {"error": error})

    @patiently
    def fail_unless_cancelling(self, lease: Lease, error: dict[str, Any]) -> JobStatus:
        """As `fail`, but a job that is to be cancelled is cancelled; how it ended. Raises LeaseLost."""
        with self._write.begin() as session:
            # This also locks the row, so that no cancel comes in between.
            if changes.update_owned(session, lease, {}) is JobStatus.CANCELLING:
                changes.end(session, lease, JobStatus.CANCELLED, {"stage": None}, {})
                return JobStatus.CANCELLED
            changes.end(session, lease, JobStatus.FAILED, {"error": error}, {"error": error})
            return JobStatus.FAILED

    @patiently
    def cancelled(self, lease: Lease) -> None:
        """End the job as its client asked. Raises LeaseLost."""
        with self._write.begin() as session:
            changes.end(session, lease, JobStatus.CANCELLED, {"stage": None}, {})

    @patiently
    def hand_back(self, lease: Lease, *, reason: str) -> JobStatus:
        """Queue the job again because its worker stops, without counting the attempt. Raises LeaseLost."""
        with self._write.begin() as session:
            return changes.give_up(session, lease, changes.HANDED_BACK, reason=reason)

    @patiently
    def died(self, lease: Lease, *, reason: str, max_attempts: int, peak_memory_bytes: int | None = None) -> JobStatus:
        """Count the death of the job's own process: queue the job again, or fail it the `max_attempts`th time.

        Raises LeaseLost.
        """
        with self._write.begin() as session:
            final = changes.count_death(session, lease) >= max_attempts
            details = {} if peak_memory_bytes is None else {"peak_memory_bytes": peak_memory_bytes}
            return changes.give_up(session, lease, changes.DIED, reason=reason, final=final, **details)

    def ring_again(self, job_id: str) -> None:
        """Let the next sweep announce the job if it is still queued: the worker that was woken cannot take it."""
        with self._write.begin() as session:
            session.execute(
                update(Job).where(Job.id == job_id, Job.status == JobStatus.QUEUED).values(announced_at=None)
            )

    def pass_on(self, job_id: str) -> None:
        """As `ring_again`, for a job that the worker may not take, if there is an idle one that may.

        One that is busy looks for jobs itself once it no longer is.
        """
        passed = update(Job).where(Job.id == job_id, Job.status == JobStatus.QUEUED, idle_worker_for(job_id))
        with self._write.begin() as session:
            session.execute(passed.values(announced_at=None))

    # The sweeper

    def release_expired(self, *, max_losses: int, limit: int = 100) -> list[Lease]:
        """Give up each attempt whose lease ran out: queue its job again, or fail it the `max_losses`th time.

        Returns what was given up.

        Safe to run at once in several places.
        """
        silent = Job.lease_expires_at < now_plus()
        query = select(Job.id, Job.attempt, Job.worker).where(Job.status.in_(changes.OWNED), silent)
        with self._read() as session:
            expired = session.execute(query.order_by(Job.lease_expires_at).limit(limit)).all()
        released = []
        for job_id, attempt, worker in expired:
            lease = Lease(job_id, attempt)
            with self._write.begin() as session:
                # Looked at again under the row's lock: a heartbeat may have come in between.
                losses = changes.count_loss(session, lease, silent)
                if losses is None:
                    continue
                changes.give_up(
                    session,
                    lease,
                    changes.LEASE_EXPIRED,
                    reason=f"worker {worker} fell silent",
                    final=losses >= max_losses,
                )
            released.append(lease)
        return released

    def cancelled_with_artifacts(self, *, limit: int = 100) -> list[str]:
        """The ids of cancelled jobs whose stored artifacts are still to be removed."""
        query = select(Job.id).where(Job.status == JobStatus.CANCELLED, Job.artifacts.is_not(None))
        with self._read() as session:
            return list(session.scalars(query.order_by(Job.id).limit(limit)))

    def forget_artifacts(self, job_id: str) -> None:
        """Note that the artifacts of a cancelled job are removed."""
        with self._write.begin() as session:
            cancelled = update(Job).where(Job.id == job_id, Job.status == JobStatus.CANCELLED)
            session.execute(cancelled.values(artifacts=None))

    def queues_waiting(self) -> list[str]:
        """The queues in which jobs wait."""
        with self._read() as session:
            return sorted(session.scalars(select(Job.queue).where(Job.status == JobStatus.QUEUED).distinct()))

    def due_for_announcement(self, queue: str = DEFAULT, *, after_seconds: float, limit: int = 10) -> list[str]:
        """The jobs of a queue not announced for `after_seconds`, now marked as announced.

        Few at a time are enough: a worker that is woken goes on with whatever is queued. Those that were announced
        last come last, so that jobs which the woken workers may not take hide no others.
        """
        due = (
            Job.status == JobStatus.QUEUED,
            Job.queue == queue,
            or_(Job.announced_at.is_(None), Job.announced_at < now_plus(-after_seconds)),
        )
        oldest = select(Job.id).where(*due).order_by(Job.announced_at.asc().nulls_first(), Job.id).limit(limit)
        with self._write.begin() as session:
            # `due` again, since another sweeper may have marked the same rows in between.
            marked = update(Job).where(Job.id.in_(oldest.scalar_subquery()), *due).values(announced_at=now_plus())
            return sorted(session.scalars(marked.returning(Job.id)))

    # The janitor

    def with_old_artifacts(self, *, days: float, limit: int) -> list[str]:
        """The ids of jobs that ended more than `days` ago and still list artifacts, those that ended first first."""
        old = (Job.artifacts.is_not(null()), Job.finished_at < now_plus(-days * 86_400))
        with self._read() as session:
            return list(session.scalars(select(Job.id).where(*old).order_by(Job.finished_at).limit(limit)))

    def artifacts_removed(self, job_id: str, *, kept_days: float) -> bool:
        """Note that an ended job's artifacts are gone; False if that was noted before, or the job is gone, too.

        Safe to run at once in several places.
        """
        listed = (Job.id == job_id, Job.artifacts.is_not(null()), Job.status.in_(TERMINAL))
        removed = update(Job).where(*listed).values(artifacts=None, artifacts_removed_at=now_plus())
        with self._write.begin() as session:
            if session.scalar(removed.returning(Job.id)) is None:
                return False
            changes.append(session, job_id, [Event("artifacts_removed", {"kept_days": kept_days})])
            return True

    # Seen from outside

    def overview(self) -> Overview:
        """How many jobs and workers there are, how long jobs have waited, and what was counted."""
        with self._read() as session:
            counts = session.execute(select(Job.status, func.count()).group_by(Job.status))
            by_status = {status: count for status, count in counts}
            waiting = select(Job.queue, func.min(Job.created_at), func.count(case((UNSERVED, 1))), now_plus())
            queued = session.execute(waiting.where(Job.status == JobStatus.QUEUED).group_by(Job.queue)).all()
            alive = select(WorkerQueue.queue, func.count()).where(ALIVE).group_by(WorkerQueue.queue)
            workers = {queue: count for queue, count in session.execute(alive)}
            none = dict.fromkeys({*workers, *(queue for queue, *_ in queued)}, 0)
            return Overview(
                jobs={status: by_status.get(status.value, 0) for status in JobStatus},
                queue_age_seconds=none | {queue: (now - oldest).total_seconds() for queue, oldest, _, now in queued},
                unserved=none | {queue: unserved for queue, _, unserved, _ in queued},
                workers=none | workers,
                attempts_started=tallies.counters(session, tallies.ATTEMPTS_STARTED).get("", 0.0),
                attempts_ended=tallies.counters(session, tallies.ATTEMPTS_ENDED),
                stage_seconds=tallies.histograms(session, tallies.STAGE_SECONDS),
                peak_memory_bytes=tallies.histograms(session, tallies.PEAK_MEMORY_BYTES).get(""),
            )

    def ping(self) -> None:
        """Ask the database for anything; raises what the driver raises if it cannot answer."""
        with self._read() as session:
            session.execute(text("SELECT 1"))

    def _submit(
        self,
        spec: JobSpec,
        *,
        commit: str | None,
        idempotency_key: str | None,
        retry_of: str | None,
        hub_token: HubToken | None,
    ) -> JobRecord:
        request = spec.as_request()
        if idempotency_key is not None and (known := self._by_key(idempotency_key, request, retry_of, hub_token)):
            return known
        row = Job(
            id=str(ULID()),
            status=JobStatus.QUEUED,
            model=spec.model,
            method=spec.method,
            request=request,
            commit=commit,
            labels=dict(spec.labels),
            idempotency_key=idempotency_key,
            retry_of=retry_of,
            announced_at=now_plus(),
            owner=self._owner,
            traceparent=tracing.traceparent(),
            hub_token=hub_token.seal() if hub_token else None,
            hub_token_digest=hub_token.digest() if hub_token else None,
            queue=spec.queue,
            min_gpu_memory_gib=spec.min_gpu_memory_gib,
            priority=spec.priority,
        )
        try:
            with self._write.begin() as session:
                self._check_room(session)
                if idempotency_key is not None:
                    self._forget_old_key(session, idempotency_key)
                session.add(row)
                session.flush()
                changes.append(session, row.id, [Event("queued", {"retry_of": retry_of} if retry_of else {})])
                return JobRecord.of(session.execute(_SHOWN.where(Job.id == row.id)).one())
        except (IntegrityError, TooManyJobs):
            # Another request with the same key may have come in between.
            if idempotency_key is not None and (known := self._by_key(idempotency_key, request, retry_of, hub_token)):
                return known
            raise

    def _forget_old_key(self, session: Session, key: str) -> None:
        """Free a key whose time is over for another job."""
        old = (Job.owner == self._owner, Job.idempotency_key == key, Job.created_at <= self._keys_since())
        session.execute(update(Job).where(*old).values(idempotency_key=None))

    def _keys_since(self) -> ColumnElement[datetime]:
        return now_plus(-self._idempotency_seconds)

    def _check_room(self, session: Session) -> None:
        """Raises QueueFull, QuotaExceeded."""
        most = self._max_queued
        if most is not None and _so_many(session, most, Job.status == JobStatus.QUEUED):
            raise QueueFull(f"{most} jobs are queued, the most that this service takes: try again later.")
        most = self._max_per_owner
        if most is not None and self._owner and _so_many(session, most, Job.owner == self._owner, _UNENDED):
            raise QuotaExceeded(
                f"{most} jobs of this key have not ended, the most that a key may have: wait for one to end, or cancel "
                "one."
            )

    def _by_key(
        self, key: str, request: dict[str, Any], retry_of: str | None, hub_token: HubToken | None
    ) -> JobRecord | None:
        with self._read() as session:
            known = (Job.owner == self._owner, Job.idempotency_key == key, Job.created_at > self._keys_since())
            found = session.execute(_SHOWN.where(*known)).first()
        if found is None:
            return None
        job = JobRecord.of(found)
        # Its request may be older than fields that have come since.
        before = JobSpec.model_validate(job.request).as_request()
        if (before, job.retry_of) != (request, retry_of) or not _same_token(job.hub_token_digest, hub_token):
            raise IdempotencyMismatch(
                "The Idempotency-Key was used before with another body; use a new key for a new request.",
                field="Idempotency-Key",
            )
        return job


def _served_by(serves: Serves) -> tuple[ColumnElement[bool], ...]:
    """The jobs that such a worker may take, queued or not."""
    return (Job.queue.in_(serves.queues), Job.min_gpu_memory_gib <= serves.gpu_memory_gib)


def _same_token(digest: str | None, token: HubToken | None) -> bool:
    if digest is None or token is None:
        return digest is None and token is None
    return token.has(digest)


def _so_many(session: Session, count: int, *matching: ColumnElement[bool]) -> bool:
    """Whether there are at least `count` such jobs; looks at no more of them, and at an index only."""
    return session.scalar(select(literal(1)).select_from(Job).where(*matching).offset(count - 1).limit(1)) is not None


def _check_id(job_id: str) -> None:
    """Spare the database what is no id: PostgreSQL refuses some strings instead of not finding them."""
    if not job_id.isalnum():
        raise _not_found(job_id)


def _not_found(job_id: str) -> JobNotFound:
    return JobNotFound(f"There is no job {job_id!r}.")
