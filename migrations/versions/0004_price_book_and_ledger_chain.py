"""price book and ledger chain

Revision: 0004, after 0003. Prices of single organizations, terms and contracts; the ledger's chain and its days; tables
of invoices, credit notes and credit. What is on the ledger already is chained in the order in which it was posted.
"""

import sqlalchemy as sa
from alembic import op

from billing import chain
from billing.entries import LedgerTransaction, Posting
from core.money_column import Pico

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

PICO = Pico()
_DAY_KEY = ("org_id", "day_ms", "project_id", "endpoint_id", "model_id", "sku", "price_version")
_DAYS = sa.table(
    "ledger_days",
    *[sa.column(name) for name in _DAY_KEY],
    sa.column("unit_price_pico", PICO),
    sa.column("quantity"),
)


def upgrade() -> None:
    _prices()
    _ledger()
    _contracts_and_profiles()
    _invoices()
    _credit()
    _chain_what_is_there()


def _prices() -> None:
    with op.batch_alter_table("model_prices", schema=None) as batch_op:
        batch_op.add_column(sa.Column("org_id", sa.Text(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("terms", sa.Text(), server_default="{}", nullable=False))
        batch_op.add_column(sa.Column("ended", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.drop_constraint("uq_model_prices_model_id_starts_ms", type_="unique")
        batch_op.create_unique_constraint(
            "uq_model_prices_model_id_org_id_starts_ms", ["model_id", "org_id", "starts_ms"]
        )
        batch_op.create_index("ix_model_prices_org_id", ["org_id"], unique=False)


def _ledger() -> None:
    with op.batch_alter_table("ledger_transactions", schema=None) as batch_op:
        batch_op.add_column(sa.Column("seq", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("hash", sa.Text(), nullable=True))
    op.create_table(
        "ledger_heads",
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("org_id", name=op.f("pk_ledger_heads")),
    )
    op.create_table(
        "ledger_days",
        *[
            sa.Column(name, sa.BigInteger() if name == "day_ms" else sa.Text(), nullable=False)
            for name in _DAY_KEY
        ],
        sa.Column("unit_price_pico", PICO, nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint(*_DAY_KEY, name=op.f("pk_ledger_days")),
    )


def _chain_what_is_there() -> None:
    """Number and chain the transactions, in the order in which they were posted, and add up their days."""
    bind = op.get_bind()
    postings: dict[str, list[Posting]] = {}
    for row in bind.execute(
        sa.text(
            "SELECT transaction_id, account, sku, quantity, unit_price_pico, price_version, amount_pico "
            "FROM ledger_postings ORDER BY transaction_id, line"
        )
    ):
        found = Posting(row[1], row[2], row[3], int(row[4]), row[5], int(row[6]))
        postings.setdefault(row[0], []).append(found)
    heads: dict[str, tuple[int, str]] = {}
    days: dict[tuple[object, ...], tuple[int, int]] = {}
    for row in bind.execute(
        sa.text(
            "SELECT id, kind, org_id, minute_ms, project_id, key_id, endpoint_id, model_id, service_minute_ms, "
            "posted_ms FROM ledger_transactions ORDER BY posted_ms, id"
        )
    ).all():
        each = LedgerTransaction(
            row[0], row[1], row[2], row[3], tuple(postings[row[0]]), row[4], row[5], row[6], row[7], row[8]
        )
        seq, previous = heads.get(each.org_id, (0, chain.GENESIS))
        heads[each.org_id] = (seq + 1, chain.link(previous, seq + 1, each, row[9]))
        bind.execute(
            sa.text("UPDATE ledger_transactions SET seq = :seq, hash = :hash WHERE id = :id"),
            {"seq": seq + 1, "hash": heads[each.org_id][1], "id": each.id},
        )
        for posting in each.postings:
            if posting.sku:
                key: tuple[object, ...] = (
                    *(each.org_id, each.minute_ms - each.minute_ms % 86_400_000),
                    *(each.project_id, each.endpoint_id, each.model_id, posting.sku, posting.price_version),
                )
                days[key] = (posting.unit_price_pico, days.get(key, (0, 0))[1] + posting.quantity)
    for org_id, (seq, hash_) in heads.items():
        statement = "INSERT INTO ledger_heads (org_id, seq, hash) VALUES (:org_id, :seq, :hash)"
        bind.execute(sa.text(statement), {"org_id": org_id, "seq": seq, "hash": hash_})
    for key, (price, quantity) in days.items():
        values = dict(zip(_DAY_KEY, key, strict=True))
        bind.execute(_DAYS.insert().values(**values, unit_price_pico=price, quantity=quantity))
    with op.batch_alter_table("ledger_transactions", schema=None) as batch_op:
        batch_op.alter_column("seq", existing_type=sa.BigInteger(), nullable=False)
        batch_op.alter_column("hash", existing_type=sa.Text(), nullable=False)
        batch_op.create_unique_constraint("uq_ledger_transactions_org_id_seq", ["org_id", "seq"])


def _contracts_and_profiles() -> None:
    op.create_table(
        "contracts",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("starts_ms", sa.BigInteger(), nullable=False),
        sa.Column("ends_ms", sa.BigInteger(), nullable=False),
        sa.Column("discount_bp", sa.Integer(), nullable=False),
        sa.Column("minimum_pico", PICO, nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_contracts")),
        sa.UniqueConstraint("org_id", "starts_ms", name=op.f("uq_contracts_org_id_starts_ms")),
    )
    op.create_table(
        "billing_profiles",
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("threshold_pico", PICO, nullable=False),
        sa.Column("due_days", sa.Integer(), nullable=False),
        sa.Column("legal_name", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("tax_id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("org_id", name=op.f("pk_billing_profiles")),
    )


def _invoices() -> None:
    op.create_table(
        "invoices",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("end_ms", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("charges_pico", PICO, nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=False),
        sa.Column("credit_cents", sa.BigInteger(), nullable=False),
        sa.Column("due_cents", sa.BigInteger(), nullable=False),
        sa.Column("lines_hash", sa.Text(), nullable=False),
        sa.Column("ledger_seq", sa.BigInteger(), nullable=False),
        sa.Column("ledger_hash", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("finalized_ms", sa.BigInteger(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("paid_ms", sa.BigInteger(), nullable=False),
        sa.Column("voided_ms", sa.BigInteger(), nullable=False),
        sa.Column("memo", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_invoices")),
        sa.UniqueConstraint("number", name=op.f("uq_invoices_number")),
        sa.UniqueConstraint(
            "org_id",
            "start_ms",
            "end_ms",
            "voided_ms",
            name=op.f("uq_invoices_org_id_start_ms_end_ms_voided_ms"),
        ),
    )
    with op.batch_alter_table("invoices", schema=None) as batch_op:
        batch_op.create_index("ix_invoices_org_id_start_ms", ["org_id", "start_ms"], unique=False)
        batch_op.create_index("ix_invoices_state", ["state"], unique=False)
    op.create_table(
        "invoice_lines",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("sku", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("endpoint_id", sa.Text(), nullable=False),
        sa.Column("endpoint_name", sa.Text(), nullable=False),
        sa.Column("price_version", sa.Text(), nullable=False),
        sa.Column("quantity", sa.BigInteger(), nullable=False),
        sa.Column("unit_price_pico", PICO, nullable=False),
        sa.Column("amount_pico", PICO, nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_invoice_lines_invoice_id")),
        sa.PrimaryKeyConstraint("invoice_id", "line", name=op.f("pk_invoice_lines")),
    )
    op.create_table(
        "invoice_numbers",
        sa.Column("year", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("last", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("year", name=op.f("pk_invoice_numbers")),
    )
    op.create_table(
        "credit_notes",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("amount_cents", sa.BigInteger(), nullable=False),
        sa.Column("as_credit", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_credit_notes_invoice_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_notes")),
        sa.UniqueConstraint("number", name=op.f("uq_credit_notes_number")),
    )
    with op.batch_alter_table("credit_notes", schema=None) as batch_op:
        batch_op.create_index("ix_credit_notes_invoice_id", ["invoice_id"], unique=False)


def _credit() -> None:
    op.create_table(
        "credit_grants",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("amount_pico", PICO, nullable=False),
        sa.Column("left_pico", PICO, nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("scope", sa.Text(), nullable=False),
        sa.Column("starts_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.Column("expired_ms", sa.BigInteger(), nullable=False),
        sa.Column("voided_ms", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credit_grants")),
    )
    with op.batch_alter_table("credit_grants", schema=None) as batch_op:
        batch_op.create_index("ix_credit_grants_org_id", ["org_id"], unique=False)
    op.create_table(
        "credit_uses",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("grant_id", sa.Text(), nullable=False),
        sa.Column("org_id", sa.Text(), nullable=False),
        sa.Column("amount_pico", PICO, nullable=False),
        sa.Column("used_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["grant_id"], ["credit_grants.id"], name=op.f("fk_credit_uses_grant_id")),
        sa.ForeignKeyConstraint(["invoice_id"], ["invoices.id"], name=op.f("fk_credit_uses_invoice_id")),
        sa.PrimaryKeyConstraint("invoice_id", "grant_id", name=op.f("pk_credit_uses")),
    )


def downgrade() -> None:
    raise NotImplementedError("Farebox migrates forward only; restore a backup instead")
