"""Proof of an invoice from raw events, what a change anywhere does to it, and the way down to single events."""

import random
import time

import pytest
from sqlalchemy import delete, insert, select, update

from billing.invoicing import credit
from billing.invoicing.check import check_invoice
from billing.invoicing.drill import events_of_minute, minutes_of_line
from billing.invoicing.issue import Issuer
from billing.invoicing.model import Invoice, Profile
from billing.invoicing.run import run_invoicer
from billing.invoicing.store import find_invoice, lines_of, put_profile
from billing.tables import (
    contracts,
    credit_uses,
    invoice_lines,
    invoices,
    ledger_days,
    ledger_postings,
    ledger_transactions,
)
from catalog.terms import SkuTerms, Tier
from core.database import Database
from core.errors import Conflict, Invalid
from metering.corrections import lock_standing, record_correction
from metering.journal import source_of
from metering.model import Correction, Usage
from metering.tables import endpoint_minutes, usage_corrections, usage_events
from tests.metering_values import MINUTE, T0, event
from tests.store.billing_values import CHAT, World, life
from tests.store.invoice_values import AFTER, HOUR, START, call, made

DEAR = {"input": 3 * 10**9, "output": 5 * 10**9, "endpoint_minute": 10**10}


def busy(db: Database) -> tuple[World, Issuer, list[Invoice]]:
    """A month with everything: tiers, a price change, late and unpriced usage, errors, credit, a threshold."""
    world, issuer = made(db)
    world.versions = {
        "acme/chat": [(0, CHAT), (T0 + 2 * HOUR, DEAR)],
        "acme/ear": [(0, {"audio_second": 10**10})],
    }
    world.terms["acme/chat@1"] = {"output": SkuTerms("graduated", (Tier(100, 5 * 10**9), Tier(None, 10**9)))}
    with db.begin() as conn:
        put_profile(conn, Profile("org_1", threshold_pico=10**12))
        row = {"id": "ct_1", "org_id": "org_1", "starts_ms": START, "ends_ms": 0, "discount_bp": 725}
        conn.execute(contracts.insert().values(**row, minimum_pico=3 * 10**12, created_ms=START))
        credit.grant_credit(conn, credit.NewGrant("org_1", "prepaid", 77, expires_ms=T0 + HOUR), T0)
        credit.grant_credit(conn, credit.NewGrant("org_1", "promotional", 50), T0)
    rng = random.Random(7)
    statuses = ["completed", "completed", "client_disconnect", "error"]
    for n in range(60):
        at_ms = T0 + rng.randrange(5 * HOUR)
        usage = Usage(rng.randrange(50, 900), rng.randrange(50), rng.randrange(90))
        model = rng.choice(["acme/chat", "acme/chat", "acme/late"])
        world.store(event(f"r{n}", usage, ended_ms=at_ms, status=rng.choice(statuses), model_id=model))
    heard = Usage(audio_ms=1_500)
    world.store(*[event(f"a{n}", heard, model_id="acme/ear", key_id=f"key_{n % 2}") for n in range(7)])
    world.sweep([life(deleted_ms=T0 + 3 * HOUR)], T0 + 4 * HOUR)
    world.close(T0 + 4 * HOUR)
    made_invoices = list(run_invoicer(db, issuer, T0 + 4 * HOUR).invoices)
    for number, usage in enumerate([Usage(audio_ms=9_001), Usage(audio_ms=500)]):
        with db.begin() as conn:
            standing = lock_standing(conn, source_of("gw-1"), "a3")
            assert standing is not None
            wrong = Correction("org_1", standing.row.source, "a3", usage, "measured again")
            names = {"source": "other/meter", "event_id": f"c{number}", "payload_hash": "0"}
            record_correction(conn, standing, wrong, now_ms=T0 + 5 * HOUR, **names)
    world.store(call(900, T0 + HOUR, 4000))  # late: of the invoice that is final
    world.versions["acme/late"] = [(0, {"input": 10**9, "output": 10**9})]
    world.close(T0 + 5 * HOUR)  # what waited for a price is billed in the minute that is open now
    world.store(call(901, T0 + 72 * HOUR, 4000))
    world.close(AFTER)
    made_invoices += run_invoicer(db, issuer, AFTER).invoices
    assert len(made_invoices) == 2
    return world, issuer, made_invoices


