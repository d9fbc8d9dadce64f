"""engine counters, reconciliation

Revision: 0005, after 0004. Expands only: three new tables, a new column with a default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "engine_counters",
        sa.Column(
            "row_id",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("series", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("read_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=True),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("requests", sa.BigInteger(), nullable=False),
        sa.Column("running", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_engine_counters")),
    )
    with op.batch_alter_table("engine_counters", schema=None) as batch_op:
        batch_op.create_index(
            "ix_engine_counters_deployment_id_at_ms", ["deployment_id", "at_ms"], unique=False
        )
        batch_op.create_index("ix_engine_counters_at_ms", ["at_ms"], unique=False)

    op.create_table(
        "gateway_starts",
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source", "started_ms", name=op.f("pk_gateway_starts")),
    )
    op.create_table(
        "reconciliations",
        sa.Column("hour_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("made_ms", sa.BigInteger(), nullable=False),
        sa.Column("verdict", sa.Text(), nullable=False),
        sa.Column("unexplained", sa.BigInteger(), nullable=False),
        sa.Column("report", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("hour_ms", name=op.f("pk_reconciliations")),
    )
    op.add_column("usage_events", sa.Column("choices", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
