"""A database of the test's own on each kind of server, and settings that lead there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from sqlalchemy import Engine

from jobs.database import make_engine, upgrade
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.store import JobStore
from tests.s3_server import bucket, s3_server
from tests.servers import postgres_server, postgres_url, redis_server, redis_url

__all__ = ["bucket", "postgres_server", "postgres_url", "redis_server", "redis_url", "s3_server"]


# A service in a thread of the tests must not write into what a command prints: structlog's own default is stdout.
structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The whole journeys first: the longest files must not be what the last process ends with alone."""
    items.sort(key=lambda item: "e2e" not in item.path.parts)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database; every test that uses it runs on both kinds."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'flattengpt.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """The database at its newest version."""
    engine = make_engine(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine: Engine) -> JobStore:
    return JobStore(engine)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    """Settings for the database and a data folder of the test's own, with the embedded queue and short times."""
    return Settings(
        database_url=database_url,
        broker_url="",
        artifacts_url="",
        data_dir=tmp_path,
        lease_seconds=10,
        heartbeat_seconds=0.2,
        poll_seconds=0.05,
        announce_after_seconds=60,
        stop_grace_seconds=3,
        min_free_disk_bytes=0,
    )


@pytest.fixture
def spec() -> JobSpec:
    """The smallest request."""
    return JobSpec(model="local:tiny", layers=4)
