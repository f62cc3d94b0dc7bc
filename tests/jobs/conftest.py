"""One database for all tests of a file."""

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import Engine, create_engine, delete, make_url, text

from jobs.database import make_engine, upgrade
from jobs.tables import ApiKey, Job, WorkerQueue


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A database for all tests of a file, which would take longer to make than most of them to run."""
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path_factory.mktemp('store') / 'flattengpt.db'}"
        else:
            url = stack.enter_context(new_postgres_database(request.getfixturevalue("postgres_server")))
        engine = make_engine(url)
        upgrade(engine)
        engine.dispose()
        yield url


@pytest.fixture
def shared_engine(migrated_url: str) -> Iterator[Engine]:
    """The database, emptied again after the test."""
    engine = make_engine(migrated_url)
    yield engine
    engine.dispose()
    emptied = make_engine(migrated_url)  # without the listeners of a test
    with emptied.begin() as connection:
        for table in (Job, ApiKey, WorkerQueue):
            connection.execute(delete(table))
    emptied.dispose()


@contextmanager
def new_postgres_database(server: str) -> Iterator[str]:
    """The URL of a new, empty database, dropped at the end."""
    name, admin = f"flattengpt_test_{secrets.token_hex(4)}", create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()
