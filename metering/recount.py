"""Usage events added up once more, by other code than closing uses: rows, one by one, in plain Python.

What is compared: events = closed minutes, numbers of events without holes, what is in quarantine, what is still open.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final

from sqlalchemy import Connection, Row, func, select

from core.ids import is_id
from metering.engine_match import MAX_IDS, CountedEvent
from metering.ingest import Accepted, accept
from metering.intake import RESERVED_SOURCES
from metering.records import ENDPOINT_MINUTE_SKU
from metering.tables import (
    endpoint_minutes,
    gateway_starts,
    journal_progress,
    quarantine,
    usage_corrections,
    usage_events,
    usage_minutes,
)

BATCH = 2000  # rows fetched at a time
MAX_GAPS = 100  # holes in the numbers that are told
MAX_OPEN_CALLS = 10_000
_CHUNK = 200  # ids in one query
_BATCH: Final = ("batch_input", "batch_cached_input", "batch_output")
_SKUS: Final = ("input", "cached_input", "output", "audio_second", *_BATCH)

# Of a row: first what `CountedEvent` has, in its order.
_COUNTED: Final = tuple(each.name for each in fields(CountedEvent) if each.name != "other_meter")
_COLUMNS: Final = tuple(
    usage_events.c[name]
    for name in (
        *_COUNTED, "source", "billing_minute_ms", "service_minute_ms", "org_id", "project_id", "key_id",
        "endpoint_id", "model_id", "batch",
    )
)  # fmt: skip

MinuteKey = tuple[int, int, str, str, str, str, str]
"""Billing minute, service minute, organization, project, key, endpoint, model."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference between two records of the same thing. `quantity`: what stands first, less what stands second."""

    kind: str
    explained: bool
    detail: str
    sku: str = ""
    quantity: int = 0
    count: int = 1
    ids: tuple[str, ...] = ()


@dataclass(slots=True)
class Recounted:
    """One minute of one key at one endpoint, as its events say."""

    quantities: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_SKUS, 0))
    requests: int = 0
    errors: int = 0
    ids: list[str] = field(default_factory=list)
    deployments: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Fact:
    """What the ledger must hold for a minute. `id` is the minute's; `ids` some of its events."""

    id: str
    billing_minute_ms: int
    org_id: str
    endpoint_id: str
    model_id: str
    quantities: Mapping[str, int]
    closed: bool
    ids: tuple[str, ...]


def events_between(conn: Connection, start_ms: int, end_ms: int) -> Iterator[Row[Any]]:
    """Usage events billed in [start, end), of every organization, in batches: the engines are everybody's."""
    table = usage_events
    query = select(*_COLUMNS).where(table.c.billing_minute_ms >= start_ms, table.c.billing_minute_ms < end_ms)
    yield from conn.execute(query.execution_options(yield_per=BATCH))


def counted(row: Row[Any]) -> CountedEvent:
    """What the engine's counters are held against."""
    return CountedEvent(*(*row[: len(_COUNTED)], not row.source.startswith(RESERVED_SOURCES)))


class Recount:
    """Adds up events, a few minutes at a time."""

    def __init__(self) -> None:
        self.minutes: dict[MinuteKey, Recounted] = {}

    def add(self, row: Row[Any]) -> None:
        """One usage event."""
        key = (
            row.billing_minute_ms, row.service_minute_ms, row.org_id, row.project_id, row.key_id,
            row.endpoint_id, row.model_id,
        )  # fmt: skip
        minute = self.minutes.get(key)
        if minute is None:
            minute = self.minutes[key] = Recounted()
        minute.requests += 1
        minute.deployments.add(row.deployment_id)
        if len(minute.ids) < MAX_IDS:
            minute.ids.append(row.event_id)
        if row.status == "error":
            minute.errors += 1
            return
        quantities = minute.quantities
        tier = "batch_" if row.batch else ""
        quantities[tier + "input"] += row.input - row.cached_input
        quantities[tier + "cached_input"] += row.cached_input
        quantities[tier + "output"] += row.output
        whole, rest = divmod(row.audio_ms, 1000)
        quantities["audio_second"] += whole + (rest > 0)

    def compare(
        self, conn: Connection, start_ms: int, end_ms: int, first_open_ms: int
    ) -> tuple[list[Fact], list[tuple[str, int, Finding]]]:
        """With the closed minutes of [start, end): facts for the ledger, findings by endpoint and minute."""
        facts: list[Fact] = []
        findings: list[tuple[str, int, Finding]] = []
        left = dict(self.minutes)
        for row in _closed_minutes(conn, start_ms, end_ms):
            key = (
                row.billing_minute_ms, row.service_minute_ms, row.org_id, row.project_id, row.key_id,
                row.endpoint_id, row.model_id,
            )  # fmt: skip
            minute = left.pop(key, None)
            findings += [(row.endpoint_id, row.billing_minute_ms, f) for f in _differences(row, minute)]
            facts.append(_fact(row.id, key, minute or Recounted(), closed=True))
        for key, minute in left.items():
            closed = key[0] < first_open_ms
            if closed and any(minute.quantities.values()):
                findings += [(key[5], key[0], f) for f in _not_closed(minute)]
            elif not closed:
                facts.append(_fact("", key, minute, closed=False))
        return facts, findings


