"""Cheap ways to wait for a job: entity tags, `Prefer: wait`, and hints when to ask again."""

import hashlib
import re
from typing import Annotated, Any

from fastapi import Header
from starlette.responses import Response

from api.schemas import JobReply
from jobs.records import JobRecord
from jobs.states import JobStatus

MAX_WAIT_SECONDS = 60
"""Proxies give up on answers that take longer."""

_ASK_AGAIN_SECONDS = {JobStatus.QUEUED: 5, JobStatus.RUNNING: 2, JobStatus.CANCELLING: 1}
_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d{1,6})\"?\s*(?=$|[,;])", re.IGNORECASE)
_TAG = re.compile(r'(?:W/)?("[^"]*")')

Prefer = Annotated[
    str | None,
    Header(
        alias="Prefer",
        max_length=200,
        description="`wait=SECONDS` holds the answer back until the job has ended (with `If-None-Match`: has changed), "
        f"for at most {MAX_WAIT_SECONDS} seconds (RFC 7240).",
        examples=["wait=30"],
    ),
]
IfNoneMatch = Annotated[
    str | None,
    Header(alias="If-None-Match", description="The `ETag` of an earlier answer: 304 while nothing has changed."),
]

_STRING = {"schema": {"type": "string"}}
HEADERS: dict[str, Any] = {
    "ETag": {"description": "Changes whenever the job does.", **_STRING},
    "Retry-After": {"description": "Seconds after which to ask again; absent once the job has ended.", **_STRING},
    "Preference-Applied": {"description": "The wait that was granted.", **_STRING},
}
"""The headers of an answer that shows a job, for the OpenAPI document."""


def wait_seconds(prefer: str | None) -> int:
    """How long a client wants to wait, by its `Prefer` header; 0 if it does not say. Other preferences are ignored."""
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else 0


class Shown:
    """A job as the API answers with it."""

    def __init__(self, job: JobRecord) -> None:
        self.job = job
        self._body = JobReply.of(job).model_dump_json().encode()
        # Weak, since the same job may be sent compressed or not.
        self.etag = f'W/"{hashlib.sha256(self._body).hexdigest()[:32]}"'

    def is_known(self, if_none_match: str | None) -> bool:
        """Whether the client has this very state of the job, by RFC 9110's weak comparison."""
        if if_none_match is None:
            return False
        return if_none_match.strip() == "*" or self.etag.removeprefix("W/") in _TAG.findall(if_none_match)

    def answer(
        self, status: int = 200, *, known: str | None = None, waited: int = 0, location: str | None = None
    ) -> Response:
        """The job, or a 304 without it if its tag is among the `known` ones.

        Args:
            waited: the seconds of a wait that was granted.
            location: the job's address, where it is new.
        """
        headers = {"ETag": self.etag}
        if not self.job.ended:
            headers["Retry-After"] = str(_ASK_AGAIN_SECONDS[self.job.status])
        if waited:
            headers["Preference-Applied"] = f"wait={waited}"
        if location is not None:
            headers["Location"] = location
        if self.is_known(known):
            return Response(status_code=304, headers=headers)
        return Response(self._body, status, headers, media_type="application/json")
