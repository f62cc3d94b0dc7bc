"""Messages to webhooks, and the secrets that sign them."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "webhook_delivery",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("job_id", sa.String(26), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("tries_left", sa.Integer(), nullable=False),
        sa.Column("next_try_at", TIME),
        sa.Column("last_try_at", TIME),
        sa.Column("answer", sa.String(128)),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("delivered_at", TIME),
        sa.CheckConstraint("status IN ('pending', 'delivered', 'failed')", name=op.f("ck_webhook_delivery_status")),
        sa.ForeignKeyConstraint(["job_id"], ["job.id"], name=op.f("fk_webhook_delivery_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_delivery")),
        sa.UniqueConstraint("job_id", "seq", name=op.f("uq_webhook_delivery_job_id_seq")),
    )
    op.create_index(op.f("ix_webhook_delivery_next_try_at"), "webhook_delivery", ["next_try_at"])
    op.create_index(op.f("ix_webhook_delivery_created_at"), "webhook_delivery", ["created_at"])
    op.create_table(
        "webhook_secret",
        sa.Column("owner", sa.String(16), nullable=False),
        sa.Column("sealed", sa.String(512), nullable=False),
        sa.Column("previous", sa.String(512)),
        sa.Column("previous_until", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_webhook_secret")),
    )


def downgrade() -> None:
    op.drop_table("webhook_secret")
    op.drop_table("webhook_delivery")
