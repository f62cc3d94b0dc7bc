"""The service as it is deployed: real processes on real servers, each started as an operator starts it.

Two kinds: `Spread` (API, sweeper and workers on PostgreSQL and Redis) and `Embedded` (one process tree on SQLite).
"""

import json
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from cli.client import Client
from jobs.artifacts import ArtifactStore
from jobs.database import make_engine, upgrade
from jobs.records import JobRecord
from jobs.settings import Settings
from jobs.store import JobStore
from tests.faults.servers import Broker, Database
from tests.hub.state import WRITE_TOKEN, Hub
from tests.processes import wait_until
from tests.tiny_models import tiny_checkpoint

FLATTENGPT = (sys.executable, "-m", "cli.main")
STAND_IN = (sys.executable, "-m", "celery", "-A", "tests.faults.stand_in", "worker", "-P", "prefork", "-c", "1")
TIMES = {
    "lease_seconds": 4.0,
    "heartbeat_seconds": 0.5,
    "poll_seconds": 0.1,
    "sweep_seconds": 0.5,
    "announce_after_seconds": 3.0,
    "stop_grace_seconds": 5.0,
    "min_free_disk_bytes": 0,
}
"""Shorter than anyone would run it, so that what is lost is found soon; and the disks that are to fill are small."""
REQUEST: dict[str, Any] = {
    "model": "local:tiny",
    "layers": 4,
    "calibration": {"dataset": "python-docs", "samples": 32, "sequence_length": 128},
    "recovery": {"method": "lora", "steps": 8, "rank": 2},
    "evaluation": {"perplexity": ["python-docs"], "sequence_length": 64, "windows": 8, "benchmark": False},
}
END_SECONDS = 300


class Tree:
    """A process and whatever it has started."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as errors:
            self._popen = subprocess.Popen(
                command,
                env=os.environ | environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def first_line(self) -> str:
        """The first line on its standard output; empty if it ended before."""
        assert self._popen.stdout is not None
        return self._popen.stdout.readline().strip()

    def processes(self) -> list[psutil.Process]:
        """All that run, the first one first."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pid)
            return [first, *first.children(recursive=True)]
        return []

    def freeze(self) -> None:
        """SIGSTOP to all, as when a machine hangs."""
        self._to_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT to all."""
        self._to_all(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9 of all at once, as when a machine loses its power."""
        self.freeze()  # none sees another one die
        self._to_all(signal.SIGKILL)
        self._popen.wait(30)
        self._close()

    def kill_first(self) -> None:
        """kill -9 of the process alone; what it started must find out by itself."""
        self._popen.kill()
        self._popen.wait(30)
        self._close()

    def job_process(self) -> psutil.Process | None:
        """The process of the job that runs, if one does."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                if "worker.run" in process.cmdline():
                    return process
        return None

    def kill_child(self) -> None:
        """kill -9 of the running job's own process, if there is one, as by the kernel when memory runs out."""
        process = self.job_process()
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self, seconds: float = 60) -> None:
        """SIGTERM, as an operator stops it; fails if that takes longer."""
        self._popen.terminate()
        try:
            self._popen.wait(seconds)
        finally:
            self._to_all(signal.SIGKILL)
            self._popen.wait(10)
            self._close()

    def _to_all(self, number: signal.Signals) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _close(self) -> None:
        if self._popen.stdout is not None:
            self._popen.stdout.close()


class Deployment(ABC):
    """A running service with a small model in its folder.

    layers: the model's.
    environment: what its processes get beside their settings.
    """

    kind: str

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, layers: int = 6, **settings: Any
    ) -> None:
        self.folder = folder
        self.settings = Settings(data_dir=folder / "data", **(TIMES | settings))
        self.environment = dict(environment or {}) | as_environment(self.settings)
        tiny_checkpoint(self.settings.models_dir / "tiny", num_hidden_layers=layers)
        engine = make_engine(self.settings.database)
        upgrade(engine)
        self.store = JobStore(engine)
        self.artifacts = ArtifactStore(self.settings.artifacts)

    @property
    @abstractmethod
    def url(self) -> str:
        """Where the API answers."""

    @abstractmethod
    def start(self, workers: int = 1) -> None:
        """Start all of it."""

    @abstractmethod
    def close(self) -> None:
        """Stop all of it in order."""

    def client(self) -> Client:
        """A client of the API."""
        return Client(self.url)

    def submit(self, count: int = 1, **changes: Any) -> list[str]:
        """Submit so many jobs over HTTP; their ids."""
        with self.client() as client:
            return [client.submit(REQUEST | changes).id for _ in range(count)]

    def wait_for_stage(self, job_id: str, stage: str) -> None:
        """Wait until the job is in that stage, or past it."""

        def look() -> bool:
            types = [event.data.get("stage") for event in self.store.events(job_id) if event.type == "stage"]
            return stage in types or self.store.get(job_id).ended

        wait_until(look, seconds=END_SECONDS, what=f"stage {stage} of job {job_id}")

    def wait_for_end(self, ids: Sequence[str], seconds: float = END_SECONDS) -> list[JobRecord]:
        """The jobs once they have all ended."""

        def unfinished() -> list[str]:
            return [job_id for job_id in ids if not self.store.has_ended(job_id)]

        wait_until(lambda: not unfinished(), seconds=seconds, what=f"the end of {unfinished()}")
        return [self.store.get(job_id) for job_id in ids]

    def log(self, name: str) -> Path:
        """Where a process logs."""
        return self.folder / f"{name}.log"


