"""API keys over HTTP: who is let in, what each may do, and whose jobs each meets."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, update

from api.app import create_app
from jobs.artifacts import ArtifactStore, as_json
from jobs.clock import now_plus
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from jobs.tables import ApiKey
from tests.api.conftest import REQUEST, URL, on_sqlite, problem, submitted
from tests.api.test_jobs import METRICS, taken
from tests.statements import statements

OPEN = {"/healthz", "/readyz", "/docs", "/openapi.json"}
NO_JOB = "01M8715SXX5VDXZSFJX3F7CKD1"

Caller = Callable[..., httpx.Client]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """As elsewhere, but keys are asked for."""
    return settings.model_copy(update={"auth": "required"})


@pytest.fixture
def keys(engine: Engine) -> KeyStore:
    return KeyStore(engine)


@pytest.fixture
def caller(api: TestClient, keys: KeyStore) -> Caller:
    """Makes a client of the application with a new key of these scopes."""

    def call(name: str, *scopes: Scope) -> httpx.Client:
        return with_key(api, keys.create(name, scopes or (Scope.JOBS_READ, Scope.JOBS_WRITE)).key.get_secret_value())

    return call


def with_key(api: TestClient, key: str) -> TestClient:
    return TestClient(api.app, base_url=URL, headers={"Authorization": f"Bearer {key}"})


def operations(api: httpx.Client) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, a path that can be asked for, and the OpenAPI entry of every operation."""
    for path, methods in api.get("/openapi.json").json()["paths"].items():
        for method, operation in methods.items():
            named = path.format(job_id=NO_JOB, path="config.json", delivery_id=f"msg_{NO_JOB}", name="none")
            yield method.upper(), named, operation


def scope_of(operation: dict[str, Any]) -> str | None:
    """The scope that the document says an operation needs."""
    scopes = [scope for scheme in operation.get("security", []) for scope in scheme["ApiKey"]]
    return scopes[0] if scopes else None


def challenge(answer: httpx.Response) -> str:
    return answer.headers["www-authenticate"]


# Without a key, and with one that is none


@on_sqlite
def test_everything_asks_for_a_key_but_what_tells_nothing(api: TestClient) -> None:
    asked = [(method, path) for method, path, _ in operations(api) if path not in OPEN]
    assert len(asked) >= 11
    for method, path in asked:
        answer = api.request(method, path, json={"nothing": "valid"})
        problem(answer, 401, "unauthorized")
        assert challenge(answer) == "Bearer"
    for path in OPEN:
        assert api.get(path).status_code == 200, path


@on_sqlite
def test_openapi_says_which_key_each_operation_asks_for(api: TestClient) -> None:
    schemes = api.get("/openapi.json").json()["components"]["securitySchemes"]
    assert (schemes["ApiKey"]["type"], schemes["ApiKey"]["scheme"]) == ("http", "bearer")
    found = {operation["operationId"]: operation.get("security") for _, _, operation in operations(api)}
    reads, writes, uploads = ([{"ApiKey": [scope]}] for scope in ("jobs:read", "jobs:write", "models:write"))
    assert found == {
        "health": None, "readiness": None, "listFamilies": [{"ApiKey": []}], "metrics": [{"ApiKey": ["admin"]}],
        "listJobs": reads, "getJob": reads, "listJobEvents": reads, "listJobArtifacts": reads, "getJobArtifact": reads,
        "listJobWebhooks": reads, "replayJobWebhook": writes, "getWebhookSecret": writes, "rotateWebhookSecret": writes,
        "submitJob": writes, "cancelJob": writes, "retryJob": writes, "deleteJob": writes,
        "listModels": reads, "getModel": reads, "putModel": uploads, "deleteModel": uploads,
        "listDatasets": reads, "getDataset": reads, "putDataset": uploads, "deleteDataset": uploads,
    }  # fmt: skip
    for _, path, operation in operations(api):
        assert ("401" in operation["responses"]) == (path not in OPEN)


def test_one_answer_for_every_key_that_may_not_be_used(api: TestClient, keys: KeyStore, engine: Engine) -> None:
    good, expired, revoked = (keys.create(name, list(Scope)) for name in ("good", "expired", "revoked"))
    keys.revoke("revoked")
    with engine.begin() as connection:
        connection.execute(update(ApiKey).where(ApiKey.id == expired.record.id).values(expires_at=now_plus(-1)))
    key, *over = (new.key.get_secret_value() for new in (good, expired, revoked))
    said = set()
    for wrong in (*over, key[:-1], key + "0", "none", "k" * 5000):
        answer = with_key(api, wrong).get("/jobs")
        problem(answer, 401, "unauthorized")
        assert challenge(answer) == 'Bearer error="invalid_token"'
        assert wrong not in answer.text
        said.add(answer.text)
    assert len(said) == 1
    assert with_key(api, key).get("/jobs").status_code == 200


