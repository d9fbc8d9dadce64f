"""Which parts of a month no invoice covers yet. Pure."""

from collections.abc import Iterable, Iterator

from core.clock import month_bounds

Span = tuple[int, int]
"""[start, end) in epoch milliseconds."""


def uncovered(start_ms: int, end_ms: int, covered: Iterable[Span]) -> list[Span]:
    """What of [start, end) none of `covered` covers, in order."""
    found: list[Span] = []
    at = start_ms
    for start, end in sorted(covered):
        if min(start, end_ms) > at:
            found.append((at, min(start, end_ms)))
        at = max(at, end)
    if at < end_ms:
        found.append((at, end_ms))
    return found


def overlaps(span: Span, others: Iterable[Span]) -> bool:
    """Whether one of `others` shares an instant with the span."""
    return any(start < span[1] and end > span[0] for start, end in others)


def months(start_ms: int, end_ms: int) -> Iterator[Span]:
    """The UTC months that begin in or hold [start, end), in order."""
    at = start_ms
    while at < end_ms:
        month = month_bounds(at)
        yield month
        at = month[1]