def _closed_minutes(conn: Connection, start_ms: int, end_ms: int) -> Iterator[Row[Any]]:
    table = usage_minutes
    query = select(table).where(table.c.billing_minute_ms >= start_ms, table.c.billing_minute_ms < end_ms)
    yield from conn.execute(query.execution_options(yield_per=BATCH))


def _fact(minute_id: str, key: MinuteKey, minute: Recounted, *, closed: bool) -> Fact:
    return Fact(minute_id, key[0], key[2], key[5], key[6], dict(minute.quantities), closed, tuple(minute.ids))


def _differences(row: Row[Any], minute: Recounted | None) -> Iterator[Finding]:
    counted = minute or Recounted()
    ids = (row.id, *counted.ids)
    for sku in _SKUS:
        difference = counted.quantities[sku] - getattr(row, sku)
        if difference:
            text = "the closed minute and its events differ"
            yield Finding("minute_differs", False, text, sku, difference, counted.requests, ids)
    if counted.requests != row.requests or counted.errors != row.errors:
        text = (
            f"the closed minute has {row.requests} attempts, {row.errors} of them failed; "
            f"its events are {counted.requests}, {counted.errors} of them failed"
        )
        yield Finding("minute_differs", False, text, "", 0, abs(counted.requests - row.requests), ids)


def _not_closed(minute: Recounted) -> Iterator[Finding]:
    for sku, quantity in minute.quantities.items():
        if quantity:
            text = "events in a minute that is closed, and was closed without them"
            yield Finding("minute_missing", False, text, sku, quantity, minute.requests, tuple(minute.ids))


def minutes_of_endpoints(
    conn: Connection, start_ms: int, end_ms: int, first_open_ms: int
) -> tuple[list[Fact], list[tuple[str, int, Finding]]]:
    """The endpoint minutes billed in [start, end), and those of them that are there twice."""
    table = endpoint_minutes
    query = select(table).where(table.c.billing_minute_ms >= start_ms, table.c.billing_minute_ms < end_ms)
    seen: dict[tuple[str, int], str] = {}
    facts: list[Fact] = []
    findings: list[tuple[str, int, Finding]] = []
    for row in conn.execute(query.execution_options(yield_per=BATCH)):
        # An endpoint has each minute once, and each of its instances once too.
        whose = row.id.partition("/")[0]
        whose = whose if is_id(whose, "rep") else row.endpoint_id
        earlier = seen.setdefault((whose, row.service_minute_ms), row.id)
        if earlier != row.id:
            text = "the same minute of the endpoint is on record twice"
            found = Finding("minute_doubled", False, text, ENDPOINT_MINUTE_SKU, 1, 2, (earlier, row.id))
            findings.append((row.endpoint_id, row.billing_minute_ms, found))
        closed = row.billing_minute_ms < first_open_ms
        facts.append(
            Fact(
                row.id,
                row.billing_minute_ms,
                row.org_id,
                row.endpoint_id,
                row.model_id,
                {ENDPOINT_MINUTE_SKU: 1},
                closed,
                (row.id,),
            )
        )
    return facts, findings


def corrections_between(conn: Connection, start_ms: int, end_ms: int, first_open_ms: int) -> list[Fact]:
    """Corrections billed in [start, end): each is a minute of its own, with differences of any sign."""
    table = usage_corrections
    query = select(table).where(table.c.billing_minute_ms >= start_ms, table.c.billing_minute_ms < end_ms)
    return [
        Fact(
            row.minute_id,
            row.billing_minute_ms,
            row.org_id,
            row.endpoint_id,
            row.model_id,
            {sku: getattr(row, sku) for sku in _SKUS if getattr(row, sku)},
            row.billing_minute_ms < first_open_ms,
            (row.event_id,),
        )
        for row in conn.execute(query.execution_options(yield_per=BATCH))
    ]


