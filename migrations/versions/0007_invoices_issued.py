"""invoices issued

Revision: 0007, after 0006. What finalized invoices, credit notes and grants need beside what 0004 made.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("invoices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("parties", sa.Text(), server_default="{}", nullable=False))
        batch_op.add_column(sa.Column("payment_reference", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("provider_id", sa.Text(), server_default="", nullable=False))
    with op.batch_alter_table("credit_notes", schema=None) as batch_op:
        batch_op.add_column(sa.Column("lines", sa.Text(), server_default="[]", nullable=False))
    with op.batch_alter_table("credit_grants", schema=None) as batch_op:
        batch_op.add_column(sa.Column("source", sa.Text(), server_default="", nullable=False))
    op.create_table(
        "credit_note_numbers",
        sa.Column("year", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("year", name=op.f("pk_credit_note_numbers")),
    )


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
