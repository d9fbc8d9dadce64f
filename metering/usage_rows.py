"""Writing usage rows in bulk, past SQLAlchemy's row by row work: this is what the speed of the sink depends on."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, text

from core.clock import MINUTE_MS
from metering.ingest import Accepted

# In the order of `_row`.
_COLUMNS = (
    "source", "event_id", "payload_hash", "sequence", "recorded_ms", "service_minute_ms", "billing_minute_ms",
    "request_id", "attempt", "org_id", "project_id", "key_id", "endpoint_id", "deployment_id", "model_id",
    "operation", "stream", "status", "http_status", "usage_source", "input", "cached_input", "output",
    "reasoning", "audio_ms", "choices", "batch", "received_ms", "sent_ms", "first_byte_ms", "ended_ms",
    "engine_request_id", "finish_reason",
)  # fmt: skip
_INSERT = f"INSERT INTO usage_events ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_COPY = f"COPY usage_events ({', '.join(_COLUMNS)}) FROM STDIN"

# One parameter, however many ids: an IN list would be compiled, bound and parsed anew for each.
_KNOWN_SQLITE = text(
    "SELECT event_id, payload_hash FROM usage_events "
    "WHERE source = :source AND event_id IN (SELECT value FROM json_each(:ids))"
)
_KNOWN_POSTGRESQL = text(
    "SELECT event_id, payload_hash FROM usage_events WHERE source = :source AND event_id = ANY(:ids)"
)


def known_hashes(conn: Connection, source: str, event_ids: Sequence[str]) -> dict[str, str]:
    """Of `event_ids`, those that are stored, with their payload hashes."""
    if not event_ids:
        return {}
    if conn.dialect.name == "sqlite":
        rows = conn.execute(_KNOWN_SQLITE, {"source": source, "ids": json.dumps(event_ids)})
    else:
        rows = conn.execute(_KNOWN_POSTGRESQL, {"source": source, "ids": list(event_ids)})
    return {row.event_id: row.payload_hash for row in rows}


def insert_rows(
    conn: Connection, events: Iterable[tuple[Accepted, int]], first_open_ms: int, now_ms: int
) -> None:
    """Store new events with their sequence numbers, under the lock of the first open minute.

    One that is stored already is an error, and the transaction is lost: see `known_hashes`.
    """
    rows = [_row(accepted, seq, first_open_ms, now_ms) for accepted, seq in events]
    if not rows:
        return
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(_INSERT, rows)
        return
    driver: Any = conn.connection.driver_connection  # psycopg's own, in the transaction of `conn`
    with driver.cursor() as cursor, cursor.copy(_COPY) as copy:
        for row in rows:
            copy.write_row(row)


def _row(accepted: Accepted, seq: int, first_open_ms: int, now_ms: int) -> tuple[object, ...]:
    event = accepted.event
    usage, ended_ms = event.usage, event.ended_ms
    minute_ms = ended_ms - ended_ms % MINUTE_MS
    return (
        accepted.source, event.event_id, accepted.payload_hash, seq, now_ms, minute_ms,
        minute_ms if minute_ms > first_open_ms else first_open_ms,  # late: billed in the first open one
        event.request_id, event.attempt, event.org_id, event.project_id, event.key_id, event.endpoint_id,
        event.deployment_id, event.model_id, event.operation, event.stream, event.status, event.http_status,
        event.usage_source, usage.input, usage.cached_input, usage.output, usage.reasoning, usage.audio_ms,
        usage.choices, usage.batch, event.received_ms, event.sent_ms, event.first_byte_ms, ended_ms,
        event.engine_request_id, event.finish_reason,
    )  # fmt: skip
