"""Typed clients of the HTTP API, one that blocks and one to await, alike otherwise. Know nothing of terminals."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

import httpx
from httpx_sse import SSEError, aconnect_sse, connect_sse
from pydantic import SecretStr

from cli import calls
from cli.calls import Answer, Call, Filters
from cli.download import download_result
from cli.errors import ServiceRefused, ServiceUnreachable
from cli.patience import PATIENCE_SECONDS, Deadline, Patience
from cli.replies import Artifact, Event, Job, JobPage, Stored
from cli.service_address import ServiceAddress
from cli.upload import Kind, upload_of
from flattengpt_core.local_names import LOCAL


class Client:
    """The service at one address; use it as a context manager, or close it.

    Args:
        api_key: by default FLATTENGPT_API_KEY of the environment, if there is one.

    Every method raises ServiceRefused when the service answers with an error, and ServiceUnreachable when it does
    not answer.
    """

    def __init__(self, url: str, api_key: SecretStr | None = None) -> None:
        self._url, self._api_key = url, api_key
        self._address = ServiceAddress.of(url, api_key)
        self._http = httpx.Client(**self._address.connection)

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
            self._ask(calls.ready())
        except (ServiceRefused, ServiceUnreachable):
            return False
        return True

    def submit(
        self, request: Mapping[str, Any], *, idempotency_key: str | None = None, hub_token: SecretStr | None = None
    ) -> Job:
        """Submit a job; the same key and request give the same job.

        Args:
            hub_token: of the Hugging Face Hub, for this job alone, in place of the service's.
        """
        return self._ask(calls.submit(request, idempotency_key, hub_token))

    def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return self._ask(calls.get(job_id))

    def page(self, **filters: Unpack[Filters]) -> JobPage:
        """Jobs, newest first: one page."""
        return self._ask(calls.page(filters))

    def jobs(self, **filters: Unpack[Filters]) -> Iterator[Job]:
        """All jobs that the filters let through, newest first, page by page."""
        while True:
            found = self.page(**filters)
            yield from found.jobs
            if found.next_cursor is None:
                return
            filters["cursor"] = found.next_cursor

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, or ask a running one to stop."""
        return self._ask(calls.cancel(job_id))

    def retry(self, job_id: str, *, idempotency_key: str | None = None, hub_token: SecretStr | None = None) -> Job:
        """Submit the request of a job that failed or was cancelled again; the new job. hub_token: as for `submit`."""
        return self._ask(calls.retry(job_id, idempotency_key, hub_token))

    def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its artifacts."""
        self._ask(calls.delete(job_id))

    def wait(
        self, job_id: str, *, timeout_seconds: float | None = None, patience_seconds: float = PATIENCE_SECONDS
    ) -> Job:
        """The job once it has ended.

        Args:
            timeout_seconds: how long to wait for that; None: for ever.
            patience_seconds: how long the service may be gone before this raises ServiceUnreachable.

        Raises:
            JobStillRuns: the job had not ended by then; it goes on.
        """
        deadline, patience = Deadline(timeout_seconds), Patience(patience_seconds)
        while True:
            try:
                job = self._ask(calls.wait(job_id, deadline.left))
            except (ServiceUnreachable, ServiceRefused) as error:
                time.sleep(patience.pause_after(error))
            else:
                if job.ended:
                    return job
                patience.renew()
            deadline.check(job_id)

    def events(self, job_id: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[Event]:
        """The job's events as they happen, until it ends. A broken stream goes on where it stopped.

        Args:
            after: only events with a greater `seq`.
            patience_seconds: how long the service may be gone before this raises ServiceUnreachable.
        """
        seen, patience = after, Patience(patience_seconds)
        while True:
            try:
                for event in self._stream(job_id, seen):
                    seen = event.seq
                    patience.renew()
                    yield event
                if self.get(job_id).ended:
                    # What came between the stream's end and this answer.
                    yield from self._stream(job_id, seen)
                    return
                pause = patience.pause
            except (ServiceUnreachable, ServiceRefused) as error:
                pause = patience.pause_after(error)
            time.sleep(pause)

    def download(
        self, job: Job, out: Path, *, replace: bool = False, on_bytes: Callable[[int], object] = lambda _: None
    ) -> None:
        """Fetch the result into the folder `out`, which appears only when it is whole; see `download_result`."""
        download_result(self.read, job, out, replace=replace, on_bytes=on_bytes)

    def read(self, artifact: Artifact, write: Callable[[bytes], object], *, start: int = 0) -> None:
        """Hand the artifact's bytes to `write`, block by block.

        Args:
            start: how many bytes to leave out.

        Raises:
            DownloadDamaged: the service does not have the artifact any more that was begun.
        """
        try:
            with self._http.stream("GET", artifact.href, headers=calls.rest_of(artifact, start)) as response:
                self._check(response)
                calls.check_rest(artifact, start, response.status_code)
                for block in response.iter_bytes():
                    write(block)
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None

    def upload(self, path: Path, *, name: str | None = None, on_bytes: Callable[[int], object] = lambda _: None) -> str:
        """Upload a checkpoint folder or .gguf file as a model, a .txt or .jsonl file as a text; see `upload_of`.

        Returns:
            What a request calls it: `local:NAME`.
        """
        what = upload_of(path, name)
        headers = {"Content-Type": what.media_type}
        try:
            response = self._http.put(what.path, content=what.blocks(on_bytes), headers=headers)
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None
        self._check(response)
        return f"{LOCAL}{what.name}"

    def stored(self, kind: Kind) -> list[Stored]:
        """Every model or text that requests can name as `local:NAME`."""
        return self._ask(calls.stored(kind))

    def remove(self, kind: Kind, name: str) -> None:
        """Remove a model or text that no job which has not ended names."""
        self._ask(calls.remove(kind, name))

    def _stream(self, job_id: str, after: int) -> Iterator[Event]:
        headers = {"Last-Event-ID": str(after)}
        try:
            with connect_sse(self._http, "GET", calls.path(job_id, "events"), headers=headers) as source:
                self._check(source.response)
                for message in source.iter_sse():
                    if message.data:
                        yield Event.model_validate_json(message.data)
        except (httpx.TransportError, SSEError) as error:
            raise self._address.unreachable(error) from None

    def _ask(self, call: Call[Answer]) -> Answer:
        try:
            response = self._http.request(
                call.method, call.path, params=dict(call.params), json=call.json, headers=dict(call.headers)
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None
        self._check(response)
        return call.read(response.json() if response.content else None)

    def _check(self, response: httpx.Response) -> None:
        """Raise the problem that the service answered with, if it did."""
        if not response.is_success:
            response.read()
            raise self._address.refusal(response)


class AsyncClient:
    """`Client` for asynchronous programs: the same methods, to be awaited or iterated over with `async for`."""

    def __init__(self, url: str, api_key: SecretStr | None = None) -> None:
        self._url, self._api_key = url, api_key
        self._address = ServiceAddress.of(url, api_key)
        self._http = httpx.AsyncClient(**self._address.connection)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def is_ready(self) -> bool:
        """Whether the service answers and can do its work."""
        try:
            await self._ask(calls.ready())
        except (ServiceRefused, ServiceUnreachable):
            return False
        return True

    async def submit(
        self, request: Mapping[str, Any], *, idempotency_key: str | None = None, hub_token: SecretStr | None = None
    ) -> Job:
        """Submit a job; the same key and request give the same job.

        Args:
            hub_token: of the Hugging Face Hub, for this job alone, in place of the service's.
        """
        return await self._ask(calls.submit(request, idempotency_key, hub_token))

    async def get(self, job_id: str) -> Job:
        """The job as it is now."""
        return await self._ask(calls.get(job_id))

    async def page(self, **filters: Unpack[Filters]) -> JobPage:
        """Jobs, newest first: one page."""
        return await self._ask(calls.page(filters))

    async def jobs(self, **filters: Unpack[Filters]) -> AsyncIterator[Job]:
        """All jobs that the filters let through, newest first, page by page."""
        while True:
            found = await self.page(**filters)
            for job in found.jobs:
                yield job
            if found.next_cursor is None:
                return
            filters["cursor"] = found.next_cursor

    async def cancel(self, job_id: str) -> Job:
        """Cancel a queued job at once, or ask a running one to stop."""
        return await self._ask(calls.cancel(job_id))

    async def retry(
        self, job_id: str, *, idempotency_key: str | None = None, hub_token: SecretStr | None = None
    ) -> Job:
        """Submit the request of a job that failed or was cancelled again; the new job. hub_token: as for `submit`."""
        return await self._ask(calls.retry(job_id, idempotency_key, hub_token))

    async def delete(self, job_id: str) -> None:
        """Remove a job that has ended, with its artifacts."""
        await self._ask(calls.delete(job_id))

    async def wait(
        self, job_id: str, *, timeout_seconds: float | None = None, patience_seconds: float = PATIENCE_SECONDS
    ) -> Job:
        """The job once it has ended; see `Client.wait`."""
        deadline, patience = Deadline(timeout_seconds), Patience(patience_seconds)
        while True:
            try:
                job = await self._ask(calls.wait(job_id, deadline.left))
            except (ServiceUnreachable, ServiceRefused) as error:
                await asyncio.sleep(patience.pause_after(error))
            else:
                if job.ended:
                    return job
                patience.renew()
            deadline.check(job_id)

    async def events(
        self, job_id: str, *, after: int = 0, patience_seconds: float = PATIENCE_SECONDS
    ) -> AsyncIterator[Event]:
        """The job's events as they happen, until it ends; see `Client.events`."""
        seen, patience = after, Patience(patience_seconds)
        while True:
            try:
                async for event in self._stream(job_id, seen):
                    seen = event.seq
                    patience.renew()
                    yield event
                if (await self.get(job_id)).ended:
                    # What came between the stream's end and this answer.
                    async for event in self._stream(job_id, seen):
                        yield event
                    return
                pause = patience.pause
            except (ServiceUnreachable, ServiceRefused) as error:
                pause = patience.pause_after(error)
            await asyncio.sleep(pause)

    async def download(
        self, job: Job, out: Path, *, replace: bool = False, on_bytes: Callable[[int], object] = lambda _: None
    ) -> None:
        """Fetch the result into the folder `out`, which appears only when it is whole; see `download_result`.

        It runs in a thread, since files cannot be awaited.
        """

        def fetch() -> None:
            with Client(self._url, self._api_key) as client:
                client.download(job, out, replace=replace, on_bytes=on_bytes)

        await asyncio.to_thread(fetch)

    async def read(self, artifact: Artifact, write: Callable[[bytes], object], *, start: int = 0) -> None:
        """Hand the artifact's bytes to `write`, block by block; see `Client.read`."""
        try:
            async with self._http.stream("GET", artifact.href, headers=calls.rest_of(artifact, start)) as response:
                await self._check(response)
                calls.check_rest(artifact, start, response.status_code)
                async for block in response.aiter_bytes():
                    write(block)
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None

    async def upload(
        self, path: Path, *, name: str | None = None, on_bytes: Callable[[int], object] = lambda _: None
    ) -> str:
        """Upload a model or a text; see `Client.upload`. It runs in a thread, since files cannot be awaited."""

        def send() -> str:
            with Client(self._url, self._api_key) as client:
                return client.upload(path, name=name, on_bytes=on_bytes)

        return await asyncio.to_thread(send)

    async def stored(self, kind: Kind) -> list[Stored]:
        """Every model or text that requests can name as `local:NAME`."""
        return await self._ask(calls.stored(kind))

    async def remove(self, kind: Kind, name: str) -> None:
        """Remove a model or text that no job which has not ended names."""
        await self._ask(calls.remove(kind, name))

    async def _stream(self, job_id: str, after: int) -> AsyncIterator[Event]:
        headers = {"Last-Event-ID": str(after)}
        try:
            async with aconnect_sse(self._http, "GET", calls.path(job_id, "events"), headers=headers) as source:
                await self._check(source.response)
                async for message in source.aiter_sse():
                    if message.data:
                        yield Event.model_validate_json(message.data)
        except (httpx.TransportError, SSEError) as error:
            raise self._address.unreachable(error) from None

    async def _ask(self, call: Call[Answer]) -> Answer:
        try:
            response = await self._http.request(
                call.method, call.path, params=dict(call.params), json=call.json, headers=dict(call.headers)
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from None
        await self._check(response)
        return call.read(response.json() if response.content else None)

    async def _check(self, response: httpx.Response) -> None:
        """Raise the problem that the service answered with, if it did."""
        if not response.is_success:
            await response.aread()
            raise self._address.refusal(response)
