"""How many calls a deployment had, and how long they took: what rules of autoscale may go by (R7.1)."""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final

MAX_DURATIONS: Final = 100  # in one report of a gateway
_KEPT: Final = 10_000
_PERCENTILES: Final = (50, 90, 95, 99)


class Calls:
    """Since the last `take`."""

    def __init__(self, at: int) -> None:
        """`at` as in `take`."""
        self._at = at
        self._count = 0
        self._durations: deque[int] = deque(maxlen=_KEPT)

    def add(self, ended: int, durations_ms: Sequence[int]) -> None:
        """So many more ended; `durations_ms` of some of them."""
        self._count += ended
        self._durations.extend(durations_ms)

    def take(self, at: int) -> Mapping[str, float]:
        """Values by metric: calls a minute, and milliseconds; these only where a call ended. `at` in ms."""
        elapsed, self._at = at - self._at, at
        count, self._count = self._count, 0
        durations = sorted(self._durations)
        self._durations.clear()
        values: dict[str, float] = {"RequestsPerMinute": count * 60_000 / elapsed} if elapsed > 0 else {}
        if durations:
            values["RequestLatency"] = sum(durations) / len(durations)
            for each in _PERCENTILES:
                values[f"RequestLatency_P{each}"] = durations[-(-each * len(durations) // 100) - 1]
        return values
