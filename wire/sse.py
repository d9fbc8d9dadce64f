"""Server-sent events, as bytes: cut a stream into events, read an event's data, write one.

Tolerant as the standard asks: lines end with LF, CRLF or CR, an event may have several `data` lines, comments
begin with a colon. Events are handed on as the bytes they came as.
"""

import re
from typing import Final

from core.errors import UpstreamFailed

MAX_EVENT_BYTES: Final = 8 * 1024 * 1024  # an event is held whole, so it needs a bound

DONE: Final = b"[DONE]"
DONE_EVENT: Final = b"data: [DONE]\n\n"
WAITING_COMMENT: Final = b": waiting\n\n"

# A blank line. A CR at the very end may be half of a CRLF, so it is left for the next read (see `split`).
_CR: Final = 0x0D  # a number is found in bytes at once; bytes are first tried as one
_BLANK_LINE: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")


class EventSplitter:
    """Cuts a byte stream into whole events, each with its blank line."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def split(self, data: bytes) -> list[bytes]:
        """The events completed by `data`. UpstreamFailed when one grows beyond the bound."""
        if self._rest:
            data = self._rest + data
        if _CR not in data:
            events = data.split(b"\n\n")
            self._rest = events.pop()
            self._check_bound()
            return [event + b"\n\n" for event in events if event]
        return self._split_any(data)

    def _split_any(self, data: bytes) -> list[bytes]:
        events, start = [], 0
        for match in _BLANK_LINE.finditer(data):
            end = match.end()
            if end == len(data) and data.endswith(b"\r"):
                break
            if match.start() > start:
                events.append(data[start:end])
            start = end
        self._rest = data[start:]
        self._check_bound()
        return events

    def _check_bound(self) -> None:
        if len(self._rest) > MAX_EVENT_BYTES:
            raise UpstreamFailed("the model server sent an event of more than 8 MiB")

    @property
    def rest(self) -> bytes:
        """What has come since the last whole event."""
        return self._rest


def event_data(event: bytes) -> bytes | None:
    """The joined `data` lines of an event; None when it has none (a comment, an id, a retry time)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2 and _CR not in event:
        return event[6:-2]  # how nearly every event looks
    parts = []
    for line in _LINE_END.split(event):
        name, _, value = line.partition(b":")
        if name == b"data":
            parts.append(value.removeprefix(b" "))
    return b"\n".join(parts) if parts else None


def encode_event(data: bytes) -> bytes:
    """`data` (one line) as an event."""
    return b"data: " + data + b"\n\n"
