"""batch tier

Revision: 0012, after 0011. Expands only: whether a call is of a batch job, and the quantities of those that are. What was
metered before is not.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SKUS = ("batch_input", "batch_cached_input", "batch_output")


def upgrade() -> None:
    for table, flag in (("usage_events", "batch"), ("usage_corrections", "right_batch")):
        op.add_column(table, sa.Column(flag, sa.Boolean(), nullable=False, server_default=sa.false()))
    counted = (*_SKUS, "batch_requests")
    for table, counts in (
        ("usage_minutes", counted),
        ("usage_hours", counted),
        ("usage_days", counted),
        ("usage_corrections", _SKUS),
    ):
        for count in counts:
            op.add_column(table, sa.Column(count, sa.BigInteger(), nullable=False, server_default="0"))


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
