"""Messages to the webhooks of jobs: written with the event that they tell of, then tried until they are delivered.

A message is due at `next_try_at`. Who takes it moves that on, by an atomic update, so that no other sender comes to it
meanwhile, and one does if the taker dies. So a message is sent at least once, seldom twice, and in no promised order.
All times are the database's. Knows nothing of HTTP.
"""

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, get_args

from sqlalchemy import Engine, case, delete, select, update
from sqlalchemy.orm import Session
from ulid import ULID

from jobs.clock import now_plus
from jobs.database import sessions
from jobs.errors import DeliveryNotFound
from jobs.spec import WebhookEvent
from jobs.states import JobStatus
from jobs.tables import Job, JobEvent, WebhookDelivery

SCHEDULE: tuple[float, ...] = (5, 60, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 10 * 3600)
"""Seconds between one try and the next: nine tries in about 28 hours."""
TRIES = len(SCHEDULE) + 1
TAKEN_SECONDS = 90.0
"""A sender that has not reported by then is taken for dead; resolving a name and one try take less."""
JITTER = 0.2
"""The most that is added to a wait, as a share of it: receivers that failed together are not tried together."""
MOST_WAIT_SECONDS = 86_400.0
"""A receiver cannot ask for a longer wait."""
GONE = "HTTP 410: the receiver wants no more"
KEPT_DAYS = 30
"""How long a message stays in the log that is delivered or given up."""


_ID = re.compile(r"msg_[0-9A-Z]{26}", re.ASCII)
_TOLD_OF = get_args(WebhookEvent)


class DeliveryStatus(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True)
class Delivery:
    """A message as it was at one moment, for the log."""

    id: str
    job_id: str
    seq: int
    type: str
    status: DeliveryStatus
    attempts: int
    next_try_at: datetime | None
    last_try_at: datetime | None
    answer: str | None
    created_at: datetime
    delivered_at: datetime | None


@dataclass(frozen=True)
class Message:
    """A message that one sender has taken. attempt: its fence. sent_at: the database's time. body: JSON."""

    id: str
    job_id: str
    owner: str
    url: str
    attempt: int
    tries_left: int
    sent_at: datetime
    body: str


def add(session: Session, job_id: str, seq: int, event_type: str) -> None:
    """Add a message if the job's webhook is to be told of events of this type; within the event's transaction."""
    if event_type not in _TOLD_OF:
        return
    hook = _hook(session.scalar(select(Job.request).where(Job.id == job_id)))
    gone = select(WebhookDelivery.id).where(WebhookDelivery.job_id == job_id, WebhookDelivery.answer == GONE)
    if hook is None or event_type not in hook["events"] or session.scalar(gone.limit(1)) is not None:
        return
    session.add(
        WebhookDelivery(
            id=f"msg_{ULID()}",
            job_id=job_id,
            seq=seq,
            type=event_type,
            status=DeliveryStatus.PENDING,
            tries_left=TRIES,
            next_try_at=now_plus(),
        )
    )


