"""limits and budgets

Revision: 0003, after 0002. Expands only: two new tables.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "budgets",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("amount_pico", sa.Numeric(38, 0).with_variant(sa.Text(), "sqlite"), nullable=False),
        sa.Column("time_window", sa.Text(), nullable=False),
        sa.Column("hard", sa.Boolean(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("window_ms", sa.BigInteger(), nullable=False),
        sa.Column("spent_pico", sa.Numeric(38, 0).with_variant(sa.Text(), "sqlite"), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_budgets")),
    )
    with op.batch_alter_table("budgets", schema=None) as batch_op:
        batch_op.create_index("ix_budgets_org_id", ["org_id"], unique=False)
        batch_op.create_index("ix_budgets_scope_id", ["scope_id"], unique=False)
        batch_op.create_index("ix_budgets_version", ["version"], unique=False)

    op.create_table(
        "limits",
        sa.Column("scope_id", sa.Text(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("requests_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("requests_per_day", sa.BigInteger(), nullable=True),
        sa.Column("tokens_per_minute", sa.BigInteger(), nullable=True),
        sa.Column("parallel_requests", sa.BigInteger(), nullable=True),
        sa.Column("open_on_outage", sa.Boolean(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope_id", name=op.f("pk_limits")),
    )


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
