"""The parent's side of a job: it takes it, watches the child, and records every end that the child could not."""

import os
import signal
import time
from datetime import datetime

import psutil
import pytest
import structlog
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from jobs.clock import now_plus
from jobs.records import EventRecord
from jobs.settings import Settings
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.tables import Job
from tests.imports import HEAVY, imported
from tests.processes import alive, descendants, wait_until
from tests.worker.conftest import SPEC, Worker, Workers, on_sqlite, stand_in
from worker.exit_codes import ExitCode
from worker.parent import child_environment

FOREVER = "import time; time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); " + FOREVER
FAMILY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {STUBBORN!r}]); " + FOREVER
READY = "print('ready', flush=True); time.sleep(600)"
ONCE = "import sys, time; sys.argv[2] == '1' and {first}; time.sleep(600)"


def wait_for_child(store: JobStore, job_id: str, attempt: int = 1) -> int:
    """The process id of the attempt's process."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [
            child.pid
            for child in psutil.Process().children()
            if child.status() != psutil.STATUS_ZOMBIE and child.cmdline()[-2:] == [job_id, str(attempt)]
        ]
        return bool(found)

    wait_until(look, what="the child's start")
    assert store.get(job_id).status is JobStatus.RUNNING
    return found[0]


def row(engine: Engine, job_id: str) -> Job:
    """The job as the database has it."""
    with Session(engine) as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def of_type(store: JobStore, job_id: str, type: str) -> list[EventRecord]:
    return [event for event in store.events(job_id) if event.type == type]


def test_a_child_does_not_inherit_the_keys_of_stored_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLATTENGPT_SECRET_KEYS", "open-sesame")
    monkeypatch.setenv("FLATTENGPT_POLL_SECONDS", "1")
    inherited = child_environment()
    assert "open-sesame" not in inherited.values()
    assert inherited["FLATTENGPT_POLL_SECONDS"] == "1"
    assert Settings().secret_keys.get_secret_value() == "open-sesame", "the variable's name is the settings'"


def stop(worker: Worker) -> None:
    worker.stopping.set()
    worker.finish()


@on_sqlite
def test_the_parent_imports_no_torch(environment: dict[str, str]) -> None:
    assert not HEAVY & imported("import worker.app", environment=environment)


def test_a_job_is_taken_and_its_lease_kept(store: JobStore, engine: Engine, queued: str, workers: Workers) -> None:
    worker = workers(stand_in(FOREVER), name="host:1").start(queued)
    wait_for_child(store, queued)
    job = row(engine, queued)
    assert (job.status, job.attempt, job.worker) == ("running", 1, "host:1")

    def lease() -> datetime:
        expires = row(engine, queued).lease_expires_at
        assert expires is not None
        return expires

    first = lease()
    wait_until(lambda: lease() > first, seconds=10, what="a heartbeat")
    assert of_type(store, queued, "started")[0].data == {"attempt": 1}
    stop(worker)


def test_three_deaths_fail_the_job_with_the_reason_of_each(store: JobStore, queued: str, workers: Workers) -> None:
    code = "import sys; print('out of', sys.argv[2]); sys.exit(10 + int(sys.argv[2]))"
    workers(stand_in(code)).run(queued)
    job = store.get(queued)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 3)
    assert job.error is not None
    assert job.error["code"] == "worker_lost"
    for attempt in (1, 2, 3):
        reason = f"exit code {10 + attempt}; last log lines: out of {attempt}"
        assert f"Attempt {attempt} before its first stage: {reason}" in job.error["message"]
        assert of_type(store, queued, "died")[attempt - 1].data["reason"] == reason
    assert [event.type for event in store.events(queued)][-2:] == ["died", "failed"]


@on_sqlite
def test_fewer_deaths_if_the_settings_say_so(store: JobStore, queued: str, workers: Workers) -> None:
    workers(stand_in("raise SystemExit(9)"), max_attempts=1).run(queued)
    assert (store.get(queued).status, store.get(queued).attempt) == (JobStatus.FAILED, 1)


@on_sqlite
@pytest.mark.parametrize("code", [ExitCode.DONE, ExitCode.FAILED, ExitCode.LEASE_LOST])
def test_a_code_without_a_recorded_end_is_a_death(
    store: JobStore, queued: str, workers: Workers, code: ExitCode
) -> None:
    workers(stand_in(f"raise SystemExit({int(code)})"), max_attempts=1).run(queued)
    assert store.get(queued).status is JobStatus.FAILED


def test_a_killed_child_leads_to_a_second_attempt(store: JobStore, queued: str, workers: Workers) -> None:
    worker = workers(stand_in(FOREVER)).start(queued)
    os.kill(wait_for_child(store, queued), signal.SIGKILL)
    wait_for_child(store, queued, attempt=2)
    reason = of_type(store, queued, "died")[0].data["reason"]
    assert reason == "killed by SIGKILL (out of memory, or killed from outside)"
    stop(worker)


def test_a_worker_told_to_stop_hands_the_job_back(
    store: JobStore, engine: Engine, queued: str, workers: Workers
) -> None:
    """However often that happens: it does not count as a death."""
    for attempt in range(1, 6):
        worker = workers(stand_in(FOREVER)).start(queued)
        child = wait_for_child(store, queued, attempt)
        stop(worker)
        assert not psutil.pid_exists(child)
        job = row(engine, queued)
        assert (job.status, job.attempt, job.deaths) == ("queued", attempt, 0)
        assert (job.announced_at, job.worker, job.lease_expires_at) == (None, None, None)
    assert len(of_type(store, queued, "handed_back")) == 5
    assert of_type(store, queued, "died") == []


@on_sqlite
def test_a_child_that_stops_unasked_hands_the_job_back(
    store: JobStore, engine: Engine, queued: str, workers: Workers
) -> None:
    """A signal to the worker's whole group may reach the child before its parent knows."""
    worker = workers(stand_in(ONCE.format(first=f"sys.exit({int(ExitCode.STOPPED)})"))).start(queued)
    wait_for_child(store, queued, attempt=2)
    assert row(engine, queued).deaths == 0
    assert len(of_type(store, queued, "handed_back")) == 1
    stop(worker)


