"""What can go wrong, one function a fault: it submits jobs, breaks something on the way, and gives the jobs' ids.

`Extent` says how often and how long; the tests use a small one, the campaign (`benchmarks/faults.py`) the issue's.
Whatever a scenario breaks is whole again when it returns.
"""

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, text

from cli.errors import ServiceRefused, ServiceUnreachable
from flattengpt_core.progress import STAGES
from jobs.broker import make_announcer
from jobs.states import JobStatus
from tests.faults.deployment import REQUEST, Deployment, Embedded, Spread
from tests.faults.invariants import check
from tests.hub.state import Break
from tests.processes import wait_until


class NotRun(Exception):
    """This machine cannot show it; the message says what is missing."""


@dataclass(frozen=True)
class Extent:
    """How far a campaign goes. kills: at random moments. outage_seconds: of a broker or database."""

    kills: int
    outage_seconds: float
    cuts: int


# PostgreSQL and Redis


def worker_killed_in_each_stage(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 of the worker and all it started, once in each stage of a job of its own."""
    ids = []
    for stage in STAGES:
        (job_id,) = service.submit()
        ids.append(job_id)
        service.wait_for_stage(job_id, stage)
        service.workers[0].kill()
        service.restart_worker(0)
    return ids


def worker_killed_at_random(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 of the job's process, of the worker alone, or of all it started, at random moments."""
    ids = service.submit(max(1, extent.kills // 2))
    for _ in range(extent.kills):
        time.sleep(rng.uniform(0, 12))
        worker = rng.randrange(len(service.workers))
        how = rng.choice(("child", "worker", "all"))
        if how == "child":
            service.workers[worker].kill_child()
            continue
        if how == "worker":
            service.workers[worker].kill_first()
        else:
            service.workers[worker].kill()
        service.restart_worker(worker)
    return ids


def api_killed_before_it_announces(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 of the API when the job is in the database and the broker has not heard of it; the client repeats."""
    before = {job.id for job in service.store.page().jobs}

    def new() -> list[str]:
        return [job.id for job in service.store.page().jobs if job.id not in before]

    with service.broker.frozen():
        waiting = threading.Thread(target=lambda: _submit_patiently(service, key="once"), daemon=True)
        waiting.start()
        wait_until(new, what="the job's row")
        service.api.kill()
        service.start_api()
    with service.client() as client:
        repeated = client.submit(REQUEST, idempotency_key="once").id
    ids = new()
    assert ids == [repeated], "the same key gave another job"
    return ids


def sweeper_killed(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 of the sweeper, over and over, while it has the jobs of killed workers to find."""
    ids = service.submit(2)
    for _ in range(extent.kills):
        service.wait_for_stage(ids[0], "calibrating")
        if rng.random() < 0.3:
            service.workers[0].kill()
            service.restart_worker(0)
        time.sleep(rng.uniform(0, 1.5))
        service.sweeper.kill()
        service.start_sweeper()
    return ids


def broker_emptied(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """FLUSHALL with jobs queued, and again while one runs."""
    ids = service.submit(3)
    service.broker.flush()
    service.wait_for_stage(ids[0], "calibrating")
    service.broker.flush()
    return ids


def broker_down(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """No broker when jobs are submitted, and none while one runs."""
    with service.broker.down():
        ids = service.submit(2)
        time.sleep(extent.outage_seconds)
    service.wait_for_stage(ids[0], "calibrating")
    with service.broker.down():
        time.sleep(extent.outage_seconds)
    return ids


def messages_delivered_three_times(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """Each job is announced three times, in any order."""
    ids = service.submit(3)
    announcer = make_announcer(service.settings)
    messages = ids * 3
    rng.shuffle(messages)
    for job_id in messages:
        announcer.announce(job_id)
    assert all(job.attempt == 1 for job in service.wait_for_end(ids)), "a repeated message began an attempt"
    return ids


def database_connections_cut(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """Every connection is ended, over and over, while jobs are submitted and run."""
    service.database.cut()
    ids = [_submit_patiently(service) for _ in range(2)]
    for _ in range(extent.cuts):
        time.sleep(rng.uniform(0, 1))
        service.database.cut()
    return ids


def database_restarted(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """The database crashes and comes back in the middle of a job."""
    ids = service.submit(2)
    service.wait_for_stage(ids[0], "calibrating")
    service.database.restart()
    return ids


def database_unreachable(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """The database answers nothing for a while in the middle of a job."""
    ids = service.submit(2)
    service.wait_for_stage(ids[0], "calibrating")
    with service.database.frozen():
        time.sleep(extent.outage_seconds / 2)
    return ids


def serialization_failures(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """Transactions are serializable, so that those which meet fail."""
    service.database.isolate("serializable")
    try:
        ids = [_submit_patiently(service) for _ in range(4)]
        service.wait_for_end(ids)
    finally:
        service.database.isolate("read committed")
    return ids


def worker_told_to_stop(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """SIGTERM of the worker in mid-job: it hands the job back within 30 s, and no attempt is counted."""
    (job_id,) = service.submit()
    for stage in ("calibrating", "compressing", "evaluating"):
        service.wait_for_stage(job_id, stage)
        for index, worker in enumerate(service.workers):
            worker.stop(seconds=30)
            service.restart_worker(index)
    types = [event.type for event in service.store.events(job_id)]
    assert not {"died", "lease_expired"} & set(types), types
    return [job_id]


def worker_stopped_past_its_lease(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """A worker hangs until another one has run its job, then goes on: what it writes late is refused."""
    (job_id,) = service.submit()
    service.wait_for_stage(job_id, "calibrating")
    hanging = next(index for index, worker in enumerate(service.workers) if worker.job_process())
    service.workers[hanging].freeze()
    other = 1 - hanging
    (job,) = service.wait_for_end([job_id])
    before = service.store.events(job_id)
    service.workers[hanging].thaw()
    wait_until(lambda: not service.workers[hanging].job_process(), what="the end of the late attempt")
    assert service.store.get(job_id) == job, "a late write was taken"
    assert service.store.events(job_id) == before
    assert job.attempt == 2, f"worker {other} did not take over"
    return [job_id]


def clocks_apart(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """The clocks of workers, sweeper and API are a day ahead or behind: what counts is the database's."""
    ahead, behind = clock("+1d"), clock("-1d")
    for tree in (*service.workers, service.sweeper, service.api):
        tree.stop()
    service.start_api(**ahead)
    service.start_sweeper(**behind)
    service.workers[:] = [service.start_worker(**ahead), service.start_worker(**behind)]
    ids = service.submit(3)
    service.wait_for_stage(ids[0], "calibrating")
    service.workers[0].kill()
    service.workers[0] = service.start_worker(**ahead)
    jobs = service.wait_for_end(ids)
    assert sum(job.attempt for job in jobs) <= len(jobs) + 1, "a lease was lost to a clock"
    for tree in (*service.workers, service.sweeper, service.api):
        tree.stop()
    service.start_api()
    service.start_sweeper()
    service.workers[:] = [service.start_worker() for _ in service.workers]
    return ids


def clock(offset: str) -> dict[str, str]:
    """The environment of a process whose clock is off, by libfaketime. Raises NotRun where there is none."""
    try:
        from libfaketime import get_reload_information
    except ImportError:
        raise NotRun("libfaketime is not installed") from None
    _, environment = get_reload_information()
    return {**environment, "FAKETIME": offset}


# Either


def disk_full(service: Deployment, extent: Extent, rng: random.Random) -> list[str]:
    """No room for the work, the result, or the log: the job fails in words, and succeeds when it is retried."""
    ids = []
    for folder, failing in (("work", True), ("artifacts", True), ("logs", False)):
        with full_disk(service.settings.data_dir / folder):
            (job_id,) = service.submit()
            (job,) = service.wait_for_end([job_id])
            if not failing:
                ids.append(job_id)
                continue
            check(service.store, service.artifacts, [job_id], reference=None, status=JobStatus.FAILED)
            assert job.error is not None
            assert "disk" in job.error["message"], job.error
        with service.client() as client:
            ids.append(client.retry(job_id).id)
        service.wait_for_end(ids)
    return ids


@contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """A disk of its own for the folder, with room for a few small files. Raises NotRun without the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        raise NotRun("no right to mount a disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def hub_errors(service: Spread, extent: Extent, rng: random.Random) -> list[str]:
    """The Hub refuses, is busy, breaks or cuts the connection: what can succeed does, and nothing made is lost."""
    ids = []
    for refused in (401, 403, 404, 409):
        service.hub.faults.clear()
        service.hub.fail("POST /api/repos/create", refused)
        (job_id,) = service.submit(publish={"repo_id": f"acme/refused-{refused}"})
        (job,) = service.wait_for_end([job_id])
        check(service.store, service.artifacts, [job_id], reference=None, status=JobStatus.FAILED)
        assert job.error is not None
        assert job.error["code"].startswith("publish_"), job.error
        assert job.artifacts, "the result is lost"
    for name, status in (("busy", 429), ("broken", 500), ("away", 503), ("cut", Break.CUT)):
        service.hub.faults.clear()
        service.hub.fail("POST /api/models/acme/.*/commit", status, times=1, Retry_After="1")
        (job_id,) = service.submit(publish={"repo_id": f"acme/{name}"})
        service.wait_for_end([job_id])
        commits = service.hub.repositories[f"acme/{name}"].commits
        assert sum(job_id in commit.title for commit in commits) == 1, f"{len(commits)} commits"
        ids.append(job_id)
    service.hub.faults.clear()
    return ids


# SQLite and the embedded queue


def service_killed(service: Embedded, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 of the service, with its worker or alone, at random moments; it is started again."""
    ids = service.submit(max(1, extent.kills // 2))
    for _ in range(extent.kills):
        time.sleep(rng.uniform(0, 12))
        if rng.random() < 0.5:
            service.service.kill()
        else:
            service.service.kill_first()
        service.start()
    return ids


def service_killed_on_submit(service: Embedded, extent: Extent, rng: random.Random) -> list[str]:
    """kill -9 as soon as a job is in the database; the client repeats its request."""
    key = f"key-{rng.random()}"
    before = {job.id for job in service.store.page().jobs}
    waiting = threading.Thread(target=lambda: _submit_patiently(service, key=key), daemon=True)
    waiting.start()
    wait_until(lambda: len(service.store.page().jobs) > len(before), what="the job's row")
    service.service.kill()
    service.start()
    with service.client() as client:
        repeated = client.submit(REQUEST, idempotency_key=key).id
    assert [job.id for job in service.store.page().jobs if job.id not in before] == [repeated]
    return [repeated]


def queue_emptied(service: Embedded, extent: Extent, rng: random.Random) -> list[str]:
    """The queue's folder loses its messages while jobs wait."""
    ids = service.submit(3)
    for _ in range(10):
        for message in (service.settings.data_dir / "broker" / "messages").iterdir():
            message.unlink(missing_ok=True)
        time.sleep(0.1)
    return ids


def database_locked(service: Embedded, extent: Extent, rng: random.Random) -> list[str]:
    """Another program writes to the SQLite file for long, over and over."""
    ids = service.submit(2)
    engine = create_engine(service.settings.database)
    for _ in range(max(2, extent.cuts // 5)):
        with engine.connect() as other:
            other.execute(text("BEGIN IMMEDIATE"))
            time.sleep(rng.uniform(0.5, extent.outage_seconds / 2))
            other.rollback()
        time.sleep(rng.uniform(0, 1))
    engine.dispose()
    return ids


def _submit_patiently(service: Deployment, key: str | None = None) -> str:
    """Submit as a client does that repeats its request, with the same key, while the service is away."""
    key = key or f"key-{random.random()}"
    deadline = time.monotonic() + 60
    while True:
        with suppress(ServiceRefused, ServiceUnreachable), service.client() as client:
            return client.submit(REQUEST, idempotency_key=key).id
        assert time.monotonic() < deadline, "the service does not come back"
        time.sleep(0.2)
