"""usage by hour and by day

Revision: 0009, after 0008. Expands only: two new tables, filled from the minutes that are closed.
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000
_FILL = """
INSERT INTO {table} (org_id, start_ms, project_id, key_id, endpoint_id, model_id, input, cached_input, output,
  audio_second, reasoning, requests, errors, endpoint_minute)
SELECT org_id, billing_minute_ms - billing_minute_ms % {width}, project_id, key_id, endpoint_id, model_id,
  SUM(input), SUM(cached_input), SUM(output), SUM(audio_second), SUM(reasoning), SUM(requests), SUM(errors), SUM(minutes)
FROM (
  SELECT org_id, billing_minute_ms, project_id, key_id, endpoint_id, model_id, input, cached_input, output,
    audio_second, reasoning, requests, errors, 0 AS minutes FROM usage_minutes
  UNION ALL
  SELECT org_id, billing_minute_ms, project_id, '', endpoint_id, model_id, 0, 0, 0, 0, 0, 0, 0, 1 FROM endpoint_minutes
  WHERE billing_minute_ms < (SELECT COALESCE(MAX(value), 0) FROM metering_state WHERE name = 'first_open_minute')
  UNION ALL
  SELECT org_id, billing_minute_ms, project_id, key_id, endpoint_id, model_id, input, cached_input, output,
    audio_second, reasoning, 0, 0, 0 FROM usage_corrections
  WHERE billing_minute_ms < (SELECT COALESCE(MAX(value), 0) FROM metering_state WHERE name = 'first_open_minute')
) AS closed
GROUP BY org_id, billing_minute_ms - billing_minute_ms % {width}, project_id, key_id, endpoint_id, model_id
"""


def upgrade() -> None:
    for table, width in (("usage_hours", _HOUR_MS), ("usage_days", _DAY_MS)):
        op.create_table(
            table,
            sa.Column("org_id", sa.Text(), nullable=False),
            sa.Column("start_ms", sa.BigInteger(), nullable=False),
            sa.Column("project_id", sa.Text(), nullable=False),
            sa.Column("key_id", sa.Text(), nullable=False),
            sa.Column("endpoint_id", sa.Text(), nullable=False),
            sa.Column("model_id", sa.Text(), nullable=False),
            sa.Column("input", sa.BigInteger(), nullable=False),
            sa.Column("cached_input", sa.BigInteger(), nullable=False),
            sa.Column("output", sa.BigInteger(), nullable=False),
            sa.Column("audio_second", sa.BigInteger(), nullable=False),
            sa.Column("reasoning", sa.BigInteger(), nullable=False),
            sa.Column("requests", sa.BigInteger(), nullable=False),
            sa.Column("errors", sa.BigInteger(), nullable=False),
            sa.Column("endpoint_minute", sa.BigInteger(), nullable=False),
            sa.PrimaryKeyConstraint(
                "org_id",
                "start_ms",
                "project_id",
                "key_id",
                "endpoint_id",
                "model_id",
                name=op.f(f"pk_{table}"),
            ),
        )
        op.execute(_FILL.format(table=table, width=width))


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
