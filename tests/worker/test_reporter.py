"""Progress as it reaches the job's row: forward only, seldom enough, and the place where a run stops."""

from pathlib import Path

import pytest

from jobs.database import make_engine
from jobs.errors import LeaseLost
from jobs.records import Lease
from jobs.states import STAGES
from jobs.store import JobStore
from worker.reporter import WEIGHTS, Reporter, StopRequested


@pytest.fixture
def lease(store: JobStore, queued: str) -> Lease:
    """A job that is being worked on."""
    lease = store.take(queued, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def reporter(store: JobStore, lease: Lease, *, stopping: bool = False, interval_seconds: float = 0) -> Reporter:
    return Reporter(store, lease, lambda: stopping, interval_seconds=interval_seconds)


def written(store: JobStore, lease: Lease) -> list[float]:
    """Each progress that was recorded."""
    return [event.data["progress"] for event in store.events(lease.job_id) if event.type == "progress"]


@pytest.mark.parametrize("stages", [STAGES, ("loading", "calibrating", "compressing", "evaluating")])
def test_progress_goes_from_0_to_1_over_all_stages(store: JobStore, lease: Lease, stages: tuple[str, ...]) -> None:
    report = reporter(store, lease)
    seen = [store.get(lease.job_id).progress]
    for stage in stages:
        report.stage(stage)
        seen.append(store.get(lease.job_id).progress)
        assert store.get(lease.job_id).stage == stage
        for done in range(1, 4):
            report.step(done, 3)
            seen.append(store.get(lease.job_id).progress)
    assert seen == sorted(seen)
    assert seen[0] == 0
    assert seen[-1] == pytest.approx(sum(WEIGHTS[stage] for stage in STAGES[: STAGES.index(stages[-1]) + 1]))
    assert written(store, lease) == sorted(written(store, lease))


def test_a_second_attempt_does_not_take_progress_back(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease)
    report.stage("compressing")
    report.step(3, 4)
    reached = store.get(lease.job_id).progress
    store.hand_back(lease, reason="test")
    again = store.take(lease.job_id, worker="w", lease_seconds=60)
    assert again is not None
    report = reporter(store, again)
    report.stage("loading")
    report.step(1, 1)
    assert store.get(lease.job_id).progress == reached
    assert store.get(lease.job_id).stage == "loading"


def test_a_stage_of_no_steps(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease)
    report.stage("loading")
    report.step(0, 0)
    assert store.get(lease.job_id).progress == 0


def test_steps_are_written_seldom_but_the_last_always(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease, interval_seconds=3600)
    report.stage("compressing")
    for done in range(1, 1001):
        report.step(done, 1000)
    assert written(store, lease) == [0.6]
    assert [event.data["done"] for event in store.events(lease.job_id) if event.type == "progress"] == [1000]


def test_events_are_written_at_once(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease, interval_seconds=3600)
    report.stage("recovering")
    report.event("loss", step=1, loss=2.5)
    last = store.events(lease.job_id)[-1]
    assert (last.type, last.data, last.attempt) == ("loss", {"step": 1, "loss": 2.5}, 1)


def test_every_call_is_a_place_to_stop(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease, stopping=True, interval_seconds=3600)
    before = store.events(lease.job_id)
    for call in (
        lambda: report.stage("loading"),
        lambda: report.step(1, 2),
        lambda: report.event("loss"),
        report.check,
    ):
        with pytest.raises(StopRequested):
            call()
    assert store.events(lease.job_id) == before


def test_a_cancelled_job_stops_at_the_next_write(store: JobStore, lease: Lease) -> None:
    report = reporter(store, lease)
    report.stage("compressing")
    store.cancel(lease.job_id)
    for call in (
        lambda: report.stage("loading"),
        lambda: report.step(1, 2),
        lambda: report.event("loss"),
        report.check,
    ):
        with pytest.raises(StopRequested):
            call()


def test_a_look_sees_that_the_job_is_to_be_cancelled_and_writes_nothing(
    store: JobStore, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.reporter.LOOK_SECONDS", 60.0)
    report = reporter(store, lease)
    report.look()
    store.cancel(lease.job_id)
    before = store.events(lease.job_id)
    report.look()  # too soon to ask the database again
    with pytest.raises(StopRequested):
        reporter(store, lease).look()
    assert store.events(lease.job_id) == before


def test_a_look_sees_that_another_attempt_owns_the_job(store: JobStore, lease: Lease) -> None:
    store.hand_back(lease, reason="test")
    with pytest.raises(LeaseLost):
        reporter(store, lease).look()


def test_a_look_bears_with_a_database_that_is_away(lease: Lease, tmp_path: Path) -> None:
    away = JobStore(make_engine(f"sqlite:///{tmp_path / 'empty.db'}"))
    reporter(away, lease).look()
    with pytest.raises(StopRequested):
        reporter(away, lease, stopping=True).look()


def test_a_late_attempt_writes_nothing(store: JobStore, lease: Lease) -> None:
    store.hand_back(lease, reason="test")
    report = reporter(store, lease)
    before = store.events(lease.job_id)
    for call in (
        lambda: report.stage("publishing"),
        lambda: report.step(1, 2),
        lambda: report.event("loss"),
        report.check,
    ):
        with pytest.raises(LeaseLost):
            call()
    assert store.events(lease.job_id) == before
    assert store.get(lease.job_id).progress == 0
