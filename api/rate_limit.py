"""How often a key may ask, counted by `limits`: in Redis for all processes of the API together, else in this one."""

import math
import time
from dataclasses import dataclass

import structlog
from limits import RateLimitItem, parse
from limits.errors import StorageError
from limits.storage import MemoryStorage, RedisStorage, Storage
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import TooManyRequests
from jobs.settings import Settings

REDIS_TIMEOUT_SECONDS = 1
POLICY = "key"

log = structlog.get_logger()


@dataclass(frozen=True)
class Usage:
    """What a key has used. most: requests in `period` seconds. left: of them. resets_in: seconds. within: the limit."""

    most: int
    period: int
    left: int
    resets_in: int
    within: bool

    @property
    def headers(self) -> dict[str, str]:
        """The fields of the IETF's draft `RateLimit header fields for HTTP`."""
        return {
            "RateLimit-Policy": f'"{POLICY}";q={self.most};w={self.period}',
            "RateLimit": f'"{POLICY}";r={self.left};t={self.resets_in}',
        }


class RateLimit:
    """The limit that the settings set, if they set one, for each period of the clock: a minute, an hour ...

    Counted by one call of the storage, which tells what is left as well. A key may ask twice as often around the turn
    of a period; the limit is there for clients in a loop.

    Where Redis does not answer, nobody is refused: the limit protects the service from a client in a loop, and must
    not become what stops it.
    """

    def __init__(self, settings: Settings) -> None:
        self._item: RateLimitItem | None = parse(settings.rate_limit) if settings.rate_limit else None
        self._storage = _storage(settings.broker_url)

    def count(self, request: Request, key_id: str) -> None:
        """Count a request of a key; `RateLimitHeaders` tells its client what is left.

        Raises:
            TooManyRequests: nothing was left.
        """
        usage = self._usage(key_id)
        if usage is None:
            return
        request.state.rate_limit = usage
        if not usage.within:
            raise TooManyRequests(
                f"This API key has made {usage.most} requests in {usage.period} seconds, the most it may: try again in "
                f"{usage.resets_in} seconds.",
                retry_after_seconds=usage.resets_in,
            )

    def _usage(self, key_id: str) -> Usage | None:
        if self._item is None:
            return None
        period = self._item.get_expiry()
        window, passed = divmod(time.time(), period)
        try:
            used = self._storage.incr(self._item.key_for(POLICY, key_id, str(int(window))), period)
        except StorageError as error:
            log.warning("requests are not counted", error=type(error.storage_error).__name__)
            return None
        most = self._item.amount
        return Usage(most, period, max(0, most - used), math.ceil(period - passed), used <= most)


class RateLimitHeaders:
    """ASGI middleware that tells each client of a counted request what is left to it, whatever the answer is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        state = scope.setdefault("state", {})

        async def told(message: Message) -> None:
            usage: Usage | None = state.get("rate_limit")
            if usage is not None and message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(usage.headers)
            await send(message)

        await self._app(scope, receive, told)


def _storage(broker_url: str) -> Storage:
    if not broker_url.startswith(("redis://", "rediss://")):
        return MemoryStorage()
    return RedisStorage(
        broker_url,
        wrap_exceptions=True,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
    )
