"""Time buckets and the page cursor of OpenAI's usage and costs API."""

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from core.clock import MINUTE_MS
from core.errors import BadRequest

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
MAX_SECONDS = 253_402_300_799  # the end of year 9999


@dataclass(frozen=True, slots=True)
class Width:
    """A bucket's width, and how many are given at once."""

    ms: int
    default: int
    most: int


USAGE_WIDTHS: Final = {
    "1m": Width(MINUTE_MS, 60, 1440),
    "1h": Width(HOUR_MS, 24, 168),
    "1d": Width(DAY_MS, 7, 31),
}
COST_WIDTH: Final = Width(DAY_MS, 7, 180)
_CURSOR = struct.Struct(">QQ")  # end of the whole span, start of the next page: epoch milliseconds


@dataclass(frozen=True, slots=True)
class Pages:
    """The buckets of one page, and what asks for the next one ("": this is the last)."""

    buckets: Sequence[tuple[int, int]]
    next_page: str

    @property
    def start_ms(self) -> int:
        return self.buckets[0][0]

    @property
    def end_ms(self) -> int:
        return self.buckets[-1][1]


def page_of_buckets(
    width: Width, start_s: int, end_s: int | None, limit: int | None, page: str | None, now_ms: int
) -> Pages:
    """Whole UTC minutes, hours or days from `start_s` to `end_s`, the first and the last cut to what was asked for.

    Without an end: up to and with the bucket of `now_ms`; the cursor keeps that end, so that paging comes to one.
    """
    start_ms = start_s * 1000 - start_s * 1000 % MINUTE_MS
    now_end_ms = (now_ms // width.ms + 1) * width.ms
    end_ms = now_end_ms if end_s is None else -(-end_s * 1000 // MINUTE_MS) * MINUTE_MS
    if page:
        end_ms, start_ms = _decode(page, start_ms)
    elif start_ms >= end_ms:
        late = (
            "start_time: is in the future" if end_s is None else "end_time: expected a time after start_time"
        )
        raise BadRequest(late, param=late.partition(":")[0])
    count = width.default if limit is None else limit
    if not 1 <= count <= width.most:
        raise BadRequest(f"limit: expected 1 to {width.most}, got {count}", param="limit")
    buckets: list[tuple[int, int]] = []
    at_ms = start_ms
    while at_ms < end_ms and len(buckets) < count:
        after_ms = min((at_ms // width.ms + 1) * width.ms, end_ms)
        buckets.append((at_ms, after_ms))
        at_ms = after_ms
    more = at_ms < end_ms
    return Pages(buckets, base64.b64encode(_CURSOR.pack(end_ms, at_ms)).decode() if more else "")


def _decode(page: str, start_ms: int) -> tuple[int, int]:
    try:
        end_ms, at_ms = _CURSOR.unpack(base64.b64decode(page, validate=True))
    except (binascii.Error, struct.error, ValueError):
        end_ms, at_ms = 0, 0
    if not start_ms <= at_ms < end_ms <= (MAX_SECONDS + 1) * 1000 or at_ms % MINUTE_MS or end_ms % MINUTE_MS:
        raise BadRequest("page: expected the next_page of an earlier answer to this query", param="page")
    return end_ms, at_ms
