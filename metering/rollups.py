"""Usage of closed minutes, added up by hour and by day of billing: what long spans are read from.

A projection, written in the transaction that closes the minutes; nothing open is in it, so the hour and the day that
the first open minute lies in hold what of them is closed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table

from core.inserts import insert_adding
from metering.tables import ROLLUP_COUNTS, ROLLUP_KEY, usage_days, usage_hours

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
WIDTHS = {DAY_MS: usage_days, HOUR_MS: usage_hours}  # widest first


@dataclass(frozen=True, slots=True)
class Span:
    """Closed usage that is billed in [start, end), and the table to read it from. `table` None: minute by minute."""

    table: Table | None
    start_ms: int
    end_ms: int


def add_closed(conn: Connection, minutes: Iterable[Mapping[str, Any]]) -> None:
    """Add minutes that are being closed: the columns of `ROLLUP_KEY`, `billing_minute_ms`, and any of the counts."""
    found = list(minutes)
    for width_ms, table in WIDTHS.items():
        totals: dict[tuple[Any, ...], list[int]] = {}
        for minute in found:
            at_ms = minute["billing_minute_ms"]
            key = (minute["org_id"], at_ms - at_ms % width_ms, *(minute[name] for name in ROLLUP_KEY[2:]))
            counts = totals.setdefault(key, [0] * len(ROLLUP_COUNTS))
            for i, name in enumerate(ROLLUP_COUNTS):
                counts[i] += minute.get(name, 0)
        names = (*ROLLUP_KEY, *ROLLUP_COUNTS)
        rows = [dict(zip(names, (*key, *counts), strict=True)) for key, counts in sorted(totals.items())]
        insert_adding(conn, table, rows, ROLLUP_COUNTS)


def closed_spans(start_ms: int, end_ms: int, first_open_ms: int, widest_ms: int) -> list[Span]:
    """What to read so that each closed minute in [start, end) is seen once, none of them outside it.

    Whole days and hours (no wider than `widest_ms`) come from the roll-ups, the edges minute by minute.
    """
    widths = [width for width in WIDTHS if width <= widest_ms]
    return [span for span in _cut(start_ms, end_ms, first_open_ms, widths) if span.start_ms < span.end_ms]


def _cut(start_ms: int, end_ms: int, first_open_ms: int, widths: Sequence[int]) -> Iterable[Span]:
    if not widths:
        yield Span(None, start_ms, min(end_ms, first_open_ms))
        return
    width, narrower = widths[0], widths[1:]
    first, last = -(-start_ms // width) * width, end_ms - end_ms % width
    if first >= last:
        yield from _cut(start_ms, end_ms, first_open_ms, narrower)
        return
    yield from _cut(start_ms, first, first_open_ms, narrower)
    yield Span(WIDTHS[width], first, last)
    yield from _cut(last, end_ms, first_open_ms, narrower)
