"""online endpoints

Revision: 0013, after 0012. Expands only: online endpoints, their deployments, and operations.
"""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "online_deployments",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("name_key", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("provisioning_state", sa.Text(), nullable=False),
        sa.Column("failure_code", sa.Text(), nullable=False),
        sa.Column("failure_message", sa.Text(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("instance_count", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.Column("deleted_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_online_deployments")),
    )
    with op.batch_alter_table("online_deployments", schema=None) as batch_op:
        batch_op.create_index(
            "ix_online_deployments_provisioning_state", ["provisioning_state"], unique=False
        )
        batch_op.create_index(
            "uq_online_deployments_living_name",
            ["endpoint_id", "name_key"],
            unique=True,
            sqlite_where=sa.text("deleted_ms IS NULL"),
            postgresql_where=sa.text("deleted_ms IS NULL"),
        )

    op.create_table(
        "online_endpoints",
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("spec", sa.Text(), nullable=False),
        sa.Column("traffic", sa.Text(), nullable=False),
        sa.Column("mirror_traffic", sa.Text(), nullable=False),
        sa.Column("provisioning_state", sa.Text(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("endpoint_id", name=op.f("pk_online_endpoints")),
    )
    op.create_table(
        "operations",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("started_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operations")),
    )
    with op.batch_alter_table("operations", schema=None) as batch_op:
        batch_op.create_index("ix_operations_ended_ms", ["ended_ms"], unique=False)
        batch_op.create_index("ix_operations_endpoint_id", ["endpoint_id", "state"], unique=False)
        batch_op.create_index("ix_operations_target", ["target", "state"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
