"""Tables of billing. The ledger is append-only: what is posted is never changed or deleted."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text

from core.database import metadata
from core.money_column import Pico

# One transaction per closed minute (of one key at one endpoint, or of one endpoint); `id` is the minute's id.
ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # usage | endpoint_minute | adjustment
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("minute_ms", BigInteger, nullable=False),  # billed in
    Column("service_minute_ms", BigInteger, nullable=False),  # happened in: an adjustment when it is earlier
    Column("posted_ms", BigInteger, nullable=False),
    Index("ix_ledger_transactions_org_id_minute_ms", "org_id", "minute_ms"),
)

# Debits positive, credits negative; each transaction sums to zero.
ledger_postings = Table(
    "ledger_postings",
    metadata,
    Column("transaction_id", Text, ForeignKey("ledger_transactions.id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("account", Text, nullable=False),  # receivable:{org} | revenue:{sku}
    Column("sku", Text, nullable=False),  # "" on the receivable
    Column("quantity", BigInteger, nullable=False),
    Column("unit_price_pico", Pico, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("amount_pico", Pico, nullable=False),
)

# Quantities of closed minutes that have no price: posted as soon as they have one.
held_quantities = Table(
    "held_quantities",
    metadata,
    Column("minute_id", Text, primary_key=True),
    Column("sku", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("minute_ms", BigInteger, nullable=False),
    Column("service_minute_ms", BigInteger, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("held_ms", BigInteger, nullable=False),
    Index("ix_held_quantities_org_id_minute_ms", "org_id", "minute_ms"),
)
