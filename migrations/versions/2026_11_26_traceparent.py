"""The span of the request that submitted a job, for its trace to go on from."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("traceparent", sa.String(64)))


def downgrade() -> None:
    op.drop_column("job", "traceparent")
