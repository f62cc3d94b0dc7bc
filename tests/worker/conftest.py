"""Workers over the databases of `tests/conftest.py`, with stand-ins for the job's process or the real one."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from jobs.queues import PLAIN, Serves
from jobs.records import Lease
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.tiny_models import tiny_checkpoint
from worker.disk_floor import DiskFloor
from worker.parent import Command, Parent, child_command

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)

SPEC = JobSpec.model_validate(
    {
        "model": "local:tiny",
        "layers": 4,
        "calibration": {"dataset": "python-docs", "samples": 8, "sequence_length": 64},
        "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 4, "benchmark": False},
    }
)


def stand_in(code: str) -> Command:
    """A job's process that runs this code; its arguments are the job's id and the attempt."""

    def command(lease: Lease) -> Sequence[str]:
        return (sys.executable, "-S", "-c", code, lease.job_id, str(lease.attempt))

    return command


class Worker:
    """A worker's parent in a thread of this process."""

    def __init__(self, store: JobStore, settings: Settings, command: Command, name: str, serves: Serves) -> None:
        self.stopping = threading.Event()
        self._parent = Parent(store, settings, name, serves, self.stopping.is_set, DiskFloor(settings), command)
        self._thread: threading.Thread | None = None

    def start(self, job_id: str) -> "Worker":
        """Begin to work from this job on."""
        self._thread = threading.Thread(target=self._parent.work_from, args=(job_id,), name="worker", daemon=True)
        self._thread.start()
        return self

    def finish(self, seconds: float = 60) -> None:
        """Wait until it has no more to do."""
        assert self._thread is not None
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the worker goes on"

    def run(self, job_id: str) -> None:
        """Work from this job on until there is no more to do."""
        self.start(job_id).finish()


Workers = Callable[..., Worker]


@pytest.fixture
def workers(store: JobStore, settings: Settings) -> Iterator[Workers]:
    """Makes workers, which are stopped at the end of the test."""
    made: list[Worker] = []

    def make(command: Command = child_command, *, name: str = "w", serves: Serves = PLAIN, **changes: Any) -> Worker:
        made.append(Worker(store, settings.model_copy(update=changes), command, name, serves))
        return made[-1]

    yield make
    for worker in made:
        worker.stopping.set()
        if worker._thread is not None:
            worker._thread.join(20)


@pytest.fixture
def queued(store: JobStore) -> str:
    """The id of a job that waits."""
    return store.submit(SPEC).id


@pytest.fixture
def environment(settings: Settings) -> dict[str, str]:
    """What makes another process use these settings."""
    names = (
        "data_dir", "database_url", "broker_url", "artifacts_url", "lease_seconds", "heartbeat_seconds", "poll_seconds",
        "stop_grace_seconds", "min_free_disk_bytes",
    )  # fmt: skip
    return {f"FLATTENGPT_{name.upper()}": str(getattr(settings, name)) for name in names}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of six layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")
