"""The guarded changes of a job's row that the store's transactions are made of, each with its events.

A worker's change names the attempt that took the job and every change of status names the states of
`states.TRANSITIONS` that may precede it, both in the WHERE of the update: a change that comes too late finds no row.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Row, select, update
from sqlalchemy.orm import Session

from jobs import outbox, tallies
from jobs.clock import now_plus
from jobs.errors import LeaseLost, WorkerLost
from jobs.records import Event, Lease
from jobs.states import JobStatus, sources
from jobs.tables import Job, JobEvent

OWNED = (JobStatus.RUNNING, JobStatus.CANCELLING)
"""The states in which an attempt owns a job."""

HANDED_BACK, DIED, LEASE_EXPIRED = "handed_back", "died", "lease_expired"
"""The events that tell how an attempt ended which did not end the job."""

_FREED = {"lease_expires_at": None, "worker": None, "stage": None, "stage_started_at": None}


def owned_by(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    """The WHERE of everything that an attempt writes."""
    return (Job.id == lease.job_id, Job.attempt == lease.attempt, Job.status.in_(OWNED))


def lost(lease: Lease) -> LeaseLost:
    """The error of a write that found no row."""
    return LeaseLost(f"Attempt {lease.attempt} no longer owns job {lease.job_id}.")


def append(session: Session, job_id: str, events: Sequence[Event]) -> None:
    """Add events, and what webhooks are told of them, under the job row's lock, which numbers them without gaps."""
    for event in events:
        bump = update(Job).where(Job.id == job_id).values(last_event=Job.last_event + 1)
        seq, attempt = session.execute(bump.returning(Job.last_event, Job.attempt)).one()
        session.add(JobEvent(job_id=job_id, seq=seq, attempt=attempt, type=event.type, data=event.data))
        outbox.add(session, job_id, seq, event.type)
    session.flush()


def update_owned(session: Session, lease: Lease, values: dict[str, Any], events: Sequence[Event] = ()) -> JobStatus:
    """Write to a job that the attempt owns; its status. Raises LeaseLost."""
    values = values or {"attempt": lease.attempt}
    status = session.scalar(update(Job).where(*owned_by(lease)).values(**values).returning(Job.status))
    if status is None:
        raise lost(lease)
    append(session, lease.job_id, events)
    return JobStatus(status)


def enter_stage(
    session: Session, lease: Lease, stage: str, values: dict[str, Any], events: Sequence[Event]
) -> JobStatus:
    """As `update_owned`, with the time of the stage before kept. Raises LeaseLost."""
    before = _stage_seconds(_locked(session, lease))
    status = update_owned(session, lease, values | {"stage": stage, "stage_started_at": now_plus()}, events)
    tallies.add(session, before)
    return status


def end(session: Session, lease: Lease, target: JobStatus, values: dict[str, Any], data: dict[str, Any]) -> None:
    """Bring the job to a terminal state. Raises LeaseLost."""
    last_stage = _stage_seconds(_locked(session, lease))
    _end(session, lease, target, values, data)
    tallies.add(session, last_stage, tallies.counted(tallies.ATTEMPTS_ENDED, target.value))


def count_death(session: Session, lease: Lease) -> int:
    """Count a death of the job's process; how many there were. Raises LeaseLost."""
    counted = update(Job).where(*owned_by(lease)).values(deaths=Job.deaths + 1)
    deaths: int | None = session.scalar(counted.returning(Job.deaths))
    if deaths is None:
        raise lost(lease)
    return deaths


def count_loss(session: Session, lease: Lease, silent: ColumnElement[bool]) -> int | None:
    """Count a worker that fell silent; how many there were, or None if the attempt owns nothing or still speaks."""
    counted = update(Job).where(*owned_by(lease), silent).values(losses=Job.losses + 1)
    return session.scalar(counted.returning(Job.losses))


def give_up(
    session: Session, lease: Lease, what: str, *, reason: str, final: bool = False, **details: Any
) -> JobStatus:
    """End the attempt: a job to be cancelled is cancelled, another is queued again, or fails if this is `final`.

    Args:
        what: the type of the event that tells of it.
        details: what else the event holds, JSON.

    Raises:
        LeaseLost: another attempt owns the job.
    """
    # The row's lock keeps a cancel from coming in between, which would leave the job without a worker.
    row = _locked(session, lease)
    append(session, lease.job_id, [Event(what, {"reason": reason, "stage": row.stage, **details})])
    if row.status == JobStatus.CANCELLING:
        target = JobStatus.CANCELLED
        _end(session, lease, target, _FREED, {})
    elif final:
        target = JobStatus.FAILED
        error = WorkerLost(f"The job was given up. {_reasons(session, lease.job_id)}.").as_dict()
        _end(session, lease, target, _FREED | {"error": error}, {"error": error})
    else:
        target = JobStatus.QUEUED
        _move(session, lease, target, _FREED | {"announced_at": None}, {})
    peak = details.get("peak_memory_bytes")
    memory = tallies.observed(tallies.PEAK_MEMORY_BYTES, peak) if peak else Counter[tallies.Key]()
    tallies.add(session, _stage_seconds(row), memory, tallies.counted(tallies.ATTEMPTS_ENDED, what))
    return target


def _locked(session: Session, lease: Lease) -> Row[str, str | None, datetime | None, datetime]:
    """The owned job's status and stage, and the database's time, under the row's lock. Raises LeaseLost."""
    query = select(Job.status, Job.stage, Job.stage_started_at, now_plus().label("now")).where(*owned_by(lease))
    row = session.execute(query.with_for_update()).first()
    if row is None:
        raise lost(lease)
    return row


def _stage_seconds(row: Row[str, str | None, datetime | None, datetime]) -> Counter[tallies.Key]:
    """How long the attempt has been in its stage, by the database's clock."""
    if row.stage is None or row.stage_started_at is None:
        return Counter()
    seconds = max(0.0, (row.now - row.stage_started_at).total_seconds())
    return tallies.observed(tallies.STAGE_SECONDS, seconds, row.stage)


def _end(session: Session, lease: Lease, target: JobStatus, values: dict[str, Any], data: dict[str, Any]) -> None:
    ended = {"finished_at": now_plus(), "lease_expires_at": None, "hub_token": None}  # nosec B105  # a column
    _move(session, lease, target, ended | values, data)


def _move(session: Session, lease: Lease, target: JobStatus, values: dict[str, Any], data: dict[str, Any]) -> None:
    statement = update(Job).where(*owned_by(lease), Job.status.in_(sources(target))).values(status=target, **values)
    if session.execute(statement.returning(Job.id)).first() is None:
        raise lost(lease)
    append(session, lease.job_id, [Event(target.value, data)])


def _reasons(session: Session, job_id: str) -> str:
    """Where and why each attempt ended, in one line."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.type.in_((DIED, LEASE_EXPIRED)))
    return "; ".join(
        f"Attempt {row.attempt} {_where(row.data['stage'])}: {row.data['reason']}{_memory(row.data)}"
        for row in session.scalars(query.order_by(JobEvent.seq))
    )


def _where(stage: str | None) -> str:
    return f"in stage {stage}" if stage else "before its first stage"


def _memory(data: Mapping[str, Any]) -> str:
    peak = data.get("peak_memory_bytes")
    return f" (peak memory {peak / 2**30:.2f} GiB)" if peak else ""