def differences(db: Database, world: World, invoice: Invoice) -> tuple[str, ...]:
    with db.read() as conn:
        return check_invoice(conn, invoice.id, world).differences


def test_invoices_are_what_the_raw_events_come_to(db: Database) -> None:
    world, _, found = busy(db)
    for invoice in found:
        with db.read() as conn:
            report = check_invoice(conn, invoice.number or "", world)
            kinds = {line.kind for line in lines_of(conn, invoice.id)}
        assert report.differences == ()
        assert report.events > 0 and report.ledger_transactions == invoice.ledger_seq
    assert kinds >= {"charge", "terms", "discount"}


def _forge(conn, what: str, invoice: Invoice) -> None:  # type: ignore[no-untyped-def]
    lines, heads = invoice_lines, invoices
    first = (lines.c.invoice_id == invoice.id, lines.c.line == 1)
    charges = (ledger_transactions.c.org_id == "org_1", ledger_transactions.c.kind == "usage")
    if what == "line amount":
        conn.execute(update(lines).where(*first).values(amount_pico=1, amount_cents=0))
    elif what == "line rounding":
        conn.execute(update(lines).where(*first).values(amount_cents=lines.c.amount_cents + 1))
    elif what == "line gone":
        conn.execute(delete(lines).where(*first))
    elif what == "due":
        conn.execute(update(heads).where(heads.c.id == invoice.id).values(due_cents=1))
    elif what == "memo":
        conn.execute(update(heads).where(heads.c.id == invoice.id).values(memo="cheaper next time"))
    elif what == "event":
        conn.execute(update(usage_events).where(usage_events.c.event_id == "a1").values(audio_ms=2_001))
    elif what == "event gone":
        conn.execute(delete(usage_events).where(usage_events.c.event_id == "a1"))
    elif what == "event added":
        row = dict(conn.execute(select(usage_events).where(usage_events.c.event_id == "a1")).one()._mapping)
        conn.execute(insert(usage_events).values(row | {"row_id": 9999, "event_id": "x", "request_id": "x"}))
    elif what == "correction":
        conn.execute(update(usage_corrections).values(right_audio_ms=5_500))
    elif what == "minute gone":
        conn.execute(delete(endpoint_minutes).where(endpoint_minutes.c.service_minute_ms == T0 + MINUTE))
    elif what == "posting":
        some = conn.execute(select(ledger_transactions.c.id).where(*charges)).scalars().first()
        conn.execute(
            update(ledger_postings).where(ledger_postings.c.transaction_id == some).values(amount_pico=-5)
        )
    elif what == "days":
        conn.execute(update(ledger_days).where(ledger_days.c.sku == "input").values(quantity=1))
    elif what == "credit":
        conn.execute(delete(credit_uses))
    elif what == "entry":
        entry = (ledger_postings.c.transaction_id == f"invoice/{invoice.id}", ledger_postings.c.line == 0)
        conn.execute(update(ledger_postings).where(*entry).values(amount_pico=-7))


FORGERIES = {
    "line amount": "line charge",
    "line rounding": "is rounded to",
    "line gone": "no such line",
    "due": "due: the invoice says 1 cents",
    "memo": "hash: ",
    "event": "the ledger has 14, the raw events 15",
    "event gone": "the ledger has 14, the raw events 12",
    "event added": "the ledger has 14, the raw events 16",
    "correction": "audio_second of acme/ear",
    "minute gone": "endpoint_minute of ep_1",
    "posting": "ledger: ",
    "days": "the ledger's days have",
    "credit": "credit: what its grants gave",
    "entry": "moves receivable:org_1",
}


