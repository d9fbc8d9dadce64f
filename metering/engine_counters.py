"""Readings of engines' own counters: what reconciliation holds usage events against."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

from sqlalchemy import Connection, delete, insert, select

from metering.tables import engine_counters

ReadingReason = Literal["minute", "ready", "stop", "asked"]
ReadingState = Literal["read", "none", "failed"]

MAX_READINGS = 200_000  # looked at in one go: a hundred replicas for a day, read every minute


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at one engine. Counts are totals since its process began, of an instant in [at_ms, read_ms]."""

    deployment_id: str
    series: str  # the replica's id, or the attached server's URL
    at_ms: int
    read_ms: int
    reason: ReadingReason
    state: ReadingState
    started_ms: int = 0
    input: int = 0
    cached_input: int | None = None
    output: int = 0
    requests: int = 0
    running: int = 0


_COLUMNS = tuple(engine_counters.c[field.name] for field in fields(Reading))


def store_readings(conn: Connection, readings: Sequence[Reading]) -> None:
    """Keep them."""
    if readings:
        names = [field.name for field in fields(Reading)]
        conn.execute(insert(engine_counters), [{n: getattr(r, n) for n in names} for r in readings])


def forget_readings(conn: Connection, before_ms: int) -> int:
    """Delete what is older; returns how many."""
    return conn.execute(delete(engine_counters).where(engine_counters.c.at_ms < before_ms)).rowcount


def readings_between(conn: Connection, start_ms: int, end_ms: int) -> dict[str, list[Reading]]:
    """Of each deployment, the readings in [start, end], oldest first; at most `MAX_READINGS` in all."""
    table = engine_counters
    rows = conn.execute(
        select(*_COLUMNS)
        .where(table.c.at_ms >= start_ms, table.c.at_ms <= end_ms)
        .order_by(table.c.at_ms, table.c.row_id)
        .limit(MAX_READINGS)
    )
    found: dict[str, list[Reading]] = {}
    for row in rows:
        found.setdefault(row.deployment_id, []).append(Reading(*row))
    return found
