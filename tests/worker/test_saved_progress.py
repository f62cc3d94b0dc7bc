"""When a run saves what it has finished, and what becomes of a save that fails or hangs."""

import threading
import time
from collections.abc import Callable

import pytest

from jobs.records import Lease
from jobs.store import JobStore
from tests.worker.conftest import on_sqlite
from worker.reporter import Reporter, StopRequested
from worker.saved_progress import SavedProgress

pytestmark = on_sqlite


class Saves:
    """Counts the calls of a save that does what it is told."""

    def __init__(self, do: Callable[[], object] = lambda: None) -> None:
        self.calls, self._do = 0, do

    def __call__(self) -> bool:
        self.calls += 1
        self._do()
        return True


@pytest.fixture
def lease(store: JobStore, queued: str) -> Lease:
    lease = store.take(queued, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def progress(
    store: JobStore, lease: Lease, save: Saves, *, stop: threading.Event | None = None, interval: float = 0
) -> SavedProgress:
    reporter = Reporter(store, lease, (stop or threading.Event()).is_set)
    return SavedProgress(reporter, save, interval_seconds=interval, patience_seconds=0.3)


def test_it_saves_between_stages_and_when_it_is_time(store: JobStore, lease: Lease) -> None:
    often, seldom = Saves(), Saves()
    for save, interval in ((often, 0), (seldom, 1000)):
        run = progress(store, lease, save, interval=interval)
        run.stage("compressing")
        run.step(1, 3)
        run.event("note")
        run.step(2, 3)
    assert (often.calls, seldom.calls) == (3, 1)


def test_a_stop_between_two_steps_saves_once_more(store: JobStore, lease: Lease) -> None:
    stop, save = threading.Event(), Saves()
    run = progress(store, lease, save, stop=stop, interval=1000)
    stop.set()
    with pytest.raises(StopRequested):
        run.step(1, 3)
    assert save.calls == 1


def test_a_stop_waits_no_longer_than_it_may(store: JobStore, lease: Lease) -> None:
    stop, hangs = threading.Event(), threading.Event()
    run = progress(store, lease, Saves(lambda: hangs.wait(30)), stop=stop, interval=1000)
    stop.set()
    began = time.monotonic()
    with pytest.raises(StopRequested):
        run.step(1, 3)
    assert time.monotonic() - began < 5
    hangs.set()


def test_a_stop_leaves_a_save_under_way_behind(store: JobStore, lease: Lease) -> None:
    stop, hangs = threading.Event(), threading.Event()
    run = progress(store, lease, Saves(lambda: (stop.set(), hangs.wait(30))), stop=stop)
    with pytest.raises(StopRequested):
        run.stage("compressing")
    hangs.set()


def test_a_save_that_fails_stops_nothing(store: JobStore, lease: Lease) -> None:
    def fail() -> None:
        raise OSError("away")

    save = Saves(fail)
    run = progress(store, lease, save)
    run.stage("compressing")
    run.step(1, 3)
    assert save.calls == 2
    assert store.get(lease.job_id).stage == "compressing"
