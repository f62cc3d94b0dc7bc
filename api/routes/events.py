"""What happens to a job, as a page of JSON or as a stream of server-sent events."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from api.auth import ReadableJobs
from api.news import TICK_SECONDS, JobNews
from api.problems import responses
from api.schemas import EventPage, EventReply
from api.state import Parts
from jobs.errors import JobNotFound
from jobs.records import EventRecord

STREAM = "text/event-stream"
PING_SECONDS = 15

router = APIRouter(prefix="/jobs", tags=["events"], responses=responses(401, 403, 429))

_BOTH: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A page of events, or with `Accept: text/event-stream` a stream that ends when the job ends.",
        "content": {STREAM: {"schema": {"type": "string"}, "example": "id: 3\nevent: stage\ndata: {...}\n\n"}},
    }
}


@router.get(
    "/{job_id}/events",
    operation_id="listJobEvents",
    response_model=EventPage,
    responses={**_BOTH, **responses(404, 422, 503)},
)
async def events(
    job_id: str,
    request: Request,
    parts: Parts,
    jobs: ReadableJobs,
    after: Annotated[int, Query(ge=0, le=2**31 - 1, description="Only events with a greater `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Events a page; a stream has no limit.")] = 100,
    last_event_id: Annotated[
        int | None,
        Header(
            alias="Last-Event-ID",
            ge=0,
            le=2**31 - 1,
            description="Where a broken stream goes on; wins over `after`.",
        ),
    ] = None,
) -> EventPage | Response:
    """The job's events in order. Ask for `text/event-stream` to be told of each as it happens."""
    job = await run_sync(jobs.get, job_id)
    start = after if last_event_id is None else last_event_id
    if STREAM in request.headers.get("accept", ""):
        return EventSourceResponse(_stream(parts.news.of(job), start), ping=PING_SECONDS, sep="\n")
    found = await run_sync(lambda: jobs.events(job_id, after=start, limit=limit))
    last = found[-1].seq if found else start
    return EventPage(
        events=[EventReply.of(event) for event in found],
        next_after=None if job.ended and last >= job.last_event else last,
    )


async def _stream(news: JobNews, after: int) -> AsyncIterator[ServerSentEvent]:
    """Every event after `after`, until the job has ended and its last event is sent, or it is deleted."""
    with suppress(JobNotFound):
        while True:
            job, events = await news.after(after)
            for event in events:
                yield _encoded(event)
                after = event.seq
            if job.ended and after >= job.last_event:
                return
            if not events:
                await anyio.sleep(TICK_SECONDS)


def _encoded(event: EventRecord) -> ServerSentEvent:
    body = EventReply.of(event).model_dump(mode="json")
    return ServerSentEvent(data=json.dumps(body), event=event.type, id=str(event.seq))
