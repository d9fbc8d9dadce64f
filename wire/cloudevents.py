"""CloudEvents 1.0 in structured JSON mode: bytes to values and back.

Strict on purpose: an event whose `id`, `source`, `type` or `time` is missing or malformed is refused.
Inventing one (as the usual libraries do) makes every resend look like a new event, and so defeats deduplication.
"""

import re
from typing import Final

import msgspec

from core.clock import iso, parse_iso
from core.errors import Invalid
from wire.cloudevents_shapes import CloudEvent, Incoming, Outgoing

__all__ = ["MAX_EVENT_BYTES", "CloudEvent", "decode_event", "encode_event_into", "time_ms_of"]

MAX_EVENT_BYTES: Final = 64 * 1024  # what the specification obliges every intermediary to forward

# RFC 3339, narrower than `datetime.fromisoformat`: no week dates, no basic format, offset required.
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
_WHERE: Final = re.compile(r" - at `\$\.?([^`]*)`")
_MISSING: Final = re.compile(r"missing required field `([^`]*)`")

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Incoming)


def encode_event_into(
    text: bytearray,
    event_id: str,
    source: str,
    event_type: str,
    time_ms: int,
    subject: str,
    sequence: int,
    data: object,
) -> None:
    """The event as JSON, partitioned by its subject, in the place of what `text` holds.

    A `text` that has held such an event has the room for the next. `sequence` is padded so that it sorts as text.
    """
    event = Outgoing(
        "1.0", event_id, source, event_type, iso(time_ms), subject,
        "application/json", subject, str(sequence).zfill(20), data,
    )  # fmt: skip
    _encoder.encode_into(event, text)


def decode_event(raw: bytes) -> CloudEvent:
    """The event in `raw`; Invalid (`param` names the attribute) for all but a well-formed JSON event."""
    if len(raw) > MAX_EVENT_BYTES:
        raise Invalid(f"event of {len(raw)} bytes; at most {MAX_EVENT_BYTES} are accepted", param="data")
    try:
        event = _decoder.decode(raw)
    except msgspec.ValidationError as error:
        raise Invalid(f"not a CloudEvent: {error}", param=_field_of(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Invalid(f"not JSON: {error}") from None
    if event.datacontenttype.partition(";")[0].strip().lower() != "application/json":
        raise Invalid(f"expected JSON data, got {event.datacontenttype!r}", param="datacontenttype")
    return CloudEvent(
        event.id,
        event.source,
        event.type,
        time_ms_of(event.time),
        event.subject,
        event.partitionkey,
        None if event.sequence is None else int(event.sequence),
        event.data,
    )


def time_ms_of(text: str) -> int:
    """Epoch milliseconds of the attribute `time`; Invalid for what is no RFC 3339 instant with an offset."""
    if not _TIME.fullmatch(text):
        raise Invalid(f"expected a time such as 2026-11-23T12:00:00.000Z, got {text!r}", param="time")
    try:
        return parse_iso(text)
    except (ValueError, OverflowError):
        raise Invalid(f"no such instant: {text!r}", param="time") from None


def _field_of(message: str) -> str | None:
    match = _MISSING.search(message) or _WHERE.search(message)
    return match.group(1) or None if match else None
