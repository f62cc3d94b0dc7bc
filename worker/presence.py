"""Says again and again that this worker is alive, and what it serves."""

import threading
from collections.abc import Callable

import structlog
from sqlalchemy.exc import SQLAlchemyError

from jobs.queues import Serves
from jobs.roster import Roster
from jobs.settings import Settings

_LEAVE_SECONDS = 5
"""A database that does not answer holds no worker's end up; it counts as alive a little longer then."""

log = structlog.get_logger()


class Presence:
    """A thread that keeps a worker on the roster, from `start` to `stop`.

    Args:
        worker: its name.
    """

    def __init__(self, roster: Roster, worker: str, serves: Serves, settings: Settings) -> None:
        self._roster, self._worker, self._serves, self._settings = roster, worker, serves, settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="presence", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Take the worker off the roster."""
        self._stop.set()
        if self._thread.ident is not None:  # a worker may be stopped before it was ready
            self._thread.join(_LEAVE_SECONDS)

    def _keep(self) -> None:
        while not self._stop.is_set():
            self._try(lambda: self._roster.present(self._worker, self._serves, seconds=self._settings.lease_seconds))
            self._stop.wait(self._settings.heartbeat_seconds)
        self._try(lambda: self._roster.absent(self._worker))

    def _try(self, say: Callable[[], None]) -> None:
        """What fails is said again at the next turn, or runs out."""
        try:
            say()
        except SQLAlchemyError as error:
            log.warning("the roster does not answer", error=type(error).__name__)
        except Exception:  # a thread that ends would make an able worker look dead
            log.exception("the roster does not answer")
