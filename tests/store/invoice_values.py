"""Shorthands for tests of invoices: organizations, calls that cost whole dollars, and what must always hold."""

from sqlalchemy import select

from access import store as access_store
from billing.invoicing.issue import Issuer
from billing.invoicing.model import Invoice, InvoiceLine, lines_hash
from billing.invoicing.store import find_invoice, lines_of
from billing.tables import ledger_postings
from billing.verify import verify_chain
from core.clock import month_bounds
from core.database import Database
from core.money import round_to_cents
from metering.model import Usage, UsageEvent
from tests.metering_values import MINUTE, T0, event
from tests.store.billing_values import World

START, END = MONTH = month_bounds(T0)
AFTER = END + 5 * MINUTE
DOLLAR_IN = 10**12 // 150_000 + 1  # input tokens that cost a bit more than a dollar
HOUR = 60 * MINUTE


def made(db: Database, *org_ids: str) -> tuple[World, Issuer]:
    """A world with organizations of these ids."""
    world = World(db)
    with db.begin() as conn:
        for number, org_id in enumerate(org_ids or ("org_1",)):
            created = access_store.create_organization(conn, f"acme-{number}", T0)
            conn.exec_driver_sql(f"UPDATE organizations SET id = '{org_id}' WHERE id = '{created.id}'")
    return world, Issuer(world)


def call(number: int, at_ms: int = T0, tokens: int = DOLLAR_IN, org_id: str = "org_1") -> UsageEvent:
    return event(f"req_{number}", Usage(tokens, 0, 7, 0), ended_ms=at_ms, org_id=org_id)


def balances(db: Database) -> dict[str, int]:
    sums: dict[str, int] = {}
    with db.read() as conn:
        for row in conn.execute(select(ledger_postings.c.account, ledger_postings.c.amount_pico)):
            sums[row.account] = sums.get(row.account, 0) + row.amount_pico
    return {account: amount for account, amount in sums.items() if amount}


def read(db: Database, invoice_id: str) -> tuple[Invoice, list[InvoiceLine]]:
    with db.read() as conn:
        return find_invoice(conn, invoice_id), lines_of(conn, invoice_id)


def check(db: Database, invoice_id: str) -> Invoice:
    """What must hold of every final invoice."""
    invoice, lines = read(db, invoice_id)
    assert all(line.amount_cents == round_to_cents(line.amount_pico) for line in lines)
    assert invoice.total_cents == sum(line.amount_cents for line in lines if line.kind != "credit")
    assert invoice.due_cents == invoice.total_cents - invoice.credit_cents >= 0
    assert invoice.lines_hash == lines_hash(invoice, lines)
    assert [line.line for line in lines] == list(range(1, len(lines) + 1))
    with db.read() as conn:
        report = verify_chain(
            conn, invoice.org_id, until_seq=invoice.ledger_seq, until_hash=invoice.ledger_hash
        )
        assert report.faults == ()
        assert verify_chain(conn, invoice.org_id).faults == ()
    assert sum(balances(db).values()) == 0
    return invoice
