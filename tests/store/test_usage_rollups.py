"""Roll-ups: whatever the span, the same as adding up every event."""

import importlib
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, text

from core.database import Database
from metering.corrections import lock_standing, record_correction
from metering.endpoint_minutes import EndpointLife
from metering.journal import source_of
from metering.model import Correction, Usage, UsageEvent
from metering.rollups import DAY_MS, HOUR_MS, closed_spans
from metering.store import usage_summary
from metering.summary import UsageQuery, usage_totals
from metering.tables import ROLLUP_COUNTS, usage_days, usage_events, usage_hours, usage_minutes
from tests.conftest import MakeDatabase
from tests.metering_values import MINUTE, event
from tests.store.billing_values import World, life

DAY0 = 1_766_620_800_000  # 2025-12-25T00:00:00Z
COLUMNS = ("project_id", "key_id", "endpoint_id", "model_id")
_INSTANTS = st.integers(DAY0, DAY0 + 4 * DAY_MS)
_EDGES = st.one_of(
    _INSTANTS,
    st.integers(0, 4).map(lambda n: DAY0 + n * DAY_MS),
    st.integers(0, 96).map(lambda n: DAY0 + n * HOUR_MS),
).map(lambda ms: ms - ms % MINUTE)


@st.composite
def _events(draw: st.DrawFn) -> UsageEvent:
    prompt, output = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    usage = Usage(
        prompt,
        draw(st.integers(0, prompt)),
        output,
        draw(st.integers(0, output)),
        draw(st.integers(0, 9999)),
    )
    return event(
        f"req_{draw(st.integers(0, 10**12))}",
        usage,
        ended_ms=draw(_INSTANTS),
        org_id=draw(st.sampled_from(["org_1", "org_2"])),
        project_id=draw(st.sampled_from(["prj_1", "prj_2"])),
        key_id=draw(st.sampled_from(["key_1", "key_2"])),
        endpoint_id=draw(st.sampled_from(["ep_1", "ep_2"])),
        model_id=draw(st.sampled_from(["acme/chat", "acme/other"])),
        status=draw(st.sampled_from(["completed", "error", "client_disconnect"])),
    )


@dataclass
class Naive:
    """Every event and minute with the minute it is billed in, added up one by one: shares nothing with what it checks."""

    rows: list[tuple[int, dict[str, str], dict[str, int]]] = field(default_factory=list)

    def add_event(self, one: UsageEvent, first_open: int) -> None:
        at_ms = max(one.ended_ms - one.ended_ms % MINUTE, first_open)
        counts = {"requests": 1, "errors": int(one.status == "error")}
        if one.status != "error":
            counts |= {**one.usage.billable(), "reasoning": one.usage.reasoning}
        names = ("org_id", *COLUMNS)
        self.rows.append((at_ms, {name: getattr(one, name) for name in names}, counts))

    def add_minute(self, one: EndpointLife, minute_ms: int, first_open: int) -> None:
        names = {"org_id": one.org_id, "project_id": one.project_id, "key_id": ""}
        names |= {"endpoint_id": one.endpoint_id, "model_id": one.model_id}
        self.rows.append((max(minute_ms, first_open), names, {"endpoint_minute": 1}))

    def totals(self, query: UsageQuery) -> dict[tuple[Any, ...], list[int]]:
        found: dict[tuple[Any, ...], Counter[str]] = {}
        for at_ms, names, counts in self.rows:
            inside = query.start_ms <= at_ms < query.end_ms and names["org_id"] == query.org_id
            if not inside or any(names[name] not in values for name, values in query.only.items()):
                continue
            bucket = (at_ms - at_ms % query.bucket_ms,) if query.bucket_ms else ()
            key = (*bucket, *(names[name] for name in query.columns))
            found.setdefault(key, Counter()).update(counts)
        return {key: [counts[name] for name in ROLLUP_COUNTS] for key, counts in found.items()}


def _queries() -> st.SearchStrategy[UsageQuery]:
    return st.builds(
        lambda edges, columns, bucket, only: UsageQuery(
            "org_1", min(edges), max(edges), columns, bucket, only
        ),
        st.tuples(_EDGES, _EDGES),
        st.lists(st.sampled_from(COLUMNS), unique=True),
        st.sampled_from([0, MINUTE, HOUR_MS, DAY_MS]),
        st.fixed_dictionaries(
            {},
            optional={
                "project_id": st.sets(st.sampled_from(["prj_1", "prj_2", "prj_9"])),
                "key_id": st.sets(st.sampled_from(["key_1", "key_2"])),
                "model_id": st.sets(st.sampled_from(["acme/chat", "acme/other"])),
            },
        ),
    )


@settings(
    max_examples=25,
    phases=[p for p in Phase if p is not Phase.explain],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    st.lists(_events(), max_size=25, unique_by=lambda one: one.request_id),
    st.lists(_events(), max_size=5, unique_by=lambda one: one.request_id),
    _INSTANTS,
    st.lists(_queries(), min_size=1, max_size=8),
)
def test_any_span_is_the_sum_of_its_events(
    make_db: MakeDatabase,
    events: list[UsageEvent],
    late: list[UsageEvent],
    now_ms: int,
    queries: list[UsageQuery],
) -> None:
    world = World(make_db())
    naive = Naive()
    endpoint = life(created_ms=DAY0 + 23 * HOUR_MS, deleted_ms=DAY0 + 26 * HOUR_MS)
    world.store(*events)
    world.sweep([endpoint], DAY0 + 5 * DAY_MS)
    for one in events:
        naive.add_event(one, 0)
    for minute_ms in range(endpoint.created_ms, DAY0 + 26 * HOUR_MS, MINUTE):
        naive.add_minute(endpoint, minute_ms, 0)
    world.close(now_ms)
    first_open = now_ms - MINUTE - (now_ms - MINUTE) % MINUTE
    new = [one for one in late if one.request_id not in {known.request_id for known in events}]
    world.store(*new)
    for one in new:
        naive.add_event(one, first_open)
    with world.db.read() as conn:
        for query in queries:
            found = {key: counts for key, counts in usage_totals(conn, query).items() if any(counts)}
            assert found == naive.totals(query), query


