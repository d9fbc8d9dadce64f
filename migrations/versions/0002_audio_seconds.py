"""audio seconds

Revision: 0002, after 0001. Expands only: code of the release before writes its rows without these columns.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("usage_events", schema=None) as batch_op:
        batch_op.add_column(sa.Column("audio_ms", sa.BigInteger(), server_default="0", nullable=False))

    with op.batch_alter_table("usage_minutes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("audio_second", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
