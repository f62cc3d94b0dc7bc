"""Calls that start together, to look for what only a race brings out."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def at_once(*calls: Callable[[], T]) -> list[T]:
    """What the calls gave, in their order, each made by a thread of its own.

    Raises what one of them raised, or TimeoutError after half a minute: calls may have locked each other out.
    """
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], T], future: Future[T]) -> None:
        start.wait()
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    futures = [Future[T]() for _ in calls]
    for call, future in zip(calls, futures, strict=True):
        threading.Thread(target=run, args=(call, future), daemon=True).start()
    return [future.result(timeout=30) for future in futures]
