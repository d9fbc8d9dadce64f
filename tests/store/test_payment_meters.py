"""Stripe's own meters (the double): each posting of the ledger an event, counted once, at exact prices."""

from decimal import Decimal

import pytest
from sqlalchemy import select

from billing.invoicing.run import run_invoicer
from billing.payments import mapping, outbox
from billing.payments.mapping import MeteredLine
from billing.payments.model import METERS
from billing.tables import ledger_postings, ledger_transactions
from core.database import Database
from metering.model import Usage
from tests.metering_values import MINUTE, event
from tests.store.invoice_values import AFTER, HOUR
from tests.store.payment_values import Paying, paying
from tests.stripe_double import Call
from tests.stripe_http import StripeRefusal

DAY = 24 * HOUR
NOW = AFTER + HOUR


def use(p: Paying, *tokens: int, at_ms: int = NOW - 10 * MINUTE, first: int = 1) -> None:
    """Calls with that many input tokens each, a minute apart; closed and posted."""
    calls = [
        event(f"req_{first + n}", Usage(count, 0, 7, 0), ended_ms=at_ms + n * MINUTE, org_id="org_1")
        for n, count in enumerate(tokens)
    ]
    p.world.store(*calls)
    p.clock.advance(max(0, at_ms + len(tokens) * MINUTE + 5 * MINUTE - p.clock.now_ms()))
    p.world.close(p.clock.now_ms())


def counted(p: Paying) -> dict[str, int]:
    """What the double's meters count, by their names."""
    sums: dict[str, int] = {}
    for each in p.double.meter_events:
        sums[each["event_name"]] = sums.get(each["event_name"], 0) + int(each["payload"]["value"])
    return sums


def on_ledger(db: Database) -> dict[str, int]:
    """What they should count."""
    t, l = ledger_transactions, ledger_postings  # noqa: E741
    query = select(l.c.sku, t.c.model_id, l.c.unit_price_pico, l.c.quantity).join(
        t, t.c.id == l.c.transaction_id
    )
    sums: dict[str, int] = {}
    with db.read() as conn:
        for row in conn.execute(query.where(l.c.sku != "")):
            name = MeteredLine(row.sku, row.model_id, row.unit_price_pico).name
            sums[name] = sums.get(name, 0) + row.quantity
    return sums


def test_usage_becomes_events_once_with_customer_meters_prices_and_subscription(db: Database) -> None:
    with paying(db, METERS) as p:
        use(p, 100, 20, 3)
        p.work()
        assert counted(p) == on_ledger(db) != {}
        assert sorted(counted(p).values()) == [21, 123]
        assert all(len(each["identifier"]) <= 100 for each in p.double.meter_events)
        [subscription] = p.double.subscriptions.values()
        assert len(subscription["items"]["data"]) == len(p.double.prices) == 2
        input_price = next(v for v in p.double.prices.values() if "input" in v["lookup_key"])
        assert Decimal(input_price["unit_amount_decimal"]) == Decimal(
            "0.000015"
        )  # cents of a token at 0.15 $/M
        sent = len(p.double.meter_events)
        p.work(hours=1)
        assert len(p.double.meter_events) == sent
        use(p, 5, at_ms=p.clock.now_ms(), first=50)
        p.work()
        assert counted(p) == on_ledger(db)
        assert p.alarms == []


def test_many_keys_in_a_minute_are_one_event_of_a_meter(db: Database) -> None:
    with paying(db, METERS) as p:
        at_ms = NOW - 10 * MINUTE
        p.world.store(
            *[
                event(f"req_{n}", Usage(10, 0, 7, 0), ended_ms=at_ms, org_id="org_1", key_id=f"key_{n}")
                for n in range(30)
            ]
        )
        p.clock.advance(HOUR)
        p.world.close(p.clock.now_ms())
        p.work()
        assert sorted(int(each["payload"]["value"]) for each in p.double.meter_events) == [210, 300]
        assert counted(p) == on_ledger(db)


def test_our_invoice_of_such_a_month_is_not_sent_too(db: Database) -> None:
    with paying(db, METERS) as p:
        use(p, 10_000_000, at_ms=AFTER - DAY)
        [invoice] = run_invoicer(db, p.issuer, p.clock.now_ms()).invoices
        assert invoice.due_cents == 150
        p.work()
        assert p.double.invoices == {}


