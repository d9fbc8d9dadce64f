"""Usage summaries: closed days and hours from the roll-ups, edges from closed minutes, open ones from the events."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal, select

from core.errors import Invalid
from metering.model import CALL_SKUS
from metering.records import ENDPOINT_MINUTE_SKU, GROUPS, UsageRow
from metering.rollups import DAY_MS, closed_spans
from metering.tables import (
    FIRST_OPEN_MINUTE,
    ROLLUP_COUNTS,
    call_quantities,
    endpoint_minutes,
    metering_state,
    usage_corrections,
    usage_events,
    usage_minutes,
)

MAX_ROWS = 10_000
_COLUMNS = {"model": "model_id", "endpoint": "endpoint_id", "key": "key_id", "project": "project_id"}
_MINUTES = ROLLUP_COUNTS.index(ENDPOINT_MINUTE_SKU)  # the last one


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Usage of an organization that is billed in [start, end), added up by `columns` and by `bucket_ms`.

    `columns`: some of project_id, key_id, endpoint_id, model_id. `bucket_ms`: a minute, an hour, a day, or 0 for none.
    `only`: for some columns the values that count.
    """

    org_id: str
    start_ms: int
    end_ms: int
    columns: Sequence[str] = ()
    bucket_ms: int = 0
    only: Mapping[str, Collection[str]] = field(default_factory=dict)


def usage_summary(
    conn: Connection,
    org_id: str,
    project_id: str | None,
    start_ms: int,
    end_ms: int,
    group_by: Sequence[str],
) -> list[UsageRow]:
    """Usage billed in [start, end), grouped by any of `GROUPS` (none: one total), ordered by the group.

    A late call counts on the day it is billed on, so that a month's usage is what its invoice shows.
    """
    for name in group_by:
        if name not in GROUPS:
            raise Invalid(f"cannot group by {name!r}; choose from {', '.join(GROUPS)}", param="group_by")
    groups = [name for name in GROUPS if name in group_by and name != "sku"]  # "day" is the first of them
    query = UsageQuery(
        org_id,
        start_ms,
        end_ms,
        columns=[_COLUMNS[name] for name in groups if name != "day"],
        bucket_ms=DAY_MS if "day" in groups else 0,
        only={} if project_id is None else {"project_id": [project_id]},
    )
    totals = {
        (_day(key[0]), *key[1:]) if query.bucket_ms else key: counts
        for key, counts in usage_totals(conn, query).items()
    }
    rows = [_row(groups, key, counts) for key, counts in sorted(totals.items()) if any(counts)]
    return [part for row in rows for part in _by_sku(row)] if "sku" in group_by else rows


def usage_totals(conn: Connection, query: UsageQuery) -> dict[tuple[Any, ...], list[int]]:
    """Counts in the order of `ROLLUP_COUNTS` by group: the bucket's start if there are buckets, then the columns.

    `conn` must see one instant (`Database.read`): a minute that closes moves from one table to another.
    """
    state = select(metering_state.c.value).where(metering_state.c.name == FIRST_OPEN_MINUTE)
    first_open = conn.execute(state).scalar() or 0
    totals: dict[tuple[Any, ...], list[int]] = {}
    width = len(query.columns) + bool(query.bucket_ms)
    for statement in _statements(query, first_open):
        for row in conn.execute(statement.limit(MAX_ROWS + 1)):
            counts = totals.setdefault(tuple(row[:width]), [0] * len(ROLLUP_COUNTS))
            for i, value in enumerate(row[width:]):
                counts[i] += int(value or 0)  # PostgreSQL sums BIGINT to NUMERIC
        if len(totals) > MAX_ROWS:
            raise Invalid(
                f"more than {MAX_ROWS} rows; choose a shorter period or fewer groups", param="group_by"
            )
    return totals


