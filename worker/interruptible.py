"""Work that no signal can interrupt, such as an upload that hangs, done so that its process can leave it behind.

Knows nothing of jobs.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

_LOOK_SECONDS = 0.1

T = TypeVar("T")


class LeftBehind(Exception):
    """The work has come to its last step, but nobody waits for it any more."""


class LastStep:
    """The step of a piece of work that cannot be taken back: either it is not begun, or its end is waited for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begun = self._closed = False

    @property
    def begun(self) -> bool:
        """Whether the work is at that step, or through it."""
        return self._begun

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Where the work does it; one that fails may be begun anew. Raises LeftBehind once it is closed."""
        with self._lock:
            if self._closed:
                raise LeftBehind
            self._begun = True
        try:
            yield
        except BaseException:
            self._begun = False
            raise

    def close(self) -> bool:
        """Let nobody begin it any more; whether that was in time."""
        with self._lock:
            self._closed = True
            return not self._begun


def interruptibly(
    work: Callable[[], T], look: Callable[[], None], *, last_step: LastStep | None = None, patience_seconds: float = 0
) -> T:
    """Do `work` in another thread, and call `look` ten times a second until it ends; what it returns or raises.

    What `look` raises comes out at once and leaves the work behind: end the process by `os._exit`, since the
    interpreter's own end waits for threads. Work at its last step is waited for `patience_seconds` longer, and what
    it returns by then is what comes out.
    """
    step = last_step or LastStep()
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="interruptible", daemon=True).start()
    while not wait([done], _LOOK_SECONDS).done:
        try:
            look()
        except BaseException:
            if step.close() or not wait([done], patience_seconds).done or done.exception() is not None:
                raise
    return done.result()
