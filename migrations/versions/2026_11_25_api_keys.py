"""API keys, the key that owns a job, and idempotency keys of one owner's own."""

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
EVENTS_KEY = "fk_job_event_job_id"


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("id", sa.String(16), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("scopes", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("expires_at", TIME),
        sa.Column("revoked_at", TIME),
        sa.Column("last_used_at", TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_key")),
    )
    in_use = sa.text("revoked_at IS NULL")
    op.create_index(
        "uq_api_key_name_in_use", "api_key", ["name"], unique=True, postgresql_where=in_use, sqlite_where=in_use
    )
    with _events_set_loose(), op.batch_alter_table("job") as job:
        job.add_column(sa.Column("owner", sa.String(16), nullable=False, server_default=sa.text("''")))
        job.drop_constraint(op.f("uq_job_idempotency_key"), type_="unique")
        job.create_unique_constraint(op.f("uq_job_owner_idempotency_key"), ["owner", "idempotency_key"])
        job.create_index(op.f("ix_job_owner_id"), ["owner", "id"])
        job.create_index(op.f("ix_job_owner_status"), ["owner", "status"])


def downgrade() -> None:
    # Two owners may have used the same key, which means nothing where there are no owners.
    op.execute("UPDATE job SET idempotency_key = NULL WHERE owner <> ''")
    with _events_set_loose(), op.batch_alter_table("job") as job:
        job.drop_index(op.f("ix_job_owner_status"))
        job.drop_index(op.f("ix_job_owner_id"))
        job.drop_constraint(op.f("uq_job_owner_idempotency_key"), type_="unique")
        job.create_unique_constraint(op.f("uq_job_idempotency_key"), ["idempotency_key"])
        job.drop_column("owner")
    op.drop_table("api_key")


@contextmanager
def _events_set_loose() -> Iterator[None]:
    """SQLite can only change the job table by making it anew; dropping the old one would take all events with it.

    So their foreign key goes first and comes back afterwards. Switching foreign keys off is no way: SQLite ignores
    that within a transaction, and the migration is one.
    """
    sqlite = op.get_bind().dialect.name == "sqlite"
    if sqlite:
        with op.batch_alter_table("job_event") as job_event:
            job_event.drop_constraint(op.f(EVENTS_KEY), type_="foreignkey")
    yield
    if sqlite:
        with op.batch_alter_table("job_event") as job_event:
            job_event.create_foreign_key(op.f(EVENTS_KEY), "job", ["job_id"], ["id"], ondelete="CASCADE")
