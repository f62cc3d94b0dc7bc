"""How long to wait for a job, and for a service that is gone."""

import time

from cli.errors import JobStillRuns, ServiceRefused, ServiceUnreachable

PATIENCE_SECONDS = 60.0
"""How long a service may be gone: it restarts in less."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


class Patience:
    """With a service that does not answer: pauses that grow, up to `seconds` since it was last heard of."""

    def __init__(self, seconds: float = PATIENCE_SECONDS) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        """The service was heard of."""
        self._heard, self._pause = time.monotonic(), _FIRST_PAUSE

    @property
    def pause(self) -> float:
        """How many seconds to wait before the next try; the one after will be longer."""
        now, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        return now

    def pause_after(self, error: ServiceUnreachable | ServiceRefused) -> float:
        """How many seconds to wait after this error; raises it when there is no point in waiting."""
        pause, for_good = self.pause, False
        if isinstance(error, ServiceRefused):
            pause = error.retry_after_seconds or pause
            for_good = error.http_status < 500 and error.retry_after_seconds is None
        if for_good or time.monotonic() + pause > self._heard + self._seconds:
            raise error
        return pause


class Deadline:
    """The moment by which a job should have ended; None: there is none."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._at = None if seconds is None else time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds, maybe infinite, never negative."""
        return float("inf") if self._at is None else max(0.0, self._at - time.monotonic())

    def check(self, job_id: str) -> None:
        """Raises JobStillRuns once there is nothing left."""
        if not self.left:
            raise JobStillRuns(f"Job {job_id} has not ended within {self._seconds:g} seconds; it goes on.")
