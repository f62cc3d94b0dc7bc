"""Jobs and their events."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
STATUSES = "'queued', 'running', 'cancelling', 'succeeded', 'failed', 'cancelled'"


def upgrade() -> None:
    op.create_table(
        "job",
        sa.Column("id", sa.String(26), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("stage", sa.String(16)),
        sa.Column("progress", sa.Float(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("deaths", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(300), nullable=False),
        sa.Column("method", sa.String(64), nullable=False),
        sa.Column("request", JSON, nullable=False),
        sa.Column("commit", sa.String(64)),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("metrics", JSON),
        sa.Column("artifacts", JSON),
        sa.Column("error", JSON),
        sa.Column("published_url", sa.String(512)),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("worker", sa.String(255)),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("announced_at", TIME),
        sa.Column("started_at", TIME),
        sa.Column("finished_at", TIME),
        sa.Column("lease_expires_at", TIME),
        sa.CheckConstraint(f"status IN ({STATUSES})", name=op.f("ck_job_status")),
        sa.CheckConstraint("progress >= 0 AND progress <= 1", name=op.f("ck_job_progress")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_job")),
        sa.UniqueConstraint("idempotency_key", name=op.f("uq_job_idempotency_key")),
    )
    op.create_index(op.f("ix_job_status_id"), "job", ["status", "id"])
    op.create_index(op.f("ix_job_model_id"), "job", ["model", "id"])
    op.create_index(op.f("ix_job_lease_expires_at"), "job", ["lease_expires_at"])
    op.create_table(
        "job_event",
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_job_event_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "seq", name=op.f("pk_job_event")),
    )


def downgrade() -> None:
    op.drop_table("job_event")
    op.drop_table("job")
