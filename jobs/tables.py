"""The tables: a job, the events of its life, workers, API keys, and webhooks. Columns only; queries are elsewhere."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, CheckConstraint, Float, ForeignKey, Index, MetaData, String, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from jobs import queues
from jobs.clock import UtcDateTime, now_plus
from jobs.states import JobStatus

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime(),
        dict[str, Any]: Json,
        list[dict[str, Any]]: Json,
        list[str]: Json,
    }


_HAS_ARTIFACTS = text("artifacts IS NOT NULL")
_NO_TOKEN_AT_THE_END = "hub_token IS NULL OR status IN ('queued', 'running', 'cancelling')"  # nosec B105  # a condition


class Job(Base):
    __tablename__ = "job"
    __table_args__ = (
        CheckConstraint("status IN ({})".format(", ".join(f"'{s.value}'" for s in JobStatus)), name="status"),
        CheckConstraint("progress >= 0 AND progress <= 1", name="progress"),
        CheckConstraint(_NO_TOKEN_AT_THE_END, name="hub_token"),
        Index(None, "status", "id"),
        Index(None, "model", "id"),
        Index(None, "owner", "id"),
        Index(None, "owner", "status"),
        UniqueConstraint("owner", "idempotency_key"),
        # Those that the janitor may come to.
        Index(None, "finished_at", postgresql_where=_HAS_ARTIFACTS, sqlite_where=_HAS_ARTIFACTS),
    )

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    """A ULID: ids sort by the time of submission."""
    status: Mapped[str] = mapped_column(String(16))
    stage: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float] = mapped_column(Float, default=0.0)
    attempt: Mapped[int] = mapped_column(default=0)
    """Bumped by each worker that takes the job; every write of a worker names it."""
    deaths: Mapped[int] = mapped_column(default=0)
    """Attempts that ended with the death of the job's own process."""
    model: Mapped[str] = mapped_column(String(300))
    method: Mapped[str] = mapped_column(String(64))
    request: Mapped[dict[str, Any]]
    """The request as it came, defaults filled in."""
    commit: Mapped[str | None] = mapped_column(String(64))
    """The commit that a Hub model's revision meant at submit."""
    labels: Mapped[dict[str, Any]]
    metrics: Mapped[dict[str, Any] | None]
    artifacts: Mapped[list[dict[str, Any]] | None]
    error: Mapped[dict[str, Any] | None]
    published_url: Mapped[str | None] = mapped_column(String(512))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    worker: Mapped[str | None] = mapped_column(String(255))
    last_event: Mapped[int] = mapped_column(default=0)
    """The sequence number of the newest event; bumping it serialises the job's events."""
    created_at: Mapped[datetime] = mapped_column(default=now_plus())
    announced_at: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None] = mapped_column(index=True)
    losses: Mapped[int] = mapped_column(default=0, server_default="0")
    """Attempts whose worker fell silent: it was killed from outside, or its machine went away. The limit is higher."""
    retry_of: Mapped[str | None] = mapped_column(String(26))
    """The job whose request this one repeats; it may be deleted by now."""
    stage_started_at: Mapped[datetime | None]
    owner: Mapped[str] = mapped_column(String(16), default="", server_default=text("''"))
    """The id of the API key that made the job; empty, not NULL, without one, so that uniqueness holds there too."""
    artifacts_removed_at: Mapped[datetime | None]
    """When the janitor removed the artifacts, whose entries went with them."""
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """The span of the request that submitted the job, as W3C's Trace Context writes it."""
    hub_token: Mapped[str | None] = mapped_column(String(1024), deferred=True)
    """The client's own token of the Hub, sealed. No job that has ended has one: the database refuses it."""
    hub_token_digest: Mapped[str | None] = mapped_column(String(128))
    """A digest of it, which stays; see `hub_token`."""
    queue: Mapped[str] = mapped_column(String(63), default=queues.DEFAULT, server_default=text("'default'"))
    """This and the two below are the request's, for who looks for a job to take."""
    min_gpu_memory_gib: Mapped[float] = mapped_column(Float, default=0.0, server_default=text("0"))
    priority: Mapped[int] = mapped_column(default=5, server_default=text("5"))


class WorkerQueue(Base):
    """A queue that a worker serves; see `roster`."""

    __tablename__ = "worker_queue"

    worker: Mapped[str] = mapped_column(String(255), primary_key=True)
    """As in the rows of the jobs that it takes."""
    queue: Mapped[str] = mapped_column(String(63), primary_key=True)
    gpu_memory_gib: Mapped[float] = mapped_column(Float)
    alive_until: Mapped[datetime]
    """Unless the worker says before then that it lives on."""


class Tally(Base):
    """A count for `/metrics`; see `tallies`."""

    __tablename__ = "tally"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(String(64), primary_key=True)
    part: Mapped[str] = mapped_column(String(16), primary_key=True)
    """Empty for a counter; of a histogram a bucket's upper bound, or `sum`."""
    value: Mapped[float] = mapped_column(Float)


class JobEvent(Base):
    __tablename__ = "job_event"

    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    """1, 2, 3 ... without gaps, in the order in which things happened to the job."""
    attempt: Mapped[int]
    type: Mapped[str] = mapped_column(String(32))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=now_plus())


class WebhookDelivery(Base):
    """A message to a job's webhook; see `outbox`. Its URL is in the job's request, its contents are the event's."""

    __tablename__ = "webhook_delivery"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'delivered', 'failed')", name="status"),
        UniqueConstraint("job_id", "seq"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    """`msg_` and a ULID: the same each time that the message is sent."""
    job_id: Mapped[str] = mapped_column(ForeignKey("job.id", ondelete="CASCADE"))
    seq: Mapped[int]
    """The event's."""
    type: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    attempts: Mapped[int] = mapped_column(default=0)
    """Bumped by each sender that takes the message; a failure counts only from the newest one."""
    tries_left: Mapped[int]
    """Before it is given up; a replay gives all of them again."""
    next_try_at: Mapped[datetime | None] = mapped_column(index=True)
    """NULL unless pending. While a sender is at it: when another one may take over."""
    last_try_at: Mapped[datetime | None]
    answer: Mapped[str | None] = mapped_column(String(128))
    """What the last try met, in a few words of ours: nothing that a receiver says."""
    created_at: Mapped[datetime] = mapped_column(default=now_plus(), index=True)
    delivered_at: Mapped[datetime | None]


class WebhookSecret(Base):
    """What the webhooks of one owner's jobs are signed with, sealed; see `webhook_secrets`."""

    __tablename__ = "webhook_secret"

    owner: Mapped[str] = mapped_column(String(16), primary_key=True)
    """As a job's."""
    sealed: Mapped[str] = mapped_column(String(512))
    previous: Mapped[str | None] = mapped_column(String(512))
    """The one before, sealed, which signs beside the new one for a while."""
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(default=now_plus())


class ApiKey(Base):
    """A key of the API; see `keys`. Rows stay when keys are revoked, since jobs name them."""

    __tablename__ = "api_key"
    __table_args__ = (
        Index(
            "uq_api_key_name_in_use",
            "name",
            unique=True,
            postgresql_where=text("revoked_at IS NULL"),
            sqlite_where=text("revoked_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    """The part of the key that may be seen."""
    name: Mapped[str] = mapped_column(String(64))
    """Of one key at a time that is not revoked."""
    hash: Mapped[str] = mapped_column(String(64))
    """SHA-256 of the whole key, hexadecimal."""
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime] = mapped_column(default=now_plus())
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To about a minute."""
