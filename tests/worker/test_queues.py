"""A worker as it is started, and what it takes by its queues and its GPU, in both deployments."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.broker import make_announcer
from jobs.queues import Serves
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from tests.processes import descendants, wait_until
from tests.worker.conftest import Workers, on_sqlite, stand_in
from worker import machine


def asking(**fields: object) -> JobSpec:
    """Of a model that is missing, so that a worker which takes the job is soon done with it."""
    return JobSpec.model_validate({"model": "local:missing", "layers": 4, **fields})


@pytest.fixture
def settings(settings: Settings, request: pytest.FixtureRequest) -> Settings:
    """With Redis where the database is PostgreSQL."""
    if settings.database_url.startswith("sqlite"):
        return settings
    return settings.model_copy(update={"broker_url": request.getfixturevalue("redis_url")})


@contextmanager
def worker(environment: dict[str, str], log: Path, *options: str) -> Iterator[None]:
    """`flattengpt worker` with these options until it is told to stop."""
    command = [sys.executable, "-m", "cli.main", "worker", *options]
    with log.open("wb") as output:
        running = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        wait_until(lambda: " ready." in log.read_text(), what="the worker's readiness")
        yield
        running.terminate()
        assert running.wait(60) == 0
    finally:
        for pid in [*(descendants(running.pid) if running.poll() is None else {})]:
            subprocess.run(["kill", "-9", str(pid)], check=False)
        if running.poll() is None:
            running.send_signal(signal.SIGKILL)
        running.wait()


def test_a_worker_takes_what_its_queues_and_its_gpu_allow(
    store: JobStore, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    fits, plain, larger = (
        store.submit(asking(**fields)).id
        for fields in ({"queue": "large", "min_gpu_memory_gib": 40}, {}, {"queue": "large", "min_gpu_memory_gib": 80})
    )
    assert store.get(fits).unserved
    announcer = make_announcer(settings)
    with worker(environment | {"FLATTENGPT_GPU_MEMORY_GIB": "40"}, tmp_path / "log", "--queues", "large"):
        for job_id, queue in ((larger, "large"), (plain, "default"), (fits, "large")):
            announcer.announce(job_id, queue)
        wait_until(lambda: store.get(fits).ended, what="the job's end")
        assert store.overview().workers["large"] == 1
        assert not store.get(store.submit(asking(queue="large")).id).unserved
        assert [store.get(job_id).unserved for job_id in (plain, larger)] == [True, True]
        assert announcer.waiting() == 1, "a message for the other workers is theirs"
    assert {store.get(job_id).status for job_id in (plain, larger)} == {JobStatus.QUEUED}
    assert set(store.overview().workers.values()) == {0}, "it took its leave"


@on_sqlite
def test_the_most_urgent_job_comes_before_the_one_that_woke_the_worker(store: JobStore, workers: Workers) -> None:
    woken, urgent = store.submit(asking(priority=1)).id, store.submit(asking(priority=8)).id
    other = store.submit(asking(queue="large")).id
    workers(stand_in("raise SystemExit(9)"), max_attempts=1).run(woken)
    first, second = (store.get(job_id).started_at for job_id in (urgent, woken))
    assert first is not None
    assert second is not None
    assert first < second
    workers(stand_in("raise SystemExit(9)"), max_attempts=1).run(other)
    assert store.get(other).status is JobStatus.QUEUED
    workers(stand_in("raise SystemExit(9)"), max_attempts=1, serves=Serves(("large",))).run(woken)
    assert store.get(other).status is JobStatus.FAILED


def test_the_memory_of_a_gpu_is_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "may_have_gpu", lambda: False)
    assert machine.gpu_memory_bytes() == 0
    monkeypatch.setattr(machine, "may_have_gpu", lambda: True)
    for says, known in (("print('loading'); print(5)", 5), ("raise SystemExit(1)", 0), ("", 0), ("print('none')", 0)):
        monkeypatch.setattr(machine, "SEE_GPU", (sys.executable, "-S", "-c", says))
        assert machine.gpu_memory_bytes() == known
