"""Which worker may take which job, what is said of a job that none may take, and who is woken."""

import time
from functools import partial

import pytest
from pydantic import ValidationError
from sqlalchemy import Engine, update

from jobs.broker import broker_queue, job_queue, make_announcer
from jobs.queues import PLAIN, Serves
from jobs.roster import Roster
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.sweeper import UNHEARD, sweep_once
from jobs.tables import Job
from tests.jobs.at_once import at_once
from tests.jobs.test_sweeper import rung_ids

LARGE = Serves(("large",), gpu_memory_gib=80)
LONG = 60.0


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    return shared_engine


@pytest.fixture
def roster(engine: Engine) -> Roster:
    return Roster(engine)


def asking(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"model": "local:tiny", "layers": 4, **fields})


def test_a_worker_takes_only_what_it_serves(store: JobStore) -> None:
    plain, large = store.submit(asking()).id, store.submit(asking(queue="large", min_gpu_memory_gib=40)).id
    take = partial(store.take, worker="w", lease_seconds=LONG)
    for serves in (PLAIN, Serves(("large",), 39.9), Serves(("default", "other"), 80), Serves((), 80)):
        assert take(large, serves=serves) is None
        assert store.next_queued(serves) == (plain if "default" in serves.queues else None)
    assert take(plain, serves=LARGE) is None
    assert store.next_queued(LARGE) == large
    assert take(large, serves=Serves(("default", "large"), 40)) is not None
    assert store.next_queued(LARGE) is None


def test_the_urgent_go_first_and_of_these_the_old(store: JobStore) -> None:
    order = [(priority, store.submit(asking(priority=priority)).id) for priority in (0, 5, 9, 5, 9)]
    wanted = [job_id for _, job_id in sorted(order, key=lambda job: (-job[0], job[1]))]
    for job_id in wanted:
        assert store.next_queued() == job_id
        lease = store.take(job_id, worker="w", lease_seconds=LONG)
        assert lease is not None
        store.hand_back(lease, reason="the worker stops")
        assert store.next_queued() == job_id, "its place is kept"
        assert store.take(job_id, worker="w", lease_seconds=LONG) is not None
    assert store.next_queued() is None


def test_a_job_that_no_live_worker_may_take_shows(store: JobStore, roster: Roster) -> None:
    job_id = store.submit(asking(queue="large", min_gpu_memory_gib=40)).id

    def unserved() -> bool:
        found = store.get(job_id)
        assert store.page().jobs == [found]
        assert store.overview().unserved["large"] == found.unserved
        return found.unserved

    assert unserved()
    roster.present("other", Serves(("default",), 80), seconds=LONG)
    roster.present("small", Serves(("large", "default"), 24), seconds=LONG)
    assert unserved()
    roster.present("big", LARGE, seconds=LONG)
    assert not unserved()
    assert store.overview().workers == {"default": 2, "large": 2}
    roster.present("big", LARGE, seconds=-1)
    assert unserved(), "its time is over"
    roster.present("big", LARGE, seconds=LONG)
    roster.absent("small")
    assert not unserved()
    roster.absent("big")
    assert unserved()
    assert store.take(job_id, worker="unlisted", lease_seconds=LONG, serves=LARGE) is not None
    assert not store.get(job_id).unserved, "it is at work"


def test_a_job_is_passed_on_to_an_idle_worker(store: JobStore, roster: Roster) -> None:
    job_id, other = (
        store.submit(asking(queue="large", min_gpu_memory_gib=40)).id,
        store.submit(asking(queue="large")).id,
    )
    due = partial(store.due_for_announcement, "large", after_seconds=LONG)
    roster.present("small", Serves(("large",), 24), seconds=LONG)
    store.pass_on(job_id)
    assert due() == []
    roster.present("big", LARGE, seconds=LONG)
    lease = store.take(other, worker="big", lease_seconds=LONG, serves=LARGE)
    assert lease is not None
    store.pass_on(job_id)
    assert due() == [], "a busy worker looks by itself"
    store.succeed(lease)
    store.pass_on(job_id)
    assert due() == [job_id]
    store.cancel(job_id)
    store.pass_on(job_id)
    assert due() == []


def test_what_is_announced_in_vain_hides_nothing(store: JobStore) -> None:
    jobs = [store.submit(asking()).id for _ in range(3)]
    store.submit(asking(queue="large"))
    assert store.queues_waiting() == ["default", "large"]
    for turn in range(6):
        assert store.due_for_announcement(after_seconds=-1, limit=1) == [jobs[turn % 3]]
        time.sleep(0.002)  # SQLite's clock counts milliseconds: three turns in one would have no order


def test_each_queue_is_announced_where_its_workers_hear(store: JobStore, settings: Settings) -> None:
    settings = settings.model_copy(update={"announce_after_seconds": -1.0})
    announcer = make_announcer(settings)
    for _ in range(UNHEARD):
        announcer.announce("unheard", "large")
    large, plain = store.submit(asking(queue="large")).id, store.submit(asking()).id
    sweep_once(store, announcer, settings)
    assert rung_ids(settings) == [plain], "a queue without workers holds up no other"
    assert rung_ids(settings, "large") == ["unheard"] * UNHEARD
    sweep_once(store, announcer, settings)
    assert rung_ids(settings, "large") == [large]


def test_workers_of_one_queue_share_its_jobs(store: JobStore) -> None:
    jobs = {store.submit(asking(queue="large")).id for _ in range(6)}

    def work(worker: str) -> list[str]:
        done = []
        while (job_id := store.next_queued(LARGE)) is not None:
            if store.take(job_id, worker=worker, lease_seconds=LONG, serves=LARGE) is not None:
                done.append(job_id)
        return done

    shares = at_once(*[partial(work, name) for name in "abc"])
    assert sorted(job_id for share in shares for job_id in share) == sorted(jobs)


def test_a_request_from_before_a_field_came_is_the_same_request(engine: Engine, store: JobStore) -> None:
    job = store.submit(asking(), idempotency_key="k")
    older = {name: value for name, value in job.request.items() if name not in ("queue", "priority")}
    with engine.begin() as connection:
        connection.execute(update(Job).values(request=older))
    assert store.submit(asking(), idempotency_key="k").id == job.id


@pytest.mark.parametrize(
    "wrong",
    [{"queue": name} for name in ("", "Large", "a.b", "a/b", "a\n", "é", "-a", "a" * 64, None)]
    + [{"priority": value} for value in (-1, 10, 1.5, None)]
    + [{"min_gpu_memory_gib": value} for value in (-1, float("nan"), float("inf"), 1e9, None)],
)
def test_what_is_no_queue_priority_or_memory_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as refused:
        asking(**wrong)
    assert [error["loc"] for error in refused.value.errors()] == [tuple(wrong)]


def test_names_go_to_the_broker_and_back() -> None:
    for name in ("default", "large", "flattengpt"):
        assert job_queue(broker_queue(name)) == name
    assert broker_queue("default") == "flattengpt", "what workers of earlier versions listen to"
