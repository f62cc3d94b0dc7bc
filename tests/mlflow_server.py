"""A real MLflow server on this machine. Import the fixture: `from tests.mlflow_server import mlflow_server`."""

import os
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import httpx
import pytest

from tests.processes import wait_until


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's URL."""
    pytest.importorskip("mlflow")
    folder = tmp_path_factory.mktemp("mlflow")
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "server.log"
    places = [
        "--backend-store-uri",
        f"sqlite:///{folder / 'mlflow.db'}",
        "--artifacts-destination",
        str(folder / "art"),
    ]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *places],
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # what it runs for itself needs more
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until(lambda: server.poll() is not None or answers(url), what="the MLflow server's readiness")
        assert server.poll() is None, log.read_text()
        yield url
    finally:
        server.terminate()
        server.wait(30)


@contextmanager
def late_door(port: int, url: str) -> Iterator[None]:
    """For a while the server is also at another port, where nobody was before."""

    class Passing(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 80)) as behind:
                back = threading.Thread(target=pass_on, args=(behind, self.request), daemon=True)
                back.start()
                pass_on(self.request, behind)
                back.join(10)

    with socketserver.ThreadingTCPServer(("127.0.0.1", port), Passing) as door:
        door.daemon_threads = True
        threading.Thread(target=door.serve_forever, args=(0.05,), daemon=True).start()
        yield
        door.shutdown()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Everything that the source sends, and its end."""
    with suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(url: str) -> bool:
    """Whether the server is up."""
    try:
        return httpx.get(f"{url}/health").is_success
    except httpx.TransportError:
        return False
