"""The doorbell: a Celery message that wakes a worker. It holds a job's id and may be lost or repeated at will.

The database is the ledger; see `store` and `sweeper`. Knows nothing of what a worker does.
"""

from typing import Any, Protocol
from urllib.parse import urlsplit

import structlog
from celery import Celery

from jobs import folder_queue
from jobs.queues import DEFAULT
from jobs.settings import Settings

TASK = "worker.compress"
PREFIX = "flattengpt"
"""The broker's queue of those jobs that ask for none, and with a dot before the names of the others."""

_AGAIN_SECONDS = 0.2
"""How soon a broker that refuses is asked once more; Kombu would let a submit wait for 2 seconds."""

log = structlog.get_logger()


class Announcer(Protocol):
    """Something that can wake a worker for a job."""

    def announce(self, job_id: str, queue: str = DEFAULT) -> None:
        """Wake a worker of the queue; must not raise, since a lost announcement is repeated by the sweeper."""

    def waiting(self, queue: str = DEFAULT) -> int:
        """How many announcements no worker of the queue has heard yet, as far as can be told; must not raise."""


class CeleryAnnouncer:
    """Announces through the broker."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def announce(self, job_id: str, queue: str = DEFAULT) -> None:
        """Send the message once; a broker that is down costs a log line and at most a few seconds.

        It has no time of expiry, which a worker whose clock is ahead would find passed.
        """
        try:
            self._app.send_task(TASK, args=(job_id,), queue=broker_queue(queue), retry=False)
        except Exception as error:  # whatever a broker's client raises, the sweeper will announce again
            log.warning("announcement failed", job_id=job_id, error=type(error).__name__)

    def waiting(self, queue: str = DEFAULT) -> int:
        """The length of the broker's queue; 0 if the broker does not say."""
        try:
            with self._app.connection_for_write(connect_timeout=2) as connection:
                declared = connection.default_channel.queue_declare(broker_queue(queue), passive=True)
                return int(declared.message_count)
        except Exception:  # down, or the queue was never used: announcing will tell
            return 0

    def ping(self) -> None:
        """Connect to the broker; raises what its client raises if it does not answer."""
        with self._app.connection_for_write(connect_timeout=2) as connection:
            connection.ensure_connection(max_retries=1, interval_start=_AGAIN_SECONDS, timeout=2)


def broker_queue(queue: str) -> str:
    """What the broker calls a queue of jobs."""
    return PREFIX if queue == DEFAULT else f"{PREFIX}.{queue}"


def job_queue(name: str) -> str:
    """The queue of jobs that the broker calls so."""
    return name.removeprefix(PREFIX).removeprefix(".") or DEFAULT


def make_announcer(settings: Settings) -> CeleryAnnouncer:
    """The announcer of these settings."""
    return CeleryAnnouncer(make_celery(settings))


def make_celery(settings: Settings) -> Celery:
    """The Celery application that API, sweeper and workers share.

    Messages are acknowledged on receipt, one at a time, and have no result: leases in the database, not the
    broker, say who owns a job, so no visibility timeout matters.
    """
    app = Celery("flattengpt", broker=settings.broker_url or f"{folder_queue.SCHEME}://")
    app.conf.update(
        accept_content=["json"],
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=2,
        broker_transport_options=_transport_options(settings),
        result_backend=None,
        task_acks_late=False,
        task_default_queue=PREFIX,
        task_ignore_result=True,
        # What a worker listens to, unless Celery's own option -Q says otherwise.
        task_queues={name: {"exchange": name, "routing_key": name} for name in map(broker_queue, settings.queues)},
        task_serializer="json",
        worker_concurrency=1,
        # A busy worker must not keep a message from an idle one. Celery can promise this on Redis only; elsewhere
        # the next announcement reaches the idle one.
        worker_disable_prefetch=urlsplit(settings.broker_url).scheme in ("redis", "rediss"),
        worker_hijack_root_logger=False,
        worker_prefetch_multiplier=1,
    )
    return app


def _transport_options(settings: Settings) -> dict[str, Any]:
    if not settings.embedded:
        return {"socket_connect_timeout": 2, "socket_timeout": 30, "max_retries": 1, "interval_start": _AGAIN_SECONDS}
    messages = settings.data_dir.absolute() / "broker" / "messages"
    messages.mkdir(parents=True, exist_ok=True)
    return {"data_folder_in": str(messages), "data_folder_out": str(messages), "store_processed": False}
