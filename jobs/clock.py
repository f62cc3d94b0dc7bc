"""The database's clock as SQL, the only clock a job's life knows, and the column type that holds its times."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import DateTime, Dialect, Float, TypeDecorator, literal
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class UtcDateTime(TypeDecorator[datetime]):
    """An instant. `timestamptz` on PostgreSQL; on SQLite text in UTC that sorts as the instants do."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class now_plus(FunctionElement[datetime]):  # noqa: N801 - reads as the SQL function it is
    """The database's current time plus `seconds`, which may be negative: a parameter, so that SQL is compiled once."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, seconds: float = 0) -> None:
        super().__init__(literal(float(seconds), Float()))


@compiles(now_plus, "postgresql")
def _on_postgresql(element: now_plus, compiler: SQLCompiler, **_: Any) -> str:
    # clock_timestamp() moves on within a transaction, unlike now().
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses)}))"


@compiles(now_plus, "sqlite")
def _on_sqlite(element: now_plus, compiler: SQLCompiler, **_: Any) -> str:
    # SQLAlchemy stores six decimals of a second and SQLite's clock has three.
    shift = f"printf('%+f seconds', {compiler.process(element.clauses)})"
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {shift}) || '000')"
