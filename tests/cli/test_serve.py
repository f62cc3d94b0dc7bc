"""`flattengpt serve` leaves no process behind, however it ends, and keeps its worker alive."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from cli.client import Client
from cli.errors import ServiceRefused
from tests.cli.conftest import TINY_JOB
from tests.processes import alive, descendants, wait_until


class Service:
    """A service with its own data folder."""

    def __init__(self, data_dir: Path, *options: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "serve", "--port", "0", *options],
            env={"FLATTENGPT_AUTH": "none", "FLATTENGPT_DATA_DIR": str(data_dir), **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()

    def workers(self) -> list[psutil.Process]:
        """The worker's main process, once Celery has forked its pool."""
        return [child for child in psutil.Process(self.process.pid).children() if works(child)]

    def close(self) -> None:
        """Make sure that nothing of this test outlives it."""
        started = [self.process.pid]
        if self.process.poll() is None:
            started += descendants(self.process.pid)
        for pid in started:
            if psutil.pid_exists(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def works(process: psutil.Process) -> bool:
    """Whether it is a worker that still runs: one that was killed may be gone at any moment."""
    try:
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and "worker" in process.cmdline() and bool(process.children())
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def service(data_dir: Path, tmp_path: Path) -> Iterator[Service]:
    (tmp_path / "models").symlink_to(data_dir / "models")
    running = Service(tmp_path, "--while-stdin-open")
    yield running
    running.close()


def refusal(*options: str, **env: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "serve", *options], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_refuses_other_addresses() -> None:
    code, words = refusal("--host", "0.0.0.0", FLATTENGPT_AUTH="none")
    assert code == 2
    assert "loopback" in words


def test_asks_for_keys_unless_told_otherwise(tmp_path: Path) -> None:
    """On any address then; a key can be made while the service runs."""
    service = Service(tmp_path, "--host", "0.0.0.0", FLATTENGPT_AUTH="required")
    try:
        url = service.url.replace("0.0.0.0", "127.0.0.1")
        with Client(url) as nobody:
            wait_until(nobody.is_ready, what="the service's readiness")
            with pytest.raises(ServiceRefused, match="FLATTENGPT_API_KEY"):
                nobody.page()
        made = subprocess.run(
            [sys.executable, "-m", "cli.main", "keys", "create", "--name", "ci"],
            env={"FLATTENGPT_DATA_DIR": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        with Client(url, SecretStr(made.stdout.strip())) as client:
            assert client.page().jobs == []
    finally:
        service.close()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "SIGKILL", "stdin"])
def test_leaves_no_process_behind_in_mid_job(service: Service, end: str) -> None:
    wait_until(service.workers, what="the worker's start")
    with Client(service.url) as client:
        job = client.submit(TINY_JOB | {"evaluation": {"perplexity": ["python-docs"], "sequence_length": 64}})
        wait_until(lambda: client.get(job.id).status == "running", what="the job's start")
    wait_until(lambda: any("worker.run" in line for line in alive(descendants(service.process.pid))))
    started = descendants(service.process.pid)
    assert len(started) >= 3

    if end == "stdin":
        assert service.process.stdin is not None
        service.process.stdin.close()
    else:
        service.process.send_signal(getattr(signal, end))
    code = service.process.wait(60)
    wait_until(lambda: not alive(started), what=f"the end of {alive(started)}")
    assert code == (-signal.SIGKILL if end == "SIGKILL" else 0)


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_works(service: Service) -> None:
    wait_until(service.workers, what="the worker's start")
    [worker] = service.workers()
    worker.kill()
    wait_until(lambda: [w for w in service.workers() if w.pid != worker.pid], what="the worker's second start")
    with Client(service.url) as client:
        job = client.submit(TINY_JOB)
        assert list(client.events(job.id))[-1].type == "succeeded"
