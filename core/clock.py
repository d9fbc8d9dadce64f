"""Time as a port: integer epoch milliseconds, UTC."""

import time
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Protocol

MINUTE_MS: Final = 60_000
_time_ns: Final = time.time_ns
_monotonic_ns: Final = time.monotonic_ns


class Clock(Protocol):
    """Tells the time. `now_ms` may step; `monotonic_ms` never goes back."""

    def now_ms(self) -> int: ...

    def monotonic_ms(self) -> int: ...


class SystemClock:
    """The machine's own clock."""

    def now_ms(self) -> int:
        return _time_ns() // 1_000_000

    def monotonic_ms(self) -> int:
        return _monotonic_ns() // 1_000_000


class ManualClock:
    """A clock that tests and the simulation move by hand."""

    def __init__(self, now_ms: int = 1_760_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_ms(self) -> int:
        return self._monotonic_ms

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass."""
        assert ms >= 0, "time passes forward; use step() for a clock jump"
        self._now_ms += ms
        self._monotonic_ms += ms

    def step(self, ms: int) -> None:
        """Jump the wall clock by `ms` (may be negative); monotonic time does not move."""
        self._now_ms += ms


def minute_floor(ms: int) -> int:
    """The start of the UTC minute that holds the instant `ms`."""
    return ms - ms % MINUTE_MS


def iso(ms: int) -> str:
    """RFC 3339 in UTC with milliseconds, e.g. `2026-11-23T12:00:00.000Z`."""
    second = ms // 1000
    last, text = _LAST[0]
    if last != second:
        text = _iso_second(second)
        _LAST[0] = (second, text)
    return text + _ENDS[ms % 1000]


# The second that was told last: a pair, so that another thread sees it whole.
_LAST: Final = [(0, "1970-01-01T00:00:00")]
_ENDS: Final = [f".{ms:03d}Z" for ms in range(1000)]


@lru_cache(maxsize=64)  # times near each other are written again and again
def _iso_second(second: int) -> str:
    return datetime.fromtimestamp(second, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")


def parse_iso(text: str) -> int:
    """Epoch milliseconds of an RFC 3339 instant; ValueError when it has no offset or is malformed."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no UTC offset; expected e.g. 2026-11-23T12:00:00Z")
    delta = moment.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 1000 + delta.microseconds // 1000


def month_bounds(ms: int) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of the UTC calendar month that holds `ms`."""
    moment = datetime.fromtimestamp(ms // 1000, tz=UTC)
    start = moment.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    after = start.replace(year=start.year + start.month // 12, month=start.month % 12 + 1)
    return int(start.timestamp()) * 1000, int(after.timestamp()) * 1000
