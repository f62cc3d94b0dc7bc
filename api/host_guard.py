"""Refuses requests that were meant for another host, as a page in a browser sends them by DNS rebinding."""

import re

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from api.problems import refusal

_LOOPBACK = re.compile(r"(127(\.\d{1,3}){3}|localhost|\[::1\])(:\d+)?", re.IGNORECASE)


class HostGuard:
    """ASGI middleware that answers 400 unless the Host header names this machine's loopback address."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is meant for this machine."""
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else "localhost"
        if _LOOPBACK.fullmatch(host):
            await self._app(scope, receive, send)
        else:
            answer = refusal(Request(scope), 400, "The Host header names another host: use 127.0.0.1 or localhost.")
            await answer(scope, receive, send)
