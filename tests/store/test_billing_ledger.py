"""The ledger's chain and its days; prices of one organization; terms and contracts on a preview."""

import pytest
from sqlalchemy import delete, insert, select, update

from billing import store
from billing.tables import contracts, ledger_days, ledger_postings, ledger_transactions
from billing.verify import verify_chain
from catalog import price_book
from catalog.load import parse_model
from catalog.store import put_model
from catalog.terms import SkuTerms, Tier
from core.clock import month_bounds
from core.database import Database
from core.errors import Conflict
from metering.model import Usage
from tests.metering_values import MINUTE, T0, event
from tests.store.billing_values import CHAT, World, life

MONTH = month_bounds(T0)
MODEL = {
    "id": "acme/chat",
    "task": "chat",
    "context_length": 1000,
    "engine": {"kind": "external", "url": "http://127.0.0.1:1"},
    "prices": {"input": "0.15", "output": "0.60"},
}


def _busy_world(db: Database) -> World:
    world = World(db)
    for n in range(30):
        world.store(event(f"req_{n}", ended_ms=T0 + n * MINUTE, org_id=f"org_{n % 2 + 1}"))
        world.close(T0 + n * MINUTE)
    world.sweep([life()], T0 + 40 * MINUTE)
    world.close(T0 + 60 * MINUTE)
    return world


def test_each_organization_has_a_chain_of_its_own(db: Database) -> None:
    _busy_world(db)
    with db.read() as conn:
        for org_id in ("org_1", "org_2"):
            report = verify_chain(conn, org_id)
            assert report.faults == ()
            rows = conn.execute(
                select(ledger_transactions.c.seq).where(ledger_transactions.c.org_id == org_id)
            ).scalars()
            assert sorted(rows) == list(range(1, report.transactions + 1))
            assert store.chain_head(conn, org_id) == (report.transactions, report.head)
        assert verify_chain(conn, "org_3").transactions == 0


@pytest.mark.parametrize("what", ["amount", "account", "removed", "added", "minute", "end"])
def test_whatever_is_changed_later_shows_in_the_chain(db: Database, what: str) -> None:
    _busy_world(db)
    table, postings = ledger_transactions, ledger_postings
    with db.begin() as conn:
        victim = conn.execute(select(table).where(table.c.org_id == "org_1", table.c.seq == 5)).one()
        last = conn.execute(
            select(table).where(table.c.org_id == "org_1").order_by(table.c.seq.desc())
        ).first()
        assert last is not None
        before = verify_chain(conn, "org_1", until_seq=4, until_hash=_hash(conn, 4))
        assert before.faults == ()
        if what == "amount":  # on both sides, so that it still balances
            for posting in conn.execute(select(postings).where(postings.c.transaction_id == victim.id)).all():
                where = (postings.c.transaction_id == victim.id, postings.c.line == posting.line)
                conn.execute(update(postings).where(*where).values(amount_pico=posting.amount_pico * 2))
        elif what == "account":
            where = (postings.c.transaction_id == victim.id, postings.c.line == 0)
            conn.execute(update(postings).where(*where).values(account="receivable:org_9"))
        elif what == "minute":
            conn.execute(
                update(table).where(table.c.id == victim.id).values(minute_ms=victim.minute_ms + MINUTE)
            )
        elif what in ("removed", "end"):
            gone = victim if what == "removed" else last
            conn.execute(delete(postings).where(postings.c.transaction_id == gone.id))
            conn.execute(delete(table).where(table.c.id == gone.id))
        else:
            copy = dict(victim._mapping) | {"id": "forged", "seq": last.seq + 1}
            conn.execute(insert(table).values(**copy))
    with db.read() as conn:
        assert verify_chain(conn, "org_1").faults
        assert verify_chain(conn, "org_2").faults == ()
        assert verify_chain(conn, "org_1", until_seq=4, until_hash=_hash(conn, 4)).faults == ()


def _hash(conn: object, seq: int) -> str:
    table = ledger_transactions
    query = select(table.c.hash).where(table.c.org_id == "org_1", table.c.seq == seq)
    return str(conn.execute(query).scalar_one())  # type: ignore[attr-defined]


