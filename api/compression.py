"""Answers by gzip, for clients that take them so, where that is worth it."""

from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

MINIMUM_BYTES = 1000
LEVEL = 5


class CompressedDocuments:
    """ASGI middleware that compresses everything but results and streams.

    A result's entity tag is the SHA-256 of its bytes, and byte ranges count those; weights would not get smaller.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._plain = app
        self._compressed = GZipMiddleware(app, minimum_size=MINIMUM_BYTES, compresslevel=LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        is_result = scope["type"] == "http" and "/artifacts/" in scope["path"]
        await (self._plain if is_result else self._compressed)(scope, receive, send)
