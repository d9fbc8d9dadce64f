"""Events of other meters, as they come in over HTTP: which are new, which are known, which cannot be taken and why.

Everything is decided and stored in the caller's transaction. One bad event does not keep its neighbours out.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
from sqlalchemy import Connection, select

from core.clock import MINUTE_MS, iso, minute_floor
from core.errors import Invalid
from core.ids import is_id
from metering.close import stamp
from metering.corrections import lock_standing, record_correction
from metering.endpoint_minutes import EndpointLife
from metering.ingest import Accepted, check_counts, check_usage, digest
from metering.model import (
    CALL_SKUS,
    CORRECTION_TYPE,
    ENDPOINT_MINUTE_TYPE,
    USAGE_EVENT_TYPE,
    Correction,
    EndpointMinute,
    Usage,
    UsageEvent,
)
from metering.records import ENDPOINT_MINUTE_SKU, QuarantineKind
from metering.store import insert_usage, lock_first_open_minute
from metering.tables import endpoint_minutes, usage_corrections, usage_events
from wire.cloudevents import CloudEvent
from wire.cloudevents_http import Received
from wire.suggestions import unknown_name

MAX_AHEAD_MS = 5 * MINUTE_MS  # clocks differ a little
MAX_BEHIND_MS = 35 * 86_400_000  # what the payment provider takes, too
MAX_REASON = 500
RESERVED_SOURCES = "/gateway/"
CURRENCY = "usd"

_CHUNK = 500

Data = UsageEvent | EndpointMinute | Correction
Status = Literal["new", "duplicate", "quarantined", "refused"]

TYPES: Mapping[str, type[Data]] = {
    USAGE_EVENT_TYPE: UsageEvent,
    ENDPOINT_MINUTE_TYPE: EndpointMinute,
    CORRECTION_TYPE: Correction,
}
_encoder = msgspec.json.Encoder()


class Directory(Protocol):
    """What the rest of the platform knows; None: nothing by that id."""

    def project_org(self, project_id: str) -> str | None: ...

    def key_project(self, key_id: str) -> str | None: ...

    def knows_model(self, model_id: str) -> bool: ...

    def endpoint(self, endpoint_id: str) -> EndpointLife | None: ...


@dataclass(frozen=True, slots=True)
class Authority:
    """On whose behalf events come. With a project: its own usage only. `replay`: an operator looked at them."""

    org_id: str = ""
    project_id: str = ""
    replay: bool = False
    seen_ms: int | None = (
        None  # of a replay: when the event came in first, which is what its age is judged by
    )

    @property
    def source_prefix(self) -> str:
        """What a project's sources begin with, so that no project can take the ids of another."""
        return f"/projects/{self.project_id}/" if self.project_id else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one event. `refused`: nothing was kept of it, the sender has to mend it."""

    status: Status
    event_id: str
    source: str
    reason: str = ""
    param: str = ""
    kind: QuarantineKind = "poison"
    raw: bytes = b""


@dataclass(frozen=True, slots=True)
class Corrected:
    """A correction that was taken in: what is to be charged, by SKU, any sign."""

    at_ms: int
    org_id: str
    project_id: str
    key_id: str
    model_id: str
    quantities: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a request came to: one outcome per event in its order, and what is new."""

    outcomes: list[Outcome]
    usage: list[UsageEvent] = field(default_factory=list)
    corrections: list[Corrected] = field(default_factory=list)


class Refused(Invalid):
    """The sender's fault, and nothing to keep."""