def test_the_days_are_the_sum_of_the_postings(db: Database) -> None:
    world = World(db)
    for n in range(20):
        world.store(event(f"req_{n}", ended_ms=T0 + n * 6 * 3_600_000))
    world.close(T0 + 10 * 86_400_000)
    with db.read() as conn:
        by_postings = store._totals_of_postings(conn, "org_1", MONTH[0], MONTH[1])
        days = conn.execute(select(ledger_days)).all()
        assert len({row.day_ms for row in days}) == 6
        assert sorted(map(repr, store._totals_of_days(conn, "org_1", *MONTH))) == sorted(
            map(repr, by_postings)
        )
        whole = {t.sku: t.quantity for t in by_postings}
        start, end = T0 - 3 * MINUTE, T0 + 3 * 86_400_000 + MINUTE  # edges within days
        edged: dict[str, int] = {}
        for total in store.posted_totals(conn, "org_1", start, end):
            edged[total.sku] = edged.get(total.sku, 0) + total.quantity
    assert whole["output"] == 20 * 50
    assert edged["output"] == 13 * 50


def test_an_organization_pays_its_own_price_until_it_ends(db: Database) -> None:
    spec = parse_model(MODEL)
    with db.begin() as conn:
        put_model(conn, spec, T0)
        own = price_book.add_version(
            conn, "acme/chat", "org_1", T0 + MINUTE, {"input": 5, "output": 6}, {}, T0
        )
        price_book.add_version(conn, "acme/chat", "org_1", T0 + 3 * MINUTE, {}, {}, T0, ended=True)
        with pytest.raises(Conflict, match="begin after"):
            price_book.add_version(conn, "acme/chat", "org_1", T0 + 2 * MINUTE, {"input": 1}, {}, T0)

        def price(org_id: str, at_ms: int) -> int:
            return price_book.price_at(conn, "acme/chat", at_ms, org_id).unit_prices["input"]

        assert [price("org_1", T0 + n * MINUTE) for n in range(4)] == [150_000, 5, 5, 150_000]
        assert [price("org_2", T0 + n * MINUTE) for n in range(4)] == [150_000] * 4
        assert price_book.version(conn, own.id) == own
        tariffs = price_book.tariffs(conn, "acme/chat", "org_1")
        assert [(t.starts_ms, t.unit_prices["input"]) for t in tariffs] == [
            (0, 150_000),
            (T0 + MINUTE, 5),
            (T0 + 3 * MINUTE, 150_000),
        ]
        assert [t.starts_ms for t in price_book.tariffs(conn, "acme/chat", "org_2")] == [0]


def test_tiers_and_included_amounts_are_lines_of_the_month_whatever_is_closed(db: Database) -> None:
    world = World(db)
    world.terms["acme/chat@0"] = {
        "output": SkuTerms("graduated", (Tier(60, 600_000), Tier(None, 100_000))),
        "input": SkuTerms(included=100),
    }
    world.store(event("a"), event("b", ended_ms=T0 + 5 * MINUTE))
    preview = world.preview(start_ms=MONTH[0], end_ms=MONTH[1])
    shown = [(x.kind, x.sku, x.quantity, x.amount_pico) for x in preview.lines]
    assert ("charge", "output", 100, 100 * 600_000) in shown
    assert ("terms", "output", 0, -40 * 500_000) in shown
    assert ("terms", "input", 0, -100 * 150_000) in shown
    for now in (T0 + 3 * MINUTE, T0 + 30 * MINUTE):
        world.close(now)
        assert world.preview(start_ms=MONTH[0], end_ms=MONTH[1]).lines == preview.lines
    world.check_ledger()


def test_a_contract_discounts_and_fills_up_to_its_minimum(db: Database) -> None:
    world = World(db)
    world.store(event("a", Usage(10**9, 0, 10**9)))
    charges = 10**9 * (CHAT["input"] + CHAT["output"])  # 750 dollars
    with db.begin() as conn:
        conn.execute(
            insert(contracts).values(
                id="contract_1",
                org_id="org_1",
                starts_ms=MONTH[0],
                ends_ms=0,
                discount_bp=1250,
                minimum_pico=1000 * 10**12,
                created_ms=T0,
            )
        )
    preview = world.preview(start_ms=MONTH[0], end_ms=MONTH[1])
    extra = {x.kind: x.amount_pico for x in preview.lines if x.kind != "charge"}
    assert extra == {"discount": -charges // 8, "minimum": 1000 * 10**12 - charges * 7 // 8}
    assert preview.total_cents == 100_000
    before = world.preview(start_ms=MONTH[0] - 86_400_000, end_ms=MONTH[0])
    assert before.lines == ()
