"""The service in one command: the API, and when embedded the sweeper and a worker beside it."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn

from api.app import create_app
from cli.bind import check_bind, listen, url_of
from cli.worker_keeper import WorkerKeeper
from jobs.broker import make_announcer
from jobs.database import make_engine, upgrade
from jobs.settings import Settings
from jobs.store import JobStore
from jobs.sweeper import sweep_until
from worker.webhooks import delivering

OPEN_REQUESTS_SECONDS = 2
"""How long requests that are still open, such as event streams, may delay the stop."""


def serve(host: str, port: int, settings: Settings, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM, then stop everything that was started.

    Args:
        port: 0 takes a free one.
        on_ready: told the service's URL once it answers.

    Raises:
        BadUsage: the address must not or cannot be used.
    """
    address = check_bind(host, settings)
    with listen(address, port) as listener:
        if settings.embedded:
            upgrade(make_engine(settings.database))
        config = uvicorn.Config(
            create_app(settings),
            log_config=None,  # its lines go where this process's go
            timeout_graceful_shutdown=OPEN_REQUESTS_SECONDS,
            server_header=False,
        )
        server = _Server(config, lambda: on_ready(url_of(listener)))
        with _stop_signals_end_only_the_server(), _beside(settings):
            server.run(sockets=[listener])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()


@contextmanager
def _beside(settings: Settings) -> Iterator[None]:
    """Sweeper and worker while the service is embedded; elsewhere they are services of their own."""
    if not settings.embedded:
        yield
        return
    stop = threading.Event()
    engine = make_engine(settings.database)
    store = JobStore(engine)
    sweeper = threading.Thread(
        target=sweep_until, args=(stop, store, make_announcer(settings), settings), name="sweeper"
    )
    # The worker needs its own grace to stop the process of a running job.
    keeper = WorkerKeeper(settings.data_dir / "logs" / "worker.log", grace_seconds=2 * settings.stop_grace_seconds)
    sweeper.start()
    keeper.start()
    try:
        with delivering(settings, engine):
            yield
    finally:
        stop.set()
        keeper.stop()
        sweeper.join()


@contextmanager
def _stop_signals_end_only_the_server() -> Iterator[None]:
    """Uvicorn raises the signal that stopped it once more, which must not cut the clean-up short."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
