"""What the API answers with. The request is `jobs.spec.JobSpec` itself."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.outbox import Delivery, DeliveryStatus
from jobs.records import EventRecord, JobRecord
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.webhook_secrets import SigningSecret


class Artifact(BaseModel):
    """A file of a result."""

    path: str = Field(examples=["model.safetensors"])
    size: int = Field(description="Bytes.", examples=[471123456])
    sha256: str = Field(examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    href: str = Field(examples=["/jobs/01M87.../artifacts/model.safetensors"])


class ModelMetrics(BaseModel):
    """What was measured on one model. Speeds mean something only as a ratio of the two models of one job."""

    model_config = ConfigDict(extra="allow")

    layers: int
    parameters: int
    perplexity: dict[str, float] = Field(description="By text.")
    accuracy: dict[str, float] = Field(description="By task, and their `mean`; acc_norm where the task has it.")
    tokens_per_second: float | None
    latency_ms: float | None


class RecoveryMetrics(BaseModel):
    """Training after compression; losses are nats a token, null where they are no number."""

    model_config = ConfigDict(extra="allow")

    method: str
    steps: int
    loss_before: float | None = Field(description="On held-out tokens of the text, before training.")
    loss_after: float | None
    kept: bool = Field(description="Whether the trained weights were the better ones.")
    held_out_tokens: int
    curve: list[tuple[int, float | None]] = Field(description="Step and training loss.")


class Metrics(BaseModel):
    """The evidence: the dense and the compressed model, measured alike."""

    model_config = ConfigDict(extra="allow")

    dense: ModelMetrics
    compressed: ModelMetrics
    compress_seconds: float
    peak_memory_bytes: int
    groups: list[list[int]] = Field(description="Which layers of the dense model stand behind each layer.")
    recovery: RecoveryMetrics | None = Field(default=None, description="What training after compression did.")


class JobError(BaseModel):
    """Why a job failed."""

    code: str = Field(examples=["worker_lost"])
    title: str
    message: str
    retryable: bool
    field: str | None = None


class JobReply(BaseModel):
    """A job."""

    id: str = Field(examples=["01M8715SXX5VDXZSFJX3F7CKD1"])
    status: JobStatus
    stage: str | None = Field(description="What a running job does.", examples=["compressing"])
    progress: float = Field(ge=0, le=1, description="Never goes back.")
    attempt: int = Field(description="How many workers have taken the job.")
    request: JobSpec
    metrics: Metrics | None
    artifacts: list[Artifact]
    error: JobError | None
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    retry_of: str | None = Field(default=None, description="The job whose request this one repeats.")
    artifacts_removed_at: datetime | None = Field(
        default=None, description="When the artifacts were removed because their time was over."
    )
    waiting_for: str | None = Field(
        default=None,
        description="What a queued job needs and no worker that is alive offers; else null.",
        examples=["a worker for the queue gpu-large with 40 GiB of GPU memory: none is alive"],
    )
    links: dict[str, str] = Field(description="Where to go from here.")

    @classmethod
    def of(cls, job: JobRecord) -> "JobReply":
        """The reply for a job."""
        here = f"/jobs/{job.id}"
        links = {"self": here, "events": f"{here}/events", "artifacts": f"{here}/artifacts"}
        if not job.ended:
            links["cancel"] = f"{here}/cancel"
        if job.status in (JobStatus.FAILED, JobStatus.CANCELLED):
            links["retry"] = f"{here}/retry"
        if job.request.get("webhook"):
            links["webhooks"] = f"{here}/webhooks"
        if job.published_url:
            links["published"] = job.published_url
        return cls(
            id=job.id,
            status=job.status,
            stage=job.stage,
            progress=job.progress,
            attempt=job.attempt,
            request=JobSpec.model_validate(job.request),
            metrics=Metrics.model_validate(job.metrics) if job.metrics else None,
            artifacts=artifacts_of(job),
            error=JobError.model_validate(job.error) if job.error else None,
            labels=job.labels,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            retry_of=job.retry_of,
            artifacts_removed_at=job.artifacts_removed_at,
            waiting_for=_missing_worker(job) if job.unserved else None,
            links=links,
        )


class JobPage(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobReply]
    next_cursor: str | None = Field(description="Pass it as `cursor` for the next page; null on the last.")


class EventReply(BaseModel):
    """Something that happened to a job."""

    seq: int = Field(description="1, 2, 3 ... without gaps.")
    type: str = Field(examples=["progress"])
    attempt: int
    data: dict[str, Any]
    created_at: datetime

    @classmethod
    def of(cls, event: EventRecord) -> "EventReply":
        """The reply for an event."""
        return cls(seq=event.seq, type=event.type, attempt=event.attempt, data=event.data, created_at=event.created_at)


class EventPage(BaseModel):
    """Events in order."""

    events: list[EventReply]
    next_after: int | None = Field(description="Pass it as `after` for what comes next; null if the job has ended.")


class ArtifactPage(BaseModel):
    """All files of a result."""

    artifacts: list[Artifact]


class DeliveryReply(BaseModel):
    """A message to the job's webhook."""

    id: str = Field(
        description="The message's `webhook-id`, the same at each try.", examples=["msg_01M8715SXX5VDXZSFJX3F7CKD1"]
    )
    seq: int = Field(description="The event that it tells of.")
    type: str = Field(examples=["job.succeeded"])
    status: DeliveryStatus
    attempts: int = Field(description="How often it was tried.")
    answer: str | None = Field(description="What the last try met.", examples=["HTTP 200"])
    created_at: datetime
    last_try_at: datetime | None
    next_try_at: datetime | None = Field(description="Null unless it is pending.")
    delivered_at: datetime | None

    @classmethod
    def of(cls, delivery: Delivery) -> "DeliveryReply":
        """The reply for a message."""
        return cls.model_validate(delivery, from_attributes=True)


class DeliveryPage(BaseModel):
    """All messages of a job that are kept, in the order of their events."""

    deliveries: list[DeliveryReply]


class SigningSecretReply(BaseModel):
    """What the webhooks of the key's jobs are signed with."""

    secret: str = Field(description="For a library of Standard Webhooks.", examples=["whsec_..."])
    created_at: datetime
    previous_until: datetime | None = Field(description="How long the secret before this one signs beside it.")

    @classmethod
    def of(cls, found: SigningSecret) -> "SigningSecretReply":
        """The reply for a secret; the one place where it is in clear."""
        return cls(
            secret=found.secret.get_secret_value(), created_at=found.created_at, previous_until=found.previous_until
        )


def _missing_worker(job: JobRecord) -> str:
    memory = f" with {job.min_gpu_memory_gib:g} GiB of GPU memory" if job.min_gpu_memory_gib else ""
    return f"a worker for the queue {job.queue}{memory}: none is alive"


def artifacts_of(job: JobRecord) -> list[Artifact]:
    """A job's artifacts with their addresses."""
    return [Artifact(**entry, href=f"/jobs/{job.id}/artifacts/{entry['path']}") for entry in job.artifacts]