def test_whatever_is_changed_afterwards_is_named(db: Database) -> None:
    world, _, [first, last] = busy(db)
    for what, says in FORGERIES.items():
        invoice = last if what in ("days", "correction") else first
        with db.engine.connect().execution_options(farebox_write=True) as conn:
            _forge(conn, what, invoice)
            found = check_invoice(conn, invoice.id, world).differences
            conn.rollback()
        assert any(says in each for each in found), (what, found)
    assert differences(db, world, first) == ()


def test_a_draft_proves_nothing(db: Database) -> None:
    world, issuer = made(db)
    world.store(call(1))
    world.close(AFTER)
    [draft] = run_invoicer(db, issuer, AFTER, automatic=False).invoices
    with pytest.raises(Conflict, match="is a draft"):
        differences(db, world, draft)


def test_lines_go_down_to_minutes_and_events_with_exact_sums(db: Database) -> None:
    _, _, found = busy(db)
    seen: set[str] = set()
    with db.read() as conn:
        for invoice in found:
            for line in lines_of(conn, invoice.id):
                if line.kind != "charge":
                    with pytest.raises(Invalid, match="no single minutes"):
                        minutes_of_line(conn, invoice, line, limit=7)
                    continue
                minutes, after = [], ""
                while page := minutes_of_line(conn, invoice, line, limit=7, after=after).rows:
                    minutes += page
                    after = page[-1].id
                assert sum(minute.amount_pico for minute in minutes) == line.amount_pico
                assert len({minute.id for minute in minutes}) == len(minutes)
                for minute in minutes:
                    events, at = [], 0
                    while True:
                        part, at = events_of_minute(conn, "org_1", minute.id, line.sku, limit=2, after=at)
                        events += part.rows
                        if not at:
                            break
                    assert part.quantity == minute.quantity == sum(each.quantity for each in events)
                    seen.update(each.id for each in events if each.quantity)
        billed = select(usage_events.c.event_id).where(usage_events.c.status != "error")
        corrected = set(conn.execute(select(usage_corrections.c.event_id)).scalars())
        lives = (
            corrected
            | set(conn.execute(billed).scalars())
            | set(conn.execute(select(endpoint_minutes.c.id)).scalars())
        )
    assert seen == lives


@pytest.mark.timing
def test_a_month_of_ten_million_calls_is_invoiced_in_seconds(db: Database) -> None:
    """Its ledger as the roll-up has it: 400 endpoints of 40 models, each called on each of 31 days."""
    world, issuer = made(db)
    days = [
        {
            "org_id": "org_1",
            "day_ms": START + day * 24 * HOUR,
            "project_id": f"prj_{n}",
            "endpoint_id": f"ep_{n}",
            "model_id": f"acme/m{n % 40}",
            "sku": sku,
            "price_version": f"acme/m{n % 40}@0",
            "unit_price_pico": 150_000 + n % 40,
            "quantity": 10_000_000 // 400 // 31 * 700,
        }
        for day in range(31)
        for n in range(400)
        for sku in ("input", "cached_input", "output", "endpoint_minute")
    ]
    world.versions = {f"acme/m{n}": [(0, CHAT)] for n in range(40)}
    with db.begin() as conn:
        for start in range(0, len(days), 2000):
            conn.execute(insert(ledger_days), days[start : start + 2000])
    world.close(AFTER)
    begun = time.perf_counter()
    [invoice] = run_invoicer(db, issuer, AFTER).invoices
    took = time.perf_counter() - begun
    with db.read() as conn:
        assert find_invoice(conn, invoice.id).charges_pico == sum(
            d["quantity"] * d["unit_price_pico"] for d in days
        )  # type: ignore[operator,misc]
        assert len(lines_of(conn, invoice.id)) == 40 * 3 + 400
    print(f"{len(days)} rows of the roll-up: {took:.2f} s")
    assert took < 5
