"""serverless deployments

Revision: 0017, after 0016. Expands only: further models of a serverless endpoint.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "serverless_deployments",
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("deployment_id", sa.Text(), nullable=False),
        sa.Column("mirror_percent", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint_id", "name", name=op.f("pk_serverless_deployments")),
    )
    for column in ("deployment_id", "model_id"):
        op.create_index(f"ix_serverless_deployments_{column}", "serverless_deployments", [column])


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
