"""When a job's artifacts were removed, and an index of the jobs that still have some."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HAS_ARTIFACTS = sa.text("artifacts IS NOT NULL")


def upgrade() -> None:
    op.add_column("job", sa.Column("artifacts_removed_at", sa.DateTime(timezone=True)))
    op.create_index(
        op.f("ix_job_finished_at"),
        "job",
        ["finished_at"],
        postgresql_where=HAS_ARTIFACTS,
        sqlite_where=HAS_ARTIFACTS,
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_job_finished_at"), "job")
    op.drop_column("job", "artifacts_removed_at")
