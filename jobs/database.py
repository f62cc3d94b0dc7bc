"""The connection to the database, and its schema brought up to date."""

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stamina
from psycopg.errors import IdleInTransactionSessionTimeout
from sqlalchemy import Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

if TYPE_CHECKING:
    from alembic.config import Config

_POSTGRESQL = {
    "connect_timeout": 10,
    # A process that is stopped in the middle of a transaction must not keep its locks from the others.
    "options": "-c idle_in_transaction_session_timeout=10s -c lock_timeout=30s",
    # A host that vanished without a word is noticed in about half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}
"""libpq's options; seconds, but for the last in milliseconds."""
_MIGRATION_LOCK = 0x666C6174  # any constant: the key of PostgreSQL's advisory lock


def make_engine(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL whose transactions never wait for a lock they cannot get.

    SQLite runs in WAL mode, begins each transaction as a write (so that two writers queue instead of failing half
    way) unless it is marked by the execution option `readonly`, and waits up to 30 s for another writer. PostgreSQL
    connections are checked before use.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        # What the URL itself says wins.
        arguments = {name: value for name, value in _POSTGRESQL.items() if name not in parsed.query}
        engine = create_engine(parsed, connect_args=arguments, pool_pre_ping=True, pool_size=10, max_overflow=30)
        event.listen(engine, "handle_error", _as_lost_connection)
        return engine
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, connect_args={"timeout": 30, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    # While another connection turns WAL on, SQLite refuses at once instead of waiting.
    @stamina.retry(on=_busy, attempts=None, timeout=30, wait_max=0.1)
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=30000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        readonly = connection.get_execution_options().get("readonly", False)
        connection.exec_driver_sql("BEGIN" if readonly else "BEGIN IMMEDIATE")

    return engine


def reader(engine: Engine) -> Engine:
    """The engine for what only reads; see `make_engine` for what that means on SQLite.

    On PostgreSQL such a connection makes no transactions, which at its isolation `read committed` would change nothing
    but take two more trips to the server.
    """
    options: dict[str, Any] = {} if engine.dialect.name == "sqlite" else {"isolation_level": "AUTOCOMMIT"}
    return engine.execution_options(readonly=True, **options)


def sessions(engine: Engine) -> tuple[sessionmaker[Session], sessionmaker[Session]]:
    """What makes sessions that write, and sessions that only read."""
    return sessionmaker(engine, expire_on_commit=False), sessionmaker(reader(engine), expire_on_commit=False)


def alembic_config(engine: Engine) -> "Config":
    """Alembic's configuration for this database; the migrations are found beside the code."""
    from alembic.config import Config  # takes a tenth of a second, and most processes migrate nothing

    config = Config()
    config.set_main_option("script_location", "migrations:")
    config.attributes["engine"] = engine
    return config


def upgrade(engine: Engine) -> None:
    """Bring the schema to the newest version; safe when several processes start at once."""
    from alembic import command

    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = 0"))  # another one's migration may take minutes
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config = alembic_config(engine)
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def _as_lost_connection(context: ExceptionContext) -> Exception | None:
    """What PostgreSQL says to a process that went on after its transaction had been ended for it.

    The driver calls it an internal error; it is a connection that was lost, so that the write is tried again.
    """
    if not isinstance(context.original_exception, IdleInTransactionSessionTimeout):
        return None
    context.is_disconnect = True
    return OperationalError(context.statement, None, context.original_exception, connection_invalidated=True)


def _busy(error: Exception) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode == sqlite3.SQLITE_BUSY
