"""A typed client of the HTTP API. Knows nothing of terminals."""

import ipaddress
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
from httpx_sse import SSEError, connect_sse
from pydantic import SecretStr

from cli.errors import ServiceRefused, ServiceUnreachable
from cli.replies import Artifact, Event, Job, JobPage
from jobs.settings import ClientSettings

CONNECT_SECONDS, READ_SECONDS = 5.0, 60.0
_RECONNECT_SECONDS = (0.2, 5.0)  # the first wait and the longest


class Client:
    """The service at one address; use it as a context manager, or close it.

    Args:
        api_key: by default FLATTENGPT_API_KEY of the environment, if there is one.

    Every method raises ServiceRefused when the service answers with an error, and ServiceUnreachable when it does
    not answer.
    """

    def __init__(self, url: str, api_key: SecretStr | None = None) -> None:
        self._url = url
        self._key = api_key or ClientSettings().api_key
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {},
            timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not _is_loopback(url),  # a proxy cannot reach this machine's own loopback
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def is_ready(self) -> bool:
        """Whether the service answers and can do its work."""
        try:
            self._ask("GET", "/readyz")
        except (ServiceRefused, ServiceUnreachable):
            return False
        return True

    def submit(self, request: Mapping[str, Any], *, idempotency_key: str | None = None) -> Job:
        """Submit a job; the same key and request give the same job."""
        asked = self._ask("POST", "/jobs", json=dict(request), headers=_once(idempotency_key))
        return Job.model_validate(asked)

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return Job.model_validate(self._ask("GET", f"/jobs/{_segment(job_id)}"))

    def page(
        self,
        *,
        status: str | None = None,
        label: str | None = None,
        model: str | None = None,
        cursor: str | None = None,
        limit: int = 50,
    ) -> JobPage:
        """Jobs, newest first. label: `key:value`. cursor: the page before's `next_cursor`."""
        asked = {"status": status, "label": label, "model": model, "cursor": cursor, "limit": limit}
        given = {name: value for name, value in asked.items() if value is not None}
        return JobPage.model_validate(self._ask("GET", "/jobs", params=given))

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, or ask a running one to stop."""
        return Job.model_validate(self._ask("POST", f"/jobs/{_segment(job_id)}/cancel"))

    def retry(self, job_id: str, *, idempotency_key: str | None = None) -> Job:
        """Submit the request of a job that failed or was cancelled again; the new job."""
        asked = self._ask("POST", f"/jobs/{_segment(job_id)}/retry", headers=_once(idempotency_key))
        return Job.model_validate(asked)

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its artifacts."""
        self._ask("DELETE", f"/jobs/{_segment(job_id)}")

    def events(self, job_id: str, *, after: int = 0, patience_seconds: float = 60) -> Iterator[Event]:
        """The job's events as they happen, until it ends. A broken stream goes on where it stopped.

        Args:
            after: only events with a greater `seq`.
            patience_seconds: how long the service may be gone before this raises ServiceUnreachable.
        """
        seen, wait, heard = after, _RECONNECT_SECONDS[0], time.monotonic()
        while True:
            try:
                for event in self._stream(job_id, seen):
                    seen, wait, heard = event.seq, _RECONNECT_SECONDS[0], time.monotonic()
                    yield event
                if self.get(job_id).ended:
                    # What came between the stream's end and this answer.
                    yield from self._stream(job_id, seen)
                    return
            except (ServiceUnreachable, ServiceRefused) as error:
                refused_for_good = isinstance(error, ServiceRefused) and error.http_status < 500
                if refused_for_good or time.monotonic() - heard > patience_seconds:
                    raise
            time.sleep(wait)
            wait = min(2 * wait, _RECONNECT_SECONDS[1])

    def read(self, artifact: Artifact, write: Callable[[bytes], object]) -> None:
        """Hand the artifact's bytes to `write`, block by block."""
        try:
            with self._http.stream("GET", artifact.href) as response:
                self._check(response)
                for block in response.iter_bytes():
                    write(block)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _stream(self, job_id: str, after: int) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(after)}
        try:
            with connect_sse(self._http, "GET", f"/jobs/{_segment(job_id)}/events", headers=headers) as source:
                self._check(source.response)
                for message in source.iter_sse():
                    if message.data:
                        yield Event.model_validate_json(message.data)
        except (httpx.TransportError, SSEError) as error:
            raise self._unreachable(error) from None

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        try:
            response = self._http.request(method, path, **how)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        self._check(response)
        return response.json() if response.content else None

    def _check(self, response: httpx.Response) -> None:
        """Raise the problem that the service answered with, if it did."""
        if response.is_success:
            return
        response.read()
        try:
            problem = response.json()
            message = str(problem.get("detail") or problem["title"])
        except (ValueError, KeyError, AttributeError):
            message = f"{self._url} answered {response.status_code} {response.reason_phrase}; is this the service?"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            message = (
                f"The service at {self._url} {'refuses this' if self._key else 'asks for an'} API key: set "
                "FLATTENGPT_API_KEY to one that `flattengpt keys create` made on the service's side."
            )
        raise ServiceRefused(message, http_status=response.status_code)

    def _unreachable(self, error: Exception) -> ServiceUnreachable:
        return ServiceUnreachable(
            f"No answer from the service at {self._url} ({type(error).__name__}): start it with `flattengpt serve`, "
            "or give its address with --url or FLATTENGPT_URL."
        )


def _once(idempotency_key: str | None) -> dict[str, str]:
    """The header that makes repeats of a request give the same job."""
    return {"Idempotency-Key": idempotency_key} if idempotency_key is not None else {}


def _segment(job_id: str) -> str:
    """A job's id as one segment of a path, whatever was typed."""
    return quote(job_id, safe="")


def _is_loopback(url: str) -> bool:
    host = httpx.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