@on_sqlite
def test_headers_that_hold_no_key(api: TestClient, keys: KeyStore) -> None:
    key = keys.create("ci", list(Scope)).key.get_secret_value()
    for value in ("", "Bearer", "Bearer ", key, f"Basic {key}", f"Token {key}", b"Bearer \xff\xfe"):
        problem(api.get("/jobs", headers={"Authorization": value}), 401, "unauthorized")
    problem(api.get("/jobs", params={"api_key": key, "access_token": key}), 401, "unauthorized")
    for value in (f"Bearer {key}", f"bearer {key}", f"BEARER {key}"):
        assert api.get("/jobs", headers={"Authorization": value}).status_code == 200


def test_a_key_is_of_no_use_from_its_revocation_on(api: TestClient, keys: KeyStore) -> None:
    client = with_key(api, keys.create("ci", [Scope.JOBS_READ]).key.get_secret_value())
    assert client.get("/jobs").status_code == 200
    keys.revoke("ci")
    problem(client.get("/jobs"), 401, "unauthorized")


def test_a_database_that_does_not_answer_is_no_wrong_key(settings: Settings, keys: KeyStore) -> None:
    key = keys.create("ci", [Scope.JOBS_READ]).key.get_secret_value()
    silent = settings.model_copy(update={"database_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"})
    with TestClient(create_app(silent), base_url=URL) as api:
        problem(with_key(api, key).get("/jobs"), 503, "not_ready")


@on_sqlite
def test_any_host_name_will_do(caller: Caller) -> None:
    """A page that gets here by DNS rebinding has no key."""
    assert caller("ci").get("/jobs", headers={"Host": "flat.example.org"}).status_code == 200


# What a key may do


@on_sqlite
def test_each_scope_opens_what_it_says(api: TestClient, caller: Caller) -> None:
    callers = {scope: caller(scope.name, scope) for scope in Scope}
    for method, path, operation in operations(api):
        needed = scope_of(operation)
        for scope, client in callers.items():
            answer = client.request(method, path, json={"nothing": "valid"})
            if needed in (None, scope) or scope is Scope.ADMIN:
                assert answer.status_code not in (401, 403), (scope, method, path)
            else:
                assert needed in problem(answer, 403, "forbidden")["detail"]
                assert challenge(answer) == f'Bearer error="insufficient_scope", scope="{needed}"'


def test_a_request_costs_one_look_at_the_keys_and_no_write(api: TestClient, caller: Caller) -> None:
    client = caller("ci")
    job_id = submitted(client)
    with statements() as sent:
        assert client.get(f"/jobs/{job_id}").status_code == 200
    short = [" ".join(re.sub(r"SELECT .*\sFROM", "SELECT FROM", sql, flags=re.DOTALL).split()) for sql in sent]
    key, job = [statement for statement in short if not statement.startswith("BEGIN")]
    assert re.fullmatch(r"SELECT FROM api_key WHERE api_key.id = \S+", key)
    assert re.fullmatch(r"SELECT FROM job WHERE job.id = \S+ AND job.owner = \S+", job)


# Whose jobs


def test_a_key_meets_its_own_jobs_and_no_others(
    api: TestClient, caller: Caller, store: JobStore, settings: Settings, tmp_path: Path
) -> None:
    mine, theirs, admin = caller("mine"), caller("theirs"), caller("admin", Scope.ADMIN)
    job_id, other = submitted(mine), submitted(theirs)
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "config.json").write_text("{}")
    lease = taken(store, job_id)
    stored = ArtifactStore(settings.artifacts).put_folder(job_id, tmp_path / "result")
    store.store_result(lease, metrics=METRICS, artifacts=as_json(stored))
    store.fail(lease, {"code": "broken", "title": "T", "message": "M", "retryable": False})
    here = f"/jobs/{job_id}"
    calls = [
        ("GET", here), ("GET", f"{here}/events"), ("GET", f"{here}/artifacts"),
        ("GET", f"{here}/artifacts/config.json"), ("POST", f"{here}/cancel"), ("POST", f"{here}/retry"),
        ("GET", f"{here}/webhooks"), ("POST", f"{here}/webhooks/msg_{NO_JOB}/replay"),
        ("DELETE", here),
    ]  # fmt: skip
    for method, path in calls:
        refused = theirs.request(method, path)
        problem(refused, 404, "job_not_found")
        unknown = theirs.request(method, path.replace(job_id, NO_JOB))
        assert refused.text.replace(job_id, NO_JOB) == unknown.text, "nothing tells it from a job that never was"
    stream = theirs.get(f"{here}/events", headers={"Accept": "text/event-stream"})
    problem(stream, 404, "job_not_found")
    assert ids(theirs) == [other]
    assert ids(theirs, status="failed") == ids(theirs, model="local:tiny", status="failed") == []
    assert ids(mine) == [job_id]
    assert set(ids(admin)) == {job_id, other}

    for method, path in calls[:4]:
        assert mine.request(method, path).json() == admin.request(method, path).json()
    events = mine.get(f"{here}/events", headers={"Accept": "text/event-stream"}).text
    assert events.count("event: ") == len(mine.get(f"{here}/events").json()["events"]) == 4
    assert admin.post(f"/jobs/{other}/cancel").status_code == 202
    again = admin.post(f"{here}/retry").json()["id"]
    assert ids(mine) == [job_id], "a retry is the job of the key that asked for it"
    assert set(ids(admin)) == {job_id, other, again}
    assert mine.delete(here).status_code == 204
    assert ids(mine) == []


