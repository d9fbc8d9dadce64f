"""CloudEvents 1.0 over HTTP: binary, structured and batched mode, to events in structured JSON.

The `cloudevents` library does the binding; it invents an `id` and a `time` where they are missing, so the raw
attributes are checked before it sees them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

import msgspec
from cloudevents.core.bindings.http import HTTPMessage, from_binary, to_structured
from cloudevents.core.exceptions import CloudEventValidationError
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent as LibraryEvent

from core.clock import iso
from core.errors import BadRequest, Invalid, TooLarge
from wire.cloudevents import MAX_EVENT_BYTES, CloudEvent, decode_event, time_ms_of

MAX_BATCH = 1000
STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"

_REQUIRED = ("specversion", "id", "source", "type", "time")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_SHOWN = 200
_format = JSONFormat()
_batch_decoder = msgspec.json.Decoder(list[msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Received:
    """One event that came in: its structured JSON and what it says, or why it is none.

    `event_id` and `source` are what it claims, "" where they could not be read.
    """

    raw: bytes
    event: CloudEvent | None
    error: Invalid | None = None
    event_id: str = ""
    source: str = ""


def read_http(
    content_type: str, headers: Iterable[tuple[str, str]], body: bytes
) -> tuple[list[Received], bool]:
    """The events of a request, and whether it was a batch. `headers` as (name, value) pairs.

    BadRequest when it is in none of the three modes, TooLarge for more than `MAX_BATCH` events.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("application/cloudevents-batch"):
        if kind != BATCHED:
            raise BadRequest(f"content-type: expected {BATCHED}, got {kind!r}", param="content-type")
        return [read_structured(bytes(raw)) for raw in _split(body)], True
    if kind.startswith("application/cloudevents"):
        if kind != STRUCTURED:
            raise BadRequest(f"content-type: expected {STRUCTURED}, got {kind!r}", param="content-type")
        return [read_structured(body)], False
    attributes = [(name.lower(), value) for name, value in headers if name.lower().startswith("ce-")]
    if not attributes:
        raise BadRequest(
            f"expected a CloudEvent: Content-Type {STRUCTURED} for one, {BATCHED} for a JSON array, or ce-id, "
            "ce-source, ce-type, ce-time and ce-specversion headers with the data as JSON body",
            param="content-type",
        )
    return [_read_binary(kind, attributes, body)], False


def read_structured(raw: bytes) -> Received:
    """One event in structured JSON mode."""
    try:
        event = decode_event(raw)
        _through_library(raw)
    except Invalid as error:
        claimed = _claimed(raw)
        return Received(raw, None, error, claimed.get("id", ""), claimed.get("source", ""))
    return Received(raw, event, None, event.id, event.source)


def write_structured(
    *, event_id: str, source: str, event_type: str, time_ms: int, subject: str, data: dict[str, Any]
) -> bytes:
    """An event in structured JSON mode. It says its time a second time as Standard Webhooks names it."""
    attributes: dict[str, Any] = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": event_type,
        "time": datetime.fromtimestamp(time_ms / 1000, tz=UTC),
        "timestamp": iso(time_ms),
        "subject": subject,
        "datacontenttype": "application/json",
    }
    return bytes(to_structured(LibraryEvent(attributes, data), _format).body)


def _split(body: bytes) -> list[msgspec.Raw]:
    try:
        parts = _batch_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadRequest(f"expected a JSON array of CloudEvents: {str(error)[:_SHOWN]}") from None
    if len(parts) > MAX_BATCH:
        raise TooLarge(f"a batch of {len(parts)} events; at most {MAX_BATCH} are taken at once")
    return parts


def _read_binary(kind: str, attributes: list[tuple[str, str]], body: bytes) -> Received:
    given: dict[str, str] = {}
    try:
        for name, value in attributes:
            attribute = name.removeprefix("ce-")
            if attribute in given:
                raise Invalid(f"the header {name} is given twice", param=attribute)
            given[attribute] = _unescaped(attribute, value)
        raw = _structured_of(kind, given, body)
    except Invalid as error:
        return Received(body[:MAX_EVENT_BYTES], None, error, given.get("id", ""), given.get("source", ""))
    return read_structured(raw)


def _structured_of(kind: str, given: Mapping[str, str], body: bytes) -> bytes:
    for attribute in _REQUIRED:  # the library would make up an id and a time
        if not given.get(attribute):
            raise Invalid(f"the header ce-{attribute} is missing", param=attribute)
    if "datacontenttype" in given:
        raise Invalid("in binary mode this is the header Content-Type", param="datacontenttype")
    if kind not in ("", "application/json"):
        raise Invalid(f"expected JSON data, got {kind!r}", param="datacontenttype")
    if len(body) > MAX_EVENT_BYTES:
        raise Invalid(f"event of {len(body)} bytes; at most {MAX_EVENT_BYTES} are accepted", param="data")
    time_ms_of(given["time"])
    try:
        msgspec.json.decode(body, type=msgspec.Raw)  # the library takes broken JSON for a text
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Invalid(f"not JSON: {str(error)[:_SHOWN]}", param="data") from None
    headers = {f"ce-{name}": _escaped(value) for name, value in given.items()}
    message = HTTPMessage(headers | {"content-type": "application/json"}, body)
    with_library = _library_call(lambda: to_structured(from_binary(message, _format, LibraryEvent), _format))
    return bytes(with_library.body)


def _unescaped(attribute: str, value: str) -> str:
    """A header's text: quotes of older versions removed, percent-decoded once."""
    quoted = _QUOTED.fullmatch(value)
    text = re.sub(r"\\(.)", r"\1", quoted.group(1)) if quoted else value
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise Invalid("the percent-encoding is no UTF-8", param=attribute) from None


def _escaped(text: str) -> str:
    """So that the library's decoding gives `text` again."""
    return text.replace("%", "%25")


def _through_library(raw: bytes) -> None:
    """What the library finds beyond our own checks: names of extensions, empty optional attributes."""
    _library_call(lambda: _format.read(LibraryEvent, raw))


def _library_call(call: Any) -> Any:
    try:
        return call()
    except CloudEventValidationError as error:
        attribute, faults = next(iter(error.errors.items()))
        raise Invalid(str(faults[0])[:_SHOWN], param=attribute[:80]) from None
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise Invalid(f"not a CloudEvent: {str(error)[:_SHOWN]}") from None


def _claimed(raw: bytes) -> dict[str, str]:
    """Id and source of an event that is none, as far as they are texts: for the answer only."""
    try:
        value = msgspec.json.decode(raw[: MAX_EVENT_BYTES + 1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: text[:256] for name in ("id", "source") if isinstance(text := value.get(name), str)}
