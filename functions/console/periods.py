"""Periods of time in queries."""

import re

from core.clock import month_bounds, parse_iso
from core.errors import Invalid
from functions.console.shapes import instant


def month(text: str | None, now_ms: int, param: str = "period") -> tuple[int, int]:
    """Start and end of the UTC month `YYYY-MM`; without one, of the current month."""
    if text is None:
        return month_bounds(now_ms)
    if not re.fullmatch(r"2[0-9]{3}-(0[1-9]|1[0-2])", text):
        raise Invalid(f"{param}: expected a month such as 2026-11, got {text[:60]!r}", param=param)
    return month_bounds(parse_iso(f"{text}-01T00:00:00Z"))


def span(start: str | None, end: str | None, now_ms: int) -> tuple[int, int]:
    """[start, end): without a start from the beginning of the month of the end, without an end until now."""
    end_ms = now_ms + 1 if end is None else instant(end, "end")
    start_ms = month_bounds(max(end_ms - 1, 0))[0] if start is None else instant(start, "start")
    if start_ms >= end_ms:
        raise Invalid(f"end: expected a time after the start, got {end or 'now'}", param="end")
    return start_ms, end_ms
