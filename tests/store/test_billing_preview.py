"""From minutes to money: the ledger balances, and a preview does not care which minutes are closed."""

import random
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from billing.ledger import post_minutes
from billing.receipts import receipt
from billing.tables import held_quantities, ledger_postings, ledger_transactions
from core.database import Database
from core.errors import NotFound
from core.money import round_to_cents
from metering.close import close_minutes
from metering.model import Usage
from metering.summary import usage_summary
from tests.metering_values import MINUTE, NO_BATCH, T0, event
from tests.store.billing_values import CHAT, World, life


def test_a_call_and_a_minute_make_the_lines_one_calculates_by_hand(db: Database) -> None:
    world = World(db)
    world.store(event())
    world.sweep([life()], T0 + 59_000)
    preview = world.preview()
    assert [(x.sku, x.model_id, x.endpoint_name, x.quantity, x.amount_pico) for x in preview.lines] == [
        ("input", "acme/chat", "", 80, 80 * 150_000),
        ("cached_input", "acme/chat", "", 20, 20 * 75_000),
        ("output", "acme/chat", "", 50, 50 * 600_000),
        ("endpoint_minute", "acme/chat", "name-ep_1", 1, 500_000_000),
    ]
    assert preview.total_pico == 80 * 150_000 + 20 * 75_000 + 50 * 600_000 + 500_000_000
    assert preview.total_cents == sum(round_to_cents(line.amount_pico) for line in preview.lines)
    world.close(T0 + 10 * MINUTE)
    assert world.preview() == preview
    assert world.check_ledger() == preview.total_pico


def test_audio_is_billed_by_the_second_each_call_rounded_up(db: Database) -> None:
    world = World(db)
    world.versions["acme/ear"] = [(0, {"audio_second": 100_000_000})]
    heard = {"model_id": "acme/ear", "operation": "audio.transcriptions"}
    world.store(
        event("a", Usage(audio_ms=1_001), **heard),
        event("b", Usage(audio_ms=1_000), **heard),
        event("c", Usage(audio_ms=1), **heard),
        event("d", Usage(audio_ms=9_000), status="error", **heard),
    )
    for _ in range(2):  # while the minute is open, and closed
        [line] = world.preview().lines
        assert (line.sku, line.model_id, line.quantity) == ("audio_second", "acme/ear", 4)
        with db.read() as conn:
            [row] = usage_summary(conn, "org_1", None, T0 - MINUTE, T0 + MINUTE, ["sku"])
            found = receipt(conn, "a", world)
        assert (row.group, dict(row.quantities)) == ({"sku": "audio_second"}, {"audio_second": 4})
        assert found.billed["audio_second"] == 2
        assert found.amount_pico == 200_000_000
        assert found.last.usage["audio_ms"] == 1_001
        world.close(T0 + 10 * MINUTE)
    world.check_ledger()


def test_a_preview_is_of_one_organization_and_one_period(db: Database) -> None:
    world = World(db)
    world.store(event("a"), event("b", org_id="org_2"), event("c", ended_ms=T0 + 60 * MINUTE))
    one = world.preview(end_ms=T0 + 60 * MINUTE)
    assert sum(line.quantity for line in one.lines) == 150
    world.close(T0 + 600 * MINUTE)
    assert world.preview(end_ms=T0 + 60 * MINUTE) == one
    assert world.preview("org_3").lines == ()


def test_a_price_change_makes_two_lines_and_a_late_event_its_old_price(db: Database) -> None:
    world = World(db)
    world.versions["acme/chat"].append((T0 + 10 * MINUTE, {**CHAT, "output": 1_000_000}))
    world.store(event("a"), event("b", ended_ms=T0 + 10 * MINUTE))
    world.close(T0 + 20 * MINUTE)
    world.store(event("late", ended_ms=T0 + 9 * MINUTE))
    for _ in range(2):
        output = [(x.unit_price_pico, x.quantity) for x in world.preview().lines if x.sku == "output"]
        assert output == [(600_000, 100), (1_000_000, 50)]
        world.close(T0 + 90 * MINUTE)
    world.check_ledger()


def test_errors_are_free_and_broken_off_calls_are_not(db: Database) -> None:
    world = World(db)
    world.store(event("a", status="error"))
    assert world.preview().lines == ()
    world.close(T0 + 5 * MINUTE)
    assert world.preview().lines == ()
    world.store(event("b", status="client_disconnect"), event("c", status="interrupted"))
    assert sum(line.quantity for line in world.preview().lines) == 300