@on_sqlite
def test_a_worker_that_stops_already_takes_nothing(
    store: JobStore, engine: Engine, queued: str, workers: Workers
) -> None:
    assert row(engine, queued).announced_at is not None
    worker = workers(stand_in(FOREVER))
    worker.stopping.set()
    worker.run(queued)
    job = row(engine, queued)
    assert (job.status, job.attempt, job.announced_at) == ("queued", 0, None)


def test_a_cancelled_job_stops_its_child(store: JobStore, queued: str, workers: Workers) -> None:
    worker = workers(stand_in(FOREVER), stop_grace_seconds=60).start(queued)
    child = wait_for_child(store, queued)
    started = time.monotonic()
    store.cancel(queued)
    worker.finish()
    assert time.monotonic() - started < 10
    assert not psutil.pid_exists(child)
    job = store.get(queued)
    assert (job.status, job.stage, job.attempt) == (JobStatus.CANCELLED, None, 1)
    assert [event.type for event in store.events(queued)] == ["queued", "started", "cancelling", "cancelled"]


def test_a_job_that_runs_too_long_is_stopped_and_fails(store: JobStore, queued: str, workers: Workers) -> None:
    worker = workers(stand_in(FOREVER), max_run_seconds=0.3, stop_grace_seconds=60).start(queued)
    child = wait_for_child(store, queued)
    worker.finish()
    assert not psutil.pid_exists(child)
    job = store.get(queued)
    assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("run_too_long", False)
    assert "after 0.3 s" in job.error["message"]
    assert [event.type for event in store.events(queued)] == ["queued", "started", "failed"]


