"""Usage summaries: closed minutes from their aggregates, open ones from the events, added up here."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, case, func, literal, select

from core.errors import Invalid
from metering.model import CALL_SKUS
from metering.records import ENDPOINT_MINUTE_SKU, GROUPS, UsageRow
from metering.tables import (
    AUDIO_SECONDS,
    FIRST_OPEN_MINUTE,
    endpoint_minutes,
    metering_state,
    usage_corrections,
    usage_events,
    usage_minutes,
)

MAX_ROWS = 10_000
_DAY_MS = 86_400_000
_COLUMNS = {"model": "model_id", "endpoint": "endpoint_id", "key": "key_id", "project": "project_id"}
_COUNTS = (*CALL_SKUS, "reasoning", "requests", "errors", ENDPOINT_MINUTE_SKU)


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
    groups = [name for name in GROUPS if name in group_by and name != "sku"]
    # Read first: what closes from here on is still read from its events, which stay.
    state = select(metering_state.c.value).where(metering_state.c.name == FIRST_OPEN_MINUTE)
    first_open = conn.execute(state).scalar() or 0
    totals: dict[tuple[str, ...], list[int]] = {}
    for query in _queries(groups, org_id, project_id, start_ms, end_ms, first_open):
        for row in conn.execute(query.limit(MAX_ROWS + 1)):
            key = tuple(
                _day(value) if name == "day" else str(value) for name, value in zip(groups, row, strict=False)
            )
            counts = totals.setdefault(key, [0] * len(_COUNTS))
            for i, value in enumerate(row[len(groups) :]):
                counts[i] += int(value or 0)
        if len(totals) > MAX_ROWS:
            raise Invalid(
                f"more than {MAX_ROWS} rows; choose a shorter period or fewer groups", param="group_by"
            )
    rows = [_row(groups, key, counts) for key, counts in sorted(totals.items()) if any(counts)]
    return [part for row in rows for part in _by_sku(row)] if "sku" in group_by else rows


def _queries(
    groups: Sequence[str], org_id: str, project_id: str | None, start_ms: int, end_ms: int, first_open: int
) -> list[Select[Any]]:
    def narrowed(table: Any, columns: list[ColumnElement[int]], start: int, end: int) -> Select[Any]:
        keys = [_group_column(table, name) for name in groups]
        query = select(*keys, *columns).where(
            table.c.org_id == org_id, table.c.billing_minute_ms >= start, table.c.billing_minute_ms < end
        )
        if project_id is not None:
            query = query.where(table.c.project_id == project_id)
        return query.group_by(*keys) if keys else query

    closed = [func.sum(usage_minutes.c[name]) for name in _COUNTS[:-1]]
    # Differences; the attempts were counted when they happened.
    corrected = [func.sum(usage_corrections.c[name]) for name in (*CALL_SKUS, "reasoning")]
    minutes: list[ColumnElement[int]] = [literal(0) for _ in _COUNTS[:-1]]
    return [
        narrowed(usage_minutes, [*closed, literal(0)], start_ms, min(end_ms, first_open)),
        narrowed(usage_events, [*_open_counts(), literal(0)], max(start_ms, first_open), end_ms),
        narrowed(endpoint_minutes, [*minutes, func.count()], start_ms, end_ms),
        narrowed(usage_corrections, [*corrected, literal(0), literal(0), literal(0)], start_ms, end_ms),
    ]


def _open_counts() -> list[ColumnElement[int]]:
    table = usage_events
    failed = table.c.status == "error"
    quantities = [
        table.c.input - table.c.cached_input,
        table.c.cached_input,
        table.c.output,
        AUDIO_SECONDS,
        table.c.reasoning,
    ]
    sums: list[ColumnElement[int]] = [func.sum(case((failed, 0), else_=quantity)) for quantity in quantities]
    return [*sums, func.count(), func.sum(case((failed, 1), else_=0))]


def _group_column(table: Any, name: str) -> ColumnElement[Any]:
    if name == "day":
        minute: ColumnElement[int] = table.c.billing_minute_ms
        return minute - minute % _DAY_MS
    column = _COLUMNS[name]
    found: ColumnElement[Any] = table.c[column] if column in table.c else literal("")
    return found


def _day(day_ms: int) -> str:
    return datetime.fromtimestamp(int(day_ms) // 1000, tz=UTC).strftime("%Y-%m-%d")


def _row(groups: Sequence[str], key: Sequence[str], counts: Sequence[int]) -> UsageRow:
    count = dict(zip(_COUNTS, counts, strict=True))
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
