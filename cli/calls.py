"""What can be asked of the API, as data: the same calls for the synchronous and the asynchronous client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from http import HTTPStatus
from typing import Any, Generic, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import SecretStr

from cli.errors import DownloadDamaged
from cli.replies import Artifact, Job, JobPage, Stored
from cli.upload import Kind

Answer = TypeVar("Answer")

WAIT_SECONDS = 30
"""How long one request waits for a job; proxies give up on longer ones."""


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """One request. read: what becomes of the answer's JSON, which is None where there is none."""

    method: str
    path: str
    read: Callable[[Any], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def ready() -> Call[None]:
    """Whether the service can do its work."""
    return Call("GET", "/readyz", _nothing)


def submit(request: Mapping[str, Any], idempotency_key: str | None, hub_token: SecretStr | None) -> Call[Job]:
    """Submit a job; the same key and request give the same job."""
    headers = _once(idempotency_key) | _with_token(hub_token)
    return Call("POST", "/jobs", Job.model_validate, json=dict(request), headers=headers)


def get(job_id: str) -> Call[Job]:
    """The job as it is now."""
    return Call("GET", path(job_id), Job.model_validate)


def wait(job_id: str, seconds: float) -> Call[Job]:
    """The job as soon as it has ended, or after so many seconds, whole ones and at most WAIT_SECONDS."""
    granted = int(min(WAIT_SECONDS, max(1.0, seconds)))
    return Call("GET", path(job_id), Job.model_validate, headers={"Prefer": f"wait={granted}"})


class Filters(TypedDict, total=False):
    """Which jobs. label: `key:value`. Times name their zone. cursor: the page before's `next_cursor`. limit: a page."""

    status: str | None
    label: str | None
    model: str | None
    method: str | None
    created_after: datetime | None
    created_before: datetime | None
    cursor: str | None
    limit: int


def page(filters: Filters) -> Call[JobPage]:
    """Jobs, newest first; a filter that is None does not count."""
    given = {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in filters.items()
        if value is not None
    }
    return Call("GET", "/jobs", JobPage.model_validate, params=given)


def cancel(job_id: str) -> Call[Job]:
    """Cancel a queued job at once, or ask a running one to stop."""
    return Call("POST", path(job_id, "cancel"), Job.model_validate)


def retry(job_id: str, idempotency_key: str | None, hub_token: SecretStr | None) -> Call[Job]:
    """Submit the request of a job that failed or was cancelled again."""
    headers = _once(idempotency_key) | _with_token(hub_token)
    return Call("POST", path(job_id, "retry"), Job.model_validate, headers=headers)


def delete(job_id: str) -> Call[None]:
    """Remove a job that has ended, with its artifacts."""
    return Call("DELETE", path(job_id), _nothing)


def stored(kind: Kind) -> Call[list[Stored]]:
    """Every model or text that requests can name as `local:NAME`."""
    return Call("GET", f"/{kind}", lambda found: [Stored.model_validate(entry) for entry in found[kind]])


def remove(kind: Kind, name: str) -> Call[None]:
    """Remove a model or text that no job which has not ended names."""
    return Call("DELETE", f"/{kind}/{quote(name, safe='')}", _nothing)


def rest_of(artifact: Artifact, start: int) -> dict[str, str]:
    """The headers that ask for what comes after the first `start` bytes of the artifact, if it is still the same."""
    return {"Range": f"bytes={start}-", "If-Range": f'"{artifact.sha256}"'} if start else {}


def check_rest(artifact: Artifact, start: int, status: int) -> None:
    """Raises DownloadDamaged unless the answer is the rest that was asked for."""
    if start and status != HTTPStatus.PARTIAL_CONTENT:
        raise DownloadDamaged(f"{artifact.path} is not what it was when its download began; try again.")


def path(job_id: str, *more: str) -> str:
    """The job's path; its id stays one segment, whatever was typed."""
    return "/".join(("/jobs", quote(job_id, safe=""), *more))


def _once(idempotency_key: str | None) -> dict[str, str]:
    """The header that makes repeats of a request give the same job."""
    return {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}


def _with_token(hub_token: SecretStr | None) -> dict[str, str]:
    """The header that gives the job a token of the Hub for itself."""
    return {} if hub_token is None else {"Hub-Token": hub_token.get_secret_value()}


def _nothing(_: Any) -> None:
    return None
