"""Submit, list, look at, cancel, retry and delete jobs."""

from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import AfterValidator

from api.admission import admit
from api.auth import ReadableJobs, WritableJobs
from api.problems import responses
from api.schemas import JobPage, JobReply
from api.state import Parts
from flattengpt_core.errors import InvalidRequest
from jobs import tracing
from jobs.discard import discard
from jobs.records import JobRecord
from jobs.spec import JobSpec
from jobs.states import JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403))

_LOCATION: dict[str, Any] = {"headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}}}


# PostgreSQL cannot look for NUL.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"


def _label(label: str) -> str:
    if not all(label.partition(":")[::2]):
        raise ValueError("give key:value")
    return label


Label = Annotated[str, AfterValidator(_label)]


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="The same key and body give the same job.",
    ),
]


@router.post(
    "", status_code=202, operation_id="submitJob", responses={202: _LOCATION, **responses(409, 413, 422, 429, 503)}
)
def submit(
    spec: JobSpec,
    response: Response,
    parts: Parts,
    jobs: WritableJobs,
    idempotency_key: IdempotencyKey = None,
) -> JobReply:
    """Submit a job. The request is checked against the model before anything is stored."""
    admission = admit(spec, parts.settings)
    job = jobs.submit(spec, commit=admission.commit, idempotency_key=idempotency_key)
    return _accepted(job, response, parts)


@router.get("", operation_id="listJobs", responses=responses(422, 503))
def page(
    jobs: ReadableJobs,
    status: Annotated[JobStatus | None, Query(description="Only jobs in this state.")] = None,
    label: Annotated[
        Label | None, Query(pattern=_PRINTABLE, description="Only jobs with this label, as `key:value`.")
    ] = None,
    model: Annotated[
        str | None, Query(max_length=300, pattern=_PRINTABLE, description="Only jobs of this model.")
    ] = None,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.")] = 50,
) -> JobPage:
    """Jobs, newest first. Pages stay stable while new jobs come in."""
    if cursor is not None and not (len(cursor) == 26 and cursor.isalnum() and cursor.isascii()):
        raise InvalidRequest("This is no cursor of an earlier page.", field="cursor")
    key, _, value = (label or "").partition(":")
    found = jobs.page(status=status, label=(key, value) if label else None, model=model, before=cursor, limit=limit)
    return JobPage(jobs=[JobReply.of(job) for job in found.jobs], next_cursor=found.next_cursor)


@router.get("/{job_id}", operation_id="getJob", responses=responses(404, 503))
def show(job_id: str, jobs: ReadableJobs) -> JobReply:
    """One job, as it is now."""
    return JobReply.of(jobs.get(job_id))


@router.post("/{job_id}/cancel", status_code=202, operation_id="cancelJob", responses=responses(404, 409, 503))
def cancel(job_id: str, jobs: WritableJobs, parts: Parts) -> JobReply:
    """Cancel a queued job at once; ask a running one to stop, which it does within one layer or 10 seconds."""
    job = jobs.cancel(job_id)
    if job.status is JobStatus.CANCELLED and job.artifacts:  # of an attempt that died before it could publish them
        discard(parts.store, parts.artifacts, job_id)
        job = jobs.get(job_id)
    return JobReply.of(job)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    operation_id="retryJob",
    responses={202: _LOCATION, **responses(404, 409, 422, 429, 503)},
)
def retry(
    job_id: str, response: Response, parts: Parts, jobs: WritableJobs, idempotency_key: IdempotencyKey = None
) -> JobReply:
    """Submit the request of a failed or cancelled job again, as a new job that names it in `retry_of`."""
    return _accepted(jobs.retry(job_id, idempotency_key=idempotency_key), response, parts)


@router.delete("/{job_id}", status_code=204, operation_id="deleteJob", responses=responses(404, 409, 503))
def remove(job_id: str, parts: Parts, jobs: WritableJobs) -> None:
    """Remove a job that has ended, with its artifacts, events and webhook messages. Repeat it if it was interrupted."""
    job = jobs.get(job_id)
    if job.ended:
        parts.artifacts.delete(job_id)
    jobs.delete(job_id)


def _accepted(job: JobRecord, response: Response, parts: Parts) -> JobReply:
    """Wake a worker for a new job, and say where it is."""
    tracing.annotate({"flattengpt.job.id": job.id})
    if job.status is JobStatus.QUEUED:
        parts.announcer.announce(job.id)
    response.headers["Location"] = f"/jobs/{job.id}"
    return JobReply.of(job)
