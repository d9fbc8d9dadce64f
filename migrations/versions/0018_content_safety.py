"""content safety

Revision: 0018, after 0017. Expands only: whether an endpoint's calls are checked, where a check is configured.
"""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "endpoints", sa.Column("content_safety", sa.Boolean(), nullable=False, server_default=sa.true())
    )


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
