"""CloudEvents of other meters, for tests."""

import json
from typing import Any

import msgspec

from core.clock import iso
from metering.model import CORRECTION_TYPE, USAGE_EVENT_TYPE, Usage, UsageEvent
from tests.metering_values import event
from wire.cloudevents_http import Received, read_structured

SOURCE = "/meters/batch-7"


def usage_cloudevent(found: UsageEvent, *, source: str = SOURCE, **attributes: Any) -> dict[str, Any]:
    """The event as another meter sends it."""
    return {
        "specversion": "1.0",
        "id": found.event_id,
        "source": source,
        "type": USAGE_EVENT_TYPE,
        "time": iso(found.ended_ms),
        "data": msgspec.to_builtins(found),
    } | attributes


def call_of(endpoint: dict[str, Any], request_id: str, at_ms: int, **fields: Any) -> UsageEvent:
    """A call that another meter counted at an endpoint."""
    values: dict[str, Any] = {
        "org_id": endpoint["organization_id"],
        "project_id": endpoint["project_id"],
        "key_id": "",
        "endpoint_id": endpoint["id"],
        "deployment_id": "",
        "model_id": endpoint["model"],
        "received_ms": at_ms - 20,
        "sent_ms": at_ms - 15,
        "first_byte_ms": at_ms - 5,
        "ended_ms": at_ms,
    }
    return event(request_id, **(values | fields))


def correction(
    org_id: str,
    corrects_id: str,
    usage: Usage,
    *,
    event_id: str,
    at_ms: int,
    corrects_source: str = SOURCE,
    reason: str = "the tokenizer was another",
) -> dict[str, Any]:
    """A correction as an operator sends it."""
    return {
        "specversion": "1.0",
        "id": event_id,
        "source": "/operators/audit",
        "type": CORRECTION_TYPE,
        "time": iso(at_ms),
        "data": {
            "org_id": org_id,
            "corrects_source": corrects_source,
            "corrects_id": corrects_id,
            "usage": msgspec.to_builtins(usage),
            "reason": reason,
        },
    }


def received(*events: dict[str, Any]) -> list[Received]:
    """As they are read off a request."""
    return [read_structured(json.dumps(each).encode()) for each in events]
