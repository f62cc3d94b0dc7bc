"""The life of jobs against a model of it: any order of requests, workers, messages and clocks, on both databases.

Messages are lost, late, repeated and reordered; leases of two workers go on being used after they are lost. After
each step the database must say what the model says, and each job's events must be a path through `TRANSITIONS`.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, delete, update

from jobs.clock import now_plus
from jobs.errors import Conflict, JobNotFound, LeaseLost
from jobs.queues import Serves
from jobs.records import Lease
from jobs.spec import JobSpec
from jobs.states import TERMINAL, TRANSITIONS, JobStatus
from jobs.store import JobStore
from jobs.tables import Job

MAX_DEATHS, MAX_LOSSES = 2, 3
FEW = 3
"""Jobs at once: with more, hardly anything happens to each."""

SPECS = {
    "plain": JobSpec(model="local:tiny", layers=4),
    "urgent": JobSpec(model="local:tiny", layers=4, priority=9),
    "large": JobSpec(model="local:tiny", layers=4, queue="large", min_gpu_memory_gib=40),
}
SERVES = {"one": Serves(("default", "large"), 40), "two": Serves(("default", "large"), 24)}
Q, R, C = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.CANCELLING


@dataclass
class Life:
    """A job as it should be."""

    spec: JobSpec
    status: JobStatus = Q
    attempt: int = 0
    deaths: int = 0
    losses: int = 0
    progress: float = 0.0
    expired: bool = False
    announced: bool = True
    events: list[str] = field(default_factory=lambda: ["queued"])

    def may_be_taken_by(self, worker: str) -> bool:
        serves = SERVES[worker]
        return self.spec.queue in serves.queues and self.spec.min_gpu_memory_gib <= serves.gpu_memory_gib

    def owned_by(self, lease: Lease) -> bool:
        return self.status in (R, C) and lease.attempt == self.attempt

    def become(self, status: JobStatus) -> None:
        assert status in TRANSITIONS[self.status], "the model itself breaks the table"
        self.status, self.expired = status, False
        self.events.append(status.value)

    def give_up(self, what: str, *, final: bool) -> JobStatus:
        self.events.append(what)
        self.become(JobStatus.CANCELLED if self.status is C else JobStatus.FAILED if final else Q)
        self.announced = False
        return self.status


class JobLife(RuleBasedStateMachine):
    """One database, its clients, two workers, a broker that keeps no promise, and a sweeper."""

    store: JobStore
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.lives: dict[str, Life] = {}

    jobs = Bundle("jobs")
    leases = Bundle("leases")

    @initialize()
    def empty(self) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(Job))

    # Clients

    @precondition(lambda self: len(self.lives) < FEW)
    @rule(target=jobs, kind=st.sampled_from(sorted(SPECS)), again=st.booleans())
    def submit(self, kind: str, again: bool) -> str:
        job = self.store.submit(SPECS[kind], idempotency_key=kind if again else None)
        self.lives.setdefault(job.id, Life(SPECS[kind]))
        return job.id

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        life = self.lives.get(job)
        if life is None or (life.status in TERMINAL and life.status is not JobStatus.CANCELLED):
            with pytest.raises(JobNotFound if life is None else Conflict):
                self.store.cancel(job)
            return
        if life.status is Q:
            life.become(JobStatus.CANCELLED)
        elif life.status is R:
            expired = life.expired
            life.become(C)
            life.expired = expired
        assert self.store.cancel(job).status is life.status

    @precondition(lambda self: len(self.lives) < FEW)
    @rule(target=jobs, job=jobs)
    def retry(self, job: str) -> Any:
        life = self.lives.get(job)
        if life is None or life.status not in (JobStatus.FAILED, JobStatus.CANCELLED):
            with pytest.raises(JobNotFound if life is None else Conflict):
                self.store.retry(job)
            return multiple()
        new = self.store.retry(job)
        assert (new.retry_of, new.id in self.lives) == (job, False)
        self.lives[new.id] = Life(life.spec)
        return new.id

    @rule(job=jobs)
    def remove(self, job: str) -> None:
        life = self.lives.get(job)
        if life is None or life.status not in TERMINAL:
            with pytest.raises(JobNotFound if life is None else Conflict):
                self.store.delete(job)
            return
        self.store.delete(job)
        del self.lives[job]

    # The broker

    @rule(target=leases, message=jobs)
    def deliver_to_one(self, message: str) -> Any:
        """A message is a job's id and worth nothing: it comes late, again, of a job that has ended, or never."""
        return self.deliver(message, "one")

    @rule(target=leases, message=jobs)
    def deliver_to_two(self, message: str) -> Any:
        return self.deliver(message, "two")

    def deliver(self, message: str, worker: str) -> Any:
        lease = self.store.take(message, worker=worker, lease_seconds=60, serves=SERVES[worker])
        life = self.lives.get(message)
        if life is None or life.status is not Q or not life.may_be_taken_by(worker):
            assert lease is None
            return multiple()
        life.become(R)
        life.events[-1] = "started"
        life.attempt += 1
        assert lease == Lease(message, life.attempt)
        return lease

    @rule(worker=st.sampled_from(sorted(SERVES)))
    def look_for_the_next(self, worker: str) -> None:
        mine = [
            (-life.spec.priority, job)
            for job, life in self.lives.items()
            if life.status is Q and life.may_be_taken_by(worker)
        ]
        assert self.store.next_queued(SERVES[worker]) == (min(mine)[1] if mine else None)

    # Workers, with leases that may be lost. Few rules, so that deliveries and sweeps come in between often enough.

    @rule(
        lease=leases,
        write=st.sampled_from(["heartbeat", "record", "store_result"]),
        progress=st.sampled_from([0.25, 0.5]),
    )
    def go_on(self, lease: Lease, write: str, progress: float) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "heartbeat": lambda: self.store.heartbeat(lease, lease_seconds=60),
            "record": lambda: self.store.record(lease, stage="compressing", progress=progress),
            "store_result": lambda: self.store.store_result(lease, metrics={}, artifacts=[]),
        }
        life = self.write(lease, calls[write])
        if life and write == "heartbeat":
            life.expired = False
        elif life and write == "record":
            life.progress = max(life.progress, progress)
        elif life:
            life.events.append("stored")

    @rule(
        lease=leases,
        end=st.sampled_from(["hand_back", "die", "hand_back", "die", "succeed", "fail", "overrun", "stop_as_asked"]),
    )
    def end(self, lease: Lease, end: str) -> None:
        calls: dict[str, Callable[[], Any]] = {
            "hand_back": lambda: self.store.hand_back(lease, reason="the worker stops"),
            "die": lambda: self.store.died(lease, reason="killed", max_attempts=MAX_DEATHS),
            "succeed": lambda: self.store.succeed(lease),
            "fail": lambda: self.store.fail(lease, {"code": "broken"}),
            "overrun": lambda: self.store.fail_unless_cancelling(lease, {"code": "run_too_long"}),
            "stop_as_asked": lambda: self.store.cancelled(lease),
        }
        life = self.write(lease, calls[end], when=lambda life: life.status is C or end != "stop_as_asked")
        match end if life else None:
            case "hand_back":
                life.give_up("handed_back", final=False)
            case "die":
                life.deaths += 1
                life.give_up("died", final=life.deaths >= MAX_DEATHS)
            case "succeed":
                life.become(JobStatus.SUCCEEDED)
                life.progress = 1.0
            case "fail":
                life.become(JobStatus.FAILED)
            case "overrun":
                life.become(JobStatus.CANCELLED if life.status is C else JobStatus.FAILED)
            case "stop_as_asked":
                life.become(JobStatus.CANCELLED)

    def write(
        self, lease: Lease, call: Callable[[], Any], *, when: Callable[[Life], bool] = lambda _: True
    ) -> Life | None:
        """The job's life if the attempt may do this; else the call must be refused."""
        life = self.lives.get(lease.job_id)
        if life is None or not life.owned_by(lease) or not when(life):
            with pytest.raises(LeaseLost):
                call()
            return None
        call()
        return life

    # Time, and the sweeper

    @rule(job=jobs)
    def fall_silent(self, job: str) -> None:
        """The lease runs out; its worker may well go on, and write."""
        life = self.lives.get(job)
        if life is not None and life.status in (R, C):
            life.expired = True
            with self.engine.begin() as connection:
                connection.execute(update(Job).where(Job.id == job).values(lease_expires_at=now_plus(-1)))

    @rule()
    def release(self) -> None:
        expired = {job for job, life in self.lives.items() if life.expired}
        assert {lease.job_id for lease in self.store.release_expired(max_losses=MAX_LOSSES)} == expired
        for job in expired:
            life = self.lives[job]
            life.losses += 1
            life.give_up("lease_expired", final=life.losses >= MAX_LOSSES)

    @rule()
    def sweep(self) -> None:
        waiting = {job: life for job, life in self.lives.items() if life.status is Q}
        assert set(self.store.queues_waiting()) == {life.spec.queue for life in waiting.values()}
        for queue in ("default", "large"):
            due = sorted(job for job, life in waiting.items() if not life.announced and life.spec.queue == queue)
            assert self.store.due_for_announcement(queue, after_seconds=60, limit=100) == due
            for job in due:
                self.lives[job].announced = True

    # What must always hold

    @invariant()
    def the_database_says_what_the_model_says(self) -> None:
        found = {job.id: job for job in self.store.page(limit=200).jobs}
        assert found.keys() == self.lives.keys()
        for job_id, life in self.lives.items():
            job = found[job_id]
            assert (job.status, job.attempt, job.progress) == (life.status, life.attempt, life.progress)
            assert job.ended == (job.finished_at is not None)
            assert (job.error is not None) == (job.status is JobStatus.FAILED)
            assert job.last_event == len(life.events)

    def teardown(self) -> None:
        for job_id, life in self.lives.items():
            events = self.store.events(job_id)
            assert [event.seq for event in events] == list(range(1, len(events) + 1))
            assert [event.type for event in events] == life.events
            path = [
                R if event.type == "started" else JobStatus(event.type) for event in events if _is_state(event.type)
            ]
            assert path[0] is Q
            assert all(after in TRANSITIONS[before] for before, after in itertools.pairwise(path))


def _is_state(kind: str) -> bool:
    return kind == "started" or kind in [status.value for status in JobStatus]


def test_any_order_of_events_is_a_legal_life(engine: Engine) -> None:
    class OnThis(JobLife):
        pass

    OnThis.engine, OnThis.store = engine, JobStore(engine)
    checks, examples = list(HealthCheck), 100 if engine.dialect.name == "sqlite" else 40  # a server takes its time
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        OnThis,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=checks
        ),
    )
