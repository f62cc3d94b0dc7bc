"""Where a job may publish, and the token that it may bring along, as far as `POST /jobs` can tell."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import REQUEST, URL, on_sqlite, problem
from tests.hub.state import READ_TOKEN, WRITE_TOKEN, Hub
from tests.hub_server import running_hub

pytestmark = on_sqlite
TARGET = "acme/tiny-flat4"
LLAMA = b"---\nlicense: llama3.2\n---\n# tiny\n"


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """A Hub with a model under Llama's licence."""
    with running_hub() as hub:
        hub.add("acme/tiny", {file.name: file.read_bytes() for file in tiny.iterdir()} | {"README.md": LLAMA})
        yield hub


@pytest.fixture
def settings(settings: Settings, hub: Hub) -> Settings:
    changes = {"hf_endpoint": hub.endpoint, "publish_urls": "s3://models/ours, file:///srv/models/"}
    return settings.model_copy(update=changes)


def publishing(model: str = "acme/tiny", **publish: Any) -> dict[str, Any]:
    return REQUEST | {"model": model, "publish": publish}


def test_a_repository_that_is_taken_is_refused_before_the_work(api: TestClient, store: JobStore, hub: Hub) -> None:
    hub.add(TARGET, {"config.json": b"{}"})
    for model in ("acme/tiny", "local:tiny"):
        answer = api.post("/jobs", json=publishing(model, repo_id=TARGET))
        assert '"overwrite": true' in problem(answer, 409, "publish_conflict", "publish.repo_id")["detail"]
    assert store.page().jobs == []
    assert api.post("/jobs", json=publishing(repo_id=TARGET, overwrite=True)).status_code == 202


def test_a_repeated_request_finds_its_job_and_not_its_own_repository(api: TestClient, hub: Hub) -> None:
    headers = {"Idempotency-Key": "once"}
    first = api.post("/jobs", json=publishing(repo_id=TARGET), headers=headers).json()
    hub.add(TARGET, {"config.json": b"{}"}, title=f"FlattenGPT job {first['id']}")
    assert api.post("/jobs", json=publishing(repo_id=TARGET), headers=headers).json()["id"] == first["id"]


def test_a_public_name_that_the_licence_forbids(api: TestClient, settings: Settings) -> None:
    (settings.models_dir / "tiny" / "README.md").write_bytes(LLAMA)
    for model in ("acme/tiny", "local:tiny"):
        answer = api.post("/jobs", json=publishing(model, repo_id=TARGET, private=False))
        assert "begin with 'Llama'" in problem(answer, 422, "invalid_request", "publish.repo_id")["detail"]
        for allowed in ({"repo_id": TARGET}, {"repo_id": "acme/Llama-tiny", "private": False}):
            assert api.post("/jobs", json=publishing(model, **allowed)).status_code == 202


@pytest.mark.parametrize(
    "url", ["s3://models/theirs/x", "s3://models/ours", "s3://models/ours-too/x", "file:///srv/x", "s3://other/ours/x"]
)
def test_a_place_that_the_operator_does_not_allow(api: TestClient, url: str) -> None:
    answer = api.post("/jobs", json=publishing("local:tiny", url=url))
    problem(answer, 422, "invalid_request", "publish.url")


def test_a_place_that_the_operator_allows(api: TestClient, settings: Settings) -> None:
    for url in ("s3://models/ours/x", "file:///srv/models/team/x"):
        assert api.post("/jobs", json=publishing("local:tiny", url=url)).status_code == 202
    with TestClient(create_app(settings.model_copy(update={"publish_urls": ""})), base_url=URL) as nowhere:
        answer = nowhere.post("/jobs", json=publishing("local:tiny", url="s3://models/ours/x"))
        assert "FLATTENGPT_PUBLISH_URLS" in problem(answer, 422, "invalid_request", "publish.url")["detail"]


def test_the_requests_token_asks_the_hub_and_is_in_no_answer(
    api: TestClient, store: JobStore, hub: Hub, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.repositories["acme/tiny"].private = True
    problem(api.post("/jobs", json=publishing(repo_id=TARGET)), 422, "model_not_found", "model")
    headers = {"Hub-Token": READ_TOKEN, "Idempotency-Key": "once"}
    answer = api.post("/jobs", json=publishing(repo_id=TARGET), headers=headers)
    assert answer.status_code == 202, answer.text
    job = store.get(answer.json()["id"])
    assert job.own_hub_token
    assert {seen.authorization for seen in hub.seen[-2:]} == {f"Bearer {READ_TOKEN}"}
    assert api.post("/jobs", json=publishing(repo_id=TARGET), headers=headers).json()["id"] == job.id
    other = api.post("/jobs", json=publishing(repo_id=TARGET), headers=headers | {"Hub-Token": WRITE_TOKEN})
    problem(other, 422, "idempotency_mismatch", "Idempotency-Key")

    api.post(f"/jobs/{job.id}/cancel")
    problem(api.post(f"/jobs/{job.id}/retry"), 422, "invalid_request", "Hub-Token")
    assert api.post(f"/jobs/{job.id}/retry", headers={"Hub-Token": READ_TOKEN}).status_code == 202

    written = [answer.text, other.text, api.get(f"/jobs/{job.id}/events").text, *capfd.readouterr()]
    written += [file.read_bytes().decode("latin-1") for file in settings.data_dir.rglob("*") if file.is_file()]
    assert not [text for text in written if READ_TOKEN in text]


def test_a_token_that_is_of_no_use_is_not_kept(api: TestClient, store: JobStore) -> None:
    answer = api.post("/jobs", json=REQUEST, headers={"Hub-Token": READ_TOKEN})
    assert not store.get(answer.json()["id"]).own_hub_token


def test_what_is_no_token_is_not_repeated(api: TestClient) -> None:
    answer = api.post("/jobs", json=REQUEST, headers={"Hub-Token": "two secret words"})
    problem(answer, 422, "invalid_request", "Hub-Token")
    assert "secret words" not in answer.text


def test_a_service_that_cannot_keep_a_token_refuses_it(settings: Settings, store: JobStore) -> None:
    changes = {"broker_url": "redis://127.0.0.1:9"}
    with TestClient(create_app(settings.model_copy(update=changes)), base_url=URL) as api:
        answer = api.post("/jobs", json=publishing(repo_id=TARGET), headers={"Hub-Token": READ_TOKEN})
        assert "FLATTENGPT_SECRET_KEYS" in problem(answer, 422, "invalid_request", "Hub-Token")["detail"]
    assert store.page().jobs == []


def test_gated_and_renamed_models_have_errors_of_their_own(api: TestClient, hub: Hub) -> None:
    hub.renamed["acme/before"] = "acme/tiny"
    answer = api.post("/jobs", json=REQUEST | {"model": "acme/before"})
    assert "acme/tiny" in problem(answer, 422, "model_renamed", "model")["detail"]
    hub.repositories["acme/tiny"].gated = True
    answer = api.post("/jobs", json=REQUEST | {"model": "acme/tiny"})
    assert "accept its terms" in problem(answer, 422, "model_gated", "model")["detail"]
