"""budget moves

Revision: 0019, after 0018. Expands, and drops an index that made every charge dear: gateways read what moved from a table
of its own; one that is not yet of this version finds the same by looking at every budget.
"""

import sqlalchemy as sa
from alembic import op

from core.money_column import Pico

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budget_moves",
        sa.Column(
            "seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True, autoincrement=True
        ),
        sa.Column("budget_id", sa.Text(), nullable=False),
        sa.Column("window_ms", sa.BigInteger(), nullable=False),
        sa.Column("spent_pico", Pico(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_budget_moves")),
        sqlite_autoincrement=True,
    )
    op.drop_index("ix_budgets_version", table_name="budgets")


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
