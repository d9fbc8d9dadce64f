"""Invoices: one per period whoever asks how often, exact, final; void and made again the same."""

import csv
import io
import threading
from dataclasses import replace
from decimal import Decimal

import pytest
from sqlalchemy import select

from billing.invoicing import credit
from billing.invoicing.check import check_invoice
from billing.invoicing.focus import focus_csv
from billing.invoicing.issue import finalize, invoice_period
from billing.invoicing.model import Invoice, Profile
from billing.invoicing.notes import make_note
from billing.invoicing.run import run_invoicer
from billing.invoicing.settle import invoices_to_push, mark_pushed, record_payment, void_invoice
from billing.invoicing.store import list_invoices, put_profile
from billing.tables import contracts, ledger_transactions
from catalog.terms import SkuTerms
from core.clock import month_bounds
from core.database import Database
from core.errors import Conflict, Invalid
from core.money import PICO_PER_CENT
from metering.corrections import lock_standing, record_correction
from metering.journal import source_of
from metering.model import Correction, Usage
from tests.metering_values import MINUTE, T0
from tests.store.invoice_values import (
    AFTER,
    DOLLAR_IN,
    END,
    HOUR,
    MONTH,
    START,
    balances,
    call,
    check,
    made,
    read,
)


def test_a_month_makes_one_invoice_however_often_it_is_run(db: Database) -> None:
    world, issuer = made(db, "org_1", "org_2")
    world.store(call(1), call(2, org_id="org_2"))
    world.close(T0 + HOUR)
    assert run_invoicer(db, issuer, T0 + HOUR).invoices == ()  # the month is open
    world.close(AFTER)
    invoices = run_invoicer(db, issuer, AFTER).invoices
    assert [(i.org_id, i.number, i.state) for i in invoices] == [
        ("org_1", "FB-2026-000001", "finalized"),
        ("org_2", "FB-2026-000002", "finalized"),
    ]
    for _ in range(2):
        assert run_invoicer(db, issuer, AFTER).invoices == ()
        with db.begin() as conn:
            assert invoice_period(conn, issuer, "org_1", MONTH, AFTER) == []
    found = check(db, invoices[0].id)
    assert (found.start_ms, found.end_ms, found.due_cents) == (START, END, 100)
    assert balances(db)["billed:org_1"] == 100 * PICO_PER_CENT
    assert "receivable:org_1" not in balances(db)
    assert found.parties.customer.name == "acme-0"
    with db.read() as conn:
        assert run_invoicer(db, issuer, END + 40 * 24 * HOUR).invoices == ()  # nothing closed since
        assert [i.id for i in list_invoices(conn, org_id="org_2")] == [invoices[1].id]


def test_two_invoicers_at_once_make_one_invoice_of_each_organization(db: Database) -> None:
    orgs = [f"org_{n}" for n in range(6)]
    world, issuer = made(db, *orgs)
    world.store(*[call(n, org_id=org_id) for n, org_id in enumerate(orgs)])
    world.close(AFTER)
    found: list[Invoice] = []
    threads = [
        threading.Thread(target=lambda: found.extend(run_invoicer(db, issuer, AFTER).invoices))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i.org_id for i in found) == orgs
    assert sorted(i.number or "" for i in found) == [f"FB-2026-{n:06d}" for n in range(1, 7)]


def test_numbers_have_no_gap_when_finalizing_fails(db: Database) -> None:
    world, issuer = made(db, "org_1", "org_2")
    world.store(call(1), call(2, org_id="org_2"))
    world.close(AFTER)
    with db.engine.connect().execution_options(farebox_write=True) as conn:
        invoice_period(conn, issuer, "org_1", MONTH, AFTER)
        conn.rollback()  # the machine dies before the commit
    assert "billed:org_1" not in balances(db)
    numbers = [i.number for i in run_invoicer(db, issuer, AFTER).invoices]
    assert numbers == ["FB-2026-000001", "FB-2026-000002"]


