"""Tables of payments: the outbox to the provider, what it calls our things, and what it told us."""

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text

from core.database import metadata
from core.money_column import Pico

# The outbox. A task is written in the transaction of what it is about, and done when the provider has it.
provider_tasks = Table(
    "provider_tasks",
    metadata,
    Column("id", Text, primary_key=True),  # {kind}/{subject}: each thing is asked for once
    Column("org_id", Text, nullable=False),  # "" for what the provider tells and nobody has read yet
    Column("lane", Text, nullable=False),  # tasks of a lane are done one at a time, in order
    Column("kind", Text, nullable=False),  # see billing.payments.model.TaskKind
    Column("subject", Text, nullable=False),  # our id of what it is about
    Column("state", Text, nullable=False),  # waiting | done | failed
    Column("attempts", Integer, nullable=False),
    Column("generation", Integer, nullable=False),  # of the idempotency keys: a spent one gets a successor
    Column("created_ms", BigInteger, nullable=False),
    Column("first_ms", BigInteger, nullable=False),  # first try with keys of this generation; 0: none yet
    Column("next_ms", BigInteger, nullable=False),  # not before; a worker that has it moves it ahead
    Column("done_ms", BigInteger, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("provider_id", Text, nullable=False),  # what came of it at the provider
    # Of a meter's event only: the line it belongs to, how much, at which price, when.
    Column("meter", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("unit_price_pico", Pico, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("ix_provider_tasks_state_lane_created_ms", "state", "lane", "created_ms"),
    Index("ix_provider_tasks_lane_at_ms", "lane", "at_ms"),
)

# The provider's name for an organization.
provider_customers = Table(
    "provider_customers",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("provider_id", Text, nullable=False, unique=True),
    Column("created_ms", BigInteger, nullable=False),
)

# Meters and prices are of everybody (org_id ""), subscription items of an organization.
provider_objects = Table(
    "provider_objects",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("kind", Text, primary_key=True),  # meter | price | subscription_item
    Column("name", Text, primary_key=True),
    Column("provider_id", Text, nullable=False),
    Column("parent", Text, nullable=False),  # of an item: its subscription
    Column("created_ms", BigInteger, nullable=False),
)

# How far along an organization's ledger chain its meters' events were made.
provider_meter_cursors = Table(
    "provider_meter_cursors",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("start_ms", BigInteger, nullable=False),  # usage billed before is on invoices of ours
)

# What the provider has for an invoice, as last read back.
provider_amounts = Table(
    "provider_amounts",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("provider_id", Text, nullable=False),
    Column("status", Text, nullable=False),  # the provider's word
    Column("due_cents", BigInteger, nullable=False),  # before tax and before what was paid
    Column("tax_cents", BigInteger, nullable=False),
    Column("read_ms", BigInteger, nullable=False),
    Index("ix_provider_amounts_org_id", "org_id"),
)

# What the provider told, stored before it is believed: only names, the object's state is asked for.
provider_events = Table(
    "provider_events",
    metadata,
    Column("id", Text, primary_key=True),  # the provider's
    Column("org_id", Text, nullable=False),  # "" until it is known whom it is about
    Column("type", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),  # the provider's clock
    Column("received_ms", BigInteger, nullable=False),
    Column("deliveries", Integer, nullable=False),
    Column("processed_ms", BigInteger, nullable=False),  # 0: not yet
    Column("outcome", Text, nullable=False),
    Index("ix_provider_events_received_ms", "received_ms"),
)
