"""From a journal record to a usage event, or to the reason why it is none. Pure."""

import hashlib

import msgspec

from core.clock import iso
from core.errors import Invalid
from metering.model import USAGE_EVENT_TYPE, Usage, UsageEvent
from wire.cloudevents import MAX_EVENT_BYTES, decode_event

MAX_COUNT = 10**12  # tokens in one event: far beyond any context; millions of such still sum in 64 bits
MAX_MS = 253_402_300_799_999  # the end of year 9999

MAX_ATTEMPT = 100
MAX_CHOICES = 1_000_000
_TEXTS = tuple(f.name for f in msgspec.structs.fields(UsageEvent) if f.type is str)

_MAX_ID, _MAX_DIGITS = 256, 20  # characters, as in wire/cloudevents.py


class _Envelope(msgspec.Struct, frozen=True, gc=False):
    """What a gateway's record looks like, for one pass over its bytes; every member is compared afterwards."""

    specversion: str
    id: str
    source: str
    type: str
    time: str
    subject: str
    datacontenttype: str
    partitionkey: str
    sequence: str
    data: UsageEvent


_plain_decoder = msgspec.json.Decoder(_Envelope, strict=True)
_decoder = msgspec.json.Decoder(UsageEvent, strict=True)
_encoder = msgspec.json.Encoder()


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """A valid usage event with what deduplication needs."""

    source: str
    event: UsageEvent
    payload_hash: str


class Poison(msgspec.Struct, frozen=True):
    """A record that cannot become a usage event."""

    event_id: str
    payload_hash: str
    reason: str


def payload_hash(event: UsageEvent) -> str:
    """The same for the same content, whatever the envelope says (a resend has another sequence number)."""
    return digest(_encoder.encode(event))


def digest(data: bytes) -> str:
    """Short content hash."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def accept(payload: bytes, source: str) -> Accepted | Poison:
    """Check the CloudEvent in `payload` of the journal of `source`, and the usage in it."""
    event = _as_written(payload, source)
    if event is not None:
        return Accepted(source, event, payload_hash(event))
    return _examined(payload, source)


def _as_written(payload: bytes, source: str) -> UsageEvent | None:
    """A sound event in just the form that a gateway writes, in a fraction of the time that `_examined` takes."""
    try:
        envelope = _plain_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    event = envelope.data
    plain = (
        envelope.source == source
        and envelope.id == event.event_id
        and envelope.subject == event.org_id != ""
        and envelope.type == USAGE_EVENT_TYPE
        and envelope.specversion == "1.0"
        and envelope.datacontenttype == "application/json"
        and envelope.sequence.isdigit()
        and envelope.sequence.isascii()
        and 0 < len(envelope.id) <= _MAX_ID
        and len(envelope.sequence) <= _MAX_DIGITS
        and len(payload) <= MAX_EVENT_BYTES
        and b"\\"
        not in payload  # JSON holds a NUL only as \u0000; escapes are rare, and looked into elsewhere
        and _in_bounds(event)
        and envelope.time == iso(event.ended_ms)
    )
    return event if plain else None


def _in_bounds(event: UsageEvent) -> bool:
    usage = event.usage
    return (
        1 <= event.attempt <= MAX_ATTEMPT
        and 0 <= event.http_status <= 999
        and 0 <= usage.cached_input <= usage.input <= MAX_COUNT
        and 0 <= usage.reasoning <= usage.output <= MAX_COUNT
        and 0 <= usage.audio_ms <= MAX_COUNT
        and 1 <= usage.choices <= MAX_CHOICES
        and 0 <= event.ended_ms <= MAX_MS
        and 0 <= event.received_ms <= MAX_MS
        and 0 <= event.sent_ms <= MAX_MS
        and 0 <= event.first_byte_ms <= MAX_MS
    )


def _examined(payload: bytes, source: str) -> Accepted | Poison:
    """The same step by step, with the reason when it is no good; accepts also what another writer may write."""
    event_id = ""
    try:
        envelope = decode_event(payload)
        event_id = envelope.id
        if envelope.source != source:
            raise Invalid(f"source {envelope.source!r} in the journal of {source!r}", param="source")
        if envelope.type != USAGE_EVENT_TYPE:
            raise Invalid(f"unknown event type {envelope.type!r}", param="type")
        event = _decoder.decode(envelope.data)
        check_usage(event, envelope.id, envelope.time_ms, envelope.subject)
    except Invalid as error:
        where = f"{error.param}: " if error.param else ""
        return Poison(event_id, digest(payload), where + error.message)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        return Poison(event_id, digest(payload), f"data: {error}")
    return Accepted(source, event, payload_hash(event))


def check_usage(event: UsageEvent, event_id: str, time_ms: int, subject: str) -> None:
    """Invalid when a usage event contradicts its envelope or itself."""
    if event.event_id != event_id:
        raise Invalid(f"is {event_id!r}, but the data is of {event.event_id!r}", param="id")
    if event.ended_ms != time_ms:
        raise Invalid(f"is {time_ms}, but the data ended at {event.ended_ms}", param="time")
    for name in ("received_ms", "sent_ms", "first_byte_ms", "ended_ms"):
        if not 0 <= getattr(event, name) <= MAX_MS:
            raise Invalid(f"{getattr(event, name)} is no instant of this era", param=f"data.{name}")
    for name in _TEXTS:
        if "\x00" in getattr(event, name):  # PostgreSQL's text cannot hold it: it would stop the relay
            raise Invalid("holds a NUL character", param=f"data.{name}")
    if event.org_id != subject or not subject:
        raise Invalid(f"is {subject!r}, but the data is of organization {event.org_id!r}", param="subject")
    if not 1 <= event.attempt <= MAX_ATTEMPT:
        raise Invalid(f"expected 1 to {MAX_ATTEMPT}, got {event.attempt}", param="data.attempt")
    if not 0 <= event.http_status <= 999:
        raise Invalid(f"{event.http_status} is no HTTP status", param="data.http_status")
    check_counts(event.usage)


def check_counts(usage: Usage) -> None:
    """Invalid for counts that are out of bounds or contradict each other."""
    for name in ("input", "cached_input", "output", "reasoning", "audio_ms"):
        count = getattr(usage, name)
        if not 0 <= count <= MAX_COUNT:
            raise Invalid(f"expected 0 to {MAX_COUNT}, got {count}", param=f"data.usage.{name}")
    if not 1 <= usage.choices <= MAX_CHOICES:
        raise Invalid(f"expected 1 to {MAX_CHOICES}, got {usage.choices}", param="data.usage.choices")
    if usage.cached_input > usage.input:
        raise Invalid(
            f"{usage.cached_input} is more than input {usage.input}", param="data.usage.cached_input"
        )
    if usage.reasoning > usage.output:
        raise Invalid(f"{usage.reasoning} is more than output {usage.output}", param="data.usage.reasoning")
