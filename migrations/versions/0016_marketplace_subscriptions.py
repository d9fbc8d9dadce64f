"""marketplace subscriptions

Revision: 0016, after 0015. Expands only: who accepted the terms of which offer.
"""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    living = sa.text("deleted_ms IS NULL")
    op.create_table(
        "marketplace_subscriptions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("offer", sa.Text(), nullable=False),
        sa.Column("terms_url", sa.Text(), nullable=False),
        sa.Column("accepted_by", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("deleted_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_marketplace_subscriptions")),
    )
    for name, columns in (
        ("uq_subscriptions_living_name", ["name"]),
        ("uq_subscriptions_living_offer", ["project_id", "offer"]),
    ):
        op.create_index(
            name,
            "marketplace_subscriptions",
            columns,
            unique=True,
            sqlite_where=living,
            postgresql_where=living,
        )


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