def test_a_crash_at_any_call_counts_every_event_once(db: Database) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("the steps are the same on every database; one is enough")
    with paying(db, METERS) as p:
        for number in range(24):
            left, when = number % 12, ("before", "after")[number // 12]
            use(p, 10 + number, at_ms=p.clock.now_ms(), first=100 + number)

            def cut(call: Call, left: list[int] = [left]) -> None:  # noqa: B006  counts down
                left[0] -= 1
                if left[0] == -1:
                    raise StripeRefusal(503, "the line is cut")

            setattr(p.double, when, cut)
            p.work(hours=1)
            setattr(p.double, when, lambda call: None)
            p.work()
        assert counted(p) == on_ledger(db)
        assert len(p.double.customers) == len(p.double.subscriptions) == 1


def test_more_than_a_day_without_stripe_asks_what_was_counted(db: Database) -> None:
    """The event arrived, its answer did not; a day later its identifier is forgotten."""
    with paying(db, METERS) as p:
        use(p, 100)
        p.work()
        use(p, 50, at_ms=p.clock.now_ms(), first=50)

        def lose(call: Call) -> None:
            if call.path == "/v1/billing/meter_events":
                p.double.before = down
                raise StripeRefusal(503, "cut")

        def down(call: Call) -> None:
            raise StripeRefusal(503, "down")

        p.double.after = lose
        p.work(hours=30, step_ms=HOUR)
        p.double.after = p.double.before = lambda call: None
        p.work(hours=1)
        assert counted(p) == on_ledger(db)


def test_what_somebody_else_counted_is_an_alarm_not_a_second_event(db: Database) -> None:
    with paying(db, METERS) as p:
        use(p, 100)

        def down(call: Call) -> None:
            if call.path == "/v1/billing/meter_events":
                raise StripeRefusal(503, "down")

        p.double.before = down
        p.work(hours=30, step_ms=HOUR)
        [task] = [t for t in _troubled(db) if " 150000" in f" {t.unit_price_pico}"]
        p.double.before = lambda call: None
        customer = next(iter(p.double.customers))
        name = task.lane.split("/", 2)[2]
        foreign = mapping.event_params(name, customer, "someone-else", 7, task.at_ms)
        p.payments.provider.send_meter_event(foreign, "x")
        p.work(hours=1)
        assert "meter_differs" in [alarm.kind for alarm in p.alarms]
        assert counted(p)[name] == 7


def _troubled(db: Database) -> list[outbox.Task]:
    with db.read() as conn:
        return outbox.troubled(conn, 100)


def test_usage_older_than_35_days_becomes_one_line(db: Database) -> None:
    with paying(db, METERS) as p:
        use(p, 4_000_000, 3_000_000)

        def down(call: Call) -> None:
            raise StripeRefusal(503, "down")

        p.double.before = down
        p.work(hours=36 * 24, step_ms=12 * HOUR)
        p.double.before = lambda call: None
        p.work(hours=1)
        assert p.double.meter_events == []
        [item] = p.double.items.values()  # 7 million at 0.15 $/M; 14 output tokens round to nothing
        assert (item["amount"], item["invoice"]) == (105, None)
        assert [a.kind for a in p.alarms if a.kind == "meter_event_too_old"] == ["meter_event_too_old"] * 2
        assert _troubled(db) == []
        p.work(hours=2)
        assert len(p.double.items) == 1


def test_a_subscription_holds_twenty_items_the_next_one_the_rest(db: Database) -> None:
    with paying(db, METERS) as p:
        names = [f"acme/model-{number}" for number in range(11)]
        for name in names:
            p.world.versions[name] = p.world.versions["acme/chat"]
        calls = [
            event(f"req_{n}", Usage(5, 0, 7, 0), ended_ms=NOW - 9 * MINUTE, org_id="org_1", model_id=name)
            for n, name in enumerate(names)
        ]
        p.world.store(*calls)
        p.clock.advance(HOUR)
        p.world.close(p.clock.now_ms())
        p.work()
        assert sorted(len(s["items"]["data"]) for s in p.double.subscriptions.values()) == [2, 20]
        assert counted(p) == on_ledger(db)


def test_names_and_identifiers_fit() -> None:
    line = MeteredLine("input", "organization/" + "m" * 200, 150_000)
    other = MeteredLine("input", "organization/" + "m" * 200, 150_001)
    assert len(line.name) <= 100 and line.name != other.name
    assert len(mapping.identifier("x" * 300)) <= 100
    assert mapping.identifier("minute/input/1") == "minute/input/1"