def _statements(query: UsageQuery, first_open_ms: int) -> Iterator[Select[Any]]:
    sums = [func.sum(usage_minutes.c[name]) for name in ROLLUP_COUNTS[:_MINUTES]]
    for span in closed_spans(query.start_ms, query.end_ms, first_open_ms, query.bucket_ms or DAY_MS):
        if span.table is not None:
            counts = [func.sum(span.table.c[name]) for name in ROLLUP_COUNTS]
            yield _select(query, span.table, counts, span.start_ms, span.end_ms)
        else:
            yield _select(query, usage_minutes, [*sums, literal(0)], span.start_ms, span.end_ms)
            yield from _single_minutes(query, span.start_ms, span.end_ms)
    start_ms = max(query.start_ms, first_open_ms)
    if start_ms < query.end_ms:
        yield _select(query, usage_events, [*_open_counts(), literal(0)], start_ms, query.end_ms)
        yield from _single_minutes(query, start_ms, query.end_ms)


def _single_minutes(query: UsageQuery, start_ms: int, end_ms: int) -> Iterator[Select[Any]]:
    """What is kept one by one, whether closed or open: endpoint minutes, and corrections."""
    nothing: list[ColumnElement[int]] = [literal(0)] * _MINUTES
    yield _select(query, endpoint_minutes, [*nothing, func.count()], start_ms, end_ms)
    # Differences; the attempts were counted when they happened.
    corrected = [func.sum(usage_corrections.c[name]) for name in (*CALL_SKUS, "reasoning")]
    rest = len(ROLLUP_COUNTS) - len(corrected)
    yield _select(query, usage_corrections, [*corrected, *[literal(0)] * rest], start_ms, end_ms)


def _select(
    query: UsageQuery, table: Any, counts: Sequence[ColumnElement[int]], start_ms: int, end_ms: int
) -> Select[Any]:
    at = table.c.start_ms if "start_ms" in table.c else table.c.billing_minute_ms
    keys: list[ColumnElement[Any]] = [_column(table, name) for name in query.columns]
    if query.bucket_ms:
        keys.insert(0, at - at % query.bucket_ms)
    statement = select(*keys, *counts).where(table.c.org_id == query.org_id, at >= start_ms, at < end_ms)
    for name, values in query.only.items():
        statement = statement.where(_column(table, name).in_(list(values)))
    return statement.group_by(*keys) if keys else statement


def _column(table: Any, name: str) -> ColumnElement[Any]:
    found: ColumnElement[Any] = (
        table.c[name] if name in table.c else literal("")
    )  # an endpoint's minutes have no key
    return found


def _open_counts() -> list[ColumnElement[int]]:
    """Of events, in the order of `ROLLUP_COUNTS`, without endpoint minutes."""
    table = usage_events
    failed = table.c.status == "error"
    quantities = (*call_quantities().values(), table.c.reasoning)
    sums: list[ColumnElement[int]] = [func.sum(case((failed, 0), else_=quantity)) for quantity in quantities]
    flags = [func.sum(case((flag, 1), else_=0)) for flag in (failed, table.c.batch)]
    return [*sums, func.count(), *flags]


def _day(day_ms: int) -> str:
    return datetime.fromtimestamp(int(day_ms) // 1000, tz=UTC).strftime("%Y-%m-%d")


def _row(groups: Sequence[str], key: Sequence[str], counts: Sequence[int]) -> UsageRow:
    count = dict(zip(ROLLUP_COUNTS, counts, strict=True))
    return UsageRow(
        group=dict(zip(groups, key, strict=True)),
        quantities={sku: count[sku] for sku in (*CALL_SKUS, ENDPOINT_MINUTE_SKU)},
        requests=count["requests"],
        errors=count["errors"],
        reasoning=count["reasoning"],
    )


def _by_sku(row: UsageRow) -> list[UsageRow]:
    """One row per SKU that has a quantity; requests are counted with each, for they used each."""
    return [
        UsageRow(
            group={**row.group, "sku": sku},
            quantities={sku: quantity},
            requests=0 if sku == ENDPOINT_MINUTE_SKU else row.requests,
            errors=0 if sku == ENDPOINT_MINUTE_SKU else row.errors,
            reasoning=row.reasoning if sku == "output" else 0,
        )
        for sku, quantity in row.quantities.items()
        if quantity
    ]
