"""Tables of metering. Rows of usage and of closed minutes are written once and never edited."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    case,
    false,
)

from core.database import ROW_NUMBER, metadata
from metering.model import BATCH_SKUS, CALL_SKUS

usage_events = Table(
    "usage_events",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("payload_hash", Text, nullable=False),  # tells a repeat from a conflict
    Column("sequence", BigInteger, nullable=False),  # 0: settled by the relay after a crash, not numbered
    Column("recorded_ms", BigInteger, nullable=False),
    Column("service_minute_ms", BigInteger, nullable=False),  # when it happened: decides the price
    Column(
        "billing_minute_ms", BigInteger, nullable=False
    ),  # where it is billed: the same, or later when it was late
    Column("request_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("deployment_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("operation", Text, nullable=False),
    Column("stream", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Column("http_status", Integer, nullable=False),
    Column("usage_source", Text, nullable=False),
    # As the engine reports them: input includes cached_input, output includes reasoning.
    Column("input", BigInteger, nullable=False),
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("audio_ms", BigInteger, nullable=False, server_default="0"),
    Column("choices", BigInteger, nullable=False, server_default="1"),
    Column("batch", Boolean, nullable=False, server_default=false()),
    Column("received_ms", BigInteger, nullable=False),
    Column("sent_ms", BigInteger, nullable=False),
    Column("first_byte_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=False),
    Column("engine_request_id", Text, nullable=False),
    Column("finish_reason", Text, nullable=False),
    UniqueConstraint("source", "event_id"),
    Index("ix_usage_events_request_id", "request_id"),
    Index("ix_usage_events_org_id_ended_ms", "org_id", "ended_ms"),
    Index("ix_usage_events_billing_minute_ms_org_id", "billing_minute_ms", "org_id"),
)


def call_quantities() -> dict[str, ColumnElement[int]]:
    """By SKU what a usage event is billed for, in SQL: as `Usage.billable` has it."""
    event = usage_events.c
    tokens = (event.input - event.cached_input, event.cached_input, event.output)
    now = [case((event.batch, 0), else_=quantity) for quantity in tokens]
    batch = [case((event.batch, quantity), else_=0) for quantity in tokens]
    # Each call's seconds of audio are rounded up, not their sum.
    return dict(zip(CALL_SKUS, [*now, (event.audio_ms + 999) // 1000, *batch], strict=True))


# Closed minutes of usage: disjoint, billable quantities. `id` names the same minute in the ledger.
usage_minutes = Table(
    "usage_minutes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("billing_minute_ms", BigInteger, nullable=False),
    Column("service_minute_ms", BigInteger, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("errors", BigInteger, nullable=False),
    Column("input", BigInteger, nullable=False),  # without cached_input
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    # The sum of each call's seconds, rounded up.
    Column("audio_second", BigInteger, nullable=False, server_default="0"),
    *(
        Column(name, BigInteger, nullable=False, server_default="0")
        for name in (*BATCH_SKUS, "batch_requests")
    ),
    Column("closed_ms", BigInteger, nullable=False),
    Index("ix_usage_minutes_org_id_billing_minute_ms", "org_id", "billing_minute_ms"),
)

ROLLUP_KEY = ("org_id", "start_ms", "project_id", "key_id", "endpoint_id", "model_id")
ROLLUP_COUNTS = (*CALL_SKUS, "reasoning", "requests", "errors", "batch_requests", "endpoint_minute")
_ADDED = (*BATCH_SKUS, "batch_requests")  # columns that older rows have without having counted


def _rollup(name: str) -> Table:
    keys = [Column(key, BigInteger if key == "start_ms" else Text, primary_key=True) for key in ROLLUP_KEY]
    counts = [
        Column(count, BigInteger, nullable=False, server_default="0" if count in _ADDED else None)
        for count in ROLLUP_COUNTS
    ]
    return Table(name, metadata, *keys, *counts)


# Closed minutes by the UTC hour and day they are billed in; an endpoint's own minutes belong to key "".
usage_hours = _rollup("usage_hours")
usage_days = _rollup("usage_days")

# One row per UTC minute of an endpoint's or instance's life; `id` is that of its CloudEvent.
endpoint_minutes = Table(
    "endpoint_minutes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("endpoint_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("service_minute_ms", BigInteger, nullable=False),
    Column("billing_minute_ms", BigInteger, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
    Index("ix_endpoint_minutes_billing_minute_ms_org_id", "billing_minute_ms", "org_id"),
    Index("ix_endpoint_minutes_org_id_billing_minute_ms", "org_id", "billing_minute_ms"),
)

endpoint_cursors = Table(
    "endpoint_cursors",
    metadata,
    Column("endpoint_id", Text, primary_key=True),  # or the instance's id
    Column("of_endpoint_id", Text, nullable=False, server_default=""),  # of an instance: its endpoint
    Column("org_id", Text, nullable=False),
    Column("name", Text, nullable=False),  # as last seen: what an invoice line shows, also after deletion
    Column("next_minute_ms", BigInteger, nullable=False),
    Column("finished", Boolean, nullable=False),  # deleted, and every minute is billed
)

# How far each gateway's journal was taken in; moves in the transaction that writes the rows.
journal_cursors = Table(
    "journal_cursors",
    metadata,
    Column("gateway", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("segment", BigInteger, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

# Streams under way as last noted; becomes an `interrupted` usage event when their gateway starts anew.
journal_progress = Table(
    "journal_progress",
    metadata,
    Column("source", Text, primary_key=True),
    Column("event_id", Text, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("payload", Text, nullable=False),  # the CloudEvent
    Column("noted_ms", BigInteger, nullable=False),
)

# Corrections of usage events, which themselves are never edited: what the right usage is, and by how much that
# differs from what stood before. Billed in the first open minute, at the price of the corrected service minute.
usage_corrections = Table(
    "usage_corrections",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("minute_id", Text, nullable=False, unique=True),  # names it in the ledger
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("payload_hash", Text, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
    Column("corrects_source", Text, nullable=False),
    Column("corrects_id", Text, nullable=False),
    Column("reason", Text, nullable=False),
    # Of the corrected event.
    Column("service_minute_ms", BigInteger, nullable=False),
    Column("request_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("project_id", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("endpoint_id", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("billing_minute_ms", BigInteger, nullable=False),
    # The right usage, as an engine reports it.
    Column("right_input", BigInteger, nullable=False),
    Column("right_cached_input", BigInteger, nullable=False),
    Column("right_output", BigInteger, nullable=False),
    Column("right_reasoning", BigInteger, nullable=False),
    Column("right_audio_ms", BigInteger, nullable=False),
    Column("right_batch", Boolean, nullable=False, server_default=false()),
    # Billable, disjoint differences to what stood before; any sign.
    Column("input", BigInteger, nullable=False),
    Column("cached_input", BigInteger, nullable=False),
    Column("output", BigInteger, nullable=False),
    Column("reasoning", BigInteger, nullable=False),
    Column("audio_second", BigInteger, nullable=False),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in BATCH_SKUS),
    UniqueConstraint("source", "event_id"),
    Index("ix_usage_corrections_corrects_source_corrects_id", "corrects_source", "corrects_id"),
    Index("ix_usage_corrections_request_id", "request_id"),
    Index("ix_usage_corrections_billing_minute_ms_org_id", "billing_minute_ms", "org_id"),
    Index("ix_usage_corrections_org_id_billing_minute_ms", "org_id", "billing_minute_ms"),
)

# Events that cannot be taken in, kept with the reason: never deleted. `open` until somebody decides.
quarantine = Table(
    "quarantine",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),  # poison | conflict | corrupt
    Column("source", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("payload_hash", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("payload", Text, nullable=False),
    Column("recorded_ms", BigInteger, nullable=False),
    Column("org_id", Text, nullable=False, server_default=""),  # "": it does not say, or nobody believes it
    Column("state", Text, nullable=False, server_default="open"),  # open | replayed | dropped
    Column("resolved_ms", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("source", "event_id", "payload_hash"),
    Index("ix_quarantine_state_org_id", "state", "org_id"),
)

alarms = Table(
    "alarms",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("kind", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("ix_alarms_at_ms", "at_ms"),
)

FIRST_OPEN_MINUTE = "first_open_minute"  # every minute before this one is closed

metering_state = Table(
    "metering_state",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)

# What engines themselves have counted, as read about once a minute. A pool belongs to no organization, so neither does
# this. Kept for some days.
engine_counters = Table(
    "engine_counters",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("deployment_id", Text, nullable=False),
    Column("series", Text, nullable=False),  # the replica's id, or the attached server's URL
    Column(
        "at_ms", BigInteger, nullable=False
    ),  # of the round of readings: equal for all that were read in it
    Column("read_ms", BigInteger, nullable=False),  # the answer was there
    Column("reason", Text, nullable=False),  # minute | ready | stop | asked
    Column("state", Text, nullable=False),  # read | none (no such page) | failed
    Column("started_ms", BigInteger, nullable=False),  # the engine's process; 0: it does not say
    Column("input", BigInteger, nullable=False),
    Column("cached_input", BigInteger, nullable=True),  # NULL: it does not count them
    Column("output", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("running", BigInteger, nullable=False),
    Index("ix_engine_counters_deployment_id_at_ms", "deployment_id", "at_ms"),
    Index("ix_engine_counters_at_ms", "at_ms"),
)

# When gateways began again: a call that was in flight just before, and had no progress noted yet, left no event.
gateway_starts = Table(
    "gateway_starts",
    metadata,
    Column("source", Text, primary_key=True),
    Column("started_ms", BigInteger, primary_key=True),
)

# What became of the hourly reconciliation. About all organizations, so of none.
reconciliations = Table(
    "reconciliations",
    metadata,
    Column("hour_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("made_ms", BigInteger, nullable=False),  # of the newest look at this hour
    Column("verdict", Text, nullable=False),  # equal | explained | unexplained
    Column("unexplained", BigInteger, nullable=False),  # differences
    Column("report", Text, nullable=False),  # JSON: the hour's rows, ids cut to a bound
)
