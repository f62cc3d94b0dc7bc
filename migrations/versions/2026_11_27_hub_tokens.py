"""The Hub token that a job's client sends with it, sealed, which no job keeps beyond its end."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_GONE_AT_THE_END = "hub_token IS NULL OR status IN ('queued', 'running', 'cancelling')"


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":  # which adds a constraint with its column, or by a copy of the table
        op.execute(
            f"ALTER TABLE job ADD COLUMN hub_token VARCHAR(1024) CONSTRAINT ck_job_hub_token CHECK ({_GONE_AT_THE_END})"
        )
    else:
        op.add_column("job", sa.Column("hub_token", sa.String(1024)))
        op.create_check_constraint(op.f("ck_job_hub_token"), "job", _GONE_AT_THE_END)
    op.add_column("job", sa.Column("hub_token_digest", sa.String(128)))


def downgrade() -> None:
    op.drop_column("job", "hub_token_digest")
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_job_hub_token"), "job")
    op.drop_column("job", "hub_token")
