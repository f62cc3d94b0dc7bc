"""A key that asks too often is told so, and told before what is left to it."""

import re
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from structlog.testing import capture_logs

from api.app import create_app
from jobs.keys import KeyStore
from jobs.scopes import Scope
from jobs.settings import Settings
from jobs.store import JobStore
from tests.api.conftest import URL, on_sqlite, problem
from tests.api.test_auth import with_key
from tests.servers import redis_server, redis_url

__all__ = ["redis_server", "redis_url"]

pytestmark = on_sqlite


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Three requests a day, counted in this process."""
    return settings.model_copy(update={"auth": "required", "rate_limit": "3/day"})


@pytest.fixture
def keys(store: JobStore, settings: Settings, engine: object) -> KeyStore:
    return KeyStore(engine)  # type: ignore[arg-type]


def client(settings: Settings, keys: KeyStore, name: str) -> httpx.Client:
    secret = keys.create(name, (Scope.JOBS_READ,)).key.get_secret_value()
    return with_key(TestClient(create_app(settings), base_url=URL), secret)


def left(answer: httpx.Response) -> int:
    found = re.fullmatch(r'"key";r=(\d+);t=(\d+)', answer.headers["ratelimit"])
    assert found is not None
    assert 1 <= int(found[2]) <= 86_400
    assert answer.headers["ratelimit-policy"] == '"key";q=3;w=86400'
    return int(found[1])


def test_every_answer_tells_what_is_left_and_then_there_is_nothing(settings: Settings, keys: KeyStore) -> None:
    one, other = (client(settings, keys, name) for name in ("one", "other"))
    assert left(one.get("/jobs")) == 2
    assert left(one.get("/jobs/x")) == 1
    refused = one.post("/jobs", json={})
    assert (refused.status_code, left(refused)) == (403, 0)
    for _ in range(2):
        answer = one.get("/jobs")
        problem(answer, 429, "too_many_requests")
        assert left(answer) == 0
        assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    assert left(other.get("/jobs")) == 2


def test_what_needs_no_key_is_not_counted(settings: Settings, keys: KeyStore) -> None:
    anybody = TestClient(create_app(settings), base_url=URL)
    for _ in range(5):
        answer = anybody.get("/healthz")
        assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)
        assert anybody.get("/jobs").status_code == 401


def test_no_limit(settings: Settings, keys: KeyStore) -> None:
    free = client(settings.model_copy(update={"rate_limit": ""}), keys, "free")
    for _ in range(5):
        answer = free.get("/jobs")
        assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)


def test_processes_that_share_redis_count_together(settings: Settings, keys: KeyStore, redis_url: str) -> None:
    shared = settings.model_copy(update={"broker_url": redis_url})
    secret = keys.create("both", (Scope.JOBS_READ,)).key.get_secret_value()
    apis = [with_key(TestClient(create_app(shared), base_url=URL), secret) for _ in range(2)]
    assert [left(apis[n % 2].get("/jobs")) for n in range(3)] == [2, 1, 0]
    assert {api.get("/jobs").status_code for api in apis} == {429}


def test_without_redis_nobody_is_refused(settings: Settings, keys: KeyStore, tmp_path: Path) -> None:
    gone = settings.model_copy(update={"broker_url": "redis://127.0.0.1:9/0"})
    api = client(gone, keys, "lucky")
    started = time.monotonic()
    with capture_logs() as logs:
        assert [api.get("/jobs").status_code for _ in range(5)] == [200] * 5
    assert "requests are not counted" in [line["event"] for line in logs]
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("limit", ["many", "0/minute", "10", "10/fortnight", "-1/second", "1.5/hour", "10 per minute"])
def test_a_limit_that_is_none(settings: Settings, limit: str) -> None:
    with pytest.raises(ValidationError, match="rate_limit"):
        Settings(data_dir=settings.data_dir, rate_limit=limit)
