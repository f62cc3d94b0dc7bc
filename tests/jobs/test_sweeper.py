"""The sweeper and the doorbell: what is announced, and that nothing which fails keeps a job from being announced."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, text

from jobs.broker import TASK, broker_queue, make_announcer, make_celery
from jobs.queues import DEFAULT
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.sweeper import UNHEARD, sweep_once, sweep_until


@pytest.fixture(params=["folders", "redis"])
def broker_url(request: pytest.FixtureRequest) -> str:
    """Both kinds of broker; the empty URL is that of folders in the data folder."""
    url: str = request.getfixturevalue("redis_url") if request.param == "redis" else ""
    return url


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port of this machine that refuses every connection, and that nobody else can take."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def rung(settings: Settings, queue: str = DEFAULT) -> list[Any]:
    """The messages that wait in the broker, now taken out."""
    app, messages = make_celery(settings), []
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[broker_queue(queue)](connection.default_channel)
        queue.declare()
        while (message := queue.get(no_ack=True)) is not None:
            messages.append(message)
    return messages


def rung_ids(settings: Settings, queue: str = DEFAULT) -> list[str]:
    """The ids of the jobs that the waiting messages name, in order."""
    return [message.payload[0][0] for message in rung(settings, queue)]


def wait_for(true: Callable[[], object]) -> None:
    """Wait until it is so; fail after ten seconds."""
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextmanager
def sweeping(store: JobStore, announcer: Any, settings: Settings) -> Iterator[threading.Thread]:
    """A sweeper that runs meanwhile, stopped at the end."""
    stop = threading.Event()
    thread = threading.Thread(target=sweep_until, args=(stop, store, announcer, settings), daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(5)
    assert not thread.is_alive()


def test_an_announcement_is_one_message_of_the_id(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> None:
    settings = Settings(broker_url=broker_url, data_dir=tmp_path_factory.mktemp("data"))
    make_announcer(settings).announce("01JOB")
    (message,) = rung(settings)
    args, kwargs, embedded = message.payload
    assert (args, kwargs, message.content_type) == (["01JOB"], {}, "application/json")
    assert not any(embedded.values())
    assert (message.headers["task"], message.headers["argsrepr"]) == (TASK, "('01JOB',)")
    assert message.headers["expires"] is None, "by whose clock?"
    assert rung(settings) == []


def test_a_sweep_announces_what_is_due_and_once(store: JobStore, settings: Settings, spec: JobSpec) -> None:
    waiting, fresh, running = (store.submit(spec).id for _ in range(3))
    assert store.take(running, worker="w", lease_seconds=60) is not None
    store.ring_again(waiting)
    for _ in range(2):
        sweep_once(store, make_announcer(settings), settings)
    assert rung_ids(settings) == [waiting]
    assert store.get(fresh).status is JobStatus.QUEUED


def test_a_sweep_announces_the_jobs_of_silent_workers(store: JobStore, settings: Settings, spec: JobSpec) -> None:
    job_id, settings = store.submit(spec).id, settings.model_copy(update={"max_losses": 3})
    for attempt in (1, 2):
        store.take(job_id, worker="w", lease_seconds=-1)
        with structlog.testing.capture_logs() as logs:
            sweep_once(store, make_announcer(settings), settings)
        assert [(line["event"], line["job_id"], line["attempt"]) for line in logs] == [
            ("lease expired", job_id, attempt)
        ]
        assert rung_ids(settings) == [job_id], attempt
    store.take(job_id, worker="w", lease_seconds=-1)
    sweep_once(store, make_announcer(settings), settings)
    assert rung_ids(settings) == []
    assert store.get(job_id).status is JobStatus.FAILED


def test_a_message_of_folders_is_never_read_before_it_is_written(tmp_path: Path) -> None:
    settings, read = Settings(broker_url="", data_dir=tmp_path), []
    with ThreadPoolExecutor(2) as pool:
        announcer = make_announcer(settings)
        writing = [pool.submit(announcer.announce, f"job {number}") for number in range(300)]
        while not all(one.done() for one in writing):
            read += rung_ids(settings)
    read += rung_ids(settings)
    assert sorted(read) == sorted(f"job {number}" for number in range(300))


def test_nothing_but_messages_is_kept_in_folders(tmp_path: Path) -> None:
    """Kombu's own file of bindings, left empty by a process that was killed, stopped every worker after it."""
    left = tmp_path / "broker" / "control" / "flattengpt.exchange"
    left.parent.mkdir(parents=True)
    left.touch()
    settings = Settings(broker_url="", data_dir=tmp_path)
    make_announcer(settings).announce("01JOB")
    files = [file for file in (tmp_path / "broker").rglob("*") if file.is_file() and file != left]
    assert [file.parent.name for file in files] == ["messages"]
    assert rung_ids(settings) == ["01JOB"]


