"""What calls and their mirrored copies came to, side by side: statuses, times, and how often the answers were alike.

Figures only: no body is kept.
"""

import math
from bisect import bisect_left
from collections import Counter
from typing import Any, NamedTuple

import msgspec

_BOUNDS_MS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000, 180_000)
_TOLERANCE = 1e-6  # of numbers, relative and absolute: two builds of one model may differ in the last digits
_DEPTH = 32


class Side(NamedTuple):
    """One of the two."""

    status: int
    ms: int
    answer: bytes


class _Times:
    """Bounded however many there are: counts by upper bound."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BOUNDS_MS) + 1)
        self.sum_ms = 0

    def note(self, ms: int) -> None:
        self.counts[bisect_left(_BOUNDS_MS, ms)] += 1
        self.sum_ms += ms

    def quantile_ms(self, share: float) -> float:
        """An upper bound of the share's slowest: the bound of its bucket."""
        wanted, seen = share * sum(self.counts), 0
        for bound, count in zip((*_BOUNDS_MS, math.inf), self.counts, strict=True):
            seen += count
            if count and seen >= wanted:
                return bound
        return 0.0


class Comparison:
    """Of one deployment and its shadow, since the gateway started."""

    def __init__(self, endpoint_id: str, endpoint_name: str, deployment: str, shadow: str) -> None:
        self.endpoint_id, self.endpoint_name = endpoint_id, endpoint_name
        self.deployment, self.shadow = deployment, shadow
        self.pairs = 0
        self.left_out = 0  # calls that drew a copy which could not be sent
        self.same = self.different = 0  # of pairs that both succeeded and can be compared
        self._statuses: tuple[Counter[int], Counter[int]] = Counter(), Counter()
        self._times = _Times(), _Times()

    def note(self, original: Side, copy: Side) -> None:
        """One pair."""
        self.pairs += 1
        for counter, times, side in zip(self._statuses, self._times, (original, copy), strict=True):
            counter[side.status] += 1
            times.note(side.ms)
        if original.answer and copy.answer and original.status < 300 and copy.status < 300:
            if alike(original.answer, copy.answer):
                self.same += 1
            else:
                self.different += 1

    def document(self) -> dict[str, Any]:
        """For people and programs."""
        return {
            "endpoint": self.endpoint_name,
            "deployment": self.deployment,
            "shadow": self.shadow,
            "pairs": self.pairs,
            "left_out": self.left_out,
            "answers": {"same": self.same, "different": self.different},
            "deployment_figures": self._side(0),
            "shadow_figures": self._side(1),
        }

    def _side(self, which: int) -> dict[str, Any]:
        times = self._times[which]
        return {
            "statuses": {str(status): count for status, count in sorted(self._statuses[which].items())},
            "mean_ms": round(times.sum_ms / self.pairs, 1) if self.pairs else 0,
            "p50_at_most_ms": _shown(times.quantile_ms(0.5)),
            "p99_at_most_ms": _shown(times.quantile_ms(0.99)),
        }


def _shown(ms: float) -> float | None:
    return None if math.isinf(ms) else ms


def alike(one: bytes, other: bytes) -> bool:
    """Whether two answers say the same: as JSON with numbers within 1e-6, else byte for byte."""
    if one == other:
        return True
    try:
        return _alike(msgspec.json.decode(one), msgspec.json.decode(other), 0)
    except (msgspec.DecodeError, RecursionError):
        return False


def _alike(one: Any, other: Any, depth: int) -> bool:
    if depth > _DEPTH:
        return bool(one == other)
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(
            _alike(a, b, depth + 1) for a, b in zip(one, other, strict=True)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[k], other[k], depth + 1) for k in one)
    return bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
