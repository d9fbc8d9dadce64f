"""Events of other meters: CloudEvents over HTTP, one or many, each answered for itself."""

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from access.principal import Principal
from core.errors import Invalid, NotFound
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import Page, RawBody
from functions.event_schemas import EVENT_TYPES, schema_of
from metering.intake import Authority, Outcome
from wire.cloudevents_http import BATCHED, MAX_BATCH, STRUCTURED, read_http
from wire.suggestions import unknown_name

router = console_router("events")

_EVENT = {"schema": {"type": "object"}}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            STRUCTURED: _EVENT,
            BATCHED: {"schema": {"type": "array", "maxItems": MAX_BATCH, "items": {"type": "object"}}},
            "application/json": _EVENT,
        },
    }
}


class EventOut(BaseModel):
    """What became of one event."""

    index: int = Field(description="Its place in the batch, from 0 on.")
    id: str
    source: str
    status: Literal["new", "duplicate", "quarantined", "refused"] = Field(
        description="refused: nothing was kept, mend it and send it again."
    )
    param: str | None = Field(description="The attribute or member that is wrong.")
    reason: str | None
    quarantine_id: str | None


class EventsOut(BaseModel):
    """Counts, and one answer for each event in the order sent."""

    new: int
    duplicate: int
    quarantined: int
    refused: int
    data: list[EventOut]


class EventTypeOut(BaseModel):
    """A type of events and where its JSON Schema is."""

    type: str
    direction: Literal["in", "out"] = Field(description="Taken in, or sent to webhooks.")
    description: str
    schema_url: str


@router.post("/events", summary="Send events", openapi_extra=_BODY)
def send_events(request: Request, body: RawBody, caller: Caller, deps: Deps) -> EventsOut:
    """CloudEvents 1.0 in binary, structured or batched mode. Sending them again changes nothing.

    At most 1,000 events and 64 KiB each. A project's key sends its own project's usage, from sources under
    `/projects/{project_id}/`. A single event that is refused is answered with 422.
    """
    pairs = [(name, value) for name, value in request.headers.items() if name.startswith("ce-")]
    received, batch = read_http(request.headers.get("content-type", ""), pairs, body)
    deps.catch_up()  # a correction may follow its call at once, and an endpoint's minute its beginning
    answers = deps.intake.take(received, _authority(caller), deps.clock.now_ms())
    if not batch and answers[0][0].status == "refused":
        only = answers[0][0]
        raise Invalid(f"{only.param}: {only.reason}" if only.param else only.reason, param=only.param or None)
    return events_out(answers)


@router.get("/events/schemas", summary="List event types")
def list_schemas() -> Page[EventTypeOut]:
    """Every type of events, taken in or sent to webhooks."""
    return Page(
        data=[
            EventTypeOut(
                type=each.name,
                direction=each.direction,
                description=each.description,
                schema_url=f"/api/events/schemas/{each.name}",
            )
            for each in EVENT_TYPES.values()
        ]
    )


@router.get(
    "/events/schemas/{event_type}",
    summary="Show the JSON Schema of an event type",
    response_class=JSONResponse,
)
def get_schema(event_type: str) -> JSONResponse:
    """Of the whole CloudEvent in structured mode."""
    if event_type not in EVENT_TYPES:
        raise NotFound(unknown_name(event_type, EVENT_TYPES, "event type"), param="event_type")
    schema: dict[str, Any] = schema_of(EVENT_TYPES[event_type])
    return JSONResponse(schema, media_type="application/schema+json")


def events_out(answers: Sequence[tuple[Outcome, int | None]]) -> EventsOut:
    """The answers with their counts."""
    data = [
        EventOut(
            index=index,
            id=outcome.event_id,
            source=outcome.source,
            status=outcome.status,
            param=outcome.param or None,
            reason=outcome.reason or None,
            quarantine_id=None if entry is None else str(entry),
        )
        for index, (outcome, entry) in enumerate(answers)
    ]
    counts = dict.fromkeys(("new", "duplicate", "quarantined", "refused"), 0)
    for each in data:
        counts[each.status] += 1
    return EventsOut(data=data, **counts)


def _authority(caller: Principal) -> Authority:
    return Authority() if caller.kind == "admin" else Authority(caller.org_id, caller.project_id)