@on_sqlite
def test_time_is_stronger_than_a_deaf_child_and_a_cancel_than_time(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    worker = workers(stand_in(STUBBORN), max_run_seconds=1, stop_grace_seconds=1.5).start(queued)
    child = wait_for_child(store, queued)
    log = settings.data_dir / "logs" / f"{queued}.1.log"
    wait_until(lambda: "deaf" in log.read_text(), what="the deafness")
    time.sleep(1.2)  # its time is over, its grace is not
    store.cancel(queued)
    worker.finish()
    assert not psutil.pid_exists(child)
    assert (store.get(queued).status, store.get(queued).error) == (JobStatus.CANCELLED, None)


@on_sqlite
def test_a_job_that_ends_in_time_is_not_stopped(store: JobStore, queued: str, workers: Workers) -> None:
    workers(stand_in("raise SystemExit(9)"), max_run_seconds=60, max_attempts=1).run(queued)
    assert store.get(queued).error is not None
    assert (store.get(queued).error or {})["code"] == "worker_lost"


@on_sqlite
@pytest.mark.parametrize("code", [STUBBORN, FAMILY], ids=["deaf", "with a deaf grandchild"])
def test_cancel_is_stronger_than_a_deaf_child(
    store: JobStore, settings: Settings, queued: str, workers: Workers, code: str
) -> None:
    worker = workers(stand_in(code), stop_grace_seconds=0.5).start(queued)
    child = wait_for_child(store, queued)
    log = settings.data_dir / "logs" / f"{queued}.1.log"
    wait_until(lambda: "deaf" in log.read_text(), what="the deafness")
    started = descendants(child) | {child: psutil.Process(child).create_time()}
    store.cancel(queued)
    worker.finish()
    assert store.get(queued).status is JobStatus.CANCELLED
    wait_until(lambda: not alive(started), seconds=5, what=f"the end of {alive(started)}")


@on_sqlite
def test_each_line_of_an_attempt_names_it(
    store: JobStore, settings: Settings, engine: Engine, queued: str, workers: Workers
) -> None:
    """Here: of one whose database is away for a while, and whose process has to be killed."""
    bound = [structlog.contextvars.merge_contextvars]
    with structlog.testing.capture_logs(processors=bound) as logs:
        worker = workers(stand_in(STUBBORN), stop_grace_seconds=0.5, heartbeat_seconds=0.05).start(queued)
        log = settings.data_dir / "logs" / f"{queued}.1.log"
        wait_until(lambda: log.exists() and "deaf" in log.read_text(), what="the deafness")
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE job RENAME TO away"))
        wait_until(lambda: "heartbeat failed" in [line["event"] for line in logs], what="a heartbeat without a table")
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE away RENAME TO job"))
        store.cancel(queued)
        worker.finish()
    told = list(dict.fromkeys(line["event"] for line in logs))
    assert told == [
        "attempt started",
        "heartbeat failed",
        "asking the job's process to stop",
        "killing the job's process, which did not stop in time",
        "attempt ended",
    ]
    assert {(line["job_id"], line["attempt"]) for line in logs} == {(queued, 1)}


@on_sqlite
def test_a_child_that_dies_of_the_cancel_is_no_death(
    store: JobStore, settings: Settings, engine: Engine, queued: str, workers: Workers
) -> None:
    code = "import signal, os, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(9)); " + READY
    worker = workers(stand_in(code)).start(queued)
    log = settings.data_dir / "logs" / f"{queued}.1.log"
    wait_until(lambda: log.exists() and "ready" in log.read_text())
    store.cancel(queued)
    worker.finish()
    assert (store.get(queued).status, row(engine, queued).deaths) == (JobStatus.CANCELLED, 0)
    assert [event.type for event in store.events(queued)] == ["queued", "started", "cancelling", "cancelled"]


def test_a_parent_that_lost_its_lease_stops_its_child_and_writes_nothing(
    store: JobStore, engine: Engine, queued: str, workers: Workers
) -> None:
    worker = workers(stand_in(FOREVER)).start(queued)
    child = wait_for_child(store, queued)
    # What the sweeper and another worker do when this one has been silent for too long; at once, or this one takes it.
    with engine.begin() as connection:
        taken = {"attempt": 2, "worker": "other", "lease_expires_at": now_plus(60)}
        connection.execute(update(Job).where(Job.id == queued).values(taken))
    before = store.events(queued)
    worker.finish()
    assert not psutil.pid_exists(child)
    assert store.events(queued) == before
    assert store.get(queued).status is JobStatus.RUNNING


def test_all_that_is_queued_is_worked_on_once(store: JobStore, workers: Workers) -> None:
    """By two workers that were woken for the same job."""
    waiting = [store.submit(SPEC).id for _ in range(6)]
    both = [workers(stand_in("raise SystemExit(9)"), name=name, max_attempts=1) for name in ("a", "b")]
    for worker in both:
        worker.start(waiting[3])
    for worker in both:
        worker.finish()
    jobs = [store.get(job_id) for job_id in waiting]
    assert {(job.status, job.attempt) for job in jobs} == {(JobStatus.FAILED, 1)}


@on_sqlite
def test_what_is_not_queued_is_left_alone(store: JobStore, queued: str, workers: Workers) -> None:
    store.cancel(queued)
    for job_id in (queued, "01M8715SXX5VDXZSFJX3F7CKD1"):
        workers(stand_in(FOREVER)).run(job_id)
    assert store.get(queued).attempt == 0


@on_sqlite
def test_a_worker_without_disk_takes_nothing_and_says_so_once(
    store: JobStore, engine: Engine, settings: Settings, queued: str, workers: Workers
) -> None:
    ended = settings.data_dir / "work" / "01M8715SXX5VDXZSFJX3F7CKD1.1" / "state"
    ended.mkdir(parents=True)
    worker = workers(stand_in(FOREVER), min_free_disk_bytes=2**60)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            worker.run(queued)
    job = row(engine, queued)
    assert (job.status, job.attempt, job.announced_at) == ("queued", 0, None)
    assert [(line["log_level"], line["min_free_disk_bytes"]) for line in logs] == [("warning", 2**60)]
    assert logs[0]["folder"] == str(settings.data_dir)
    assert not ended.exists(), "what could make room stays"


STATE = (
    "import sys; from pathlib import Path; own = Path({work!r}, '.'.join(sys.argv[1:])); state = own / 'state'\n"
    "print(*sorted(file.name for file in own.rglob('*')), flush=True)\n"
    "state.mkdir(parents=True, exist_ok=True); (state / sys.argv[2]).touch(); (own / 'result.partial').mkdir()\n"
)
RESULT = (
    "import sys; from pathlib import Path; own = Path({work!r}, '.'.join(sys.argv[1:]))\n"
    "print(*sorted(file.name for file in own.rglob('*')), flush=True)\n"
    "(own / 'result').mkdir(parents=True, exist_ok=True); (own / 'result' / sys.argv[2]).touch(); raise SystemExit(9)"
)


@on_sqlite
def test_an_attempt_finds_what_the_last_one_finished_and_the_end_clears_it(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    work = settings.data_dir / "work"
    workers(stand_in(STATE.format(work=str(work)) + "raise SystemExit(9)"), max_attempts=3).run(queued)
    assert list(work.iterdir()) == []
    logs = sorted((settings.data_dir / "logs").iterdir())
    assert [log.name for log in logs] == [f"{queued}.{attempt}.log" for attempt in (1, 2, 3)]
    assert [log.read_text() for log in logs] == ["\n", "1 adopted state\n", "1 2 adopted state\n"]


@on_sqlite
def test_an_attempt_finds_the_result_of_the_last_one(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    workers(stand_in(RESULT.format(work=str(settings.data_dir / "work"))), max_attempts=2).run(queued)
    logs = sorted((settings.data_dir / "logs").iterdir())
    assert [log.read_text() for log in logs] == ["\n", "1 adopted result\n"]


@on_sqlite
def test_a_job_that_is_handed_back_leaves_its_state_for_the_next_worker(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    work = settings.data_dir / "work"
    for attempt in (1, 2):
        worker = workers(stand_in(STATE.format(work=str(work)) + FOREVER)).start(queued)
        wait_for_child(store, queued, attempt)
        state = work / f"{queued}.{attempt}" / "state"
        wait_until((state / str(attempt)).exists, what="the state")
        stop(worker)
        assert [folder.name for folder in work.iterdir()] == [f"{queued}.{attempt}"]
    assert sorted(file.name for file in state.iterdir()) == ["1", "2"]
    store.cancel(queued)
    workers(stand_in(FOREVER)).run(queued)
    assert list(work.iterdir()) == []


@on_sqlite
def test_files_of_jobs_that_ended_elsewhere_go_and_those_of_others_stay(
    store: JobStore, settings: Settings, queued: str, workers: Workers
) -> None:
    work, running = settings.data_dir / "work", store.submit(SPEC).id
    store.take(running, worker="elsewhere", lease_seconds=60)
    deleted = "01M8715SXX5VDXZSFJX3F7CKD1"
    for name in (f"{running}.1", f"{deleted}.1", f"{deleted}.2"):
        (work / name / "state").mkdir(parents=True)
    workers(stand_in("raise SystemExit(9)"), max_attempts=1).run(queued)
    assert [folder.name for folder in work.iterdir()] == [f"{running}.1"]


@on_sqlite
def test_old_logs_of_ended_jobs_go(store: JobStore, settings: Settings, queued: str, workers: Workers) -> None:
    logs, running, deleted = settings.data_dir / "logs", store.submit(SPEC).id, "01M8715SXX5VDXZSFJX3F7CKD1"
    store.take(running, worker="elsewhere", lease_seconds=60)
    logs.mkdir()
    old = [f"{deleted}.1.log", f"{deleted}.12.log", f"{running}.1.log", "worker.log", f"{deleted}.1.txt"]
    for name in [*old, f"{deleted}.2.log"]:
        (logs / name).touch()
    for name in old:
        os.utime(logs / name, (0, time.time() - 8 * 86_400))
    never = workers(stand_in("raise SystemExit(9)"), max_attempts=1)
    never.run(queued)
    assert {*old} < {file.name for file in logs.iterdir()}
    workers(stand_in("raise SystemExit(9)"), max_attempts=1, keep_artifacts_days=7).run(store.submit(SPEC).id)
    left = {file.name for file in logs.iterdir()}
    assert left & {*old} == {f"{running}.1.log", "worker.log", f"{deleted}.1.txt"}
    assert {f"{deleted}.2.log", f"{queued}.1.log"} < left
