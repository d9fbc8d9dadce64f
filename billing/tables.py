"""Tables of billing. The ledger is append-only and chained: what is posted is never changed or deleted."""

from sqlalchemy import BigInteger, Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint

from core.database import metadata
from core.money_column import Pico

# A transaction of a closed minute (of one key at one endpoint, or of one endpoint) has the minute's id; others are
# named for what they are of: invoice/{id}, payment/{id}, credit/{id}, ...
ledger_transactions = Table(
    "ledger_transactions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # see billing.entries.Kind
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("minute_ms", BigInteger, nullable=False),  # billed in
    Column("service_minute_ms", BigInteger, nullable=False),  # happened in: an adjustment when it is earlier
    Column("posted_ms", BigInteger, nullable=False),
    # The organization's chain: `hash` covers this transaction, its postings, and the hash before it (chain.py).
    Column("seq", BigInteger, nullable=False),  # 1, 2, 3, ... of the organization
    Column("hash", Text, nullable=False),
    UniqueConstraint("org_id", "seq"),
    Index("ix_ledger_transactions_org_id_minute_ms", "org_id", "minute_ms"),
)

# Debits positive, credits negative; each transaction sums to zero.
ledger_postings = Table(
    "ledger_postings",
    metadata,
    Column("transaction_id", Text, ForeignKey("ledger_transactions.id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("account", Text, nullable=False),  # see billing.entries
    Column("sku", Text, nullable=False),  # "" but on the revenue of a SKU
    Column("quantity", BigInteger, nullable=False),
    Column("unit_price_pico", Pico, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("amount_pico", Pico, nullable=False),
)

# The end of each organization's chain.
ledger_heads = Table(
    "ledger_heads",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", Text, nullable=False),
)

# Charges by day of billing: a projection of the postings, written with them. What previews and invoices read.
ledger_days = Table(
    "ledger_days",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("day_ms", BigInteger, primary_key=True),
    Column("project_id", Text, primary_key=True),
    Column("endpoint_id", Text, primary_key=True),
    Column("model_id", Text, primary_key=True),
    Column("sku", Text, primary_key=True),
    Column("price_version", Text, primary_key=True),
    Column("unit_price_pico", Pico, nullable=False),  # follows from the version and the SKU
    Column("quantity", BigInteger, nullable=False),
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

# What was agreed with an organization by the month. Immutable but for its end.
contracts = Table(
    "contracts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("starts_ms", BigInteger, nullable=False),
    Column("ends_ms", BigInteger, nullable=False),  # 0: no end
    Column("discount_bp", Integer, nullable=False),
    Column("minimum_pico", Pico, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    UniqueConstraint("org_id", "starts_ms"),
)

# Invoices: a draft may change, everything from `finalized` on is immutable but for the state and what follows it.
invoices = Table(
    "invoices",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("number", Text, unique=True),  # NULL until finalized; gapless within a year
    Column("kind", Text, nullable=False),  # monthly | threshold
    Column("state", Text, nullable=False),  # draft | finalized | paid | void
    Column("start_ms", BigInteger, nullable=False),  # charges of billing minutes in [start, end)
    Column("end_ms", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),  # usd
    Column("charges_pico", Pico, nullable=False),  # exact sum of the charges: what leaves receivable
    Column("total_cents", BigInteger, nullable=False),  # the sum of the rounded lines before credit
    Column("credit_cents", BigInteger, nullable=False),  # paid with credit
    Column("due_cents", BigInteger, nullable=False),  # total - credit
    Column(
        "lines_hash", Text, nullable=False
    ),  # SHA-256 of the lines as they are in the documents; "" in a draft
    Column("ledger_seq", BigInteger, nullable=False),  # the organization's chain when it was finalized
    Column("ledger_hash", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("finalized_ms", BigInteger, nullable=False),  # 0: not
    Column("due_ms", BigInteger, nullable=False),
    Column("paid_ms", BigInteger, nullable=False),
    Column("voided_ms", BigInteger, nullable=False),
    Column("memo", Text, nullable=False),
    # JSON: issuer and customer, as they were when it was finalized.
    Column("parties", Text, nullable=False, server_default="{}"),
    Column("payment_reference", Text, nullable=False, server_default=""),
    Column("provider_id", Text, nullable=False, server_default=""),  # "" until the provider has it
    UniqueConstraint(
        "org_id", "start_ms", "end_ms", "voided_ms"
    ),  # one invoice of a period, but for void ones
    Index("ix_invoices_org_id_start_ms", "org_id", "start_ms"),
    Index("ix_invoices_state", "state"),
)

invoice_lines = Table(
    "invoice_lines",
    metadata,
    Column("invoice_id", Text, ForeignKey("invoices.id"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("kind", Text, nullable=False),  # charge | terms | discount | minimum | credit
    Column("sku", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("endpoint_name", Text, nullable=False),
    Column("price_version", Text, nullable=False),
    Column("quantity", BigInteger, nullable=False),
    Column("unit_price_pico", Pico, nullable=False),
    Column("amount_pico", Pico, nullable=False),  # exact
    Column("amount_cents", BigInteger, nullable=False),  # rounded once
    Column("text", Text, nullable=False),
)

# The last number given in a year.
invoice_numbers = Table(
    "invoice_numbers",
    metadata,
    Column("year", Integer, primary_key=True, autoincrement=False),
    Column("last", Integer, nullable=False),
)

credit_note_numbers = Table(
    "credit_note_numbers",
    metadata,
    Column("year", Integer, primary_key=True, autoincrement=False),
    Column("last", Integer, nullable=False),
)

credit_notes = Table(
    "credit_notes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("invoice_id", Text, ForeignKey("invoices.id"), nullable=False),
    Column("number", Text, nullable=False, unique=True),
    Column("reason", Text, nullable=False),
    Column("amount_cents", BigInteger, nullable=False),  # what is given back, positive
    Column(
        "as_credit", Integer, nullable=False
    ),  # 1: as credit for later invoices; 0: off what is due, or refunded
    Column("created_ms", BigInteger, nullable=False),
    # JSON: [[invoice line, cents], ...]; empty: of the invoice as a whole.
    Column("lines", Text, nullable=False, server_default="[]"),
    Index("ix_credit_notes_invoice_id", "invoice_id"),
)

# Credit of an organization. What is left is the amount less what entries of the ledger took.
credit_grants = Table(
    "credit_grants",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("kind", Text, nullable=False),  # prepaid | promotional
    Column("amount_pico", Pico, nullable=False),
    Column("left_pico", Pico, nullable=False),
    Column("priority", Integer, nullable=False),  # lower is spent first
    Column("scope", Text, nullable=False),  # JSON: {} for everything, {"models": [...], "skus": [...]}
    Column("starts_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),  # 0: never
    Column("expired_ms", BigInteger, nullable=False),  # when the rest was written off; 0: not
    Column("voided_ms", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    # The invoice or credit note that it came from; "": it was granted.
    Column("source", Text, nullable=False, server_default=""),
    Index("ix_credit_grants_org_id", "org_id"),
)

credit_uses = Table(
    "credit_uses",
    metadata,
    Column("invoice_id", Text, ForeignKey("invoices.id"), primary_key=True),
    Column("grant_id", Text, ForeignKey("credit_grants.id"), primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("amount_pico", Pico, nullable=False),
    Column("used_ms", BigInteger, nullable=False),
)

# How an organization is invoiced. No row: monthly, due in 30 days.
billing_profiles = Table(
    "billing_profiles",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("threshold_pico", Pico, nullable=False),  # an invoice within the month from this much on; 0: none
    Column("due_days", Integer, nullable=False),
    Column("legal_name", Text, nullable=False),
    Column("email", Text, nullable=False),
    Column("address", Text, nullable=False),
    Column("tax_id", Text, nullable=False),
    Column("provider", Text, nullable=False),  # "" | stripe_items | stripe_meters
    Column("updated_ms", BigInteger, nullable=False),
)
