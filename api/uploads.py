"""Hands the body of a request, while it comes in, to a thread that writes it down. Knows nothing of what is in it."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Annotated, TypeVar

import anyio
from anyio import CapacityLimiter, from_thread, to_thread
from fastapi import Path, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from flattengpt_core.errors import FlattenGPTError
from flattengpt_core.local_names import NAME_PATTERN

AT_ONCE = 8
"""Uploads that are read at once; further ones wait. They have threads of their own, so that other requests do not."""
SILENCE_SECONDS = 60
"""A client that sends nothing for so long has its upload ended."""
LINGER_SECONDS = 5
"""How long the rest of a refused upload is still taken in."""

LocalName = Annotated[
    str, Path(pattern=f"^{NAME_PATTERN}$", description="The NAME of `local:NAME` in a job's request.")
]

T = TypeVar("T")


class Uploads:
    """Reads the bodies of one application's uploads."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(AT_ONCE)

    async def read(self, request: Request, work: Callable[[Iterator[bytes]], T]) -> T:
        """What `work` makes of the body's blocks. `work` runs in a thread, and must let pass what the blocks raise.

        Raises:
            HTTPException: 400 where the body ends too soon, 408 where the client falls silent, 413 where it is too
                large.
        """
        body = aiter(request.stream())

        async def following() -> bytes:
            try:
                with anyio.fail_after(SILENCE_SECONDS):
                    return await anext(body, b"")
            except TimeoutError:
                raise HTTPException(408, f"Nothing came for {SILENCE_SECONDS} s: upload it again.") from None
            except ClientDisconnect:
                raise HTTPException(400, "The body ended too soon: upload it again.") from None

        def blocks() -> Iterator[bytes]:
            # An empty block of the stream is its last one.
            return iter(lambda: from_thread.run(following), b"")

        try:
            return await to_thread.run_sync(lambda: work(blocks()), limiter=self._threads)
        except FlattenGPTError:
            # A client that is still sending when the connection is closed may never see the answer.
            with anyio.move_on_after(LINGER_SECONDS), suppress(HTTPException):
                while await following():
                    pass
            raise


def content_type(request: Request) -> str:
    """The media type of the body, without parameters, in lower case.

    Raises:
        HTTPException: 415 where the body is encoded for the way.
    """
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(415, "Content-Encoding is not understood here: send the bytes as they are.")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()
