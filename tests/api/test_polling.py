"""Waiting for a job: entity tags, long polls, hints, and one query a tick however many listen."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.news import TICK_SECONDS, JobNews, NewsDesk
from api.polling import MAX_WAIT_SECONDS, wait_seconds
from jobs.errors import JobNotFound
from jobs.records import Event
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import REQUEST, on_sqlite, problem, submitted
from tests.api.test_jobs import METRICS, taken
from tests.statements import statements


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (None, 0),
        ("wait=30", 30),
        ("respond-async, WAIT = 5", 5),
        ('wait="7"', 7),
        ("wait=9;foo", 9),
        ("wait=999999", MAX_WAIT_SECONDS),
        ("wait=0", 0),
        ("wait=-1", 0),
        ("wait=1.5", 0),
        ("wait", 0),
        ("await=3", 0),
    ],
)
def test_the_wait_that_is_asked_for(prefer: str | None, seconds: int) -> None:
    assert wait_seconds(prefer) == seconds


def test_a_tag_saves_sending_what_is_known_and_changes_with_the_job(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    address = f"/jobs/{job_id}"

    def tag() -> str:
        answer = api.get(address)
        for known in (answer.headers["etag"], f'"x", {answer.headers["etag"]}', "*"):
            again = api.get(address, headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == answer.headers["etag"]
        for other in ('"x"', "", 'W/"x", "y"'):
            assert api.get(address, headers={"If-None-Match": other}).json() == answer.json()
        return answer.headers["etag"]

    tags = [tag()]
    lease = taken(store, job_id)
    tags.append(tag())
    store.record(lease, progress=0.5)
    tags.append(tag())
    store.store_result(lease, metrics=METRICS, artifacts=[{"path": "x", "size": 1, "sha256": "ab"}])
    tags.append(tag())
    store.succeed(lease)
    tags.append(tag())
    store.artifacts_removed(job_id, kept_days=1)
    tags.append(tag())
    assert len(set(tags)) == len(tags)


@on_sqlite
def test_a_poller_is_told_when_to_ask_again(api: TestClient, store: JobStore) -> None:
    answer = api.post("/jobs", json=REQUEST)
    job_id = answer.json()["id"]
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["etag"] == api.get(f"/jobs/{job_id}").headers["etag"]
    assert int(api.get(f"/jobs/{job_id}").headers["retry-after"]) > 0
    store.succeed(taken(store, job_id))
    assert "retry-after" not in api.get(f"/jobs/{job_id}").headers


@contextmanager
def after(seconds: float, act: object, *arguments: object) -> Iterator[None]:
    """Call `act` in another thread, so many seconds from now."""
    timer = threading.Timer(seconds, act, arguments)  # type: ignore[arg-type]
    timer.start()
    yield
    timer.join()


def test_a_long_poll_ends_with_the_job(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    lease = taken(store, job_id)
    with after(0.5, store.succeed, lease):
        answer = live.get(f"/jobs/{job_id}", headers={"Prefer": "wait=20"})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == "wait=20"
    assert "retry-after" not in answer.headers


@on_sqlite
def test_a_long_poll_with_a_tag_ends_with_any_change(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    lease = taken(store, job_id)
    known = {"If-None-Match": live.get(f"/jobs/{job_id}").headers["etag"], "Prefer": "wait=20"}
    with after(0.5, lambda: store.record(lease, progress=0.25)):
        answer = live.get(f"/jobs/{job_id}", headers=known)
    assert (answer.status_code, answer.json()["progress"]) == (200, 0.25)
    known = {"If-None-Match": answer.headers["etag"], "Prefer": "wait=1"}
    started = time.monotonic()
    assert live.get(f"/jobs/{job_id}", headers=known).status_code == 304
    assert 0.9 < time.monotonic() - started < 15


@on_sqlite
def test_a_long_poll_of_what_has_ended_or_is_not_there_answers_at_once(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    store.succeed(taken(store, job_id))
    started = time.monotonic()
    answer = api.get(f"/jobs/{job_id}", headers={"Prefer": "wait=60"})
    assert answer.json()["status"] == "succeeded"
    known = {"If-None-Match": answer.headers["etag"], "Prefer": "wait=60"}
    assert api.get(f"/jobs/{job_id}", headers=known).status_code == 304
    problem(api.get("/jobs/x", headers={"Prefer": "wait=60"}), 404, "job_not_found")
    assert time.monotonic() - started < 30


@on_sqlite
def test_submitting_can_wait_too(live: httpx.Client, store: JobStore) -> None:
    def work() -> None:
        while not (queued := store.page().jobs):
            time.sleep(0.05)
        store.succeed(taken(store, queued[0].id))

    with after(0, work):
        answer = live.post("/jobs", json=REQUEST, headers={"Prefer": "wait=30"})
    assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")
    assert answer.headers["location"] == f"/jobs/{answer.json()['id']}"
    short = live.post("/jobs", json=REQUEST, headers={"Prefer": "wait=1"})
    assert (short.json()["status"], short.headers["preference-applied"]) == ("queued", "wait=1")


def test_five_hundred_listeners_cost_one_query_a_tick(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    job = store.submit(spec)
    desk = NewsDesk(store)
    ticks = 5

    async def listen(news: JobNews) -> None:
        for _ in range(ticks):
            await anyio.sleep(TICK_SECONDS)
            assert (await news.after(job.last_event))[1] == []

    async def all_listen() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(500):
                group.start_soon(listen, desk.of(job))

    with statements(engine) as sent:
        started = time.monotonic()
        anyio.run(all_listen)
        ticked = (time.monotonic() - started) / TICK_SECONDS
    reads = [statement for statement in sent if "FROM job" in statement]
    assert 1 <= len(reads) <= ticked + 1


@on_sqlite
def test_listeners_that_come_at_any_time_hear_the_same(store: JobStore, spec: JobSpec) -> None:
    """Some from the start, some late, some far behind what is shared."""
    job = store.submit(spec)
    desk = NewsDesk(store)
    heard: list[list[int]] = []

    async def listen(start: int, delay: float) -> None:
        await anyio.sleep(delay)
        news, seen = desk.of(store.get(job.id)), []
        while True:
            now, events = await news.after(seen[-1] if seen else start)
            seen += [event.seq for event in events]
            if now.ended and seen[-1:] == [now.last_event]:
                break
            if not events:
                await anyio.sleep(TICK_SECONDS)
        heard.append([start, *seen])

    def work() -> None:
        lease = taken(store, job.id)
        for _ in range(4):
            store.record(lease, events=[Event("layer", {}) for _ in range(700)])
            time.sleep(0.2)
        store.succeed(lease)

    async def all_listen() -> None:
        async with anyio.create_task_group() as group:
            for start, delay in ((0, 0.0), (1, 0.0), (0, 0.5), (100, 1.0), (2500, 2.0)):
                group.start_soon(listen, start, delay)

    with ThreadPoolExecutor(1) as pool:
        worked = pool.submit(work)
        anyio.run(all_listen)
        worked.result()
    last = store.get(job.id).last_event
    assert len(heard) == 5
    for seen in heard:
        assert seen[1:] == list(range(seen[0] + 1, last + 1))


@on_sqlite
def test_a_listener_of_a_deleted_job_is_told(store: JobStore, spec: JobSpec) -> None:
    job = store.submit(spec)
    store.cancel(job.id)

    async def listen() -> None:
        news = JobNews(store, job)
        store.delete(job.id)
        await anyio.sleep(TICK_SECONDS)
        with pytest.raises(JobNotFound):
            await news.job()

    anyio.run(listen)
