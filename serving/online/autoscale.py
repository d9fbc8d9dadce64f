"""Decides how many instances there are to be, from what was measured. Pure but for its memory of measurements."""

from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from serving.online.scaling import WHOLE, ScaleRule
from serving.online.spec import ScaleSettings

SAMPLE_EVERY_MS = 10_000
_KEPT = 3600 * 1000 // SAMPLE_EVERY_MS + 1
# A window that is measured for a smaller part than this says nothing yet.
_COVERED = 0.8


def bounds(scale: ScaleSettings, now_ms: int) -> tuple[int, int]:
    """The fewest and the most instances at `now_ms` (UTC): those of the first schedule that holds, else the settings'."""
    for each in scale.schedules:
        local = datetime.fromtimestamp(now_ms / 1000, UTC).astimezone(ZoneInfo(each.timezone))
        minute = local.hour * 60 + local.minute
        if local.weekday() in each.days and each.start_minute <= minute < each.end_minute:
            return each.min_instances, each.max_instances
    low = max(1, scale.min_instances)
    return low, max(low, scale.max_instances)


class Autoscaler:
    """Of one deployment. Times are of a clock that never goes back, in ms."""

    def __init__(self) -> None:
        self._samples: deque[tuple[int, Mapping[str, float]]] = deque(maxlen=_KEPT)
        self._changed_at: int | None = None

    def sample(self, values: Mapping[str, float], at: int) -> None:
        """What was measured, by metric, on average over the instances."""
        self._samples.append((at, values))

    def wanted(self, scale: ScaleSettings, current: int, limits: tuple[int, int], at: int) -> int:
        """The number that rules make of `current`, within `limits`."""
        low, high = limits
        current = min(max(current, low), high)
        wanted = min(max(self._by_rules(scale, current, at), low), high)
        if wanted != current:
            self._changed_at = at
        return wanted

    def _by_rules(self, scale: ScaleSettings, current: int, at: int) -> int:
        ready = [each for each in scale.rules if self._rested(each, at)]
        more = [
            each.applied(current) for each in ready if each.applied(current) > current and self._met(each, at)
        ]
        if more:
            return max(more)
        fewer = [each for each in scale.rules if each.applied(current) < current]
        if not fewer or not all(self._rested(each, at) and self._met(each, at) for each in fewer):
            return current
        wanted = max(1, max(each.applied(current) for each in fewer))
        return current if self._would_come_back(scale, current, wanted, at) else wanted

    def _rested(self, rule: ScaleRule, at: int) -> bool:
        return self._changed_at is None or at - self._changed_at >= rule.cooldown_s * 1000

    def _met(self, rule: ScaleRule, at: int) -> bool:
        value = self._value(rule, at)
        return value is not None and rule.met(value)

    def _would_come_back(self, scale: ScaleSettings, current: int, wanted: int, at: int) -> bool:
        """Whether the same load on fewer instances would meet a rule that scales out: then nothing is won."""
        for each in scale.rules:
            value = self._value(each, at)
            share = 1 if each.metric in WHOLE else current / wanted
            if each.applied(wanted) > wanted and value is not None and each.met(value * share):
                return True
        return False

    def _value(self, rule: ScaleRule, at: int) -> float | None:
        """The rule's statistic over its window; None while that is not measured for long enough."""
        since = at - rule.window_s * 1000
        found = [
            values[rule.metric] for when, values in self._samples if when > since and rule.metric in values
        ]
        if len(found) * SAMPLE_EVERY_MS < _COVERED * rule.window_s * 1000:
            return None
        if rule.statistic == "avg":
            return sum(found) / len(found)
        return max(found) if rule.statistic == "max" else min(found)
