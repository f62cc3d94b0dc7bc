"""Jobs as the API shows, lists, cancels, retries and deletes them."""

from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine

from api.app import create_app
from jobs.artifacts import ArtifactStore, as_json
from jobs.queues import Serves
from jobs.records import Lease
from jobs.roster import Roster
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import REQUEST, URL, problem, submitted

FIELDS = [
    "id", "status", "stage", "progress", "attempt", "request", "metrics", "artifacts", "error", "labels", "created_at",
    "started_at", "finished_at", "retry_of", "artifacts_removed_at", "waiting_for", "links",
]  # fmt: skip

MEASURED: dict[str, Any] = {
    "layers": 6,
    "parameters": 10,
    "perplexity": {"python-docs": 9.5},
    "accuracy": {},
    "tokens_per_second": None,
    "latency_ms": None,
}
METRICS: dict[str, Any] = {
    "dense": MEASURED,
    "compressed": MEASURED | {"layers": 4},
    "compress_seconds": 1.5,
    "peak_memory_bytes": 10,
    "groups": [[0, 1], [2], [3], [4, 5]],
    "recovery": None,
}


def taken(store: JobStore, job_id: str) -> Lease:
    lease = store.take(job_id, worker="w", lease_seconds=60)
    assert lease is not None
    return lease


def test_the_reply_at_each_turn_of_a_job(api: TestClient, store: JobStore) -> None:
    def now() -> dict[str, Any]:
        body: dict[str, Any] = api.get(f"/jobs/{job_id}").json()
        assert list(body) == FIELDS
        assert body in api.get("/jobs").json()["jobs"]
        return body

    job_id = submitted(api, labels={"team": "search"})
    queued = now()
    assert (queued["status"], queued["labels"], queued["started_at"]) == ("queued", {"team": "search"}, None)
    assert (queued["metrics"], queued["artifacts"], queued["error"]) == (None, [], None)
    assert queued["created_at"].endswith("Z")
    here = f"/jobs/{job_id}"
    links = {"self": here, "events": f"{here}/events", "artifacts": f"{here}/artifacts"}
    assert queued["links"] == links | {"cancel": f"{here}/cancel"}

    lease = taken(store, job_id)
    store.record(lease, stage="compressing", progress=0.25)
    running = now()
    assert (running["status"], running["stage"], running["progress"]) == ("running", "compressing", 0.25)
    assert running["attempt"] == 1
    assert running["started_at"] is not None

    stored = {"path": "config.json", "size": 2, "sha256": "ab"}
    store.store_result(lease, metrics=METRICS, artifacts=[stored])
    store.succeed(lease, published_url="https://huggingface.co/acme/tiny")
    done = now()
    assert (done["status"], done["stage"], done["progress"], done["error"]) == ("succeeded", None, 1.0, None)
    assert done["metrics"] == METRICS
    assert done["artifacts"] == [stored | {"href": f"{here}/artifacts/config.json"}]
    assert done["finished_at"] is not None
    assert done["links"] == links | {"published": "https://huggingface.co/acme/tiny"}
    assert all(api.get(links[name]).status_code == 200 for name in links)


