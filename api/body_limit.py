"""Refuses request bodies that are too large, while they come in."""

from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware that ends a request with 413 once its body passes the limit, whatever its Content-Length.

    One whose Content-Length says so is refused before any of its body is read.

    Args:
        max_bytes: the limit.
        uploads: limits of their own for `PUT` on the names under these paths, such as `/models/`.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: int, uploads: Mapping[str, int]) -> None:
        self._app, self._max_bytes, self._uploads = app, max_bytes, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what the application reads."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, received = self._limit(scope), 0
        announced = Headers(scope=scope).get("content-length", "")
        too_large = HTTPException(413, f"The request body is larger than {limit} bytes.")

        async def counted() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced[:20]) > limit:
                raise too_large
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise too_large
            return message

        await self._app(scope, counted, send)

    def _limit(self, scope: Scope) -> int:
        folder, slash, name = scope["path"].rpartition("/")
        upload = scope["method"] == "PUT" and bool(name)
        return self._uploads.get(folder + slash, self._max_bytes) if upload else self._max_bytes