class Spread(Deployment):
    """API, sweeper and workers, on PostgreSQL and Redis servers of their own.

    hub: where they publish.
    worker_command: what runs a worker, in place of `flattengpt worker`.
    """

    kind = "postgresql + redis"

    def __init__(
        self, folder: Path, hub: Hub, *, worker_command: Sequence[str] = (*FLATTENGPT, "worker"), **settings: Any
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.hub = hub
        self.database, self.broker = Database(), Broker(folder / "redis")
        super().__init__(
            folder,
            {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": WRITE_TOKEN, "HF_HUB_DISABLE_XET": "1"},
            database_url=self.database.url,
            broker_url=self.broker.url,
            **settings,
        )
        self._worker_command = worker_command
        self._url = ""
        self.workers: list[Tree] = []

    @property
    def url(self) -> str:
        return self._url

    def start(self, workers: int = 1) -> None:
        self.start_api()
        self.start_sweeper()
        for _ in range(workers):
            self.workers.append(self.start_worker())
        with self.client() as client:
            wait_until(client.is_ready, what="the service's readiness")

    def start_api(self, **environment: str) -> None:
        """Start the API, on a port of its own."""
        command = (*FLATTENGPT, "serve", "--port", "0", "--json")
        self.api = Tree(command, self.environment | environment, self.log("api"))
        line = self.api.first_line()
        assert line, self.log("api").read_text()[-2000:]
        self._url = json.loads(line)["url"]

    def start_sweeper(self, **environment: str) -> None:
        """Start the sweeper."""
        self.sweeper = Tree((*FLATTENGPT, "sweep"), self.environment | environment, self.log("sweeper"))

    def start_worker(self, **environment: str) -> Tree:
        """Start a worker."""
        return Tree(self._worker_command, self.environment | environment, self.log("worker"))

    def restart_worker(self, index: int) -> None:
        """Start a worker in the place of one that was killed, as whatever supervises it does."""
        self.workers[index] = self.start_worker()

    def close(self) -> None:
        try:
            for tree in [*self.workers, self.sweeper, self.api]:
                tree.stop()
        finally:
            self.database.close()
            self.broker.close()


class Embedded(Deployment):
    """Everything in one process tree, on SQLite and a queue of folders."""

    kind = "sqlite + embedded queue"

    def __init__(self, folder: Path, **how: Any) -> None:
        super().__init__(folder, **how)
        self._url = ""

    @property
    def url(self) -> str:
        return self._url

    def start(self, workers: int = 1) -> None:
        assert workers == 1, "an embedded service has one worker"
        command = (*FLATTENGPT, "serve", "--port", "0", "--json")
        self.service = Tree(command, self.environment, self.log("service"))
        line = self.service.first_line()
        assert line, self.log("service").read_text()[-2000:]
        self._url = json.loads(line)["url"]
        with self.client() as client:
            wait_until(client.is_ready, what="the service's readiness")

    def close(self) -> None:
        self.service.stop()


def as_environment(settings: Settings) -> dict[str, str]:
    """The variables that give another process these settings."""
    named = ("data_dir", "database_url", "broker_url", "artifacts_url", *TIMES, "max_losses", "max_attempts")
    values = {f"FLATTENGPT_{name.upper()}": str(getattr(settings, name)) for name in named}
    return values | {"FLATTENGPT_AUTH": "none", "OMP_NUM_THREADS": "1"}
