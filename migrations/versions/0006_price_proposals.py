"""price proposals

Revision: 0006, after 0005. Expands only: a new table.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    texts = ("proposed_by", "decided_by", "decision_note", "version_id")
    op.create_table(
        "price_proposals",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("starts_ms", sa.BigInteger(), nullable=False),
        sa.Column("unit_prices", sa.Text(), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("ended", sa.Boolean(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("proposed_ms", sa.BigInteger(), nullable=False),
        sa.Column("decided_ms", sa.BigInteger(), nullable=False),
        *[sa.Column(name, sa.Text(), nullable=False) for name in texts],
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_price_proposals_model_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_price_proposals")),
    )
    with op.batch_alter_table("price_proposals", schema=None) as batch_op:
        batch_op.create_index("ix_price_proposals_state", ["state"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