class Outbox:
    """The messages of one database."""

    def __init__(self, engine: Engine) -> None:
        self._write, self._read = sessions(engine)

    # Senders

    def take(self, *, limit: int, seconds: float = TAKEN_SECONDS) -> list[Message]:
        """Take messages that are due, the longest due first; no other sender does so for as many `seconds`."""
        due = (WebhookDelivery.next_try_at <= now_plus(),)
        query = select(WebhookDelivery.id).where(*due).order_by(WebhookDelivery.next_try_at).limit(limit)
        with self._read() as session:  # mostly there is none, and nothing to lock for
            found = session.scalars(query).all()
        if not found:
            return []
        taken = (
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(found), *due)  # again: another sender may have been faster
            .values(
                next_try_at=now_plus(seconds),
                last_try_at=now_plus(),
                attempts=WebhookDelivery.attempts + 1,
                tries_left=case((WebhookDelivery.tries_left > 0, WebhookDelivery.tries_left - 1), else_=0),
            )
            .returning(WebhookDelivery)
        )
        with self._write.begin() as session:
            rows = list(session.scalars(taken))
            return [_message(session, row) for row in sorted(rows, key=lambda row: row.id)]

    def delivered(self, message: Message, answer: str) -> None:
        """Note that the receiver has it, whoever may have taken the message since."""
        pending = (WebhookDelivery.id == message.id, WebhookDelivery.status == DeliveryStatus.PENDING)
        noted = update(WebhookDelivery).where(*pending)
        with self._write.begin() as session:
            session.execute(
                noted.values(status=DeliveryStatus.DELIVERED, next_try_at=None, answer=answer, delivered_at=now_plus())
            )

    def failed(self, message: Message, answer: str, *, retry_after: float = 0) -> DeliveryStatus:
        """Note a try that failed, and when to try again, unless that was the last one or another sender has taken it.

        Args:
            answer: what happened, in a few words.
            retry_after: seconds that the receiver asked to be left alone for.
        """
        if message.tries_left == 0:
            self._end(message, answer)
            return DeliveryStatus.FAILED
        wait = max(SCHEDULE[-message.tries_left], min(retry_after, MOST_WAIT_SECONDS))
        again = now_plus(wait * random.uniform(1, 1 + JITTER))  # nosec B311  # spreads retries
        with self._write.begin() as session:
            session.execute(update(WebhookDelivery).where(*_held(message)).values(next_try_at=again, answer=answer))
        return DeliveryStatus.PENDING

    def gone(self, message: Message) -> None:
        """Note that the receiver wants to hear no more of this job: nothing of it is pending, or added, after that."""
        self._end(message, GONE)
        pending = (WebhookDelivery.job_id == message.job_id, WebhookDelivery.status == DeliveryStatus.PENDING)
        with self._write.begin() as session:
            session.execute(
                update(WebhookDelivery)
                .where(*pending)
                .values(status=DeliveryStatus.FAILED, next_try_at=None, answer=GONE)
            )

    def _end(self, message: Message, answer: str) -> None:
        given_up = update(WebhookDelivery).where(*_held(message))
        with self._write.begin() as session:
            session.execute(given_up.values(status=DeliveryStatus.FAILED, next_try_at=None, answer=answer))

    # Clients; whose job it is, is for the caller to look at

    def log(self, job_id: str, *, limit: int = 1000) -> list[Delivery]:
        """The job's messages in the order of their events."""
        query = select(WebhookDelivery).where(WebhookDelivery.job_id == job_id).order_by(WebhookDelivery.seq)
        with self._read() as session:
            return [_delivery(row) for row in session.scalars(query.limit(limit))]

    def replay(self, job_id: str, delivery_id: str) -> Delivery:
        """Let a message be sent again at once, under the same id and with all its tries. Raises DeliveryNotFound."""
        missing = DeliveryNotFound(f"Job {job_id} has no webhook delivery {delivery_id!r}.")
        if not _ID.fullmatch(delivery_id):  # PostgreSQL refuses some strings instead of not finding them
            raise missing
        meant = (WebhookDelivery.id == delivery_id, WebhookDelivery.job_id == job_id)
        again = update(WebhookDelivery).where(*meant)
        pending = {"status": DeliveryStatus.PENDING, "next_try_at": now_plus(), "tries_left": TRIES}
        with self._write.begin() as session:
            row = session.scalar(again.values(**pending, answer=None, delivered_at=None).returning(WebhookDelivery))
            if row is None:
                raise missing
            return _delivery(row)

    # The janitor

    def remove_old(self, *, days: float = KEPT_DAYS, limit: int = 1000) -> int:
        """Remove messages made so long ago that are not pending, but a few at once; how many."""
        old = (WebhookDelivery.created_at < now_plus(-days * 86_400), WebhookDelivery.next_try_at.is_(None))
        oldest = select(WebhookDelivery.id).where(*old).order_by(WebhookDelivery.created_at).limit(limit)
        with self._read() as session:
            found: Sequence[str] = session.scalars(oldest).all()
        if not found:
            return 0
        with self._write.begin() as session:
            removed = delete(WebhookDelivery).where(WebhookDelivery.id.in_(found), *old)
            return len(session.scalars(removed.returning(WebhookDelivery.id)).all())


def _hook(request: dict[str, Any] | None) -> dict[str, Any] | None:
    """The webhook of a request; those from before there were any have no such entry."""
    return (request or {}).get("webhook")


def _held(message: Message) -> tuple[Any, ...]:
    """The WHERE of what a sender notes who may have been taken for dead."""
    return (
        WebhookDelivery.id == message.id,
        WebhookDelivery.attempts == message.attempt,
        WebhookDelivery.status == DeliveryStatus.PENDING,
    )


def _message(session: Session, row: WebhookDelivery) -> Message:
    job = session.get_one(Job, row.job_id)
    event = session.get_one(JobEvent, (row.job_id, row.seq))
    assert row.last_try_at is not None
    return Message(
        id=row.id,
        job_id=row.job_id,
        owner=job.owner,
        url=job.request["webhook"]["url"],
        attempt=row.attempts,
        tries_left=row.tries_left,
        sent_at=row.last_try_at,
        body=_body(job, event),
    )


def _body(job: Job, event: JobEvent) -> str:
    """The same bytes at each try: made of what does not change any more."""
    data: dict[str, Any] = {
        "id": job.id,
        "status": JobStatus.RUNNING.value if event.type == "started" else event.type,
        "attempt": event.attempt,
        "model": job.model,
        "method": job.method,
        "labels": job.labels,
        "retry_of": job.retry_of,
        "href": f"/jobs/{job.id}",
    }
    if "error" in event.data:
        data["error"] = {key: event.data["error"].get(key) for key in ("code", "title")}
    told = {"type": f"job.{event.type}", "timestamp": event.created_at.isoformat(), "data": data}
    return json.dumps(told, sort_keys=True)


def _delivery(row: WebhookDelivery) -> Delivery:
    return Delivery(
        id=row.id,
        job_id=row.job_id,
        seq=row.seq,
        type=f"job.{row.type}",
        status=DeliveryStatus(row.status),
        attempts=row.attempts,
        next_try_at=row.next_try_at,
        last_try_at=row.last_try_at,
        answer=row.answer,
        created_at=row.created_at,
        delivered_at=row.delivered_at,
    )
