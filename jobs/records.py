"""What the store hands out: frozen copies of rows, free of any session."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Row

from jobs.states import TERMINAL, JobStatus
from jobs.tables import JobEvent
from jobs.tallies import Histogram


@dataclass(frozen=True)
class JobRecord:
    """A job as it was at one moment."""

    id: str
    status: JobStatus
    stage: str | None
    progress: float
    attempt: int
    request: dict[str, Any]
    commit: str | None
    labels: dict[str, str]
    metrics: dict[str, Any] | None
    artifacts: list[dict[str, Any]]
    error: dict[str, Any] | None
    published_url: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    last_event: int
    retry_of: str | None
    artifacts_removed_at: datetime | None
    hub_token_digest: str | None
    """Of the token of the Hub that its client sent with it."""
    queue: str
    min_gpu_memory_gib: float
    unserved: bool
    """Queued, and no worker that is alive may take it."""

    @property
    def own_hub_token(self) -> bool:
        """Whether the job's client sent a token of the Hub with it."""
        return self.hub_token_digest is not None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the job."""
        return self.status in TERMINAL

    @classmethod
    def of(cls, row: Row[*tuple[Any, ...]]) -> "JobRecord":
        """A copy of the row, which has a column for each field, in order."""
        found = dict(zip(cls.__match_args__, row, strict=True))
        return cls(**found | {"status": JobStatus(row.status), "artifacts": row.artifacts or []})


@dataclass(frozen=True)
class EventRecord:
    """One thing that happened to a job."""

    job_id: str
    seq: int
    attempt: int
    type: str
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, row: JobEvent) -> "EventRecord":
        """A copy of the row."""
        return cls(row.job_id, row.seq, row.attempt, row.type, row.data, row.created_at)


@dataclass(frozen=True)
class Event:
    """An event to be recorded; `data` is JSON."""

    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Lease:
    """The right of one attempt to write to a job, until another attempt takes it.

    traceparent: the span of the request that submitted the job, if that is traced.
    """

    job_id: str
    attempt: int
    traceparent: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Page:
    """A page of jobs, newest first, and the cursor of the next one if there is more."""

    jobs: list[JobRecord]
    next_cursor: str | None


@dataclass(frozen=True)
class Overview:
    """The service as a whole. attempts_ended: by how. stage_seconds: by stage.

    Of each queue with jobs that wait, or with workers: queue_age_seconds, of the job that has waited longest;
    unserved, how many jobs no worker that is alive may take; workers, how many are alive.
    """

    jobs: dict[JobStatus, int]
    queue_age_seconds: dict[str, float]
    unserved: dict[str, int]
    workers: dict[str, int]
    attempts_started: float
    attempts_ended: dict[str, float]
    stage_seconds: dict[str, Histogram]
    peak_memory_bytes: Histogram | None
