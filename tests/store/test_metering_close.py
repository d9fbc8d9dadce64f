"""Closing minutes, and usage summaries over closed and open ones."""

import pytest
from sqlalchemy import func, select

from core.database import Database
from core.errors import Invalid
from metering.close import MAX_MINUTES, close_minutes, is_due
from metering.model import Usage
from metering.records import UsageRow
from metering.store import first_open_minute, list_requests, usage_summary
from metering.tables import usage_events, usage_minutes
from tests.metering_values import MINUTE, NO_BATCH, T0, event
from tests.store.billing_values import LATENESS, World, life


def summary(
    world: World, *group_by: str, project_id: str | None = None, end_ms: int = T0 * 2
) -> list[UsageRow]:
    with world.db.read() as conn:
        return usage_summary(conn, "org_1", project_id, 0, end_ms, group_by)


def test_a_minute_closes_when_its_lateness_is_over(db: Database) -> None:
    world = World(db)
    world.store(event())
    assert world.close(T0 + MINUTE + LATENESS - 1) == 0
    assert world.close(T0 + MINUTE + LATENESS) == 1
    assert world.close(T0 + MINUTE + LATENESS) == 0
    with db.read() as conn:
        assert first_open_minute(conn) == T0 + MINUTE


def test_events_of_one_key_and_minute_become_one_aggregate(db: Database) -> None:
    world = World(db)
    world.store(
        event("a"),
        event("b"),
        event("c", status="error", usage=Usage(7, 0, 7)),
        event("d", key_id="key_2"),
        event("e", ended_ms=T0 + MINUTE),
        event("f", status="client_disconnect", usage=Usage(1, 0, 1)),
        event("g", status="interrupted", usage=Usage(1, 0, 2, 1)),
    )
    assert world.close(T0 + 10 * MINUTE) == 3
    with db.read() as conn:
        row = conn.execute(select(usage_minutes).where(usage_minutes.c.requests == 5)).one()
    assert (row.errors, row.input, row.cached_input, row.output, row.reasoning) == (1, 162, 40, 103, 21)


def test_a_late_event_is_a_dated_adjustment_and_no_closed_minute_changes(db: Database) -> None:
    world = World(db)
    world.store(event("a"))
    world.close(T0 + 5 * MINUTE)
    with db.read() as conn:
        before = conn.execute(select(usage_minutes)).all()
    world.store(event("late"))
    world.close(T0 + 10 * MINUTE)
    with db.read() as conn:
        rows = conn.execute(select(usage_minutes).order_by(usage_minutes.c.billing_minute_ms)).all()
    assert rows[:1] == before
    assert rows[1].service_minute_ms == T0
    assert rows[1].billing_minute_ms == T0 + 4 * MINUTE


def test_a_clock_that_steps_back_opens_nothing(db: Database) -> None:
    world = World(db)
    world.store(event("a"))
    world.close(T0 + 5 * MINUTE)
    assert world.close(T0 - 86_400_000) == 0
    with db.read() as conn:
        assert first_open_minute(conn) == T0 + 4 * MINUTE
        assert not is_due(conn, T0, LATENESS)


def test_after_downtime_closing_goes_in_bounded_steps_and_skips_the_void(db: Database) -> None:
    world = World(db)
    for minute in range(0, 300, 3):
        world.store(event(f"req_{minute}", ended_ms=T0 + minute * MINUTE))
    steps = 0
    closed = []
    now_ms = T0 + 100_000 * MINUTE
    while True:
        with db.begin() as conn:
            if not is_due(conn, now_ms, LATENESS):
                break
            minutes = close_minutes(conn, now_ms, LATENESS)
            assert len(minutes) <= MAX_MINUTES
            closed += minutes
            steps += 1
    assert len(closed) == 100
    assert steps == 6, "one per hour with usage, one for the empty rest"