class Clash(Invalid):
    """Another event with this id is on record."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    index: int
    received: Received
    event: CloudEvent
    data: Data
    hash: str


def take_events(
    conn: Connection, received: Sequence[Received], authority: Authority, directory: Directory, now_ms: int
) -> Taken:
    """Store what is new of `received`. Nothing is put in quarantine here: see the outcomes."""
    # Nothing closes and no minute is swept meanwhile, and every writer takes this lock first.
    lock_first_open_minute(conn, exclusive=False)
    intake = _Intake(conn, authority, directory, now_ms, len(received))
    intake.run(received)
    return intake.taken()


class _Intake:
    def __init__(
        self, conn: Connection, authority: Authority, directory: Directory, now_ms: int, count: int
    ) -> None:
        self._conn, self._authority, self._directory, self._now_ms = conn, authority, directory, now_ms
        self._outcomes: list[Outcome | None] = [None] * count
        self._known: dict[tuple[str, str], str] = {}
        self._owners: dict[str, tuple[str, str]] = {}  # request id to (source, project id)
        self._usage: list[Accepted] = []
        self._stored = 0  # of those
        self._corrections: list[Corrected] = []

    def taken(self) -> Taken:
        assert all(self._outcomes)
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        return Taken(outcomes, [accepted.event for accepted in self._usage], self._corrections)

    def run(self, received: Sequence[Received]) -> None:
        candidates = []
        for index, each in enumerate(received):
            try:
                candidates.append(self._candidate(index, each))
            except Invalid as error:
                self._fail(index, each, error)
        self._look_up(candidates)
        # Corrections last: the event that one corrects may be in the same batch.
        for candidate in sorted(candidates, key=lambda each: isinstance(each.data, Correction)):
            if isinstance(candidate.data, Correction):
                self._store_usage()
            try:
                self._decide(candidate)
            except Invalid as error:
                self._fail(candidate.index, candidate.received, error)
        self._store_usage()

    def _candidate(self, index: int, received: Received) -> _Candidate:
        if received.error is not None or received.event is None:
            error = received.error or Invalid("not a CloudEvent")
            raise Refused(error.message, param=error.param)
        event = received.event
        self._check_sender(event)
        data = _decoded(event)
        authority = self._authority
        if authority.project_id:
            if not isinstance(data, UsageEvent):
                raise Refused(f"a project's key sends {USAGE_EVENT_TYPE} only", param="type")
            if (data.org_id, data.project_id) != (authority.org_id, authority.project_id):
                raise Refused("a project's key sends its own usage only", param="data.project_id")
        _check_texts(data)
        return _Candidate(index, received, event, data, digest(_encoder.encode(data)))

    def _check_sender(self, event: CloudEvent) -> None:
        if any(ord(c) < 32 or ord(c) == 127 for c in event.id):
            raise Refused("holds a control character", param="id")
        prefix = self._authority.source_prefix
        if prefix and not event.source.startswith(prefix):
            raise Refused(f"a project's key sends from sources under {prefix}", param="source")
        if event.source.startswith(RESERVED_SOURCES) and not self._authority.replay:
            raise Refused(
                f"sources under {RESERVED_SOURCES} are the gateways' own; give your meter another, "
                "such as /meters/batch-7",
                param="source",
            )

    def _look_up(self, candidates: Sequence[_Candidate]) -> None:
        by_source: dict[str, list[str]] = {}
        requests = []
        for each in candidates:
            by_source.setdefault(each.event.source, []).append(each.event.id)
            if isinstance(each.data, UsageEvent):
                requests.append(each.data.request_id)
        for source, ids in by_source.items():
            for table in (usage_events, usage_corrections):
                for chunk in _chunks(ids):
                    query = select(table.c.event_id, table.c.payload_hash).where(
                        table.c.source == source, table.c.event_id.in_(chunk)
                    )
                    self._known.update(((source, row[0]), row[1]) for row in self._conn.execute(query))
        owned = usage_events.c
        for chunk in _chunks(requests):
            rows = select(owned.request_id, owned.source, owned.project_id).where(owned.request_id.in_(chunk))
            self._owners.update((row[0], (row[1], row[2])) for row in self._conn.execute(rows))

    def _decide(self, candidate: _Candidate) -> None:
        event, data = candidate.event, candidate.data
        if isinstance(data, EndpointMinute):
            self._check_time(event)
            self._check_minute(event, data)
            self._finish(candidate, "duplicate", "the minute clock has recorded this minute")
            return
        known = self._known.get((event.source, event.id))
        if known is not None:
            if known != candidate.hash:
                raise Clash(
                    "another event with this source and id is on record, with other content", param="id"
                )
            self._finish(candidate, "duplicate")
            return
        self._check_time(event)
        if isinstance(data, UsageEvent):
            self._check_usage(event, data)
            self._usage.append(Accepted(event.source, data, candidate.hash))
        elif not self._correct(candidate, data):
            self._finish(candidate, "duplicate", "the event stands at this usage already")
            return
        self._known[event.source, event.id] = candidate.hash
        self._finish(candidate, "new")

    def _check_time(self, event: CloudEvent) -> None:
        if event.time_ms > self._now_ms + MAX_AHEAD_MS:
            raise Invalid(
                f"{iso(event.time_ms)} is in the future; now it is {iso(self._now_ms)}, and at most "
                f"{MAX_AHEAD_MS // MINUTE_MS} minutes ahead are accepted",
                param="time",
            )
        seen_ms = self._now_ms if self._authority.seen_ms is None else self._authority.seen_ms
        if event.time_ms < seen_ms - MAX_BEHIND_MS:
            raise Invalid(
                f"{iso(event.time_ms)} is too long ago; at most {MAX_BEHIND_MS // 86_400_000} days are accepted",
                param="time",
            )

    # usage

    def _check_usage(self, event: CloudEvent, data: UsageEvent) -> None:
        check_usage(data, event.id, event.time_ms, event.subject or data.org_id)
        if is_id(data.request_id, "req") and not event.source.startswith(RESERVED_SOURCES):
            raise Invalid(
                "ids of this form are the gateways'; give the request an id of your own",
                param="data.request_id",
            )
        owner = self._owners.setdefault(data.request_id, (event.source, data.project_id))
        if owner != (event.source, data.project_id):
            raise Invalid("is a request of another source or project", param="data.request_id")
        self._check_place(data.org_id, data.project_id, data.model_id)
        if data.key_id and self._directory.key_project(data.key_id) != data.project_id:
            raise Invalid(f"project {data.project_id} has no key {data.key_id!r}", param="data.key_id")
        if data.endpoint_id:
            self._endpoint(data.endpoint_id, data.org_id, data.project_id, data.model_id)

    def _check_place(self, org_id: str, project_id: str, model_id: str) -> None:
        owner = self._directory.project_org(project_id)
        if owner is None:
            raise Invalid(f"there is no project {project_id!r}", param="data.project_id")
        if owner != org_id:
            raise Invalid(f"project {project_id} is not of organization {org_id!r}", param="data.org_id")
        if not self._directory.knows_model(model_id):
            raise Invalid(f"there is no model {model_id!r} in the catalog", param="data.model_id")

    def _endpoint(self, endpoint_id: str, org_id: str, project_id: str, model_id: str) -> EndpointLife:
        life = self._directory.endpoint(endpoint_id)
        if life is None or (life.org_id, life.project_id) != (org_id, project_id):
            raise Invalid(f"project {project_id} has no endpoint {endpoint_id!r}", param="data.endpoint_id")
        if life.model_id != model_id:
            raise Invalid(
                f"endpoint {endpoint_id} serves {life.model_id}, not {model_id!r}", param="data.model_id"
            )
        return life

    def _store_usage(self) -> None:
        insert_usage(self._conn, [(accepted, 0) for accepted in self._usage[self._stored :]], self._now_ms)
        self._stored = len(self._usage)

    # endpoint minutes: every one is recorded by the minute clock; another meter's is compared with it

    def _check_minute(self, event: CloudEvent, data: EndpointMinute) -> None:
        if data.sku != ENDPOINT_MINUTE_SKU:
            raise Invalid(unknown_name(data.sku, [ENDPOINT_MINUTE_SKU], "SKU"), param="data.sku")
        if event.time_ms != minute_floor(event.time_ms):
            raise Invalid(f"expected the start of a minute, got {iso(event.time_ms)}", param="time")
        expected = data.event_id(stamp(event.time_ms))
        if event.id != expected:
            raise Invalid(f"expected {expected!r} for this endpoint, minute and SKU", param="id")
        self._check_place(data.org_id, data.project_id, data.model_id)
        life = self._endpoint(data.endpoint_id, data.org_id, data.project_id, data.model_id)
        row = self._conn.execute(
            select(endpoint_minutes.c.id).where(endpoint_minutes.c.id == event.id)
        ).first()
        if row is not None:
            return
        existed = minute_floor(life.created_ms) <= event.time_ms
        if existed and (life.deleted_ms is None or event.time_ms < life.deleted_ms):
            raise Invalid(
                "the minute clock has not come to this minute yet; send it again later", param="time"
            )
        raise Invalid("the endpoint did not exist in this minute", param="time")

    # corrections

    def _correct(self, candidate: _Candidate, data: Correction) -> bool:
        """Whether the correction changes anything; then it is stored."""
        check_counts(data.usage)
        if not 1 <= len(data.reason.strip()) <= MAX_REASON:
            raise Invalid(f"expected 1 to {MAX_REASON} characters", param="data.reason")
        standing = lock_standing(self._conn, data.corrects_source, data.corrects_id)
        if standing is None or standing.row.org_id != data.org_id:
            raise Invalid(
                f"organization {data.org_id!r} has no usage event {data.corrects_id!r} of source "
                f"{data.corrects_source!r}",
                param="data.corrects_id",
            )
        if standing.unbilled:
            raise Invalid(
                "is an attempt that failed: it costs nothing, so nothing is corrected",
                param="data.corrects_id",
            )
        if standing.says(data.usage):
            return False
        differences = record_correction(
            self._conn,
            standing,
            data,
            source=candidate.event.source,
            event_id=candidate.event.id,
            payload_hash=candidate.hash,
            now_ms=self._now_ms,
        )
        row = standing.row
        self._corrections.append(
            Corrected(row.ended_ms, row.org_id, row.project_id, row.key_id, row.model_id, differences)
        )
        return True

    # outcomes

    def _finish(self, candidate: _Candidate, status: Status, reason: str = "") -> None:
        self._outcomes[candidate.index] = Outcome(status, candidate.event.id, candidate.event.source, reason)

    def _fail(self, index: int, received: Received, error: Invalid) -> None:
        self._outcomes[index] = Outcome(
            "refused" if isinstance(error, Refused) else "quarantined",
            received.event_id,
            received.source,
            error.message,
            error.param or "",
            "conflict" if isinstance(error, Clash) else "poison",
            received.raw,
        )


def _decoded(event: CloudEvent) -> Data:
    """The data as its type has it; unknown members are refused, for they may be quantities nobody would bill."""
    kind = TYPES.get(event.type)
    if kind is None:
        raise Invalid(f"unknown event type {event.type!r}; expected one of {', '.join(TYPES)}", param="type")
    try:
        value = msgspec.json.decode(event.data)
    except msgspec.MsgspecError as error:
        raise Invalid(str(error), param="data") from None
    if not isinstance(value, dict):
        raise Invalid("expected a JSON object", param="data")
    currency = value.pop("currency", CURRENCY)
    if not isinstance(currency, str) or currency.lower() != CURRENCY:
        raise Invalid(
            f"expected {CURRENCY!r}, the one currency there is, got {currency!r}", param="data.currency"
        )
    _check_members(value, kind)
    try:
        return msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        raise Invalid(str(error), param="data") from None


def _check_members(value: Mapping[str, Any], kind: type[Data]) -> None:
    names = [each.name for each in msgspec.structs.fields(kind)]
    for name in value:
        if name not in names:
            raise Invalid(unknown_name(str(name), names, "member"), param=f"data.{str(name)[:80]}")
    usage = value.get("usage")
    counts = [each.name for each in msgspec.structs.fields(Usage)]
    for name in usage if isinstance(usage, dict) else ():
        if name not in counts:
            skus = f"; the SKUs of a call are {', '.join(CALL_SKUS)}"
            raise Invalid(unknown_name(str(name), counts, "SKU") + skus, param=f"data.usage.{str(name)[:80]}")


def _check_texts(data: Data) -> None:
    for each in msgspec.structs.fields(type(data)):
        value = getattr(data, each.name)
        if isinstance(value, str) and "\x00" in value:  # PostgreSQL's text cannot hold it
            raise Invalid("holds a NUL character", param=f"data.{each.name}")


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))
