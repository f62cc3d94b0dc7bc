"""Count workers that fell silent apart from processes that died, and say which job another one retries."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("job", sa.Column("losses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("job", sa.Column("retry_of", sa.String(26)))


def downgrade() -> None:
    op.drop_column("job", "retry_of")
    op.drop_column("job", "losses")
