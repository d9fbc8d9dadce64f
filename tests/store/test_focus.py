"""FOCUS: the sums are the invoices', late charges are corrections, and an open month is refused."""

import csv
import io
from decimal import Decimal

import pytest
from sqlalchemy import update

from billing.invoicing import credit
from billing.invoicing.focus import COLUMNS, focus_csv
from billing.invoicing.notes import make_note
from billing.invoicing.run import run_invoicer
from billing.invoicing.settle import void_invoice
from billing.invoicing.store import list_invoices
from billing.tables import invoice_lines
from core.clock import month_bounds
from core.database import Database
from core.errors import Conflict
from metering.model import Usage
from tests.metering_values import MINUTE, T0, event
from tests.store.invoice_values import AFTER, DOLLAR_IN, END, HOUR, MONTH, call, made
from tests.store.test_invoice_check import busy

NEXT = month_bounds(END)


def rows_of(db: Database, month: tuple[int, int]) -> list[dict[str, str]]:
    with db.read() as conn:
        return list(csv.DictReader(io.StringIO(focus_csv(conn, "org_1", month))))


def test_sums_by_invoice_are_what_is_payable(db: Database) -> None:
    _, issuer, _ = busy(db)
    rows = rows_of(db, MONTH)
    with db.read() as conn:
        invoices = list_invoices(conn, org_id="org_1")
    assert tuple(rows[0]) == COLUMNS == tuple(sorted(COLUMNS, key=lambda name: (name.startswith("x_"), name)))
    for invoice in invoices:
        billed = sum(Decimal(row["BilledCost"]) for row in rows if row["InvoiceId"] == invoice.number)
        assert billed * 100 == invoice.due_cents
    for row in rows:
        assert row["InvoiceDetailId"] and row["BillingCurrency"] == "USD"
        if row["ChargeCategory"] == "Usage":
            for cost, unit in (("ListCost", "ListUnitPrice"), ("ContractedCost", "ContractedUnitPrice")):
                assert Decimal(row[cost]) == Decimal(row[unit]) * Decimal(row["PricingQuantity"])
        elif row["ChargeCategory"] == "Credit":
            assert row["ContractedCost"] == row["BilledCost"]
    assert {row["ChargeCategory"] for row in rows} == {"Usage", "Credit", "Adjustment"}
    assert issuer.prefix == "FB"


def test_late_charges_and_credit_notes_are_corrections(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    [december] = run_invoicer(db, issuer, AFTER).invoices
    world.store(call(2, tokens=2 * DOLLAR_IN), call(3, END + HOUR, DOLLAR_IN))
    with db.begin() as conn:
        make_note(conn, issuer, december.id, reason="slow", now_ms=AFTER + HOUR, amount_cents=30)
        make_note(
            conn, issuer, december.id, reason="slow", now_ms=AFTER + HOUR, amount_cents=20, as_credit=True
        )
    world.close(NEXT[1] + 5 * MINUTE)
    [january] = run_invoicer(db, issuer, NEXT[1] + 5 * MINUTE).invoices
    rows = rows_of(db, NEXT)
    of_january = [row for row in rows if row["InvoiceId"] == january.number]
    of_input = [row for row in of_january if row["SkuMeter"] == "Input"]
    classes = {(r["ChargeClass"], r["ChargePeriodStart"][:7]): r["BilledCost"] for r in of_input}
    assert classes == {("Correction", "2025-12"): "2.00", ("", "2026-01"): "1.00"}
    [note] = [row for row in rows if row["InvoiceId"].startswith("FB-CN-")]
    assert (note["BilledCost"], note["ChargeClass"]) == ("-0.30", "Correction")
    [spent] = [row for row in rows if row["ChargeCategory"] == "Credit"]
    assert (spent["BilledCost"], spent["EffectiveCost"]) == ("-0.20", "0.00")  # credit of a note is money


def test_an_open_void_or_changed_month_is_refused(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(T0 + HOUR)
    with pytest.raises(Conflict, match="is not over yet"):
        rows_of(db, MONTH)
    world.close(AFTER)
    with pytest.raises(Conflict, match="no final invoice"):
        rows_of(db, MONTH)
    [draft] = run_invoicer(db, issuer, AFTER, automatic=False).invoices
    with pytest.raises(Conflict, match="no final invoice"):
        rows_of(db, MONTH)
    with db.begin() as conn:
        void_invoice(conn, draft.id, AFTER)
    with pytest.raises(Conflict, match="no final invoice"):
        rows_of(db, MONTH)


def test_a_sum_that_does_not_fit_is_not_exported(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    run_invoicer(db, issuer, AFTER)
    with db.begin() as conn:
        conn.execute(update(invoice_lines).values(amount_cents=invoice_lines.c.amount_cents + 1))
    with pytest.raises(Conflict, match="nothing was exported"):
        rows_of(db, MONTH)


def test_an_invoice_that_credit_paid_sums_to_nothing(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1), event("e", Usage(1, 0, 1, 0)))
    world.close(AFTER)
    with db.begin() as conn:
        credit.grant_credit(conn, credit.NewGrant("org_1", "promotional", 5000), T0)
    [invoice] = run_invoicer(db, issuer, AFTER).invoices
    assert invoice.due_cents == 0
    assert sum(Decimal(row["BilledCost"]) for row in rows_of(db, MONTH)) == 0
