"""A job's stages as spans, one after the other."""

from contextlib import ExitStack
from types import TracebackType

from jobs import tracing
from jobs.records import Lease


class StageSpans:
    """A span a stage, which ends where the next begins; the last ends with the `with` block, and fails with it.

    Args:
        parent: `traceparent` of the attempt's span.
    """

    def __init__(self, lease: Lease, parent: str | None) -> None:
        self._lease, self._parent = lease, parent
        self._stage: str | None = None
        self._current = ExitStack()

    def enter(self, stage: str) -> None:
        """End the stage before, and begin this one, unless it has begun."""
        if stage == self._stage:
            return
        self._stage = stage
        self._current.close()
        self._current.enter_context(tracing.span(stage, tracing.of_job(self._lease), parent=self._parent))

    def __enter__(self) -> "StageSpans":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._current.__exit__(kind, error, traceback)