def test_what_no_worker_hears_does_not_pile_up(
    store: JobStore, settings: Settings, broker_url: str, spec: JobSpec
) -> None:
    settings = settings.model_copy(update={"broker_url": broker_url, "announce_after_seconds": -1})
    for _ in range(UNHEARD + 20):
        store.submit(spec)
    announcer = make_announcer(settings)
    assert announcer.waiting() == 0
    for _ in range(15):
        sweep_once(store, announcer, settings)
    assert announcer.waiting() == UNHEARD
    assert len(rung(settings)) == UNHEARD
    sweep_once(store, announcer, settings)
    assert announcer.waiting() == 10


def test_a_broker_that_is_down_costs_no_job(
    store: JobStore, settings: Settings, spec: JobSpec, silent_port: int
) -> None:
    down = settings.model_copy(
        update={"broker_url": f"redis://127.0.0.1:{silent_port}/0", "announce_after_seconds": 0.1}
    )
    job_id = store.submit(spec).id
    store.ring_again(job_id)
    started = time.monotonic()
    with structlog.testing.capture_logs() as logs:
        sweep_once(store, make_announcer(down), down)
    assert time.monotonic() - started < 5
    assert [(line["event"], line["job_id"]) for line in logs] == [("announcement failed", job_id)]
    assert store.get(job_id).status is JobStatus.QUEUED
    time.sleep(0.2)
    sweep_once(store, make_announcer(settings), down)
    assert rung_ids(settings) == [job_id]


def test_a_broker_that_answers_is_ready(tmp_path_factory: pytest.TempPathFactory, broker_url: str) -> None:
    make_announcer(Settings(broker_url=broker_url, data_dir=tmp_path_factory.mktemp("data"))).ping()


def test_a_broker_that_is_down_is_not_ready(silent_port: int) -> None:
    announcer = make_announcer(Settings(broker_url=f"redis://127.0.0.1:{silent_port}/0"))
    with pytest.raises(Exception, match="refused"):
        announcer.ping()


def test_sweeping_goes_on_after_a_database_that_failed(
    engine: Engine, store: JobStore, settings: Settings, spec: JobSpec
) -> None:
    settings = settings.model_copy(update={"sweep_seconds": 0.02})
    job_id = store.submit(spec).id
    store.ring_again(job_id)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE job RENAME TO away"))
    with (
        structlog.testing.capture_logs() as logs,
        sweeping(store, make_announcer(settings), settings) as thread,
    ):
        wait_for(lambda: len(logs) >= 2)
        assert {line["event"] for line in logs} == {"sweep failed"}
        assert not any("exc_info" in line for line in logs)  # a database that restarts fills no log with tracebacks
        assert thread.is_alive()
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO job"))
        wait_for(lambda: job_id in rung_ids(settings))


def test_sweeping_goes_on_after_an_announcer_that_breaks_its_word(
    store: JobStore, settings: Settings, spec: JobSpec
) -> None:
    class Rude:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def waiting(self, queue: str) -> int:
            return 0

        def announce(self, job_id: str, queue: str) -> None:
            self.asked.append(job_id)
            raise RuntimeError("an announcer must not raise")

    settings = settings.model_copy(update={"sweep_seconds": 0.02, "announce_after_seconds": 0.05})
    job_id, rude = store.submit(spec).id, Rude()
    with structlog.testing.capture_logs(), sweeping(store, rude, settings):
        wait_for(lambda: len(rude.asked) >= 3)
    assert set(rude.asked) == {job_id}


def test_a_sweeper_stops_when_told(store: JobStore, settings: Settings) -> None:
    started = time.monotonic()
    with sweeping(store, make_announcer(settings), settings.model_copy(update={"sweep_seconds": 60.0})):
        time.sleep(0.05)
    assert time.monotonic() - started < 5