def test_what_has_no_price_is_held_with_an_alarm_until_it_has_one(db: Database) -> None:
    world = World(db)
    world.store(event("a", model_id="acme/new"), event("b"))
    before = world.preview()
    assert [(h.sku, h.quantity) for h in before.held] == [("cached_input", 20), ("input", 80), ("output", 50)]
    world.close(T0 + 5 * MINUTE)
    after = world.preview()
    assert after.lines == before.lines
    assert after.held == before.held
    assert [(a.kind, a.source) for a in world.alarms] == [("unpriced", "acme/new")]
    world.versions["acme/new"] = [(0, {"input": 10})]  # and cached input at the same price; no output
    world.close(T0 + 6 * MINUTE)
    world.close(T0 + 6 * MINUTE)
    held = world.preview()
    assert [(h.sku, h.quantity) for h in held.held] == [("output", 50)]
    assert [(x.sku, x.quantity) for x in held.lines if x.model_id == "acme/new"] == [
        ("input", 80),
        ("cached_input", 20),
    ]
    world.versions["acme/new"] = [(0, {"input": 10, "output": 20})]
    world.close(T0 + 7 * MINUTE)
    final = world.preview()
    assert final.held == ()
    assert final.total_pico == before.total_pico + 100 * 10 + 50 * 20 == world.check_ledger()
    with db.read() as conn:
        assert conn.execute(select(func.count()).select_from(held_quantities)).scalar_one() == 0


def test_posting_a_minute_twice_is_harmless(db: Database) -> None:
    world = World(db)
    world.store(event("a"), event("b", model_id="acme/unpriced"))
    with db.begin() as conn:
        minutes = close_minutes(conn, T0 + 5 * MINUTE, MINUTE)
        post_minutes(conn, minutes, world, T0)
        post_minutes(conn, minutes, world, T0)
    with db.begin() as conn:
        post_minutes(conn, minutes, world, T0)
        assert conn.execute(select(func.count()).select_from(ledger_transactions)).scalar_one() == 1
        assert conn.execute(select(func.count()).select_from(held_quantities)).scalar_one() == 3


def test_amounts_beyond_64_bits_are_exact(db: Database) -> None:
    """2^63 pico-dollars are 9.2 million dollars: here one call costs a trillion."""
    world = World(db)
    price = 10**15 - 1
    world.versions["acme/chat"] = [(0, {"input": price, "output": price, "endpoint_minute": 10**21 - 7})]
    world.store(*[event(f"req_{i}", usage=Usage(10**12, 0, 10**12)) for i in range(3)])
    world.sweep([life()], T0 + MINUTE)
    expected = 6 * 10**12 * price + 2 * (10**21 - 7)
    assert world.preview().total_pico == expected
    world.close(T0 + 10 * MINUTE)
    assert world.preview().total_pico == expected == world.check_ledger()
    with db.read() as conn:
        assert receipt(conn, "req_0", world).amount_pico == 2 * 10**12 * price


def test_the_database_agrees_that_transactions_balance(make_db: Any) -> None:
    """These amounts are small enough to be summed in SQL, by SQLite too."""
    world = World(make_db())
    world.store(*[event(f"req_{i}", key_id=f"key_{i % 3}") for i in range(9)])
    world.sweep([life()], T0 + 5 * MINUTE)
    world.close(T0 + 10 * MINUTE)
    world.check_ledger()
    with world.db.read() as conn:
        found = conn.exec_driver_sql(
            "SELECT transaction_id FROM ledger_postings GROUP BY transaction_id "
            "HAVING SUM(CAST(amount_pico AS NUMERIC)) <> 0"
        ).all()
        assert found == []
        assert conn.execute(select(func.count()).select_from(ledger_postings)).scalar_one() > 10


def test_two_closers_at_once_post_everything_once(db: Database) -> None:
    world = World(db)
    for minute in range(200):
        world.store(event(f"req_{minute}", ended_ms=T0 + minute * MINUTE))
    expected = world.preview()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for now in range(0, 300, 20):
                world.close(T0 + now * MINUTE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert world.preview() == expected
    assert world.check_ledger() == expected.total_pico


steps = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 3), st.integers(-6, 1), st.integers(0, 10**6)),
        st.tuples(st.just("advance"), st.integers(0, 5 * MINUTE), st.just(0), st.just(0)),
        st.tuples(st.just("step back"), st.integers(0, 5 * MINUTE), st.just(0), st.just(0)),
        st.tuples(st.just("sweep"), st.just(0), st.just(0), st.just(0)),
        st.tuples(st.just("close"), st.just(0), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps, st.integers(0, 2**32))