def holes(conn: Connection, start_ms: int, end_ms: int) -> list[Finding]:
    """Numbers missing among the events recorded about [start, end): each gateway counts its events."""
    table = usage_events
    first, last = conn.execute(
        select(func.min(table.c.row_id), func.max(table.c.row_id)).where(
            table.c.billing_minute_ms >= start_ms, table.c.billing_minute_ms < end_ms
        )
    ).one()
    if first is None:
        return []
    columns = (table.c.row_id, table.c.source, table.c.sequence, table.c.event_id)
    query = (
        select(*columns)
        .where(table.c.row_id >= first, table.c.row_id <= last, table.c.sequence > 0)
        .order_by(table.c.row_id)
    )
    newest: dict[str, tuple[int, str]] = {}
    found: list[Finding] = []
    kept_aside = _quarantined(conn, start_ms)
    for row in conn.execute(query.execution_options(yield_per=BATCH)):
        before = newest.get(row.source)
        if before is None:
            before = _before(conn, row.source, first)
        if before is not None and row.sequence > before[0] + 1 and len(found) < MAX_GAPS:
            found.append(_hole(row, before, kept_aside))
        # A number may come twice (a batch that was cut off), or start over: then it goes on from there.
        newest[row.source] = (row.sequence, row.event_id)
    return found


def _hole(row: Any, before: tuple[int, str], kept_aside: dict[str, int]) -> Finding:
    missing = row.sequence - before[0] - 1
    aside = min(missing, kept_aside.get(row.source, 0))
    kept_aside[row.source] = kept_aside.get(row.source, 0) - aside
    detail = f"{row.source}: numbers {before[0] + 1} to {row.sequence - 1} are not on record"
    if aside == missing:
        detail += ", but as many events were put in quarantine"
        return Finding("number_in_quarantine", True, detail, "", 0, missing, (before[1], row.event_id))
    return Finding("number_missing", False, detail, "", 0, missing - aside, (before[1], row.event_id))


def _before(conn: Connection, source: str, row_id: int) -> tuple[int, str] | None:
    table = usage_events
    query = (
        select(table.c.sequence, table.c.event_id)
        .where(table.c.row_id < row_id, table.c.source == source, table.c.sequence > 0)
        .order_by(table.c.row_id.desc())
        .limit(1)
    )
    row = conn.execute(query).first()
    return None if row is None else (row.sequence, row.event_id)


def _quarantined(conn: Connection, start_ms: int) -> dict[str, int]:
    query = select(quarantine.c.source, func.count()).where(quarantine.c.recorded_ms >= start_ms)
    return {row[0]: row[1] for row in conn.execute(query.group_by(quarantine.c.source))}


def in_quarantine(conn: Connection, start_ms: int, end_ms: int) -> list[Finding]:
    """Events kept aside in [start, end): not billed until a person decides, so not explained."""
    table = quarantine
    where = (table.c.state == "open", table.c.recorded_ms >= start_ms, table.c.recorded_ms < end_ms)
    total = conn.execute(select(func.count()).where(*where)).scalar_one()
    if not total:
        return []
    query = select(table.c.kind, table.c.event_id).where(*where).order_by(table.c.row_id).limit(MAX_IDS)
    rows = conn.execute(query).all()
    kinds = ", ".join(sorted({row.kind for row in rows}))
    ids = tuple(row.event_id or "(no id)" for row in rows)
    return [Finding("quarantined", False, f"events in quarantine ({kinds})", "", 0, total, ids)]


def minute_quantities(conn: Connection, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """Of closed minutes by id: what they hold, as closing wrote it."""
    found: dict[str, dict[str, int]] = {}
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        for row in conn.execute(select(usage_minutes).where(usage_minutes.c.id.in_(chunk))):
            found[row.id] = {sku: getattr(row, sku) for sku in _SKUS}
        query = select(endpoint_minutes.c.id).where(endpoint_minutes.c.id.in_(chunk))
        found.update({minute_id: {ENDPOINT_MINUTE_SKU: 1} for minute_id in conn.execute(query).scalars()})
    return found


def open_calls(conn: Connection) -> list[CountedEvent]:
    """Streams under way as last noted; `ended_ms` 0."""
    query = select(journal_progress.c.source, journal_progress.c.payload).limit(MAX_OPEN_CALLS)
    found = []
    for row in conn.execute(query):
        accepted = accept(row.payload.encode(), row.source)
        if isinstance(accepted, Accepted):
            event = accepted.event
            found.append(
                CountedEvent(
                    event_id=event.event_id,
                    deployment_id=event.deployment_id,
                    operation=event.operation,
                    stream=event.stream,
                    status="interrupted",
                    usage_source=event.usage_source,
                    http_status=event.http_status,
                    input=event.usage.input,
                    cached_input=event.usage.cached_input,
                    output=event.usage.output,
                    audio_ms=event.usage.audio_ms,
                    choices=event.usage.choices,
                    sent_ms=event.sent_ms,
                    first_byte_ms=event.first_byte_ms,
                    ended_ms=0,
                )
            )
    return found


def restarts_between(conn: Connection, start_ms: int, end_ms: int) -> Sequence[int]:
    """When gateways began."""
    table = gateway_starts
    query = select(table.c.started_ms).where(table.c.started_ms >= start_ms, table.c.started_ms <= end_ms)
    return list(conn.execute(query.order_by(table.c.started_ms).limit(1000)).scalars())
