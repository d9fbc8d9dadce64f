"""Usage events for tests: everything filled in, so that a test names only what it is about."""

from typing import Any

import msgspec

from metering.ingest import Accepted, payload_hash
from metering.journal import source_of
from metering.model import BATCH_SKUS, Usage, UsageEvent
from wire.cloudevents import encode_event_into

MINUTE = 60_000
NO_BATCH = dict.fromkeys(BATCH_SKUS, 0)
T0 = 1_766_664_000_000  # 2025-12-25T12:00:00Z


def event(request_id: str = "req_1", usage: Usage | None = None, **fields: Any) -> UsageEvent:
    """A completed chat call of organization `org_1`, 100 tokens in (20 of them cached), 50 out."""
    base = UsageEvent(
        request_id=request_id,
        org_id="org_1",
        project_id="prj_1",
        key_id="key_1",
        endpoint_id="ep_1",
        deployment_id="dep_1",
        model_id="acme/chat",
        operation="chat.completions",
        stream=True,
        status="completed",
        http_status=200,
        usage=usage or Usage(100, 20, 50, 10),
        usage_source="engine",
        received_ms=T0,
        sent_ms=T0 + 1,
        first_byte_ms=T0 + 20,
        ended_ms=T0 + 500,
        engine_request_id="chatcmpl-1",
        finish_reason="stop",
    )
    return msgspec.structs.replace(base, **fields)


def cloudevent(
    *, event_id: str, source: str, event_type: str, time_ms: int, subject: str, sequence: int, data: object
) -> bytes:
    """An event as a gateway writes it."""
    text = bytearray()
    encode_event_into(text, event_id, source, event_type, time_ms, subject, sequence, data)
    return bytes(text)


def accepted(found: UsageEvent, gateway: str = "gw-1") -> Accepted:
    """The event as the relay has it after checking."""
    return Accepted(source_of(gateway), found, payload_hash(found))
