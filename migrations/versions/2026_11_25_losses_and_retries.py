"""Lost workers apart from dead processes, the job that another one retries, and tallies for the metrics."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("job", sa.Column("retry_of", sa.String(26)))
    op.add_column("job", sa.Column("stage_started_at", sa.DateTime(timezone=True)))
    op.create_table(
        "tally",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("part", sa.String(16), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "part", name=op.f("pk_tally")),
    )


def downgrade() -> None:
    op.drop_table("tally")
    op.drop_column("job", "stage_started_at")
    op.drop_column("job", "retry_of")
    op.drop_column("job", "losses")
