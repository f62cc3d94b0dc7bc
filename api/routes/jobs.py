"""Submit, list, look at, cancel, retry and delete jobs."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, SecretStr

from api.admission import admit, check_hub_token
from api.auth import JobsToRead, ReadableJobs, WritableJobs
from api.polling import HEADERS, IfNoneMatch, Prefer, Shown, wait_seconds
from api.problems import responses
from api.schemas import JobPage, JobReply
from api.state import Parts, State, parts_of
from flattengpt_core.methods import METHODS
from jobs import hub_token, tracing
from jobs.discard import discard
from jobs.hub_token import HubToken
from jobs.records import JobRecord
from jobs.sealing import Sealer
from jobs.spec import JobSpec
from jobs.states import JobStatus

router = APIRouter(prefix="/jobs", tags=["jobs"], responses=responses(401, 403, 429))

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
_CURSOR = r"^[0-9A-Za-z]{26}$"


def _label(label: str) -> str:
    if not all(label.partition(":")[::2]):
        raise ValueError("give key:value")
    return label


def _method(method: str) -> str:
    if method not in METHODS:
        raise ValueError(f"choose one of {', '.join(METHODS)}")
    return method


def _written_out(moment: object) -> object:
    if isinstance(moment, str) and moment.replace(".", "").removeprefix("-").isdigit():
        raise ValueError("give a date and a time with its zone, such as 2026-11-26T10:00:00Z")
    return moment


def _moment(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("give a moment between the years 1 and 9999") from None


def _cursor(cursor: str) -> str:
    if re.fullmatch(_CURSOR, cursor) is None:
        raise ValueError("this is no cursor of an earlier page")
    return cursor


# What else than their type is asked of them, for the OpenAPI document: the checks have better words for it.
Label = Annotated[
    str, AfterValidator(_label), Field(json_schema_extra={"pattern": r"^[^:\x00-\x1f\x7f]+:[^\x00-\x1f\x7f]+$"})
]
Method = Annotated[str, AfterValidator(_method), Field(json_schema_extra={"enum": list(METHODS)})]
Cursor = Annotated[str, AfterValidator(_cursor), Field(json_schema_extra={"pattern": _CURSOR})]
# A number would be taken for seconds since 1970.
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out), AfterValidator(_moment)]


IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[ -~]*$",
        description="The same key and body give the same job; ASCII that can be seen.",
    ),
]


HubTokenHeader = Annotated[
    SecretStr | None,
    AfterValidator(lambda token: token and hub_token.check(token)),
    Header(
        alias=hub_token.HEADER,
        description="A token of the Hub for this job alone, in place of the service's: to read the model, and to "
        "publish. It is kept encrypted, until the job has ended.",
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
    own_token: HubTokenHeader = None,
) -> Response:
    """Submit a job. The request is checked against the model before anything is stored."""
    token = _kept(own_token, parts) if spec.uses_hub else None

    def submitted() -> JobRecord:
        # What a first request has brought about, such as a repository, is no reason to refuse its repetition.
        if idempotency_key is not None and (known := jobs.made_by(idempotency_key, spec, hub_token=token)):
            return _announced(known, parts)
        admission = admit(spec, parts.settings, own_token)
        job = jobs.submit(spec, commit=admission.commit, idempotency_key=idempotency_key, hub_token=token)
        return _announced(job, parts)

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
    cursor: Annotated[Cursor | None, Query(description="`next_cursor` of the page before.")] = None,
    limit: Annotated[int, Query(ge=1, le=200, description="Jobs a page.")] = 50,
) -> JobPage:
    """Jobs, newest first. Pages stay stable while new jobs come in."""
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
    job_id: str,
    parts: Parts,
    jobs: WritableJobs,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
    own_token: HubTokenHeader = None,
) -> Response:
    """Submit the request of a failed or cancelled job again, as a new job that names it in `retry_of`.

    A job that had a Hub token of its own needs one again.
    """
    token = _kept(own_token, parts)
    job = await run_sync(
        lambda: _announced(jobs.retry(job_id, idempotency_key=idempotency_key, hub_token=token), parts)
    )
    return await _accepted(job, parts, prefer)


@router.delete("/{job_id}", status_code=204, operation_id="deleteJob", responses=responses(404, 409, 503))
def remove(job_id: str, parts: Parts, jobs: WritableJobs) -> None:
    """Remove a job that has ended, with its artifacts, events and webhook messages. Repeat it if it was interrupted."""
    job = jobs.get(job_id)
    if job.ended:
        parts.artifacts.delete(job_id)
    jobs.delete(job_id)


def _kept(token: SecretStr | None, parts: State) -> HubToken | None:
    """The request's token as the store takes it. Raises InvalidRequest where none can be kept."""
    check_hub_token(parts.settings, token)
    return None if token is None else HubToken(token, Sealer(parts.settings))


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
