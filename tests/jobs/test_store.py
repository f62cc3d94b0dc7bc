"""The life of a job in both databases: what is written, who may write, and what no race can break."""

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Engine, Row, event, select, text, update
from sqlalchemy.exc import OperationalError

from jobs.clock import now_plus
from jobs.errors import Conflict, IdempotencyMismatch, JobNotFound, LeaseLost, QueueFull, QuotaExceeded, TooManyJobs
from jobs.records import Event, JobRecord, Lease
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.tables import Job, JobEvent
from tests.jobs.at_once import at_once

LONG, OVER = 60, -1
"""Seconds of a lease that outlives the test, and of one that has run out."""

ODD_IDS = ["a\0b", "", "../x", "a/b", "a b", "'; DROP TABLE job; --", "é", "\ud800", "0" * 26, "a" * 10_000]

WRITES: dict[str, Callable[[JobStore, Lease], Any]] = {
    "heartbeat": lambda store, lease: store.heartbeat(lease, lease_seconds=LONG),
    "record": lambda store, lease: store.record(
        lease, stage="evaluating", progress=0.9, events=[Event("note", {"of": "a stale attempt"})]
    ),
    "record nothing": lambda store, lease: store.record(lease),
    "store_result": lambda store, lease: store.store_result(lease, metrics={"x": 1}, artifacts=[{"path": "x"}]),
    "succeed": lambda store, lease: store.succeed(lease, published_url="https://example.org"),
    "fail": lambda store, lease: store.fail(lease, {"code": "stale"}),
    "fail_unless_cancelling": lambda store, lease: store.fail_unless_cancelling(lease, {"code": "stale"}),
    "cancelled": lambda store, lease: store.cancelled(lease),
    "hand_back": lambda store, lease: store.hand_back(lease, reason="stale"),
    "died": lambda store, lease: store.died(lease, reason="stale", max_attempts=1),
}
"""Everything that an attempt can write."""

ENDS: dict[str, Callable[[JobStore, Lease], Any]] = {
    "succeeded": lambda store, lease: store.succeed(lease),
    "failed": lambda store, lease: store.fail(lease, {"code": "broken"}),
    "cancelled": lambda store, lease: (store.cancel(lease.job_id), store.cancelled(lease)),
}


@pytest.fixture
def engine(shared_engine: Engine) -> Engine:
    return shared_engine


def taken(store: JobStore, job_id: str, *, lease_seconds: float = LONG) -> Lease:
    """The lease of a worker that takes the job, which must be queued."""
    lease = store.take(job_id, worker="worker-1", lease_seconds=lease_seconds)
    assert lease is not None
    return lease


def running(store: JobStore, spec: JobSpec, *, lease_seconds: float = LONG) -> Lease:
    """The lease of a worker that took a new job."""
    return taken(store, store.submit(spec).id, lease_seconds=lease_seconds)


def submitted(store: JobStore, spec: JobSpec, count: int) -> list[str]:
    """The ids of new jobs, oldest first: within one millisecond that is the order of their ids, not of the calls."""
    return sorted(store.submit(spec).id for _ in range(count))


def types(store: JobStore, job_id: str) -> list[str]:
    """The types of the job's events."""
    return [event.type for event in store.events(job_id)]


def everything(engine: Engine) -> tuple[list[Row[Any]], list[Row[Any]]]:
    """All that the database holds."""
    with engine.connect() as connection:
        jobs = connection.execute(select(Job.__table__).order_by(Job.id)).all()
        events = connection.execute(select(JobEvent.__table__).order_by(JobEvent.job_id, JobEvent.seq)).all()
    return list(jobs), list(events)


# Submitting


def test_a_new_job_is_queued_with_its_first_event(store: JobStore) -> None:
    spec = JobSpec(model="org/name", sparsity=0.2, labels={"team": "search"})
    job = store.submit(spec, commit="abc123")
    assert (job.status, job.stage, job.progress, job.attempt) == (JobStatus.QUEUED, None, 0, 0)
    assert (job.request, job.commit, job.labels) == (spec.as_request(), "abc123", {"team": "search"})
    assert (job.metrics, job.artifacts, job.error, job.started_at, job.finished_at) == (None, [], None, None, None)
    assert store.get(job.id) == job
    (first,) = store.events(job.id)
    assert (first.job_id, first.seq, first.attempt, first.type, first.data) == (job.id, 1, 0, "queued", {})


