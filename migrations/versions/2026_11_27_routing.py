"""A job's queue, least GPU memory and priority, and the workers that are alive with what they serve."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("queue", sa.String(63), nullable=False, server_default=sa.text("'default'")))
    op.add_column("job", sa.Column("min_gpu_memory_gib", sa.Float(), nullable=False, server_default=sa.text("0")))
    op.add_column("job", sa.Column("priority", sa.Integer(), nullable=False, server_default=sa.text("5")))
    op.create_table(
        "worker_queue",
        sa.Column("worker", sa.String(255), nullable=False),
        sa.Column("queue", sa.String(63), nullable=False),
        sa.Column("gpu_memory_gib", sa.Float(), nullable=False),
        sa.Column("alive_until", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("worker", "queue", name=op.f("pk_worker_queue")),
    )


def downgrade() -> None:
    op.drop_table("worker_queue")
    op.drop_column("job", "priority")
    op.drop_column("job", "min_gpu_memory_gib")
    op.drop_column("job", "queue")
