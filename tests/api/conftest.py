"""The real application over a database of the test's own, with a tiny model in its model folder."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest
from fastapi.testclient import TestClient

from api.app import create_app
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api_server import serving
from tests.tiny_models import tiny_checkpoint

URL = "http://127.0.0.1"
NOWHERE = "http://127.0.0.1:9"
TINY: dict[str, Any] = {
    "model": "local:tiny",
    "calibration": {"dataset": "python-docs"},
    "evaluation": {"perplexity": ["python-docs"]},
}
REQUEST: dict[str, Any] = TINY | {"layers": 4}

on_sqlite = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what is decided before the database is asked."""

Variant = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of six layers."""
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "tiny")


@pytest.fixture
def settings(settings: Settings, tiny: Path) -> Settings:
    """As for every test, without keys, without a Hub, and with `local:tiny`."""
    shutil.copytree(tiny, settings.models_dir / "tiny")
    return settings.model_copy(update={"auth": "none", "hf_endpoint": NOWHERE})


@pytest.fixture
def variant(settings: Settings) -> Variant:
    """Makes `local:odd` of `local:tiny` with other entries in config.json; gives its folder."""

    def make(**config: Any) -> Path:
        folder = settings.models_dir / "odd"
        shutil.copytree(settings.models_dir / "tiny", folder)
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | config))
        return folder

    return make


@pytest.fixture
def api(settings: Settings, store: JobStore) -> Iterator[TestClient]:
    """The application, in this process. `store` has migrated the database."""
    with TestClient(create_app(settings), base_url=URL) as client:
        yield client


@pytest.fixture
def live(settings: Settings, store: JobStore) -> Iterator[httpx.Client]:
    """The application behind a real server, where answers stream."""
    with serving(settings) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def problem(response: httpx.Response, status: int, code: str, *fields: str) -> dict[str, Any]:
    """The problem document of a refusal, which names these fields and no others."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code, body
    assert body["type"] == f"urn:flattengpt:problem:{code}"
    assert unquote(body["instance"]) == unquote(response.request.url.path)
    assert [error["field"] for error in body["errors"]] == list(fields)
    assert body["title"]
    assert body["detail"]
    return body


def submitted(api: httpx.Client, **changes: Any) -> str:
    """The id of a new job."""
    response = api.post("/jobs", json=REQUEST | changes)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])