def test_closing_stops_after_a_bounded_number_of_events(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metering.close.MAX_EVENTS", 10)
    world = World(db)
    for minute, count in enumerate((4, 4, 4, 30, 2)):
        ended_ms = T0 + minute * MINUTE
        world.store(*[event(f"req_{minute}_{i}", ended_ms=ended_ms) for i in range(count)])
    now_ms = T0 + 10 * MINUTE
    ends = []
    while True:
        with db.begin() as conn:
            if not is_due(conn, now_ms, LATENESS):
                break
            close_minutes(conn, now_ms, LATENESS)
            ends.append((first_open_minute(conn) - T0) // MINUTE)
    assert ends == [2, 3, 4, 9], "whole minutes, and a crowded one alone"
    with db.read() as conn:
        assert conn.execute(select(func.sum(usage_minutes.c.requests))).scalar_one() == 44


def test_a_summary_is_the_same_before_and_after_closing(db: Database) -> None:
    world = World(db)
    world.store(
        event("a"), event("b", ended_ms=T0 + MINUTE), event("c", status="error", ended_ms=T0 + 9 * MINUTE)
    )
    world.sweep([life()], T0 + 2 * MINUTE)
    groups = [(), ("day",), ("model", "key"), ("sku",), ("day", "endpoint", "project", "sku")]
    before = [summary(world, *g) for g in groups]
    world.close(T0 + 3 * MINUTE)  # minutes 0 and 1: partly closed
    assert [summary(world, *g) for g in groups] == before
    world.close(T0 + 60 * MINUTE)
    assert [summary(world, *g) for g in groups] == before
    (total,) = before[0]
    assert total == UsageRow(
        {},
        {"input": 160, "cached_input": 40, "output": 100, "audio_second": 0, "endpoint_minute": 3} | NO_BATCH,
        3,
        1,
        20,
    )


def test_a_summary_groups_by_any_of_its_names(db: Database) -> None:
    world = World(db)
    day = 86_400_000
    world.store(
        event("a"),
        event("b", model_id="acme/other", project_id="prj_2", key_id="key_2"),
        event("c", ended_ms=T0 + day),
        event("d", org_id="org_2"),
    )
    assert [(r.group, r.requests) for r in summary(world, "day")] == [
        ({"day": "2025-12-25"}, 2),
        ({"day": "2025-12-26"}, 1),
    ]
    assert [(r.group, r.requests) for r in summary(world, "project", "model")] == [
        ({"model": "acme/chat", "project": "prj_1"}, 2),
        ({"model": "acme/other", "project": "prj_2"}, 1),
    ]
    assert [(r.group["sku"], dict(r.quantities)) for r in summary(world, "sku")] == [
        ("input", {"input": 240}),
        ("cached_input", {"cached_input": 60}),
        ("output", {"output": 150}),
    ]
    assert [r.requests for r in summary(world, project_id="prj_2")] == [1]
    assert summary(world, end_ms=T0) == []
    with pytest.raises(Invalid, match="cannot group by 'colour'"):
        summary(world, "colour")


def test_a_summary_that_would_be_endless_is_refused(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(db)
    world.store(*[event(f"req_{i}", key_id=f"key_{i}") for i in range(20)])
    monkeypatch.setattr("metering.summary.MAX_ROWS", 10)
    with pytest.raises(Invalid, match="more than 10 rows"):
        summary(world, "key")


def test_requests_are_listed_newest_first_in_pages(db: Database) -> None:
    world = World(db)
    world.store(*[event(f"req_{i:02d}", ended_ms=T0 + i // 2) for i in range(10)])
    world.store(event("req_00", attempt=2, ended_ms=T0 + 99), event("other", org_id="org_2"))
    expected = [f"req_{i:02d}" for i in reversed(range(10))]
    with db.read() as conn:
        got: list[str] = []
        after = None
        while page := list_requests(conn, "org_1", T0, T0 + MINUTE, limit=3, after=after):
            got += page
            after = page[-1]
        assert got == expected
        assert list_requests(conn, "org_1", T0, T0 + MINUTE, after="nobody") == []
        assert list_requests(conn, "org_1", T0, T0 + MINUTE, project_id="prj_9") == []


def test_sums_beyond_32_bits_are_exact(db: Database) -> None:
    world = World(db)
    world.store(*[event(f"req_{i}", usage=Usage(10**12, 0, 10**12)) for i in range(5)])
    assert summary(world)[0].quantities["input"] == 5 * 10**12
    world.close(T0 + 5 * MINUTE)
    assert summary(world)[0].quantities["input"] == 5 * 10**12
    with db.read() as conn:
        assert conn.execute(select(func.count()).select_from(usage_events)).scalar_one() == 5