def test_the_total_is_the_same_whatever_is_closed_when(make_db: Any, done: list[Any], seed: int) -> None:
    """Late and early events, price changes, clock steps: closing changes no total, and no money is lost."""
    world = World(make_db())
    chance = random.Random(seed)
    world.versions["acme/chat"].append((T0 + 4 * MINUTE, {**CHAT, "output": 7}))
    world.versions["acme/chat"].append((T0 + 9 * MINUTE, {**CHAT, "input": 1}))
    now, expected, n = T0 + 5 * MINUTE, 0, 0
    for what, size, offset, tokens in done:
        if what == "call":
            n += 1
            status = chance.choice(["completed", "error", "interrupted", "client_disconnect"])
            usage = Usage(tokens, chance.randint(0, tokens), chance.randint(0, tokens))
            one = event(
                f"req_{n}", usage, key_id=f"key_{size}", status=status, ended_ms=now + offset * MINUTE
            )
            world.store(one)
            version = world.price_at(None, "acme/chat", one.ended_ms - one.ended_ms % MINUTE)
            assert version is not None
            if status != "error":
                expected += sum(q * version.unit_prices[sku] for sku, q in usage.billable().items() if q)
        elif what == "advance":
            now += size
        elif what == "step back":
            now -= size
        elif what == "sweep":
            written = world.sweep([life(created_ms=T0)], now)
            expected += written * CHAT["endpoint_minute"]
        else:
            before = world.preview()
            world.close(now)
            after = world.preview()
            assert (after.lines, after.total_pico) == (before.lines, before.total_pico)
        if chance.random() < 0.2:
            assert world.preview().total_pico == expected
    assert world.preview().total_pico == expected
    world.close(now + 1000 * MINUTE)
    assert world.preview().total_pico == expected == world.check_ledger()
    world.db.close()


def test_a_receipt_shows_all_attempts_and_their_exact_cost(db: Database) -> None:
    world = World(db)
    world.store(
        event("req_1", Usage(10, 0, 0), status="error", http_status=502),
        event("req_1", attempt=2, deployment_id="dep_2"),
    )
    for _ in range(2):
        with db.read() as conn:
            found = receipt(conn, "req_1", world)
        assert [(a.attempt, a.status, a.amount_pico) for a in found.attempts] == [
            (1, "error", 0),
            (2, "completed", 80 * 150_000 + 20 * 75_000 + 50 * 600_000),
        ]
        assert found.status == "completed"
        assert found.amount_pico == 43_500_000 == world.preview().total_pico
        assert found.billed == {"input": 80, "cached_input": 20, "output": 50} | NO_BATCH
        assert found.last.usage == {
            "input": 100,
            "cached_input": 20,
            "output": 50,
            "reasoning": 10,
            "audio_ms": 0,
        }
        assert found.price_version == "acme/chat@0"
        world.close(T0 + 10 * MINUTE)


def test_a_receipt_of_an_unknown_request_or_price(db: Database) -> None:
    world = World(db)
    world.store(event("req_1", model_id="acme/new"))
    with db.read() as conn:
        with pytest.raises(NotFound):
            receipt(conn, "req_2", world)
        found = receipt(conn, "req_1", world)
    assert (found.price_version, found.amount_pico) == ("", 0)
    assert found.last.held == ("input", "cached_input", "output")


def test_storing_and_sweeping_while_minutes_close_loses_nothing(db: Database) -> None:
    worlds = [World(db) for _ in range(4)]
    failures: list[BaseException] = []
    stopped = threading.Event()

    def store(world: World, number: int) -> None:
        for i in range(60):
            now = T0 + i * MINUTE
            world.store(
                event(f"req_{number}_{i}", ended_ms=now),
                event(f"late_{number}_{i}", ended_ms=now - 2 * MINUTE),
            )
            world.sweep([life()], now)

    def close(world: World) -> None:
        i = 0
        while not stopped.is_set():
            i += 1
            world.close(T0 + i * MINUTE)
            world.preview()

    def guarded(run: Any, *arguments: Any) -> threading.Thread:
        def call() -> None:
            try:
                run(*arguments)
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        return thread

    writers = [guarded(store, world, number) for number, world in enumerate(worlds[:2])]
    closers = [guarded(close, world) for world in worlds[2:]]
    for thread in writers:
        thread.join()
    stopped.set()
    for thread in closers:
        thread.join()
    assert not failures
    worlds[0].close(T0 + 10_000 * MINUTE)
    preview = worlds[0].preview()
    assert {line.sku: line.quantity for line in preview.lines} == {
        "input": 240 * 80,
        "cached_input": 240 * 20,
        "output": 240 * 50,
        "endpoint_minute": 60,
    }
    assert worlds[0].check_ledger() == preview.total_pico


def test_a_minute_is_not_closed_when_it_cannot_be_posted(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(db)
    world.store(event())
    before = world.preview()

    def fail(*_: object) -> None:
        raise RuntimeError("killed between closing and posting")

    with monkeypatch.context() as patched:
        patched.setattr("billing.close.post_minutes", fail)
        with pytest.raises(RuntimeError):
            world.close(T0 + 5 * MINUTE)
    assert world.preview() == before
    assert world.close(T0 + 5 * MINUTE) == 1
    assert world.preview() == before
    assert world.check_ledger() == before.total_pico