@given(_EDGES, _EDGES, _INSTANTS, st.sampled_from([MINUTE, HOUR_MS, DAY_MS]))
def test_spans_cover_every_closed_minute_once(start: int, end: int, first_open: int, widest: int) -> None:
    first_open -= first_open % MINUTE
    spans = closed_spans(start, end, first_open, widest)
    assert sum(1 for span in spans if span.table is not None) <= 3
    covered: list[tuple[int, int]] = sorted((span.start_ms, min(span.end_ms, first_open)) for span in spans)
    covered = [(a, b) for a, b in covered if a < b]
    assert all(b <= c for (_, b), (c, _) in pairwise(covered))
    assert sum(b - a for a, b in covered) == max(0, min(end, first_open) - start)
    for span in spans:
        assert start <= span.start_ms < span.end_ms <= end
        width = {usage_days: DAY_MS, usage_hours: HOUR_MS}.get(span.table, MINUTE)  # type: ignore[arg-type]
        assert span.start_ms % width == span.end_ms % width == 0 or width == MINUTE
        assert width <= widest or width == MINUTE


def test_a_closed_month_is_read_from_days_alone(db: Database) -> None:
    """A billion calls are thousands of rows: what lies below the days is not looked at."""
    world = World(db)
    for day in range(3):
        world.store(*[event(f"req_{day}_{i}", ended_ms=DAY0 + day * DAY_MS + i * MINUTE) for i in range(5)])
    world.close(DAY0 + 4 * DAY_MS)
    with db.begin() as conn:
        for table in (usage_events, usage_minutes, usage_hours):
            conn.execute(table.delete())
    with db.read() as conn:
        (row,) = usage_summary(conn, "org_1", None, DAY0, DAY0 + 3 * DAY_MS, ())
        assert (row.requests, row.quantities["output"]) == (15, 750)
        assert conn.execute(select(func.count()).select_from(usage_days)).scalar_one() == 3


@pytest.mark.parametrize("steps", [1, 7])
def test_closing_in_several_steps_adds_up(db: Database, steps: int) -> None:
    world = World(db)
    world.store(*[event(f"req_{i}", ended_ms=DAY0 + i * 10 * MINUTE) for i in range(60)])
    for step in range(1, steps + 1):
        world.close(DAY0 + step * DAY_MS // steps)
        world.close(DAY0 + step * DAY_MS // steps)
    with db.read() as conn:
        for table, rows in ((usage_days, 1), (usage_hours, 10)):
            found = conn.execute(select(func.count(), func.sum(table.c.requests))).one()
            assert (found[0], int(found[1])) == (rows, 60)


def test_a_correction_is_in_the_sums_whether_closed_or_not(db: Database) -> None:
    world = World(db)
    world.store(event("req_1", Usage(100, 20, 50, 10), ended_ms=DAY0))
    world.close(DAY0 + 10 * MINUTE)
    with db.begin() as conn:
        standing = lock_standing(conn, source_of("gw-1"), "req_1")
        assert standing is not None
        correction = Correction("org_1", source_of("gw-1"), "req_1", Usage(90, 20, 40, 5), "counted twice")
        record_correction(
            conn,
            standing,
            correction,
            source="/meter",
            event_id="c1",
            payload_hash="1",
            now_ms=DAY0 + HOUR_MS,
        )

    def found() -> list[int]:
        with db.read() as conn:
            (counts,) = usage_totals(conn, UsageQuery("org_1", DAY0, DAY0 + DAY_MS)).values()
        return counts

    right = dict(zip(ROLLUP_COUNTS, found(), strict=True))
    assert {name: count for name, count in right.items() if count} == {
        "input": 70,
        "cached_input": 20,
        "output": 40,
        "reasoning": 5,
        "requests": 1,
    }
    world.close(DAY0 + 2 * DAY_MS)
    assert found() == list(right.values())


def test_the_migration_fills_them_from_what_is_closed(db: Database) -> None:
    world = World(db)
    world.store(
        *[event(f"req_{i}", ended_ms=DAY0 + i * 7 * MINUTE, key_id=f"key_{i % 3}") for i in range(40)]
    )
    world.sweep([life(created_ms=DAY0)], DAY0 + 3 * HOUR_MS)
    world.close(DAY0 + 2 * HOUR_MS)
    fill = importlib.import_module("migrations.versions.0009_usage_rollups")._FILL
    with db.begin() as conn:
        for table, width in ((usage_hours, HOUR_MS), (usage_days, DAY_MS)):
            query = select(table).order_by(*table.primary_key)
            written = conn.execute(query).all()
            conn.execute(table.delete())
            conn.execute(text(fill.format(table=table.name, width=width)))
            assert conn.execute(query).all() == written
            assert len(written) > 3