def ids(client: httpx.Client, **filters: str) -> list[str]:
    return [job["id"] for job in client.get("/jobs", params=filters).json()["jobs"]]


def test_an_idempotency_key_is_one_api_keys_own(caller: Caller) -> None:
    mine, theirs = caller("mine"), caller("theirs")
    once = {"Idempotency-Key": "nightly-7"}
    first, other = (client.post("/jobs", json=REQUEST, headers=once).json() for client in (mine, theirs))
    assert first["id"] != other["id"]
    assert mine.post("/jobs", json=REQUEST, headers=once).json() == first
    other = mine.post("/jobs", json=REQUEST | {"layers": 3}, headers=once)
    problem(other, 422, "idempotency_mismatch", "Idempotency-Key")


def test_without_keys_everything_is_everybodys(
    settings: Settings, caller: Caller, store: JobStore, api: TestClient
) -> None:
    owned, nobodys = submitted(caller("ci")), store.submit(JobSpec(**REQUEST)).id
    assert ids(caller("other")) == []
    with TestClient(create_app(settings.model_copy(update={"auth": "none"})), base_url=URL) as opened:
        assert set(ids(opened)) == {owned, nobodys}
        assert with_key(opened, "no key at all").get("/metrics").status_code == 200
        assert opened.post(f"/jobs/{owned}/cancel").status_code == 202
        assert submitted(opened) not in ids(caller("third"))


# Limits


def limited(settings: Settings, **limits: int) -> TestClient:
    return TestClient(create_app(settings.model_copy(update=limits)), base_url=URL)


def test_a_full_queue(settings: Settings, keys: KeyStore, store: JobStore) -> None:
    one, two = (keys.create(name, [Scope.JOBS_READ, Scope.JOBS_WRITE]).key.get_secret_value() for name in "ab")
    with limited(settings, max_queued_jobs=2) as api:
        first, second = with_key(api, one), with_key(api, two)
        once = {"Idempotency-Key": "k"}
        known = first.post("/jobs", json=REQUEST, headers=once)
        cancelled = submitted(second)
        second.post(f"/jobs/{cancelled}/cancel")
        submitted(second)
        for refused in (first.post("/jobs", json=REQUEST), second.post(f"/jobs/{cancelled}/retry")):
            body = problem(refused, 429, "queue_full")
            assert body["retryable"]
            assert int(refused.headers["retry-after"]) > 0
        assert first.post("/jobs", json=REQUEST, headers=once).json() == known.json()
        taken(store, known.json()["id"])
        assert second.post(f"/jobs/{cancelled}/retry").status_code == 202


def test_a_key_with_as_many_jobs_as_it_may_have(settings: Settings, keys: KeyStore, store: JobStore) -> None:
    one, two = (keys.create(name, [Scope.JOBS_READ, Scope.JOBS_WRITE]).key.get_secret_value() for name in "ab")
    with limited(settings, max_jobs_per_key=2) as api:
        first, second = with_key(api, one), with_key(api, two)
        once = {"Idempotency-Key": "k"}
        known, running = first.post("/jobs", json=REQUEST, headers=once), submitted(first)
        lease = taken(store, running)
        refused = first.post("/jobs", json=REQUEST)
        assert problem(refused, 429, "quota_exceeded")["retryable"]
        assert int(refused.headers["retry-after"]) > 0
        assert first.post("/jobs", json=REQUEST, headers=once).json() == known.json()
        submitted(second)
        store.fail(lease, {"code": "broken", "title": "T", "message": "M", "retryable": False})
        assert first.post(f"/jobs/{running}/retry").status_code == 202
        problem(first.post(f"/jobs/{running}/retry"), 429, "quota_exceeded")
