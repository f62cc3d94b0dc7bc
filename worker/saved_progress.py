"""A run's progress that also keeps what the run has finished where other workers find it."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import structlog

from worker.interruptible import interruptibly
from worker.reporter import Reporter, StopRequested

log = structlog.get_logger()


class SavedProgress:
    """A `flattengpt_core.progress.Progress` that passes everything on, and saves at most every `interval_seconds`.

    Between two steps nothing writes to the state. A run that is told to stop leaves a save that is under way behind;
    one that stops between two steps saves once more, for at most `patience_seconds`. A save that fails costs the next
    attempt's time and no job: it is logged and tried again.

    Args:
        save: whether anything was new.
    """

    def __init__(
        self, reporter: Reporter, save: Callable[[], bool], *, interval_seconds: float, patience_seconds: float
    ) -> None:
        self._reporter, self._save = reporter, save
        self._interval, self._patience = interval_seconds, patience_seconds
        self._saved = time.monotonic()

    def stage(self, name: str) -> None:
        """Pass it on, and save what the last stage has finished."""
        self._reporter.stage(name)
        self._save_now()

    def step(self, done: int, total: int) -> None:
        """Pass it on, and save if it is time, or the last time."""
        try:
            self._reporter.step(done, total)
        except StopRequested:
            self._save_last()
            raise
        if time.monotonic() - self._saved >= self._interval:
            self._save_now()

    def event(self, type: str, **data: Any) -> None:
        """Pass it on."""
        self._reporter.event(type, **data)

    def _save_now(self) -> None:
        interruptibly(self._tried, self._reporter.look)
        self._saved = time.monotonic()

    def _save_last(self) -> None:
        deadline = time.monotonic() + self._patience

        def look() -> None:
            if time.monotonic() > deadline:
                raise TimeoutError

        with suppress(TimeoutError):
            interruptibly(self._tried, look)

    def _tried(self) -> None:
        try:
            self._save()
        except Exception as error:  # each store's client has errors of its own
            log.warning("the state is not saved; another worker would begin anew", error=type(error).__name__)
