"""Events that could not be taken in: look at them, mend and replay them, or drop them. Every decision is audited."""

from typing import Annotated, Any, Literal

import msgspec
from fastapi import Query
from pydantic import BaseModel, Field

from core.audit import record_audit
from core.clock import iso
from core.errors import Conflict, Invalid
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, iso_or_none, page
from metering.intake import Authority, Outcome
from metering.quarantine import Entry, get_entry, list_entries, open_entry, resolve
from wire.cloudevents import MAX_EVENT_BYTES
from wire.cloudevents_http import read_structured

router = console_router("quarantine")


class ReplayEvent(Input):
    """What is to be taken in."""

    event: dict[str, Any] | None = Field(
        default=None, description="The mended CloudEvent; without it the one in quarantine as it is."
    )
    note: Text = Field(default="", description="Why, for the audit log.")


class DropEvent(Input):
    """Why the event is not to be billed."""

    note: Text = Field(default="", description="Why, for the audit log.")


class EntryOut(BaseModel):
    """An event in quarantine."""

    id: str
    kind: Literal["poison", "conflict", "corrupt"]
    state: Literal["open", "replayed", "dropped"]
    source: str
    event_id: str
    reason: str
    organization_id: str | None = Field(description="Of the key that sent it; null for an operator's.")
    received_at: str
    resolved_at: str | None


class EntryDetailOut(EntryOut):
    """With what was sent."""

    event: dict[str, Any] | None = Field(description="The CloudEvent, null when it is no JSON object.")
    payload: str = Field(description="As it came.")


class ReplayOut(EntryOut):
    """What became of it."""

    outcome: Literal["new", "duplicate"]


@router.get("/quarantine", summary="List the quarantine")
def list_quarantine(
    deps: Deps,
    state: Annotated[Literal["open", "replayed", "dropped", "all"], Query()] = "open",
    limit: Limit = 50,
    after: After = "",
) -> Page[EntryOut]:
    """The newest first."""
    deps.catch_up()
    before = int(after) if after.isascii() and after.isdigit() and len(after) < 18 else None
    with deps.db.read() as connection:
        found = list_entries(
            connection, state=None if state == "all" else state, org_id=None, limit=limit + 1, before=before
        )
    return page(found, limit, _entry, lambda entry: str(entry.id))


@router.get("/quarantine/{entry_id}", summary="Show an event in quarantine")
def get_quarantined(entry_id: str, deps: Deps) -> EntryDetailOut:
    """With what was sent."""
    with deps.db.read() as connection:
        entry = get_entry(connection, entry_id)
    return EntryDetailOut(**_entry(entry).model_dump(), event=_as_object(entry), payload=entry.payload)


@router.post("/quarantine/{entry_id}/replay", summary="Replay an event in quarantine")
def replay(entry_id: str, body: ReplayEvent, caller: Caller, deps: Deps) -> ReplayOut:
    """As it is, or mended. 409 with the reason when it still cannot be taken in; then it stays where it is."""
    deps.catch_up()
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        entry = open_entry(connection, entry_id)
        raw = entry.payload.encode() if body.event is None else msgspec.json.encode(body.event)
        if len(raw) > MAX_EVENT_BYTES:
            raise Invalid(f"event: at most {MAX_EVENT_BYTES} bytes", param="event")
        authority = Authority(replay=True, seen_ms=entry.recorded_ms)
        taken = deps.intake.take_in(connection, [read_structured(raw)], authority, now_ms)
        outcome = taken.outcomes[0]
        if outcome.status not in ("new", "duplicate"):
            raise Conflict(f"still not taken in: {_why(outcome)}", code="still_wrong", param="event")
        resolve(connection, entry, "replayed", now_ms)
        record_audit(
            connection,
            now_ms=now_ms,
            actor=caller.key_id,
            action="quarantine.replay" if body.event is None else "quarantine.fix",
            object_id=str(entry.id),
            org_id=entry.org_id,
            detail={
                "source": outcome.source,
                "event_id": outcome.event_id,
                "outcome": outcome.status,
                "note": body.note,
            },
        )
        after = get_entry(connection, entry_id)
    return ReplayOut(**_entry(after).model_dump(), outcome="new" if outcome.status == "new" else "duplicate")


@router.post("/quarantine/{entry_id}/drop", summary="Drop an event in quarantine")
def drop(entry_id: str, body: DropEvent, caller: Caller, deps: Deps) -> EntryOut:
    """It will not be billed. It stays on record, and so does who decided it."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        entry = open_entry(connection, entry_id)
        resolve(connection, entry, "dropped", now_ms)
        record_audit(
            connection,
            now_ms=now_ms,
            actor=caller.key_id,
            action="quarantine.drop",
            object_id=str(entry.id),
            org_id=entry.org_id,
            detail={"source": entry.source, "event_id": entry.event_id, "note": body.note},
        )
        return _entry(get_entry(connection, entry_id))


def _why(outcome: Outcome) -> str:
    return f"{outcome.param}: {outcome.reason}" if outcome.param else outcome.reason


def _as_object(entry: Entry) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(entry.payload)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _entry(entry: Entry) -> EntryOut:
    return EntryOut(
        id=str(entry.id),
        kind=entry.kind,
        state=entry.state,
        source=entry.source,
        event_id=entry.event_id,
        reason=entry.reason,
        organization_id=entry.org_id or None,
        received_at=iso(entry.recorded_ms),
        resolved_at=iso_or_none(entry.resolved_ms),
    )
