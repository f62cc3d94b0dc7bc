"""The pipeline's progress, written to the job's row, and the places where a run can be stopped."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy.exc import OperationalError

from jobs.records import Event, Lease
from jobs.states import PUBLISHING, JobStatus
from jobs.store import JobStore

WEIGHTS = {
    "loading": 0.05,
    "calibrating": 0.05,
    "compressing": 0.5,
    "recovering": 0.2,
    "evaluating": 0.15,
    PUBLISHING: 0.05,
}
"""Each stage's share of a job's progress; a stage that is left out is jumped over."""


LOOK_SECONDS = 1
"""How often `Reporter.look` asks the database."""


class StopRequested(Exception):
    """The run was asked to stop, by a signal or because the job is to be cancelled."""


class Reporter:
    """A `flattengpt_core.progress.Progress` that writes through the store and raises StopRequested when told to.

    Steps are written at most every `interval_seconds`, so that a fast stage costs few writes; stages and events are
    written at once. Each method raises LeaseLost when another attempt owns the job.

    Args:
        on_stage: told of each stage as it begins.
    """

    def __init__(
        self,
        store: JobStore,
        lease: Lease,
        stopping: Callable[[], bool],
        *,
        interval_seconds: float = 0.5,
        on_stage: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store, self._lease, self._stopping = store, lease, stopping
        self._interval, self._on_stage = interval_seconds, on_stage
        self._stage = "loading"
        self._written = self._looked = 0.0

    @property
    def due(self) -> bool:
        """Whether the next step would be written."""
        return time.monotonic() - self._written >= self._interval

    def stage(self, name: str) -> None:
        """Note that a stage begins."""
        self._stage = name
        self._on_stage(name)
        self._write(stage=name, progress=self._before(name), events=[Event("stage", {"stage": name})])

    def step(self, done: int, total: int) -> None:
        """Note how far the stage is."""
        if self._stopping():
            raise StopRequested
        if self.due or done == total:
            share = WEIGHTS[self._stage] * done / max(total, 1)
            progress = round(self._before(self._stage) + share, 4)
            self._write(
                progress=progress,
                events=[Event("progress", {"stage": self._stage, "done": done, "total": total, "progress": progress})],
            )

    def event(self, type: str, **data: Any) -> None:
        """Record an event of the pipeline."""
        self._write(events=[Event(type, data)])

    def check(self) -> None:
        """Make sure that the run is still wanted, before what cannot be undone."""
        self._write()

    def look(self) -> None:
        """As `check`, but to be called often: it writes nothing, and bears with a database that does not answer."""
        if self._stopping():
            raise StopRequested
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        with suppress(OperationalError):
            if self._store.status(self._lease) is JobStatus.CANCELLING:
                raise StopRequested

    def _write(self, **what: Any) -> None:
        if self._stopping():
            raise StopRequested
        self._written = time.monotonic()
        if self._store.record(self._lease, **what) is JobStatus.CANCELLING:
            raise StopRequested

    @staticmethod
    def _before(stage: str) -> float:
        names = list(WEIGHTS)
        return sum(WEIGHTS[name] for name in names[: names.index(stage)])
