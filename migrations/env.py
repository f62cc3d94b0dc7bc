"""Alembic's entry: run the migrations on the connection that `jobs.database` hands over, or on the settings' one."""

from alembic import context
from sqlalchemy import Connection

from jobs.database import make_engine
from jobs.settings import Settings
from jobs.tables import Base


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    engine = context.config.attributes.get("engine") or make_engine(Settings().database)
    with engine.begin() as opened:
        migrate(opened)
