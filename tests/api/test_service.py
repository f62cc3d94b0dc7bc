"""The service as a whole: who may call it, how it fails, and what it says of itself."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from api.app import create_app
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.api.conftest import REQUEST, URL, on_sqlite, problem, submitted
from tests.api.test_jobs import METRICS, taken
from tests.imports import HEAVY, imported

PROBLEM_FIELDS = ["type", "title", "status", "detail", "instance", "code", "errors", "retryable"]


def opened(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), base_url=URL, raise_server_exceptions=False)


@on_sqlite
def test_alive_and_ready(api: TestClient) -> None:
    assert (api.get("/healthz").status_code, api.get("/healthz").json()) == (200, {"status": "ok"})
    assert (api.get("/readyz").status_code, api.get("/readyz").json()) == (200, {"status": "ready"})


@on_sqlite
@pytest.mark.parametrize(
    ("broken", "part"),
    [
        ({"database_url": "postgresql+psycopg://nobody@127.0.0.1:9/none"}, "database"),
        ({"broker_url": "redis://127.0.0.1:9/0"}, "broker"),
        ({"broker_url": "amqp://127.0.0.1:9"}, "broker"),
        ({"artifacts_url": "file:///dev/null/artifacts"}, "artifacts"),
    ],
)
def test_ready_names_the_part_that_does_not_answer(
    settings: Settings, store: JobStore, broken: dict[str, str], part: str
) -> None:
    with opened(settings.model_copy(update=broken)) as api:
        body = problem(api.get("/readyz"), 503, "not_ready", part)
        assert body["retryable"]
        assert api.get("/healthz").status_code == 200


@pytest.fixture(params=["silent", "damaged", "without-tables"])
def broken_database(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> str:
    """A database that cannot be used."""
    if request.param == "without-tables":
        return database_url
    if database_url.startswith("postgresql"):
        return "postgresql+psycopg://nobody@127.0.0.1:9/none"
    if request.param == "damaged":
        file = tmp_path / "damaged.db"
        file.write_bytes(b"no database " * 1000)
        return f"sqlite:///{file}"
    (tmp_path / "folder.db").mkdir()
    return f"sqlite:///{tmp_path / 'folder.db'}"


def test_a_broken_database_is_no_mistake_of_the_service(settings: Settings, broken_database: str) -> None:
    with opened(settings.model_copy(update={"database_url": broken_database})) as api:
        for answer in (
            api.get("/jobs"),
            api.get("/jobs/01M8715SXX5VDXZSFJX3F7CKD1"),
            api.get("/jobs/x/events", headers={"Accept": "text/event-stream"}),
            api.get("/jobs/x/artifacts/config.json"),
            api.post("/jobs", json=REQUEST),
            api.post("/jobs", json=REQUEST, headers={"Idempotency-Key": "a"}),
            api.post("/jobs/x/cancel"),
        ):
            body = problem(answer, 503, "not_ready")
            assert body["retryable"]
            assert "127.0.0.1" not in answer.text
            assert ".db" not in answer.text


@on_sqlite
def test_a_mistake_of_the_service_tells_nothing_but_that(settings: Settings, store: JobStore) -> None:
    """Here: metrics in the database that no version of the service has written."""
    job_id = store.submit(JobSpec(**REQUEST)).id
    store.store_result(taken(store, job_id), metrics={"dense": "secret"}, artifacts=[])
    with opened(settings) as api:
        assert "secret" not in json.dumps(problem(api.get(f"/jobs/{job_id}"), 500, "internal_error"))


@on_sqlite
@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "evil@localhost", "[::2]",
     "0.0.0.0", "192.168.0.1", "localhost:x", ""],
)  # fmt: skip
def test_requests_for_another_host_are_refused(api: TestClient, store: JobStore, host: str) -> None:
    """Else a page in a browser reaches the service by DNS rebinding."""
    for answer in (
        api.post("/jobs", json=REQUEST, headers={"Host": host}),
        api.get("/healthz", headers={"Host": host}),
        api.get("/nothing", headers={"Host": host}),
    ):
        problem(answer, 400, "bad_request")
    assert store.page().jobs == []


@on_sqlite
def test_requests_for_this_machine_are_taken(api: TestClient) -> None:
    for host in ("127.0.0.1", "127.0.0.1:8000", "127.0.0.2:80", "localhost", "LOCALHOST:8000", "[::1]", "[::1]:8000"):
        assert api.get("/healthz", headers={"Host": host}).status_code == 200, host


@on_sqlite
def test_no_such_address(api: TestClient) -> None:
    for path in ("/nothing", "/job", "/jobs/x/nothing", "/jobs/x/cancel/y", "/..%2f..%2fetc/passwd"):
        problem(api.get(path), 404, "not_found")


@on_sqlite
def test_no_such_method(api: TestClient) -> None:
    for method, path, allowed in (
        ("PUT", "/jobs", {"GET", "POST"}),
        ("DELETE", "/healthz", {"GET"}),
        ("GET", "/jobs/x/cancel", {"POST"}),
        ("POST", "/jobs/x/events", {"GET"}),
    ):
        answer = api.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) == allowed


@on_sqlite
def test_other_origins_get_no_leave(api: TestClient) -> None:
    answer = api.get("/jobs", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_the_api_imports_no_torch(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from api.app import create_app; from jobs.settings import Settings\n"
        "create_app(Settings(auth='none', data_dir=Path(sys.argv[1]))).openapi()"
    )
    assert not HEAVY & imported(code, str(tmp_path))


@pytest.fixture
def document(api: TestClient) -> dict[str, Any]:
    """The OpenAPI document."""
    body: dict[str, Any] = api.get("/openapi.json").json()
    return body


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def validator(document: dict[str, Any], schema: str) -> Draft202012Validator:
    """Checks a value against one of the document's schemas."""
    registry: Registry[Any] = Registry().with_resource("urn:api", Resource(document, DRAFT202012))
    return Draft202012Validator({"$ref": f"urn:api#/components/schemas/{schema}"}, registry=registry)


