"""A job's events, as pages and as a stream."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi.testclient import TestClient
from httpx_sse import EventSource, ServerSentEvent

from jobs.records import Event
from jobs.store import JobStore
from tests.api.conftest import on_sqlite, problem, submitted
from tests.api.test_jobs import taken

STREAM = "text/event-stream"


@contextmanager
def stream(live: httpx.Client, job_id: str, **headers: str) -> Iterator[Iterator[ServerSentEvent]]:
    """The server-sent events of a job."""
    sent = {"Accept": STREAM} | {name.replace("_", "-"): value for name, value in headers.items()}
    with live.stream("GET", f"/jobs/{job_id}/events", headers=sent) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith(STREAM)
        assert response.headers["cache-control"] == "no-store"
        yield EventSource(response).iter_sse()


def cancelled_after(store: JobStore, job_id: str, events: int) -> None:
    """Bring a queued job to its end, with so many events between the first and the last two."""
    lease = taken(store, job_id)
    store.record(lease, events=[Event("layer", {"n": n}) for n in range(events)])
    store.cancel(job_id)
    store.cancelled(lease)


def test_pages(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    cancelled_after(store, job_id, 2)
    events: list[dict[str, Any]] = []
    after = 0
    for size in (4, 2):
        page = api.get(f"/jobs/{job_id}/events", params={"after": after, "limit": 4}).json()
        assert len(page["events"]) == size
        events += page["events"]
        after = page["next_after"]
    assert after is None
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event["type"] for event in events] == ["queued", "started", "layer", "layer", "cancelling", "cancelled"]
    assert [event["attempt"] for event in events] == [0, 1, 1, 1, 1, 1]
    assert events[3]["data"] == {"n": 1}
    assert all(list(event) == ["seq", "type", "attempt", "data", "created_at"] for event in events)
    assert events == sorted(events, key=lambda event: event["created_at"])


def test_a_page_of_a_job_that_goes_on(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    assert api.get(f"/jobs/{job_id}/events").json()["next_after"] == 1
    page = api.get(f"/jobs/{job_id}/events", params={"after": 1}).json()
    assert page == {"events": [], "next_after": 1}
    taken(store, job_id)
    assert [event["seq"] for event in api.get(f"/jobs/{job_id}/events?after=1").json()["events"]] == [2]
    resumed = api.get(f"/jobs/{job_id}/events?after=0", headers={"Last-Event-ID": "1"}).json()
    assert [event["seq"] for event in resumed["events"]] == [2]


@on_sqlite
def test_no_place_to_go_on_from(api: TestClient) -> None:
    address = f"/jobs/{submitted(api)}/events"
    for query in ("after=-1", f"after={2**70}", "after=x", "limit=0", "limit=1001"):
        problem(api.get(f"{address}?{query}"), 422, "invalid_request", query.partition("=")[0])
    for last in ("x", "-1", str(2**70), "1.5"):
        answer = api.get(address, headers={"Accept": STREAM, "Last-Event-ID": last})
        problem(answer, 422, "invalid_request", "Last-Event-ID")


@on_sqlite
def test_a_stream_of_no_job(live: httpx.Client) -> None:
    response = live.get("/jobs/x/events", headers={"Accept": STREAM})
    problem(response, 404, "job_not_found")


def test_the_stream_tells_each_event_as_it_happens_and_ends_with_the_job(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    with stream(live, job_id) as events:
        first = next(events)
        assert (first.id, first.event, first.json()["seq"]) == ("1", "queued", 1)
        lease = taken(store, job_id)
        assert next(events).event == "started"
        store.record(lease, stage="loading", events=[Event("stage", {"stage": "loading\n\nid: 99"})])
        stage = next(events)
        assert (stage.id, stage.event, stage.json()["data"]) == ("3", "stage", {"stage": "loading\n\nid: 99"})
        store.succeed(lease)
        assert [(event.id, event.event) for event in events] == [("4", "succeeded")]


@on_sqlite
def test_a_stream_holds_what_the_page_holds(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    cancelled_after(store, job_id, 3)
    with stream(live, job_id) as events:
        assert [event.json() for event in events] == live.get(f"/jobs/{job_id}/events").json()["events"]


@on_sqlite
def test_a_broken_stream_goes_on_where_it_broke(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    lease = taken(store, job_id)
    with stream(live, job_id) as events:
        last = [next(events).id, next(events).id][-1]
    store.record(lease, events=[Event("layer", {})])
    store.succeed(lease)
    with stream(live, job_id, Last_Event_ID=last) as events:
        assert [event.id for event in events] == ["3", "4"]
    with stream(live, job_id, Last_Event_ID="4") as events:
        assert list(events) == []
    with stream(live, job_id, Last_Event_ID="1000") as events:
        assert list(events) == []


@on_sqlite
def test_what_comes_after_the_end_is_told_too(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    lease = taken(store, job_id)
    store.store_result(lease, metrics={}, artifacts=[{"path": "x"}])
    store.succeed(lease)
    store.artifacts_removed(job_id, kept_days=30)
    with stream(live, job_id, Last_Event_ID="4") as events:
        assert [(event.id, event.event) for event in events] == [("5", "artifacts_removed")]
    page = live.get(f"/jobs/{job_id}/events", params={"after": 4}).json()
    assert ([event["seq"] for event in page["events"]], page["next_after"]) == ([5], None)


@on_sqlite
def test_a_long_past_is_streamed_whole(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    cancelled_after(store, job_id, 1100)
    with stream(live, job_id) as events:
        assert [int(event.id) for event in events] == list(range(1, 1105))
