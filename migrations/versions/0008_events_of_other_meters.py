"""events of other meters

Revision: 0008, after 0007. Expands only: corrections, the audit log, decisions about what is in quarantine.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "audit_log",
        sa.Column(
            "row_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_audit_log")),
    )
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.create_index("ix_audit_log_object", ["object"], unique=False)
        batch_op.create_index("ix_audit_log_org_id", ["org_id"], unique=False)

    op.create_table(
        "usage_corrections",
        sa.Column(
            "row_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False
        ),
        sa.Column("minute_id", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("payload_hash", sa.Text(), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger(), nullable=False),
        sa.Column("corrects_source", sa.Text(), nullable=False),
        sa.Column("corrects_id", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("service_minute_ms", sa.BigInteger(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("billing_minute_ms", sa.BigInteger(), nullable=False),
        sa.Column("right_input", sa.BigInteger(), nullable=False),
        sa.Column("right_cached_input", sa.BigInteger(), nullable=False),
        sa.Column("right_output", sa.BigInteger(), nullable=False),
        sa.Column("right_reasoning", sa.BigInteger(), nullable=False),
        sa.Column("right_audio_ms", sa.BigInteger(), nullable=False),
        sa.Column("input", sa.BigInteger(), nullable=False),
        sa.Column("cached_input", sa.BigInteger(), nullable=False),
        sa.Column("output", sa.BigInteger(), nullable=False),
        sa.Column("reasoning", sa.BigInteger(), nullable=False),
        sa.Column("audio_second", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("row_id", name=op.f("pk_usage_corrections")),
        sa.UniqueConstraint("minute_id", name=op.f("uq_usage_corrections_minute_id")),
        sa.UniqueConstraint("source", "event_id", name=op.f("uq_usage_corrections_source_event_id")),
    )
    with op.batch_alter_table("usage_corrections", schema=None) as batch_op:
        batch_op.create_index(
            "ix_usage_corrections_billing_minute_ms_org_id", ["billing_minute_ms", "org_id"], unique=False
        )
        batch_op.create_index(
            "ix_usage_corrections_corrects_source_corrects_id",
            ["corrects_source", "corrects_id"],
            unique=False,
        )
        batch_op.create_index(
            "ix_usage_corrections_org_id_billing_minute_ms", ["org_id", "billing_minute_ms"], unique=False
        )
        batch_op.create_index("ix_usage_corrections_request_id", ["request_id"], unique=False)

    with op.batch_alter_table("quarantine", schema=None) as batch_op:
        batch_op.add_column(sa.Column("org_id", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("state", sa.Text(), server_default="open", nullable=False))
        batch_op.add_column(sa.Column("resolved_ms", sa.BigInteger(), server_default="0", nullable=False))
        batch_op.create_index("ix_quarantine_state_org_id", ["state", "org_id"], unique=False)


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
