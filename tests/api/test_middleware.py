"""What every answer goes through: compression, and origins that may ask."""

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.artifacts import ArtifactStore, as_json
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import URL, on_sqlite, submitted
from tests.api.test_jobs import METRICS, taken

pytestmark = on_sqlite

PAGE = {"Origin": "https://console.example"}
PREFLIGHT = PAGE | {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def sent(api: TestClient, path: str, encoding: str) -> httpx.Response:
    return api.get(path, headers={"Accept-Encoding": encoding})


def test_long_documents_are_compressed_for_who_asks(api: TestClient) -> None:
    for _ in range(5):
        submitted(api)
    packed, plain = (sent(api, "/jobs", encoding) for encoding in ("gzip", "identity"))
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < int(plain.headers["content-length"]) / 2
    assert packed.json() == plain.json()
    assert "content-encoding" not in plain.headers
    assert packed.headers["vary"] == plain.headers["vary"] == "Accept-Encoding"
    assert "content-encoding" not in sent(api, "/healthz", "gzip").headers


def test_results_are_sent_as_they_are(api: TestClient, store: JobStore, settings: Settings, tmp_path: object) -> None:
    job_id = submitted(api)
    folder = settings.data_dir / "result"
    folder.mkdir()
    (folder / "config.json").write_text("{}" + " " * 5000)
    lease = taken(store, job_id)
    stored = ArtifactStore(settings.artifacts).put_folder(job_id, folder)
    store.store_result(lease, metrics=METRICS, artifacts=as_json(stored))
    answer = sent(api, f"/jobs/{job_id}/artifacts/config.json", "gzip")
    assert (answer.headers["content-length"], "content-encoding" in answer.headers) == ("5002", False)
    part = api.get(f"/jobs/{job_id}/artifacts/config.json", headers={"Range": "bytes=1-2", "Accept-Encoding": "gzip"})
    assert (part.status_code, part.text) == (206, "} ")
    assert sent(api, f"/jobs/{job_id}/artifacts", "gzip").json()["artifacts"][0]["size"] == 5002


def test_no_other_origin_may_ask(api: TestClient) -> None:
    assert "access-control-allow-origin" not in api.get("/jobs", headers=PAGE).headers
    assert api.options("/jobs", headers=PREFLIGHT).status_code == 405


def test_origins_that_the_settings_name_may(settings: Settings, store: JobStore) -> None:
    named = settings.model_copy(update={"cors_origins": "https://other.example, https://console.example"})
    api = TestClient(create_app(named), base_url=URL)
    answer = api.get("/jobs", headers=PAGE)
    assert answer.headers["access-control-allow-origin"] == PAGE["Origin"]
    assert "access-control-allow-credentials" not in answer.headers
    assert api.options("/jobs", headers=PREFLIGHT).headers["access-control-allow-origin"] == PAGE["Origin"]
    stranger = api.get("/jobs", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in stranger.headers


@pytest.mark.parametrize("path", ["/jobs/%00", "/nowhere"])
def test_refusals_are_compressed_by_the_same_rules(api: TestClient, path: str) -> None:
    assert sent(api, path, "gzip").json()["status"] == 404