def test_a_failed_job_says_why(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    error = {"code": "model_not_found", "title": "T", "message": "M", "retryable": False, "field": "model"}
    store.fail(taken(store, job_id), error)
    body = api.get(f"/jobs/{job_id}").json()
    assert (body["status"], body["error"]) == ("failed", error)
    assert "cancel" not in body["links"]


def test_no_such_job(api: TestClient) -> None:
    for job_id in ("01M8715SXX5VDXZSFJX3F7CKD1", "x", "%00", "a%00b", "%ED%A0%80", "²", "a" * 5000):
        for method, path in (
            ("GET", ""),
            ("POST", "/cancel"),
            ("POST", "/retry"),
            ("DELETE", ""),
            ("GET", "/events"),
            ("GET", "/artifacts"),
        ):
            problem(api.request(method, f"/jobs/{job_id}{path}"), 404, "job_not_found")


def test_a_queued_job_is_cancelled_at_once(api: TestClient) -> None:
    job_id = submitted(api)
    for _ in range(2):
        answer = api.post(f"/jobs/{job_id}/cancel")
        assert answer.status_code == 202
        assert (answer.json()["id"], answer.json()["status"]) == (job_id, "cancelled")
    assert answer.json() == api.get(f"/jobs/{job_id}").json()
    types = [event["type"] for event in api.get(f"/jobs/{job_id}/events").json()["events"]]
    assert types == ["queued", "cancelled"]


def test_a_running_job_is_asked_to_stop(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    lease = taken(store, job_id)
    for _ in range(2):
        assert api.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelling"
    assert store.record(lease) == "cancelling"
    store.cancelled(lease)
    assert api.post(f"/jobs/{job_id}/cancel").json()["status"] == "cancelled"


def test_a_queued_job_that_had_stored_its_result_loses_it_by_the_cancel(
    api: TestClient, store: JobStore, settings: Settings, tmp_path: Path
) -> None:
    """Its attempt died before it could publish."""
    job_id = submitted(api)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "config.json").write_text("{}")
    lease = taken(store, job_id)
    stored = ArtifactStore(settings.artifacts).put_folder(job_id, tmp_path / "result")
    store.store_result(lease, metrics=METRICS, artifacts=as_json(stored))
    store.hand_back(lease, reason="test")
    body = api.post(f"/jobs/{job_id}/cancel").json()
    assert (body["status"], body["artifacts"]) == ("cancelled", [])
    assert not (settings.data_dir / "artifacts" / job_id).exists()


def test_what_has_ended_cannot_be_cancelled(api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    store.succeed(taken(store, job_id))
    body = problem(api.post(f"/jobs/{job_id}/cancel"), 409, "conflict")
    assert "already succeeded" in body["detail"]
    assert api.get(f"/jobs/{job_id}").json()["status"] == "succeeded"


def test_a_failed_job_is_retried_as_a_new_one(api: TestClient, store: JobStore, settings: Settings) -> None:
    job_id = submitted(api, labels={"team": "search"})
    store.died(taken(store, job_id), reason="killed", max_attempts=1)
    failed = api.get(f"/jobs/{job_id}").json()
    assert failed["links"]["retry"] == f"/jobs/{job_id}/retry"
    answers = [api.post(failed["links"]["retry"], headers={"Idempotency-Key": "again"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    new = answers[0].json()
    assert answers[1].json() == new
    assert answers[0].headers["location"] == f"/jobs/{new['id']}"
    assert (new["status"], new["attempt"], new["retry_of"]) == ("queued", 0, job_id)
    assert (new["request"], new["labels"]) == (failed["request"], {"team": "search"})
    [queued] = api.get(f"/jobs/{new['id']}/events").json()["events"]
    assert queued["data"] == {"retry_of": job_id}
    assert api.get(f"/jobs/{job_id}").json() == failed
    assert store.died(taken(store, new["id"]), reason="killed", max_attempts=2) == "queued"


def test_a_retry_means_the_commit_that_the_first_job_meant(api: TestClient, store: JobStore) -> None:
    spec = JobSpec.model_validate(REQUEST)
    job = store.submit(spec, commit="c" * 40)
    store.cancel(job.id)
    assert store.retry(job.id).commit == "c" * 40


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_only_a_job_that_failed_or_was_cancelled_is_retried(api: TestClient, store: JobStore, state: str) -> None:
    job_id = submitted(api)
    if state != "queued":
        lease = taken(store, job_id)
        if state == "succeeded":
            store.succeed(lease)
    assert "retry" not in api.get(f"/jobs/{job_id}").json()["links"]
    assert state in problem(api.post(f"/jobs/{job_id}/retry"), 409, "conflict")["detail"]


def test_a_key_of_a_submit_is_none_of_a_retry(api: TestClient, store: JobStore) -> None:
    key = {"Idempotency-Key": "k"}
    job_id = api.post("/jobs", json=REQUEST, headers=key).json()["id"]
    api.post(f"/jobs/{job_id}/cancel")
    problem(api.post(f"/jobs/{job_id}/retry", headers=key), 422, "idempotency_mismatch", "Idempotency-Key")


def test_a_job_that_has_ended_is_deleted_with_all_that_it_left(
    api: TestClient, store: JobStore, settings: Settings, tmp_path: Path
) -> None:
    job_id, other = submitted(api), submitted(api)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "config.json").write_text("{}")
    artifacts = ArtifactStore(settings.artifacts)
    lease = taken(store, job_id)
    stored = artifacts.put_folder(job_id, tmp_path / "result")
    store.store_result(lease, metrics=METRICS, artifacts=as_json(stored))
    body = problem(api.delete(f"/jobs/{job_id}"), 409, "conflict")
    assert "running" in body["detail"]
    assert api.get(f"/jobs/{job_id}/artifacts/config.json").status_code == 200
    store.succeed(lease)
    answer = api.delete(f"/jobs/{job_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    for path in ("", "/events", "/artifacts", "/artifacts/config.json"):
        problem(api.get(f"/jobs/{job_id}{path}"), 404, "job_not_found")
    problem(api.delete(f"/jobs/{job_id}"), 404, "job_not_found")
    assert not (settings.data_dir / "artifacts" / job_id).exists()
    assert [job["id"] for job in api.get("/jobs").json()["jobs"]] == [other]


def test_filters(api: TestClient, store: JobStore) -> None:
    def found(**filters: Any) -> list[str]:
        response = api.get("/jobs", params=filters)
        assert response.status_code == 200, response.text
        return [job["id"] for job in response.json()["jobs"]]

    search = submitted(api, labels={"team": "search", "a.b/c": "x:y"})
    speech = submitted(api, labels={"team": "speech"})
    other = submitted(api, model="acme/tiny")
    api.post(f"/jobs/{speech}/cancel")
    assert found() == [other, speech, search]
    assert found(status="queued") == [other, search]
    assert found(status="cancelled") == [speech]
    assert found(label="team:search") == [search]
    assert found(label="a.b/c:x:y") == [search]
    assert found(label="team:speech", status="queued") == []
    assert found(label="nobody:search") == []
    assert found(label='te"am:search') == []
    assert found(label="te\\am:search") == []
    assert found(model="acme/tiny") == [other]
    assert found(model="local:tiny", status="queued") == [search]
    assert found(model="' OR 1=1 --") == []
    assert found(method="flattengpt", model="acme/tiny") == [other]
    assert found(method="shortgpt") == []
    created = api.get(f"/jobs/{speech}").json()["created_at"]
    assert found(created_after=created) == [other]
    assert found(created_before=created) == [search]
    assert found(created_after="2020-01-01T00:00:00+14:00", created_before="9999-12-31T23:59:59Z") == found()


def test_pages_hold_each_job_once_while_new_ones_come_in(api: TestClient) -> None:
    there = [submitted(api) for _ in range(5)]
    seen: list[str] = []
    cursor: str | None = None
    for size in (2, 2, 1):
        page = api.get("/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        assert len(page["jobs"]) == size
        seen += [job["id"] for job in page["jobs"]]
        cursor = page["next_cursor"]
        submitted(api)
    assert cursor is None
    assert seen == there[::-1]


def test_a_full_last_page_is_the_last(api: TestClient) -> None:
    for _ in range(2):
        submitted(api)
    assert api.get("/jobs", params={"limit": 2}).json()["next_cursor"] is None


def test_a_filter_that_is_none(api: TestClient) -> None:
    for query in (
        "status=done", "status=", "limit=0", "limit=201", "limit=-1", f"limit={2**70}", "limit=many", "cursor=x",
        "cursor=", "cursor=" + "%00" * 26, "cursor=" + "²" * 26, "cursor=" + "0" * 65, "label=team", "label=:",
        "method=magic", "method=", "created_after=yesterday", "created_after=2026-01-01T00:00:00",
        "created_before=0001-01-01T00:00:00%2B14:00", "label=team:", "label=te%00am:search", "label=team:sea%00rch",
        "model=%00", "model=" + "m" * 301,
    ):  # fmt: skip
        problem(api.get(f"/jobs?{query}"), 422, "invalid_request", query.partition("=")[0])


def test_what_a_job_waits_for_is_shown_until_a_worker_offers_it(settings: Settings, engine: Engine) -> None:
    settings = settings.model_copy(update={"queues": ("default", "gpu-large")})
    with TestClient(create_app(settings), base_url=URL) as api:
        asked = {"queue": "gpu-large", "min_gpu_memory_gib": 40}
        answer = api.post("/jobs", json=REQUEST | asked | {"priority": 9})
        here, missing = answer.headers["location"], "a worker for the queue gpu-large with 40 GiB of GPU memory: none"
        assert answer.json()["waiting_for"] == f"{missing} is alive"
        before = api.get(here)
        samples = api.get("/metrics").text
        assert 'flattengpt_unserved_jobs{queue="gpu-large"} 1.0' in samples
        assert 'flattengpt_workers{queue="default"} 0.0' in samples
        Roster(engine).present("w", Serves(("gpu-large",), 79.2), seconds=60)
        after = api.get(here, headers={"If-None-Match": before.headers["etag"]})
        assert (after.status_code, after.json()["waiting_for"]) == (200, None)
        assert 'flattengpt_unserved_jobs{queue="gpu-large"} 0.0' in api.get("/metrics").text