def test_a_late_event_is_on_the_next_invoice(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    [first] = run_invoicer(db, issuer, AFTER).invoices
    before = read(db, first.id)
    world.store(call(2, tokens=3 * DOLLAR_IN))  # of December, in January
    world.close(month_bounds(END)[1] + 5 * MINUTE)
    [second] = run_invoicer(db, issuer, month_bounds(END)[1] + 5 * MINUTE).invoices
    assert (second.start_ms, check(db, second.id).total_cents) == (END, 300)
    assert read(db, first.id) == before


def test_without_charges_there_is_no_invoice_but_for_a_minimum(db: Database) -> None:
    world, issuer = made(db, "org_1", "org_2")
    with db.begin() as conn:
        row = {"id": "ct_1", "org_id": "org_2", "starts_ms": START, "ends_ms": 0, "discount_bp": 0}
        conn.execute(contracts.insert().values(**row, minimum_pico=50 * 10**12, created_ms=START))
    world.close(AFTER)
    [only] = run_invoicer(db, issuer, AFTER).invoices
    assert (only.org_id, only.total_cents, only.charges_pico) == ("org_2", 5000, 0)
    check(db, only.id)
    assert balances(db) == {"billed:org_2": 50 * 10**12, "revenue:minimum": -50 * 10**12}


def test_thresholds_terms_discount_and_minimum_add_up_over_the_month(db: Database) -> None:
    world, issuer = made(db)
    world.terms["acme/chat@0"] = {"input": SkuTerms(included=DOLLAR_IN)}
    with db.begin() as conn:
        put_profile(conn, Profile("org_1", threshold_pico=2 * 10**12))
        row = {"id": "ct_1", "org_id": "org_1", "starts_ms": START, "ends_ms": 0, "discount_bp": 1000}
        conn.execute(contracts.insert().values(**row, minimum_pico=20 * 10**12, created_ms=START))
    world.store(call(1))
    world.close(T0 + HOUR)
    assert run_invoicer(db, issuer, T0 + HOUR).invoices == ()  # one dollar
    world.store(call(2, T0 + 2 * HOUR, 2 * DOLLAR_IN))
    world.close(T0 + 3 * HOUR)
    [first] = run_invoicer(db, issuer, T0 + 3 * HOUR).invoices
    assert (first.kind, first.start_ms, first.end_ms) == ("threshold", START, T0 + 3 * HOUR - MINUTE)
    assert run_invoicer(db, issuer, T0 + 3 * HOUR).invoices == ()
    world.store(call(3, T0 + 4 * HOUR))
    world.close(AFTER)
    [last] = run_invoicer(db, issuer, AFTER).invoices
    assert (last.kind, last.start_ms, last.end_ms) == ("monthly", first.end_ms, END)
    kinds = [line.kind for line in read(db, last.id)[1]]
    assert kinds == ["charge", "charge", "terms", "discount", "minimum"]
    assert check(db, first.id).total_cents + check(db, last.id).total_cents == 2000
    assert "receivable:org_1" not in balances(db)


def test_void_reverses_and_the_period_can_be_invoiced_again_the_same(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1, tokens=10 * DOLLAR_IN))
    world.close(AFTER)
    with db.begin() as conn:
        credit.grant_credit(conn, credit.NewGrant("org_1", "promotional", 300), T0)
    granted = balances(db)
    [first] = run_invoicer(db, issuer, AFTER).invoices
    assert (first.total_cents, first.credit_cents, first.due_cents) == (1000, 300, 700)
    for _ in range(3):
        with db.begin() as conn:
            void_invoice(conn, first.id, AFTER)
        assert balances(db) == granted
        assert run_invoicer(db, issuer, AFTER).invoices == ()  # that is for a person to say
        with pytest.raises(Conflict, match="it is void"), db.begin() as conn:
            void_invoice(conn, first.id, AFTER)
        with db.begin() as conn:
            [again] = invoice_period(conn, issuer, "org_1", MONTH, AFTER)
        assert replace(
            check(db, again.id), id="", number="", lines_hash="", ledger_hash="", ledger_seq=0
        ) == replace(
            read(db, first.id)[0],
            id="",
            number="",
            lines_hash="",
            ledger_hash="",
            ledger_seq=0,
            state="finalized",
            voided_ms=0,
        )
        assert read(db, again.id)[1] == read(db, first.id)[1]
        first = again