def test_job_and_first_event_are_one_transaction(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    """The submission fails between its two halves."""

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO job_event"):
            raise ConnectionError("the database went away")

    with pytest.raises(ConnectionError):
        store.submit(spec)
    assert everything(engine) == ([], [])


# Idempotency keys


def test_the_same_key_and_body_give_the_same_job(engine: Engine, store: JobStore) -> None:
    spec = JobSpec(model="org/name", sparsity=0.1 + 0.2, labels={"b": "é", "a": ""})
    job = store.submit(spec, idempotency_key="k")
    running_now = taken(store, job.id)
    again = store.submit(JobSpec.model_validate(spec.as_request()), idempotency_key="k")
    assert (again.id, again.status, again.attempt) == (job.id, JobStatus.RUNNING, running_now.attempt)
    assert len(everything(engine)[0]) == 1


def test_the_same_key_with_another_body_is_refused(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    store.submit(spec, idempotency_key="k")
    with pytest.raises(IdempotencyMismatch) as refusal:
        store.submit(JobSpec(model="local:tiny", layers=5), idempotency_key="k")
    assert refusal.value.as_dict()["field"] == "Idempotency-Key"
    assert len(everything(engine)[0]) == 1


def test_a_key_leads_to_its_job_for_a_time_only(engine: Engine, spec: JobSpec) -> None:
    store = JobStore(engine, idempotency_seconds=60)
    first = store.submit(spec, idempotency_key="k")
    with engine.begin() as connection:
        connection.execute(update(Job).values(created_at=now_plus(-59)))
    assert store.submit(spec, idempotency_key="k").id == first.id
    with engine.begin() as connection:
        connection.execute(update(Job).values(created_at=now_plus(-61)))
    second = store.submit(JobSpec(model="local:tiny", layers=5), idempotency_key="k")
    assert second.id != first.id
    assert store.submit(JobSpec(model="local:tiny", layers=5), idempotency_key="k").id == second.id
    assert {job.id for job in store.page().jobs} == {first.id, second.id}


def test_other_keys_and_no_key_make_new_jobs(store: JobStore, spec: JobSpec) -> None:
    keys = ["k", "K", None, None]
    assert len({store.submit(spec, idempotency_key=key).id for key in keys}) == len(keys)


def test_one_key_used_at_once_makes_one_job(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    for key in map(str, range(5)):
        jobs = at_once(*[partial(store.submit, spec, idempotency_key=key)] * 4)
        assert len({job.id for job in jobs}) == 1
    assert len(everything(engine)[0]) == 5


def test_one_key_used_at_once_for_two_bodies_refuses_one(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    def submit(spec: JobSpec, key: str) -> JobRecord | IdempotencyMismatch:
        try:
            return store.submit(spec, idempotency_key=key)
        except IdempotencyMismatch as refusal:
            return refusal

    other = JobSpec(model="local:tiny", layers=5)
    for key in map(str, range(5)):
        replies = at_once(partial(submit, spec, key), partial(submit, other, key))
        assert sorted(type(reply).__name__ for reply in replies) == ["IdempotencyMismatch", "JobRecord"]
    assert len(everything(engine)[0]) == 5


# Owners


def test_a_client_meets_no_job_but_its_own(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    mine, theirs = store.of("me"), store.of("them")
    other, nobodys, ended = theirs.submit(spec), store.submit(spec), theirs.submit(spec)
    theirs.cancel(ended.id)
    before = everything(engine)
    calls = (mine.get, mine.cancel, mine.retry, mine.delete)
    for job_id in (other.id, nobodys.id, ended.id):
        for call in calls:
            with pytest.raises(JobNotFound) as refusal:
                call(job_id)
            assert refusal.value.message == f"There is no job {job_id!r}.", "as for one that never was"
        assert mine.events(job_id) == []
    assert mine.page().jobs == []
    assert everything(engine) == before
    job = mine.submit(spec)
    assert mine.page().jobs == [mine.get(job.id)] == [job]
    assert [event.type for event in mine.events(job.id)] == ["queued"]
    assert mine.cancel(job.id).status is JobStatus.CANCELLED
    assert [found.id for found in mine.page(status=JobStatus.QUEUED).jobs] == []
    again = mine.retry(job.id)
    assert {found.id for found in mine.page().jobs} == {job.id, again.id}
    mine.delete(job.id)
    assert mine.page().jobs == [again]


def test_a_client_that_sees_all_makes_jobs_of_its_own(store: JobStore, spec: JobSpec) -> None:
    admin, theirs = store.of("admin", sees_all=True), store.of("them")
    other, nobodys = theirs.submit(spec), store.submit(spec)
    job = admin.submit(spec)
    ids = {job.id, other.id, nobodys.id}
    assert {found.id for found in admin.page().jobs} == {found.id for found in store.page().jobs} == ids
    assert admin.cancel(other.id) == theirs.get(other.id)
    retried = admin.retry(other.id)
    admin.delete(other.id)
    assert theirs.page().jobs == []
    assert {found.id for found in store.of("admin").page().jobs} == {job.id, retried.id}


def test_workers_take_the_jobs_of_every_owner(store: JobStore, spec: JobSpec) -> None:
    ids = [store.of("me").submit(spec).id, store.submit(spec).id]
    for job_id in ids:
        store.succeed(taken(store, job_id))
    assert store.of("me").get(ids[0]).status is JobStatus.SUCCEEDED


def test_an_idempotency_key_is_its_owners(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    stores = [store, store.of("me"), store.of("them"), store.of("admin", sees_all=True)]
    jobs = [client.submit(spec, idempotency_key="k") for client in stores]
    assert len({job.id for job in jobs}) == len(stores)
    assert [client.submit(spec, idempotency_key="k") for client in stores] == jobs
    with pytest.raises(IdempotencyMismatch):
        store.of("me").submit(JobSpec(model="local:tiny", layers=5), idempotency_key="k")
    for client in (store, store.of("you")):
        at = at_once(*[partial(client.submit, spec, idempotency_key="at once")] * 4)
        assert len({job.id for job in at}) == 1
    assert len(everything(engine)[0]) == len(stores) + 2


# Limits


def test_a_full_queue_takes_no_more(engine: Engine, spec: JobSpec) -> None:
    store = JobStore(engine, max_queued=2)
    first, second = store.submit(spec), store.of("me").submit(spec)
    for client in (store, store.of("me"), store.of("admin", sees_all=True)):
        before = everything(engine)
        with pytest.raises(QueueFull, match="2 jobs are queued"):
            client.submit(spec)
        assert everything(engine) == before
    lease = taken(store, first.id)
    third = store.submit(spec)
    store.hand_back(lease, reason="the worker stops")  # three are queued now: what was taken stays taken
    store.cancel(second.id)
    with pytest.raises(QueueFull):
        store.of("me").retry(second.id)
    store.cancel(third.id)
    assert store.of("me").retry(second.id).retry_of == second.id


def test_a_key_has_no_more_jobs_than_it_may(engine: Engine, spec: JobSpec) -> None:
    store = JobStore(engine, max_per_owner=2)
    mine = store.of("me")
    running_one, queued = mine.submit(spec), mine.submit(spec)
    lease = taken(store, running_one.id)
    mine.cancel(running_one.id)
    for client in (mine, store.of("me", sees_all=True)):
        with pytest.raises(QuotaExceeded, match="2 jobs of this key"):
            client.submit(spec)
    store.of("them").submit(spec)
    for _ in range(3):
        store.submit(spec)  # nobody's
    store.cancelled(lease)
    mine.retry(running_one.id)
    with pytest.raises(QuotaExceeded):
        mine.retry(running_one.id)
    mine.cancel(queued.id)
    mine.submit(spec)


def test_a_known_key_is_never_refused(engine: Engine, spec: JobSpec) -> None:
    for limit in ("max_queued", "max_per_owner"):
        store = JobStore(engine, **{limit: 2}).of(limit)
        known = store.submit(spec, idempotency_key="k")
        store.submit(spec)
        with pytest.raises(TooManyJobs):
            store.submit(spec, idempotency_key="new")
        assert store.submit(spec, idempotency_key="k") == known
        for job in store.page().jobs:
            store.cancel(job.id)


def test_a_key_that_becomes_known_meanwhile_is_not_refused(engine: Engine, spec: JobSpec) -> None:
    """All look for the key before the first has stored it, and the first one's job is what fills the queue."""
    store = JobStore(engine, max_queued=1)
    for key in map(str, range(5)):
        jobs = at_once(*[partial(store.submit, spec, idempotency_key=key)] * 4)
        assert len({job.id for job in jobs}) == 1
        store.cancel(jobs[0].id)


def test_requests_at_once_overshoot_by_no_more_than_there_are(engine: Engine, spec: JobSpec) -> None:
    store = JobStore(engine, max_queued=3)

    def submit() -> bool:
        try:
            return bool(store.submit(spec))
        except QueueFull:
            return False

    for _ in range(3):
        at_once(*[submit] * 4)
    count = len(store.page().jobs)
    assert 3 <= count <= (3 if engine.dialect.name == "sqlite" else 3 + 4)
    assert not submit()


def test_limits_are_looked_up_in_indexes(engine: Engine, spec: JobSpec) -> None:
    """With a million jobs each submission would take a second otherwise."""
    asked: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if "LIMIT" in statement and "job.status" in statement:
            asked.append((statement, parameters))

    JobStore(engine, max_queued=2, max_per_owner=2).of("me").submit(spec)
    queries = tuple(asked)
    explain = "EXPLAIN QUERY PLAN" if engine.dialect.name == "sqlite" else "EXPLAIN"
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")  # which a table of one row is too small not to have
        for index, (statement, parameters) in zip(("ix_job_status_id", "ix_job_owner_status"), queries, strict=True):
            plan = connection.exec_driver_sql(f"{explain} {statement}", parameters).all()
            assert index in str(plan)


# Looking


def test_an_odd_id_is_an_unknown_one(store: JobStore, spec: JobSpec) -> None:
    store.submit(spec)
    for job_id in ODD_IDS:
        with pytest.raises(JobNotFound):
            store.get(job_id)
        with pytest.raises(JobNotFound):
            store.cancel(job_id)


def test_pages_are_newest_first_and_without_a_gap(store: JobStore, spec: JobSpec) -> None:
    ids = submitted(store, spec, 5)
    first = store.page(limit=2)
    second = store.page(limit=2, before=first.next_cursor)
    third = store.page(limit=2, before=second.next_cursor)
    assert [job.id for page in (first, second, third) for job in page.jobs] == ids[::-1]
    assert [page.next_cursor is None for page in (first, second, third)] == [False, False, True]
    assert store.page(limit=5).next_cursor is None
    assert store.page().jobs == [store.get(job_id) for job_id in ids[::-1]]


def test_pages_stay_stable_while_jobs_come_in(store: JobStore, spec: JobSpec) -> None:
    ids, seen, cursor, more = submitted(store, spec, 6), [], None, True
    while more:
        page = store.page(limit=2, before=cursor)
        seen += [job.id for job in page.jobs]
        # An id sorts by its millisecond, so it may take another one for a newcomer to be newer.
        while store.submit(spec).id < ids[-1]:
            pass
        cursor, more = page.next_cursor, page.next_cursor is not None
    assert seen == ids[::-1]


def test_pages_are_filtered(store: JobStore) -> None:
    def submit(model: str, **labels: str) -> str:
        return store.submit(JobSpec(model=model, layers=4, labels=labels)).id

    plain, search = submit("org/a"), submit("org/a", team="search")
    ads, dotted = submit("org/b", team="ads"), submit("org/b", **{"a.b/c-d": "search", "0": "é 'x'"})
    lease = taken(store, ads)

    def found(**filters: Any) -> set[str]:
        return {job.id for job in store.page(**filters).jobs}

    assert found() == {plain, search, ads, dotted}
    assert found(model="org/a") == {plain, search}
    assert found(model="org/A") == found(model="org") == set()
    assert found(label=("team", "search")) == {search}
    assert found(label=("a.b/c-d", "search")) == found(label=("0", "é 'x'")) == {dotted}
    assert found(label=("team", "")) == found(label=("other", "search")) == set()
    assert found(status=JobStatus.RUNNING) == {ads}
    assert found(status=JobStatus.QUEUED, model="org/a", label=("team", "search")) == {search}
    assert found(status=JobStatus.QUEUED, label=("team", "ads")) == set()
    store.succeed(lease)
    assert found(status=JobStatus.SUCCEEDED, model="org/b") == {ads}


def test_pages_of_a_time_and_of_a_method(engine: Engine, store: JobStore) -> None:
    old, young = (store.submit(JobSpec(model="org/a", layers=4, method=method)).id for method in ("flattengpt", "fcm"))
    with engine.begin() as connection:
        connection.execute(update(Job).where(Job.id == old).values(created_at=now_plus(-3600)))
    then, now = store.get(old).created_at, store.get(young).created_at

    def found(**filters: Any) -> list[str]:
        return [job.id for job in store.page(**filters).jobs]

    between = then + timedelta(minutes=1)
    assert found(created_after=between) == found(created_after=then) == [young]
    assert found(created_before=between) == found(created_before=now) == [old]
    elsewhere = timezone(timedelta(hours=-7))
    assert found(created_after=between.astimezone(elsewhere), created_before=now) == []
    assert found(created_after=then - timedelta(seconds=1)) == [young, old]
    assert found(method="fcm") == found(method="fcm", created_after=between) == [young]
    assert found(method="sleb") == []


def test_events_are_read_from_any_point(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    store.record(lease, events=[Event("note", {"n": n, "text": "é"}) for n in range(3)])
    events = store.events(lease.job_id)
    assert [event.seq for event in events] == [1, 2, 3, 4, 5]
    assert events[2].data == {"n": 0, "text": "é"}
    assert store.events(lease.job_id, after=3) == events[3:]
    assert store.events(lease.job_id, after=1, limit=2) == events[1:3]
    assert store.events(lease.job_id, after=5) == store.events("0" * 26) == []


def test_readers_do_not_wait_for_a_writer(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    job = store.submit(spec)
    with engine.begin() as connection:
        connection.execute(update(Job).values(stage="loading"))
        assert store.get(job.id) == job
        assert store.page().jobs == [job]
        assert types(store, job.id) == ["queued"]
        assert store.next_queued() == job.id
        store.ping()


# Taking


def test_many_workers_and_one_lease(store: JobStore, spec: JobSpec) -> None:
    for _ in range(5):
        job_id = store.submit(spec).id
        leases = at_once(*[partial(store.take, job_id, worker=f"w{n}", lease_seconds=LONG) for n in range(8)])
        assert [lease for lease in leases if lease is not None] == [Lease(job_id, 1)]
        assert types(store, job_id) == ["queued", "started"]


def test_each_taking_is_a_new_attempt(store: JobStore, spec: JobSpec) -> None:
    job_id = store.submit(spec).id
    for attempt in (1, 2, 3):
        lease = taken(store, job_id)
        assert (lease, store.get(job_id).attempt) == (Lease(job_id, attempt), attempt)
        assert store.get(job_id).status is JobStatus.RUNNING
        started = store.events(job_id)[-1]
        assert (started.type, started.attempt, started.data) == ("started", attempt, {"attempt": attempt})
        store.hand_back(lease, reason="the worker stops")


def test_only_a_queued_job_can_be_taken(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    held, stopping, cancelled = running(store, spec), running(store, spec), store.submit(spec).id
    store.cancel(stopping.job_id)
    store.cancel(cancelled)
    ended = [running(store, spec) for _ in ENDS]
    for end, lease in zip(ENDS.values(), ended, strict=True):
        end(store, lease)
    before = everything(engine)
    for job_id in (held.job_id, stopping.job_id, cancelled, *(lease.job_id for lease in ended), "0" * 26, "nothing"):
        assert store.take(job_id, worker="late", lease_seconds=LONG) is None
    assert everything(engine) == before


def test_the_next_job_is_the_one_that_waited_longest(store: JobStore, spec: JobSpec) -> None:
    ids = submitted(store, spec, 3)
    for job_id in ids:
        assert store.next_queued() == job_id
        taken(store, job_id)
    assert store.next_queued() is None


# Writing


def test_a_heartbeat_extends_the_lease(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec, lease_seconds=OVER)
    assert store.heartbeat(lease, lease_seconds=LONG) is JobStatus.RUNNING
    assert store.release_expired(max_losses=3) == []
    store.heartbeat(lease, lease_seconds=OVER)
    assert store.release_expired(max_losses=3) == [lease]


@pytest.mark.parametrize("write", WRITES)
def test_a_stale_write_changes_nothing(engine: Engine, store: JobStore, spec: JobSpec, write: str) -> None:
    requeued, retaken, stopping, ended = [running(store, spec) for _ in range(4)]
    for lease in (requeued, retaken, stopping):
        store.hand_back(lease, reason="the worker stops")
    for lease in (retaken, stopping):
        taken(store, lease.job_id)
    store.cancel(stopping.job_id)
    store.succeed(ended)
    before = everything(engine)
    for lease in (requeued, retaken, stopping, ended, Lease(retaken.job_id, 3), Lease("0" * 26, 1)):
        with pytest.raises(LeaseLost):
            WRITES[write](store, lease)
    assert everything(engine) == before


def test_progress_never_goes_back(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)

    def after(progress: float | None) -> float:
        store.record(lease, progress=progress)
        return store.get(lease.job_id).progress

    assert [after(0.5), after(0.2), after(None), after(0.5)] == [0.5] * 4
    store.died(lease, reason="killed", max_attempts=3)
    assert store.get(lease.job_id).progress == 0.5
    lease = taken(store, lease.job_id)
    assert [after(0.0), after(0.4), after(0.75), after(0.6)] == [0.5, 0.5, 0.75, 0.75]


def test_a_record_changes_what_it_names_only(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    assert store.record(lease, stage="loading", progress=0.1) is JobStatus.RUNNING
    store.record(lease, events=[Event("note", {})])
    job = store.get(lease.job_id)
    assert (job.stage, job.progress) == ("loading", 0.1)
    store.record(lease, stage="calibrating")
    job = store.get(lease.job_id)
    assert (job.stage, job.progress) == ("calibrating", 0.1)


def test_events_are_numbered_without_gaps_by_many_writers(store: JobStore, spec: JobSpec) -> None:
    lease, other = running(store, spec), running(store, spec)

    def note(lease: Lease, who: int) -> None:
        for n in range(5):
            store.record(lease, events=[Event("note", {"who": who, "n": n}), Event("more", {"who": who})])

    writers = [partial(note, lease, 0), partial(note, lease, 1), partial(note, lease, 2), partial(note, other, 3)]
    at_once(*writers, lambda: store.cancel(lease.job_id) and None)
    events = store.events(lease.job_id)
    assert [event.seq for event in events] == list(range(1, 2 + 3 * 5 * 2 + 1 + 1))
    assert store.get(lease.job_id).last_event == events[-1].seq
    for who in range(3):
        assert [event.data["n"] for event in events if event.data.get("who") == who and event.type == "note"] == [
            *range(5)
        ]
    assert [event.seq for event in store.events(other.job_id)] == list(range(1, 13))


# Ending


def test_a_job_succeeds_with_its_stored_result(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    store.record(lease, stage="publishing", progress=0.9)
    metrics, artifacts = {"dense": {"layers": 6}}, [{"path": "config.json", "size": 2, "sha256": "00"}]
    store.store_result(lease, metrics=metrics, artifacts=artifacts)
    store.succeed(lease, published_url="https://example.org/org/name")
    job = store.get(lease.job_id)
    assert (job.status, job.stage, job.progress, job.error) == (JobStatus.SUCCEEDED, None, 1, None)
    assert (job.metrics, job.artifacts, job.published_url) == (metrics, artifacts, "https://example.org/org/name")
    assert types(store, job.id) == ["queued", "started", "stored", "succeeded"]
    assert store.events(job.id)[-1].data == {"published_url": "https://example.org/org/name"}


def test_a_failed_job_tells_stage_and_error(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    store.record(lease, stage="loading", progress=0.1)
    store.fail(lease, {"code": "broken", "detail": "é"})
    job = store.get(lease.job_id)
    assert (job.status, job.stage, job.progress) == (JobStatus.FAILED, "loading", 0.1)
    assert job.error == store.events(job.id)[-1].data["error"] == {"code": "broken", "detail": "é"}


def test_a_failure_that_a_cancel_wins_over(store: JobStore, spec: JobSpec) -> None:
    failed, cancelled = running(store, spec), running(store, spec)
    store.cancel(cancelled.job_id)
    assert store.fail_unless_cancelling(failed, {"code": "slow"}) is JobStatus.FAILED
    assert store.fail_unless_cancelling(cancelled, {"code": "slow"}) is JobStatus.CANCELLED
    assert (store.get(failed.job_id).status, store.get(failed.job_id).error) == (JobStatus.FAILED, {"code": "slow"})
    assert (store.get(cancelled.job_id).status, store.get(cancelled.job_id).error) == (JobStatus.CANCELLED, None)
    assert types(store, cancelled.job_id) == ["queued", "started", "cancelling", "cancelled"]


@pytest.mark.parametrize("end", ENDS)
def test_an_end_is_final(engine: Engine, store: JobStore, spec: JobSpec, end: str) -> None:
    lease = running(store, spec, lease_seconds=OVER)
    ENDS[end](store, lease)
    before, job = everything(engine), store.get(lease.job_id)
    assert (job.status.value, job.ended) == (end, True)
    for write in WRITES.values():
        with pytest.raises(LeaseLost):
            write(store, lease)
    assert store.take(job.id, worker="late", lease_seconds=LONG) is None
    assert store.next_queued() is None
    store.ring_again(job.id)
    assert store.release_expired(max_losses=1) == []
    assert store.due_for_announcement(after_seconds=OVER) == []
    if end == "cancelled":
        assert store.cancel(job.id) == job
    else:
        with pytest.raises(Conflict, match=f"already {end}"):
            store.cancel(job.id)
    assert everything(engine) == before


# Cancelling


def test_a_queued_job_is_cancelled_at_once(store: JobStore, spec: JobSpec) -> None:
    job = store.cancel(store.submit(spec).id)
    assert (job.status, job.started_at) == (JobStatus.CANCELLED, None)
    assert job.finished_at is not None
    assert types(store, job.id) == ["queued", "cancelled"]


def test_a_running_job_is_cancelled_by_its_worker(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    store.record(lease, stage="loading")
    job = store.cancel(lease.job_id)
    assert (job.status, job.finished_at, job.ended) == (JobStatus.CANCELLING, None, False)
    assert store.cancel(lease.job_id) == job
    assert store.heartbeat(lease, lease_seconds=LONG) is JobStatus.CANCELLING
    assert store.record(lease, progress=0.5) is JobStatus.CANCELLING
    store.cancelled(lease)
    job = store.get(lease.job_id)
    assert (job.status, job.stage, job.finished_at is None) == (JobStatus.CANCELLED, None, False)
    assert types(store, job.id) == ["queued", "started", "cancelling", "cancelled"]


def test_a_running_job_is_not_cancelled_unasked(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    before = everything(engine)
    with pytest.raises(LeaseLost):
        store.cancelled(lease)
    assert everything(engine) == before


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_a_cancel_after_the_last_step_loses(store: JobStore, spec: JobSpec, end: str) -> None:
    lease = running(store, spec)
    store.cancel(lease.job_id)
    ENDS[end](store, lease)
    assert store.get(lease.job_id).status.value == end


def test_cancels_at_once_are_one_cancel(store: JobStore, spec: JobSpec) -> None:
    queued, lease = store.submit(spec).id, running(store, spec)
    for job_id, status in ((queued, JobStatus.CANCELLED), (lease.job_id, JobStatus.CANCELLING)):
        jobs = at_once(*[partial(store.cancel, job_id)] * 4)
        assert {job.status for job in jobs} == {status}
        assert types(store, job_id).count(status.value) == 1


def test_a_cancel_that_meets_a_worker_is_never_forgotten(store: JobStore, spec: JobSpec) -> None:
    for _ in range(8):
        job_id = store.submit(spec).id
        take = partial(store.take, job_id, worker="w", lease_seconds=LONG)
        lease, _ = at_once(take, partial(store.cancel, job_id))
        expected = JobStatus.CANCELLED if lease is None else JobStatus.CANCELLING
        assert store.get(job_id).status is expected


# Deleting


def test_deletes_at_once_delete_once(store: JobStore, spec: JobSpec) -> None:
    def delete(job_id: str) -> str:
        try:
            store.delete(job_id)
        except JobNotFound:
            return "not found"
        return "deleted"

    for _ in range(5):
        job_id = store.submit(spec).id
        store.cancel(job_id)
        assert sorted(at_once(*[partial(delete, job_id)] * 4)) == ["deleted", *["not found"] * 3]


# Attempts that end without ending the job


def test_a_dead_attempt_queues_the_job_again(store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec)
    store.record(lease, stage="compressing")
    assert store.died(lease, reason="signal SIGKILL", max_attempts=3) is JobStatus.QUEUED
    job = store.get(lease.job_id)
    assert (job.status, job.stage, job.finished_at, job.error) == (JobStatus.QUEUED, None, None, None)
    died, queued = store.events(job.id)[-2:]
    assert (died.type, died.attempt, died.data) == ("died", 1, {"reason": "signal SIGKILL", "stage": "compressing"})
    assert queued.type == "queued"
    assert store.due_for_announcement(after_seconds=LONG) == [job.id]


def test_the_last_death_fails_the_job_with_every_reason(store: JobStore, spec: JobSpec) -> None:
    job_id = store.submit(spec).id
    lease = taken(store, job_id)
    store.record(lease, stage="compressing")
    assert store.died(lease, reason="signal SIGKILL", max_attempts=2, peak_memory_bytes=3 * 2**29) is JobStatus.QUEUED
    lease = taken(store, job_id, lease_seconds=OVER)
    assert store.release_expired(max_losses=3) == [lease]
    assert store.died(taken(store, job_id), reason="exit code 7", max_attempts=2) is JobStatus.FAILED
    job = store.get(job_id)
    assert job.error is not None
    assert (job.status, job.error["code"], job.finished_at is None) == (JobStatus.FAILED, "worker_lost", False)
    assert job.error["message"] == (
        "The job was given up. Attempt 1 in stage compressing: signal SIGKILL (peak memory 1.50 GiB); "
        "Attempt 2 before its first stage: worker worker-1 fell silent; "
        "Attempt 3 before its first stage: exit code 7."
    )
    assert store.events(job_id)[-1].data == {"error": job.error}
    assert types(store, job_id)[-2:] == ["died", "failed"]


def test_a_worker_that_falls_silent_counts_apart_and_up_to_a_limit_of_its_own(store: JobStore, spec: JobSpec) -> None:
    job_id = store.submit(spec).id
    for _ in range(3):
        lease = taken(store, job_id, lease_seconds=OVER)
        assert store.release_expired(max_losses=4) == [lease]
        assert store.get(job_id).status is JobStatus.QUEUED
    assert store.died(taken(store, job_id), reason="killed", max_attempts=2) is JobStatus.QUEUED
    taken(store, job_id, lease_seconds=OVER)
    store.release_expired(max_losses=4)
    job = store.get(job_id)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 5)
    assert job.error is not None
    assert job.error["message"].count("fell silent") == 4


def test_a_hand_back_does_not_count(store: JobStore, spec: JobSpec) -> None:
    job_id = store.submit(spec).id
    for _ in range(3):
        assert store.hand_back(taken(store, job_id), reason="the worker stops") is JobStatus.QUEUED
        assert store.due_for_announcement(after_seconds=LONG) == [job_id]
    assert types(store, job_id)[-2:] == ["handed_back", "queued"]
    assert store.died(taken(store, job_id), reason="killed", max_attempts=2) is JobStatus.QUEUED
    assert store.died(taken(store, job_id), reason="killed", max_attempts=2) is JobStatus.FAILED


def test_a_cancel_that_meets_a_hand_back_waits_for_it(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    """The hand-back has seen a running job when the cancel comes; between the two nobody would be left to cancel it."""
    lease, cancels = running(store, spec), []
    with ThreadPoolExecutor(1) as pool:

        @event.listens_for(engine, "after_cursor_execute")
        def cancel(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if statement.startswith("SELECT job.status, job.stage"):
                cancels.append(pool.submit(store.cancel, lease.job_id))
                wait(cancels, timeout=0.3)

        assert store.hand_back(lease, reason="the worker stops") is JobStatus.QUEUED
        assert [cancel.result().status for cancel in cancels] == [JobStatus.CANCELLED]


@pytest.mark.parametrize("how", ["hand_back", "died", "release_expired"])
def test_an_attempt_that_ends_while_cancelling_cancels_the_job(store: JobStore, spec: JobSpec, how: str) -> None:
    lease = running(store, spec, lease_seconds=OVER)
    store.cancel(lease.job_id)
    if how == "hand_back":
        assert store.hand_back(lease, reason="the worker stops") is JobStatus.CANCELLED
    elif how == "died":
        assert store.died(lease, reason="killed", max_attempts=1) is JobStatus.CANCELLED
    else:
        assert store.release_expired(max_losses=1) == [lease]
    job = store.get(lease.job_id)
    assert (job.status, job.error, job.finished_at is None) == (JobStatus.CANCELLED, None, False)


# Sweeping


def test_only_leases_that_ran_out_are_released(store: JobStore, spec: JobSpec) -> None:
    silent, alive, queued = running(store, spec, lease_seconds=OVER), running(store, spec), store.submit(spec).id
    handed_back = running(store, spec, lease_seconds=OVER)
    store.hand_back(handed_back, reason="the worker stops")
    assert store.release_expired(max_losses=3) == [silent]
    assert store.release_expired(max_losses=3) == []
    statuses = [store.get(job_id).status for job_id in (silent.job_id, alive.job_id, queued)]
    assert statuses == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.QUEUED]
    assert types(store, silent.job_id) == ["queued", "started", "lease_expired", "queued"]
    with pytest.raises(LeaseLost):
        store.heartbeat(silent, lease_seconds=LONG)


def test_sweepers_at_once_release_once(store: JobStore, spec: JobSpec) -> None:
    ids = sorted(running(store, spec, lease_seconds=OVER).job_id for _ in range(8))
    released = at_once(*[partial(store.release_expired, max_losses=3)] * 4)
    assert sorted(lease.job_id for found in released for lease in found) == ids
    assert all(types(store, job_id).count("lease_expired") == 1 for job_id in ids)


def test_a_heartbeat_that_comes_in_between_keeps_the_lease(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    """The sweeper has found the lease expired and waits for the row while a heartbeat is being written."""
    lease, found = running(store, spec, lease_seconds=OVER), threading.Event()

    @event.listens_for(engine, "after_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("SELECT job.id, job.attempt"):
            found.set()

    with ThreadPoolExecutor(1) as pool:
        with engine.begin() as connection:
            extend = update(Job).where(Job.id == lease.job_id).values(lease_expires_at=now_plus(LONG))
            connection.execute(extend)
            sweep = pool.submit(store.release_expired, max_losses=1)
            assert found.wait(10)
        assert sweep.result() == []
    assert store.get(lease.job_id).status is JobStatus.RUNNING


def test_announcements_are_due_oldest_first_and_once(store: JobStore, spec: JobSpec) -> None:
    ids = submitted(store, spec, 5)
    assert store.due_for_announcement(after_seconds=LONG) == []  # submitting announces
    for job_id in reversed(ids):
        store.ring_again(job_id)
    assert store.due_for_announcement(after_seconds=LONG, limit=2) == ids[:2]
    taken(store, ids[2])
    assert store.due_for_announcement(after_seconds=LONG, limit=10) == ids[3:]
    assert store.due_for_announcement(after_seconds=LONG, limit=10) == []
    assert store.due_for_announcement(after_seconds=OVER, limit=10) == [*ids[:2], *ids[3:]]


def test_sweepers_at_once_announce_once(store: JobStore, spec: JobSpec) -> None:
    ids = submitted(store, spec, 20)
    for _ in range(3):
        for job_id in ids:
            store.ring_again(job_id)
        found = at_once(*[partial(store.due_for_announcement, after_seconds=LONG, limit=20)] * 4)
        assert sorted(job_id for some in found for job_id in some) == ids


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_process_that_stops_in_mid_write_keeps_no_locks(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    lease = running(store, spec, lease_seconds=OVER)
    with engine.connect() as stopped:
        assert stopped.scalar(text("SHOW idle_in_transaction_session_timeout")) == "10s"
        stopped.rollback()
        stopped.execute(text("SET idle_in_transaction_session_timeout = '200ms'"))
        stopped.commit()
        write = update(Job).where(Job.id == lease.job_id).values(progress=0.5)
        stopped.execute(write)
        assert [released.job_id for released in store.release_expired(max_losses=3)] == [lease.job_id]
        with pytest.raises(OperationalError) as late:  # what is patient with a lost connection tries again
            stopped.execute(write)
        assert late.value.connection_invalidated
    assert store.get(lease.job_id).progress == 0


# Time


def test_the_clock_moves_on_within_a_transaction(engine: Engine) -> None:
    """So that a write that had to wait for its row dates from when it was made."""
    with engine.begin() as connection:
        first = connection.execute(select(now_plus())).scalar_one()
        time.sleep(0.01)
        assert connection.execute(select(now_plus())).scalar_one() > first


def test_the_times_of_a_life_are_in_order(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    def now() -> datetime:
        with engine.connect() as connection:
            return connection.execute(select(now_plus())).scalar_one()

    before = now()
    job_id = store.submit(spec).id
    store.died(taken(store, job_id), reason="killed", max_attempts=3)
    first_start = store.get(job_id).started_at
    store.succeed(taken(store, job_id))
    job, after = store.get(job_id), now()
    assert job.started_at is not None
    assert job.started_at == first_start
    assert job.finished_at is not None
    assert before <= job.created_at <= job.started_at <= job.finished_at <= after
    times = [event.created_at for event in store.events(job_id)]
    assert times == sorted(times)
    assert job.created_at <= times[0] <= times[-1]
    assert {moment.tzinfo for moment in (job.created_at, job.started_at, *times)} == {UTC}


def test_every_time_is_the_databases(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    """No statement of a whole life carries a time from this process."""
    sent: list[str] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, _statement: str, parameters: object, *_: object) -> None:
        sent.append(str(parameters))

    lease = running(store, spec, lease_seconds=OVER)
    store.heartbeat(lease, lease_seconds=OVER)
    store.release_expired(max_losses=3)
    store.due_for_announcement(after_seconds=LONG)
    lease = taken(store, lease.job_id)
    store.record(lease, stage="loading", progress=0.5, events=[Event("note", {})])
    store.cancel(lease.job_id)
    store.cancelled(lease)
    store.fail(running(store, spec), {})
    store.succeed(running(store, spec))
    store.cancel(store.submit(spec).id)
    assert len(sent) > 20
    assert [values for values in sent if re.search(r"datetime|\d{4}-\d\d-\d\d", values)] == []