@on_sqlite
def test_openapi_holds_every_schema_that_it_names(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    assert set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document))) <= set(schemas)
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)
    names = [operation["operationId"] for operation in operations(document)]
    assert len(names) == len(set(names)) >= 9


@on_sqlite
def test_openapi_describes_every_refusal_as_a_problem(document: dict[str, Any]) -> None:
    assert list(document["components"]["schemas"]["Problem"]["properties"]) == PROBLEM_FIELDS
    for operation in operations(document):
        refusals = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert refusals, operation["operationId"]
        for answer in refusals.values():
            assert answer["content"] == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}
            }
    submit = document["paths"]["/jobs"]["post"]["responses"]
    assert {"202", "400", "409", "413", "422", "503"} <= set(submit)
    assert "Location" in submit["202"]["headers"]


@on_sqlite
def test_openapi_examples_are_valid_requests(document: dict[str, Any]) -> None:
    examples = document["components"]["schemas"]["JobSpec"]["examples"]
    assert len(examples) >= 2
    for example in examples:
        JobSpec.model_validate(example)
        validator(document, "JobSpec").validate(example)


@on_sqlite
def test_openapi_describes_what_is_answered(document: dict[str, Any], api: TestClient, store: JobStore) -> None:
    job_id = submitted(api)
    lease = taken(store, job_id)
    store.store_result(lease, metrics=METRICS, artifacts=[{"path": "a", "size": 1, "sha256": "b"}])
    store.succeed(lease)
    validator(document, "JobReply").validate(api.get(f"/jobs/{job_id}").json())
    validator(document, "JobPage").validate(api.get("/jobs").json())
    validator(document, "EventPage").validate(api.get(f"/jobs/{job_id}/events").json())
    validator(document, "ArtifactPage").validate(api.get(f"/jobs/{job_id}/artifacts").json())
    hooked = submitted(api, webhook={"url": "https://example.org/hook"})
    api.post(f"/jobs/{hooked}/cancel")
    validator(document, "JobReply").validate(api.get(f"/jobs/{hooked}").json())
    validator(document, "DeliveryPage").validate(api.get(f"/jobs/{hooked}/webhooks").json())
    validator(document, "SigningSecretReply").validate(api.get("/webhooks/secret").json())
    validator(document, "Problem").validate(api.get("/jobs/x").json())
    validator(document, "Families").validate(api.get("/families").json())
    assert list(api.get("/jobs/x").json()) == PROBLEM_FIELDS
