"""Each request has an id, which its answer and its lines in the log name."""

from typing import Any

import httpx
import pytest
import structlog
from fastapi.testclient import TestClient

from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import REQUEST, on_sqlite, submitted
from tests.api.test_jobs import METRICS, taken
from tests.api.test_service import opened

pytestmark = on_sqlite

BOUND = [structlog.contextvars.merge_contextvars]


@pytest.mark.parametrize(
    "given", ["a", "0af7651916cd43dd8448eb211c80319c", "Root=1-67891233-abc:d/e+f.g@h_", "x" * 128]
)
def test_a_sane_id_is_kept(api: TestClient, given: str) -> None:
    assert api.get("/healthz", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a\tb", "{}", '"', "a\\nb", "é".encode().decode("latin-1")])
def test_another_is_replaced(api: TestClient, given: str) -> None:
    answers = [api.get("/healthz", headers={"X-Request-ID": given.encode("latin-1")}) for _ in range(2)]
    first, second = (answer.headers["X-Request-ID"] for answer in answers)
    assert len(first) == len(second) == 26
    assert first != second


def test_every_answer_has_one(settings: Settings, store: JobStore) -> None:
    """Also those to unexpected errors, here to metrics that no version of the service has written."""
    with opened(settings) as api:
        job_id = submitted(api)
        store.store_result(taken(store, job_id), metrics={"dense": "odd"}, artifacts=[])
        answers = [
            api.get("/nothing", headers={"X-Request-ID": "mine"}),
            api.get("/healthz", headers={"X-Request-ID": "mine", "Host": "evil.example"}),
            api.post("/jobs", content=b"x" * (settings.max_body_bytes + 1), headers={"X-Request-ID": "mine"}),
            api.get(f"/jobs/{job_id}", headers={"X-Request-ID": "mine"}),
        ]
    assert [answer.status_code for answer in answers] == [404, 400, 413, 500]
    assert [answer.headers.get_list("X-Request-ID") for answer in answers] == [["mine"]] * 4


def request_lines(lines: list[Any]) -> list[dict[str, Any]]:
    return [dict(line) for line in lines if line["event"] == "request"]


def test_a_line_tells_of_each_request(api: TestClient) -> None:
    with structlog.testing.capture_logs(processors=BOUND) as lines:
        api.post("/jobs", json=REQUEST, headers={"X-Request-ID": "one"})
        api.get("/jobs/a%0Ab", params={"secret": "s"}, headers={"X-Request-ID": "two"})
    first, second = request_lines(lines)
    assert 0 < first.pop("duration_ms") < 60_000
    assert first == {
        "event": "request", "log_level": "info", "request_id": "one", "method": "POST", "path": "/jobs", "status": 202,
        "client": "testclient",
    }  # fmt: skip
    assert (second["request_id"], second["path"], second["status"]) == ("two", "/jobs/a%0Ab", 404)


def test_what_a_request_logs_on_its_way_names_it(settings: Settings, store: JobStore) -> None:
    down = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    with opened(down) as api, structlog.testing.capture_logs(processors=BOUND) as lines:
        job_id = api.post("/jobs", json=REQUEST, headers={"X-Request-ID": "mine"}).json()["id"]
    failed = [line for line in lines if line["event"] == "announcement failed"]
    assert [(line["request_id"], line["job_id"]) for line in failed] == [("mine", job_id)]


def test_a_stream_flows_and_is_told_of_at_its_end(live: httpx.Client, store: JobStore) -> None:
    job_id = submitted(live)
    lease = taken(store, job_id)
    headers = {"Accept": "text/event-stream", "X-Request-ID": "mine"}
    with structlog.testing.capture_logs(processors=BOUND) as lines:
        with live.stream("GET", f"/jobs/{job_id}/events", headers=headers) as answer:
            assert answer.headers["X-Request-ID"] == "mine"
            received = answer.iter_lines()
            assert next(received) == "id: 1"
            assert request_lines(lines) == []
            store.store_result(lease, metrics=METRICS, artifacts=[])
            store.succeed(lease)
            assert "event: succeeded" in list(received)
        live.get("/healthz")  # the stream's line may come after its last byte
    [told] = [line for line in request_lines(lines) if line["request_id"] == "mine"]
    assert (told["status"], told["path"]) == (200, f"/jobs/{job_id}/events")
