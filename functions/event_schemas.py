"""JSON Schemas of all event types, made from the types themselves: `python -m functions.event_schemas docs/events`."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from metering.ingest import MAX_ATTEMPT, MAX_CHOICES, MAX_COUNT, MAX_MS
from metering.intake import CURRENCY, MAX_REASON, TYPES
from metering.model import Correction, EndpointMinute, UsageEvent
from metering.records import ENDPOINT_MINUTE_SKU
from webhooks.model import EVENTS

_TIME = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)$"
_COUNT = {"minimum": 0, "maximum": MAX_COUNT}
_INSTANT = {"minimum": 0, "maximum": MAX_MS}

# What the checks demand beyond the types, by struct and member.
_BOUNDS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "Usage": {
        **dict.fromkeys(("input", "cached_input", "output", "reasoning", "audio_ms"), _COUNT),
        "choices": {"minimum": 1, "maximum": MAX_CHOICES},
    },
    "UsageEvent": {
        "attempt": {"minimum": 1, "maximum": MAX_ATTEMPT},
        "http_status": {"minimum": 0, "maximum": 999},
        **dict.fromkeys(("received_ms", "sent_ms", "first_byte_ms", "ended_ms"), _INSTANT),
    },
    "EndpointMinute": {"sku": {"enum": [ENDPOINT_MINUTE_SKU]}},
    "Correction": {"reason": {"minLength": 1, "maxLength": MAX_REASON}},
}


@dataclass(frozen=True, slots=True)
class EventType:
    """One type of events: taken in from meters, or sent out to webhooks."""

    name: str
    direction: Literal["in", "out"]
    data: type[msgspec.Struct]
    description: str


_TEXTS = {
    UsageEvent: "One attempt at one call.",
    EndpointMinute: "One UTC minute in which an endpoint existed; id is {endpoint_id}/{minute}/{sku}.",
    Correction: "What a usage event should have said, absolutely, and why.",
}

EVENT_TYPES: Mapping[str, EventType] = {
    **{name: EventType(name, "in", data, _TEXTS[data]) for name, data in TYPES.items()},
    **{name: EventType(name, "out", data, data.__doc__ or "") for name, data in EVENTS.items()},
}


def schema_of(kind: EventType) -> dict[str, Any]:
    """The schema of the whole CloudEvent, as it is in structured mode."""
    inner = msgspec.json.schema(kind.data)
    definitions: dict[str, Any] = inner.pop("$defs")
    for name, definition in definitions.items():
        definition["additionalProperties"] = False
        for member, bounds in _BOUNDS.get(name, {}).items():
            definition["properties"][member] |= bounds
    if kind.direction == "in":
        currency = {"description": "Prices are US dollars; anything else is refused.", "enum": [CURRENCY]}
        definitions[kind.data.__name__]["properties"]["currency"] = currency
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:farebox:event:{kind.name}",
        "title": kind.name,
        "description": kind.description,
        "type": "object",
        "required": ["specversion", "id", "source", "type", "time", "data"],
        "properties": {
            "specversion": {"const": "1.0"},
            "id": {"type": "string", "minLength": 1, "maxLength": 256},
            "source": {"type": "string", "minLength": 1, "maxLength": 512, "format": "uri-reference"},
            "type": {"const": kind.name},
            "time": {"type": "string", "format": "date-time", "pattern": _TIME},
            "subject": {"type": "string", "minLength": 1},
            "datacontenttype": {"type": "string", "pattern": "^application/json(;.*)?$"},
            "data": inner,
        },
        "additionalProperties": {"type": ["string", "integer", "boolean"]},
        "propertyNames": {"pattern": "^[a-z0-9]+$"},
        "$defs": definitions,
    }


def main(folder: str) -> None:
    """Write every schema into `folder`."""
    for kind in EVENT_TYPES.values():
        path = Path(folder) / f"{kind.name}.schema.json"
        path.write_text(json.dumps(schema_of(kind), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else sys.exit("usage: python -m functions.event_schemas FOLDER"))
