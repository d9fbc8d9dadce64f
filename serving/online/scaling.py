"""How many instances a deployment is to have: bounds, schedules that replace them, rules. What decides is `Autoscaler`.

The condition's grammar is that of Azure's autoscale: `"CpuUtilizationPercentage > 70 avg 5m"`; so are the meanings: any
rule that is met scales out, all that scale in must be met to scale in, and each rule rests for its cooldown after a
change.
"""

from dataclasses import dataclass
from typing import Final, Literal

Comparison = Literal[">", ">=", "<", "<="]
Statistic = Literal["avg", "max", "min"]
Action = Literal["out", "in", "to"]

# R7.1's names where it has one; on average over the instances, latencies in milliseconds.
METRICS: Final = (
    "CpuUtilizationPercentage",
    "CpuMemoryUtilizationPercentage",
    "GpuUtilizationPercentage",
    "GpuMemoryUtilizationPercentage",
    "DiskUtilization",
    "ConcurrentRequestsPerInstance",
    "RequestsPerMinute",
    "RequestLatency",
    "RequestLatency_P50",
    "RequestLatency_P90",
    "RequestLatency_P95",
    "RequestLatency_P99",
)
WHOLE: Final = frozenset(
    {"RequestsPerMinute", "DiskUtilization"}
)  # the same however many instances there are
DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True, slots=True)
class ScaleRule:
    """When `statistic` of `metric` over the last `window_s` compares so, the number changes by `count`, or is it."""

    metric: str
    comparison: Comparison
    threshold: float
    statistic: Statistic
    window_s: int
    action: Action
    count: int
    cooldown_s: int = 300

    def met(self, value: float) -> bool:
        """Whether a value of the statistic meets the condition."""
        if self.comparison == ">":
            return value > self.threshold
        if self.comparison == ">=":
            return value >= self.threshold
        return value < self.threshold if self.comparison == "<" else value <= self.threshold

    def applied(self, current: int) -> int:
        """The number of instances that it makes of `current`."""
        if self.action == "to":
            return self.count
        return current + self.count if self.action == "out" else current - self.count


@dataclass(frozen=True, slots=True)
class ScaleSchedule:
    """Bounds for some hours of some days, by the clock of a time zone; minutes from midnight, the end not included."""

    name: str
    days: tuple[int, ...]  # 0 is Monday
    start_minute: int
    end_minute: int  # at most 1440
    timezone: str  # IANA, e.g. Europe/Berlin
    min_instances: int
    max_instances: int
