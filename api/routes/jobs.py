"""Submit, list, look at, cancel, retry and delete jobs."""

from datetime import UTC, datetime
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime

from api.admission import admit
from api.auth import JobsToRead, ReadableJobs, WritableJobs
from api.polling import HEADERS, IfNoneMatch, Prefer, Shown, wait_seconds
from api.problems import responses
from api.schemas import JobPage, JobReply
from api.state import Parts, parts_of
from flattengpt_core.errors import InvalidRequest
from flattengpt_core.methods import METHODS
from jobs import tracing
from jobs.discard import discard
from jobs.records import JobRecord
from jobs.spec import JobSpec
from jobs.states import JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403))

_ACCEPTED: dict[str, Any] = {
    "model": JobReply,
    "headers": {"Location": {"description": "The job.", "schema": {"type": "string"}}, **HEADERS},
}
_SHOWN: dict[int | str, dict[str, Any]] = {
    200: {"headers": HEADERS},
    304: {"description": "The job has not changed since the answer with this `ETag`.", "headers": HEADERS},
}


# PostgreSQL cannot look for NUL.
_PRINTABLE = r"^[^\x00-\x1f\x7f]*$"


def _label(label: str) -> str:
    if not all(label.partition(":")[::2]):
        raise ValueError("give key:value")
    return label


def _method(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"choose one of {', '.join(METHODS)}")
    return method


def _moment(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("give a moment between the years 1 and 9999") from None


Label = Annotated[str, AfterValidator(_label)]
Method = Annotated[str, AfterValidator(_method)]
Moment = Annotated[AwareDatetime, AfterValidator(_moment)]


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
    "",
    status_code=202,
    operation_id="submitJob",
    response_model=JobReply,
    responses={202: _ACCEPTED, **responses(409, 413, 422, 429, 503)},
)
async def submit(
    spec: JobSpec,
    parts: Parts,
    jobs: WritableJobs,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    """Submit a job. The request is checked against the model before anything is stored."""

    def submitted() -> JobRecord:
        admission = admit(spec, parts.settings)
        return _announced(jobs.submit(spec, commit=admission.commit, idempotency_key=idempotency_key), parts)

    return await _accepted(await run_sync(submitted), parts, prefer)


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
    method: Annotated[Method | None, Query(description="Only jobs by this method.")] = None,
    created_after: Annotated[
        Moment | None, Query(description="Only jobs submitted after this moment, which names its time zone.")
    ] = None,
    created_before: Annotated[Moment | None, Query(description="Only jobs submitted before it.")] = None,
    cursor: Annotated[str | None, Query(max_length=64, description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.")] = 50,
) -> JobPage:
    """Jobs, newest first. Pages stay stable while new jobs come in."""
    if cursor is not None and not (len(cursor) == 26 and cursor.isalnum() and cursor.isascii()):
        raise InvalidRequest("This is no cursor of an earlier page.", field="cursor")
    key, _, value = (label or "").partition(":")
    found = jobs.page(
        status=status,
        label=(key, value) if label else None,
        model=model,
        method=method,
        created_after=created_after,
        created_before=created_before,
        before=cursor,
        limit=limit,
    )
    return JobPage(jobs=[JobReply.of(job) for job in found.jobs], next_cursor=found.next_cursor)


@router.get(
    "/{job_id}", operation_id="getJob", response_model=JobReply, responses={**_SHOWN, **responses(404, 422, 503)}
)
async def show(
    job_id: str, request: Request, asking: JobsToRead, if_none_match: IfNoneMatch = None, prefer: Prefer = None
) -> Response:
    """One job, as it is now, or with `Prefer: wait` as soon as it has ended or changed."""
    shown = await run_sync(lambda: Shown(asking.opened().get(job_id)))
    waited = wait_seconds(prefer)
    if waited:
        news = parts_of(request).news.of(shown.job)
        shown = Shown(
            await news.until(
                lambda job: if_none_match is not None and not Shown(job).is_known(if_none_match), seconds=waited
            )
        )
    return shown.answer(known=if_none_match, waited=waited)


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
    response_model=JobReply,
    responses={202: _ACCEPTED, **responses(404, 409, 422, 429, 503)},
)
async def retry(
    job_id: str, parts: Parts, jobs: WritableJobs, idempotency_key: IdempotencyKey = None, prefer: Prefer = None
) -> Response:
    """Submit the request of a failed or cancelled job again, as a new job that names it in `retry_of`."""
    job = await run_sync(lambda: _announced(jobs.retry(job_id, idempotency_key=idempotency_key), parts))
    return await _accepted(job, parts, prefer)


@router.delete("/{job_id}", status_code=204, operation_id="deleteJob", responses=responses(404, 409, 503))
def remove(job_id: str, parts: Parts, jobs: WritableJobs) -> None:
    """Remove a job that has ended, with its artifacts, events and webhook messages. Repeat it if it was interrupted."""
    job = jobs.get(job_id)
    if job.ended:
        parts.artifacts.delete(job_id)
    jobs.delete(job_id)


def _announced(job: JobRecord, parts: Parts) -> JobRecord:
    """The new job, for which a worker is woken."""
    tracing.annotate({"flattengpt.job.id": job.id})
    if job.status is JobStatus.QUEUED:
        parts.announcer.announce(job.id, job.queue)
    return job


async def _accepted(job: JobRecord, parts: Parts, prefer: str | None) -> Response:
    """Say where a new job is, after its end if the client wants to wait for that."""
    waited = wait_seconds(prefer)
    if waited:
        job = await parts.news.of(job).until(lambda _: False, seconds=waited)
    return Shown(job).answer(202, waited=waited, location=f"/jobs/{job.id}")
