"""Corrections: a usage event is never edited; what it should have said is a row of its own, billed as a difference."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, select

from metering.close import stamp
from metering.ingest import digest
from metering.model import CALL_SKUS, Correction, Usage
from metering.store import lock_first_open_minute
from metering.tables import usage_corrections, usage_events

UNBILLED = "error"
MAX_PER_REQUEST = 100


@dataclass(frozen=True, slots=True)
class Standing:
    """A usage event as it stands: as it was metered, or as it was corrected last."""

    row: Row[Any]
    usage: Usage

    def says(self, usage: Usage) -> bool:
        """Whether it has these counts already."""
        return all(getattr(self.usage, name) == getattr(usage, name) for name in _COUNTS)

    @property
    def unbilled(self) -> bool:
        """A failed attempt: it costs nothing, whatever it used."""
        return bool(self.row.status == UNBILLED)


@dataclass(frozen=True, slots=True)
class StoredCorrection:
    """One correction as it lies in the database. `quantities`: billable differences, disjoint, any sign."""

    source: str
    event_id: str
    corrects_source: str
    corrects_id: str
    reason: str
    recorded_ms: int
    service_minute_ms: int
    billing_minute_ms: int
    model_id: str
    usage: Usage
    quantities: dict[str, int]


def lock_standing(conn: Connection, source: str, event_id: str) -> Standing | None:
    """The usage event with that source and id; nobody else corrects it until the transaction ends."""
    query = select(usage_events).where(usage_events.c.source == source, usage_events.c.event_id == event_id)
    row = conn.execute(query.with_for_update()).first()
    if row is None:
        return None
    table = usage_corrections
    latest = conn.execute(
        select(table)
        .where(table.c.corrects_source == source, table.c.corrects_id == event_id)
        .order_by(table.c.row_id.desc())
        .limit(1)
    ).first()
    usage = _right(latest) if latest else _metered(row)
    return Standing(row, usage)


def record_correction(
    conn: Connection,
    standing: Standing,
    correction: Correction,
    *,
    source: str,
    event_id: str,
    payload_hash: str,
    now_ms: int,
) -> dict[str, int]:
    """Store the correction of a locked event; returns the billable differences by SKU."""
    first_open = lock_first_open_minute(conn, exclusive=False)
    row, usage = standing.row, correction.usage
    differences = _differences(standing.usage, usage)
    billing_minute = max(row.service_minute_ms, first_open)
    values: dict[str, object] = {
        "minute_id": _minute_id(billing_minute, source, event_id),
        "source": source,
        "event_id": event_id,
        "payload_hash": payload_hash,
        "recorded_ms": now_ms,
        "corrects_source": correction.corrects_source,
        "corrects_id": correction.corrects_id,
        "reason": correction.reason,
        "service_minute_ms": row.service_minute_ms,
        "billing_minute_ms": billing_minute,
        **{name: getattr(row, name) for name in ("request_id", "org_id", "project_id", "key_id")},
        **{name: getattr(row, name) for name in ("endpoint_id", "model_id")},
        **{f"right_{name}": getattr(usage, name) for name in _COUNTS},
        "reasoning": usage.reasoning - standing.usage.reasoning,
        **differences,
    }
    conn.execute(usage_corrections.insert().values(values))
    return differences


def corrections_of(conn: Connection, request_id: str) -> list[StoredCorrection]:
    """What was corrected of a request's attempts, first to last."""
    table = usage_corrections
    query = select(table).where(table.c.request_id == request_id).order_by(table.c.row_id)
    return [_stored(row) for row in conn.execute(query.limit(MAX_PER_REQUEST))]


_COUNTS = ("input", "cached_input", "output", "reasoning", "audio_ms", "batch")


def _minute_id(billing_minute_ms: int, source: str, event_id: str) -> str:
    return f"correction/{stamp(billing_minute_ms)}/{digest(chr(0).join((source, event_id)).encode())}"


def _differences(before: Usage, after: Usage) -> dict[str, int]:
    old, new = before.billable(), after.billable()
    return {sku: new[sku] - old[sku] for sku in CALL_SKUS}


def _metered(row: Row[Any]) -> Usage:
    return Usage(**{name: getattr(row, name) for name in _COUNTS})


def _right(row: Row[Any]) -> Usage:
    return Usage(**{name: getattr(row, f"right_{name}") for name in _COUNTS})


def _stored(row: Row[Any]) -> StoredCorrection:
    return StoredCorrection(
        source=row.source,
        event_id=row.event_id,
        corrects_source=row.corrects_source,
        corrects_id=row.corrects_id,
        reason=row.reason,
        recorded_ms=row.recorded_ms,
        service_minute_ms=row.service_minute_ms,
        billing_minute_ms=row.billing_minute_ms,
        model_id=row.model_id,
        usage=_right(row),
        quantities={sku: getattr(row, sku) for sku in CALL_SKUS},
    )