def test_a_draft_waits_for_a_person_and_then_is_final(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    [draft] = run_invoicer(db, issuer, AFTER, automatic=False).invoices
    assert (draft.state, draft.number, draft.total_cents) == ("draft", None, 100)
    assert run_invoicer(db, issuer, AFTER).invoices == ()
    assert "billed:org_1" not in balances(db)
    with pytest.raises(Conflict, match="it is a draft"), db.begin() as conn:
        record_payment(conn, draft.id, amount_cents=None, reference="", now_ms=AFTER)
    with db.begin() as conn:
        finalize(conn, issuer, draft.id, AFTER)
    assert check(db, draft.id).state == "finalized"
    with pytest.raises(Conflict, match="never changes"), db.begin() as conn:
        finalize(conn, issuer, draft.id, AFTER)


def test_paying(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    [invoice] = run_invoicer(db, issuer, AFTER).invoices
    with pytest.raises(Invalid, match=r"1.00 is due"), db.begin() as conn:
        record_payment(conn, invoice.id, amount_cents=99, reference="r", now_ms=AFTER)
    with db.begin() as conn:
        record_payment(conn, invoice.number or "", amount_cents=100, reference="bank 7", now_ms=AFTER)
    with pytest.raises(Conflict, match=r"paid already .*bank 7"), db.begin() as conn:
        record_payment(conn, invoice.id, amount_cents=100, reference="r", now_ms=AFTER)
    with pytest.raises(Conflict, match="a credit note can"), db.begin() as conn:
        void_invoice(conn, invoice.id, AFTER)
    assert check(db, invoice.id).payment_reference == "bank 7"
    assert balances(db)["cash"] == 100 * PICO_PER_CENT
    assert "billed:org_1" not in balances(db)


def test_what_the_provider_does_not_have_yet_is_listed(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    with db.begin() as conn:
        put_profile(conn, Profile("org_1", provider="stripe_items"))
    [invoice] = run_invoicer(db, issuer, AFTER).invoices
    with db.begin() as conn:
        assert [i.id for i in invoices_to_push(conn, "stripe_items")] == [invoice.id]
        assert invoices_to_push(conn, "stripe_meters") == []
        mark_pushed(conn, invoice.id, "in_1")
        mark_pushed(conn, invoice.id, "in_1")
        assert invoices_to_push(conn, "stripe_items") == []
        with pytest.raises(Conflict, match="in_1"):
            mark_pushed(conn, invoice.id, "in_2")
    assert check(db, invoice.id).provider_id == "in_1"


def test_credit_notes_never_give_back_more_than_there_is(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1, tokens=10 * DOLLAR_IN))
    world.close(AFTER)
    with db.begin() as conn:
        credit.grant_credit(conn, credit.NewGrant("org_1", "prepaid", 400), T0)
    [invoice] = run_invoicer(db, issuer, AFTER).invoices

    def note(**values: object) -> object:
        with db.begin() as conn:
            return make_note(conn, issuer, invoice.id, reason="wrong model", now_ms=AFTER, **values)  # type: ignore[arg-type]

    with pytest.raises(Invalid, match=r"10.00 can be given back"):
        note(amount_cents=1001, as_credit=True)
    with pytest.raises(Invalid, match=r"only 6.00 is due"):
        note()
    with pytest.raises(Invalid, match="no line 9"):
        note(lines={9: None})
    assert note(amount_cents=100).number == "FB-CN-2026-000001"  # type: ignore[attr-defined]
    assert note(lines={1: 250}, as_credit=True).amount_cents == 250  # type: ignore[attr-defined]
    with pytest.raises(Invalid, match=r"of line 1 7.50 can"):
        note(lines={1: 751})
    with pytest.raises(Conflict, match="credit note"), db.begin() as conn:
        void_invoice(conn, invoice.id, AFTER)
    with pytest.raises(Invalid, match=r"5.00 is due"), db.begin() as conn:
        record_payment(conn, invoice.id, amount_cents=600, reference="", now_ms=AFTER)
    note(amount_cents=500)  # nothing is due any more
    found = check(db, invoice.id)
    assert found.state == "paid"
    assert balances(db)["revenue:correction"] == 850 * PICO_PER_CENT
    assert balances(db)["credit:org_1"] == -250 * PICO_PER_CENT
    assert "billed:org_1" not in balances(db)
    with db.read() as conn:
        numbers = conn.execute(select(ledger_transactions.c.kind)).scalars().all()
    assert numbers.count("credit_note") == 2


def test_an_open_or_impossible_period_is_refused(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(T0 + HOUR)
    with db.begin() as conn:
        with pytest.raises(Conflict, match="not over yet"):
            invoice_period(conn, issuer, "org_1", MONTH, T0 + HOUR)
        with pytest.raises(Conflict, match="none of it is closed"):
            invoice_period(conn, issuer, "org_1", month_bounds(END), T0 + HOUR)
        with pytest.raises(Invalid, match="one UTC month"):
            invoice_period(conn, issuer, "org_1", (START, END + MINUTE), T0 + HOUR)


def test_a_negative_total_becomes_credit_and_void_takes_it_back(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1, tokens=5 * DOLLAR_IN))
    world.close(AFTER)
    [december] = run_invoicer(db, issuer, AFTER).invoices
    world.store(call(2, END + HOUR))
    with db.begin() as conn:
        standing = lock_standing(conn, source_of("gw-1"), "req_1")
        assert standing is not None
        wrong = Correction("org_1", standing.row.source, "req_1", Usage(DOLLAR_IN, 0, 7, 0), "counted twice")
        names = {"source": "audit", "event_id": "c1", "payload_hash": "0"}
        record_correction(conn, standing, wrong, now_ms=AFTER, **names)
    later = month_bounds(END)[1] + 5 * MINUTE
    world.close(later)
    before = balances(db)
    [january] = run_invoicer(db, issuer, later).invoices
    assert (january.total_cents, january.credit_cents, january.due_cents) == (-300, -300, 0)
    assert (check(db, january.id).state, check(db, december.id).state) == ("paid", "finalized")
    assert balances(db)["credit:org_1"] == -300 * PICO_PER_CENT
    assert balances(db)["billed:org_1"] == 500 * PICO_PER_CENT
    with db.read() as conn:
        assert check_invoice(conn, january.id, world).differences == ()
        rows = list(csv.DictReader(io.StringIO(focus_csv(conn, "org_1", month_bounds(END)))))
    assert sum(Decimal(row["BilledCost"]) for row in rows) == 0
    with db.begin() as conn:
        void_invoice(conn, january.id, later)
    assert balances(db) == before
    with db.begin() as conn:
        [again] = invoice_period(conn, issuer, "org_1", month_bounds(END), later)
    world.store(call(3, later + HOUR, 4 * DOLLAR_IN))
    third = month_bounds(later)[1] + 5 * MINUTE
    world.close(third)
    [february] = run_invoicer(db, issuer, third).invoices
    assert (february.credit_cents, february.due_cents) == (300, 100)
    with pytest.raises(Conflict, match="is spent in part"), db.begin() as conn:
        void_invoice(conn, again.id, third)
    check(db, again.id)
