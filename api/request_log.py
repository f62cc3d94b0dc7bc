"""A line of the log for each request, and the id by which a request's lines and its answer are found again."""

import re
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

HEADER = "X-Request-ID"
_SANE = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)

log = structlog.get_logger()


class RequestLog:
    """ASGI middleware that gives each request its client's X-Request-ID, or a new one, and logs how it ended.

    The id is bound to every line that is logged of the request, and sent back with the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._log = log.bind()  # once, not with each line

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Name the request and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _given(scope) or str(ULID())
        # Not unbound at the end: the server may still log the request's error, and its task has a context of its own.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        status: int | None = None

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        started = time.perf_counter()
        try:
            await self._app(scope, receive, named)
        finally:
            self._log.info(
                "request",
                method=scope["method"],
                path=_path(scope),
                status=status,  # None if the client went away before
                duration_ms=round(1000 * (time.perf_counter() - started), 1),
                client=scope["client"][0] if scope.get("client") else None,
            )


def _given(scope: Scope) -> str | None:
    """The client's id, unless it could be mistaken in a log or make it long."""
    given = Headers(scope=scope).get(HEADER, "")
    return given if _SANE.fullmatch(given) else None


def _path(scope: Scope) -> str:
    """The path as it was sent, in which line breaks are still encoded; without the query."""
    raw: bytes | None = scope.get("raw_path")
    return raw.decode("ascii", "backslashreplace") if raw is not None else str(scope["path"])
