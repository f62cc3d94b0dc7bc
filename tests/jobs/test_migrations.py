"""The schema that the migrations make is the models', and making it can be repeated, raced and undone."""

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, Inspector, insert, inspect, select
from sqlalchemy.exc import IntegrityError

from jobs.database import alembic_config, make_engine, upgrade
from jobs.spec import JobSpec
from jobs.states import JobStatus
from jobs.store import JobStore
from jobs.tables import Base, Job
from tests.jobs.at_once import at_once

UPGRADE = """
import sys
from jobs.database import make_engine, upgrade
print("ready", flush=True)
sys.stdin.readline()
upgrade(make_engine(sys.argv[1]))
"""

ALEMBICS = "alembic_version"
TABLES = {"api_key", "job", "job_event", "tally", "webhook_delivery", "webhook_secret", "worker_queue"}


def schema(engine: Engine) -> dict[str, dict[str, Any]]:
    """All that the database says of its tables, but for alembic's own."""
    seen: Inspector = inspect(engine)

    def columns(table: str) -> list[tuple[Any, ...]]:
        return [(c["name"], repr(c["type"]), c["nullable"], c["default"]) for c in seen.get_columns(table)]

    def sorted_by_name(constraints: list[Any]) -> list[dict[str, Any]]:
        return sorted((dict(constraint) for constraint in constraints), key=lambda constraint: constraint["name"])

    def indexes(table: str) -> list[dict[str, Any]]:
        """With their WHERE as text: SQLAlchemy's object equals only itself."""
        found = [dict(index) for index in seen.get_indexes(table)]
        for index in found:
            index["dialect_options"] = {key: str(value) for key, value in index.get("dialect_options", {}).items()}
        return found

    return {
        table: {
            "columns": columns(table),
            "primary key": seen.get_pk_constraint(table),
            "foreign keys": sorted_by_name(seen.get_foreign_keys(table)),
            "unique": sorted_by_name(seen.get_unique_constraints(table)),
            "checks": sorted_by_name(seen.get_check_constraints(table)),
            "indexes": sorted_by_name(indexes(table)),
        }
        for table in seen.get_table_names()
        if table != ALEMBICS
    }


def downgrade(engine: Engine) -> None:
    command.downgrade(alembic_config(engine), "base")


def version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def test_alembic_finds_nothing_to_migrate(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []


def test_the_migrated_schema_is_the_one_of_the_models(engine: Engine) -> None:
    """Alembic does not compare check constraints, names of keys or what a key's deletion does."""
    migrated = schema(engine)
    downgrade(engine)
    Base.metadata.create_all(engine)
    assert migrated == schema(engine)
    assert set(migrated) == TABLES


def test_the_database_refuses_what_no_job_is(engine: Engine) -> None:
    row = {"id": "1", "status": "queued", "model": "m", "method": "flattengpt", "request": {}, "labels": {}}
    for wrong in ({"status": "paused"}, {"progress": 1.01}, {"progress": -0.01}):
        with pytest.raises(IntegrityError), engine.begin() as connection:
            connection.execute(insert(Job).values(row | wrong))
    with engine.begin() as connection:
        for status in JobStatus:
            connection.execute(insert(Job).values(row | {"id": status.value, "status": status}))


def test_upgrading_again_changes_nothing(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    assert ScriptDirectory.from_config(alembic_config(engine)).get_heads() == [version(engine)]
    job, before = store.submit(spec), (schema(engine), version(engine))
    upgrade(engine)
    assert (schema(engine), version(engine)) == before
    assert store.get(job.id) == job


def test_down_leaves_nothing_and_up_again_works(engine: Engine, store: JobStore, spec: JobSpec) -> None:
    before = schema(engine)
    store.submit(spec)
    downgrade(engine)
    assert inspect(engine).get_table_names() == [ALEMBICS]
    assert version(engine) is None
    upgrade(engine)
    assert schema(engine) == before
    assert store.page().jobs == []
    assert store.get(store.submit(spec).id).status is JobStatus.QUEUED


def test_processes_that_start_at_once(database_url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, database_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [process.stdout and process.stdout.readline() for process in processes] == ["ready\n"] * 3
    said = [process.communicate("go\n", timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 3, said
    engine = make_engine(database_url)
    assert set(schema(engine)) == TABLES
    engine.dispose()


def test_threads_that_start_at_once(database_url: str) -> None:
    def start() -> int:
        engine = make_engine(database_url)
        upgrade(engine)
        with engine.connect() as connection:
            found = connection.execute(select(Job)).all()
        engine.dispose()
        return len(found)

    assert at_once(*[start] * 6) == [0] * 6


def test_turning_wal_on_waits_for_a_writer(tmp_path: Path) -> None:
    """SQLite itself does not wait here, even when it is told to."""
    file = tmp_path / "flattengpt.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("CREATE TABLE t (x)")
        threading.Timer(0.3, other.execute, ["COMMIT"]).start()
        engine = make_engine(f"sqlite:///{file}")
        upgrade(engine)
    assert set(schema(engine)) == TABLES | {"t"}
    engine.dispose()


def test_jobs_and_events_outlive_the_migration_to_owners_and_back(
    engine: Engine, store: JobStore, spec: JobSpec
) -> None:
    """SQLite makes the job table anew for it; dropping the old one would take the events along."""
    nobodys = store.submit(spec, idempotency_key="k")
    owned = [store.of(owner).submit(spec, idempotency_key="k").id for owner in ("one", "two")]
    events = {job_id: store.events(job_id) for job_id in (nobodys.id, *owned)}
    for _ in range(2):
        command.downgrade(alembic_config(engine), "0002")
        command.upgrade(alembic_config(engine), "head")
        assert store.get(nobodys.id) == nobodys
        assert {job.id: store.events(job.id) for job in store.page().jobs} == events
    assert store.submit(spec, idempotency_key="k") == nobodys
    assert store.of("one").page().jobs == []
    for job_id in owned:
        store.cancel(job_id)
        store.delete(job_id)
        assert store.events(job_id) == [], "the foreign key is back"
