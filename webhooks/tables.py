"""Tables of webhooks: endpoints, messages, deliveries and the log of attempts."""

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Table, Text

from core.database import ROW_NUMBER, metadata

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("event_types", Text, nullable=False),  # JSON list; empty: all
    Column("enabled", Boolean, nullable=False),
    Column("disabled_reason", Text, nullable=False),  # "" unless Farebox disabled it
    Column("secret_sealed", Text, nullable=False),
    Column("previous_sealed", Text, nullable=False),  # "" or the secret before, which signs too for a while
    Column("previous_until_ms", BigInteger, nullable=False),
    Column("last_success_ms", BigInteger, nullable=False),  # 0: never
    Column("created_ms", BigInteger, nullable=False),
    Index("ix_webhooks_org_id", "org_id"),
)

# The outbox: written in the transaction of what it tells of, never edited.
webhook_messages = Table(
    "webhook_messages",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("occurred_ms", BigInteger, nullable=False),
    Column("data", Text, nullable=False),  # JSON
    Index("ix_webhook_messages_org_id_occurred_ms", "org_id", "occurred_ms"),
    Index("ix_webhook_messages_occurred_ms", "occurred_ms"),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("message_id", Text, primary_key=True),
    Column("webhook_id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("state", Text, nullable=False),  # pending | delivered | failed
    Column("attempts", Integer, nullable=False),  # since it was enqueued or replayed last
    Column(
        "next_ms", BigInteger, nullable=False
    ),  # when it is tried next; while claimed: when the claim ends
    Column("last_status", Integer, nullable=False),  # 0: no answer
    Column("last_error", Text, nullable=False),
    Column("delivered_ms", BigInteger, nullable=False),  # 0: not
    Index("ix_webhook_deliveries_state_next_ms", "state", "next_ms"),
    Index("ix_webhook_deliveries_webhook_id", "webhook_id", "message_id"),
)

webhook_attempts = Table(
    "webhook_attempts",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("message_id", Text, nullable=False),
    Column("webhook_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("status", Integer, nullable=False),
    Column("error", Text, nullable=False),
    Index("ix_webhook_attempts_message_id_webhook_id", "message_id", "webhook_id"),
    Index("ix_webhook_attempts_at_ms", "at_ms"),
)
