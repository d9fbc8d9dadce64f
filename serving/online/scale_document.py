"""`scale_settings` as a deployment's file has it, and back."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final
from zoneinfo import ZoneInfo

from core.errors import Invalid
from serving.online import quantities
from serving.online.scaling import DAYS, METRICS, ScaleRule, ScaleSchedule
from serving.online.spec import ScaleSettings

_CONDITION: Final = re.compile(
    r"(\w{1,60}) *(>=|<=|>|<) *(\d{1,9}(?:\.\d{1,6})?) +(avg|max|min) +(\d{1,3})([mh])"
)
_SCALE: Final = re.compile(r"(out|in|to) +(\d{1,2})")
_TIME: Final = re.compile(r"(\d{2}):(\d{2})")
_WINDOW_MAX_S: Final = 3600
_WHERE: Final = "scale_settings"


def scale_settings(document: Mapping[str, Any]) -> ScaleSettings:
    """The settings that `document` means; Invalid names the field and what was expected."""
    given = dict(document)
    kind = given.pop("type", "default")
    interval = given.pop("polling_interval", None)
    if interval is not None:
        given["polling_interval_s"] = quantities.duration_s(interval, f"{_WHERE}.polling_interval")
    rules = [_rule(each, f"{_WHERE}.rules[{at}]") for at, each in enumerate(given.pop("rules", None) or ())]
    schedules = [
        _schedule(each, f"{_WHERE}.schedules[{at}]")
        for at, each in enumerate(given.pop("schedules", None) or ())
    ]
    made = ScaleSettings(kind=kind, rules=tuple(rules), schedules=tuple(schedules), **given)
    _check(made)
    return made


def rule_document(rule: ScaleRule) -> dict[str, Any]:
    """The rule as a file has it."""
    return {
        "condition": f"{rule.metric} {rule.comparison} {rule.threshold:g} {rule.statistic} {rule.window_s // 60}m",
        "scale": f"{rule.action} {rule.count}",
        "cooldown": rule.cooldown_s,
    }


def schedule_document(schedule: ScaleSchedule) -> dict[str, Any]:
    """The schedule as a file has it."""
    return {
        "name": schedule.name,
        "days": [DAYS[day] for day in schedule.days],
        "start": _time_text(schedule.start_minute),
        "end": _time_text(schedule.end_minute),
        "timezone": schedule.timezone,
        "min_instances": schedule.min_instances,
        "max_instances": schedule.max_instances,
    }


def _check(made: ScaleSettings) -> None:
    if made.kind == "default":
        for field in ("rules", "schedules"):
            if getattr(made, field):
                raise Invalid(f"{_WHERE}.{field}: needs type: rules", param=f"{_WHERE}.{field}")
        return
    if made.max_instances < max(1, made.min_instances):
        raise Invalid(
            f"{_WHERE}.max_instances: {made.max_instances} is below min_instances, {made.min_instances}",
            param=f"{_WHERE}.max_instances",
        )
    if made.default_instances and not made.min_instances <= made.default_instances <= made.max_instances:
        raise Invalid(
            f"{_WHERE}.default_instances: expected {made.min_instances} to {made.max_instances}, got "
            f"{made.default_instances}",
            param=f"{_WHERE}.default_instances",
        )
    if made.kind == "rules" and not made.rules and not made.schedules:
        raise Invalid(f"{_WHERE}.rules: expected rules or schedules for type: rules", param=f"{_WHERE}.rules")
    if made.kind != "rules" and made.rules:
        raise Invalid(f"{_WHERE}.rules: needs type: rules", param=f"{_WHERE}.rules")


def _rule(document: Mapping[str, Any], where: str) -> ScaleRule:
    text = " ".join(str(document["condition"]).split())
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise Invalid(
            f'{where}.condition: expected e.g. "CpuUtilizationPercentage > 70 avg 5m", got {text!r:.100}',
            param=f"{where}.condition",
        )
    metric, comparison, threshold, statistic, length, unit = found.groups()
    if metric not in METRICS:
        raise Invalid(
            f"{where}.condition: there is no metric {metric!r}; expected one of {', '.join(METRICS)}",
            param=f"{where}.condition",
        )
    window_s = int(length) * (60 if unit == "m" else 3600)
    if not 60 <= window_s <= _WINDOW_MAX_S:
        raise Invalid(
            f"{where}.condition: expected 1m to 60m, got {length}{unit}", param=f"{where}.condition"
        )
    scale = _SCALE.fullmatch(" ".join(str(document["scale"]).split()))
    if scale is None or not 1 <= int(scale[2]) <= 50:
        raise Invalid(
            f'{where}.scale: expected "out N", "in N" or "to N" with N from 1 to 50, got {document["scale"]!r:.60}',
            param=f"{where}.scale",
        )
    cooldown = document.get("cooldown")
    cooldown_s = 300 if cooldown is None else quantities.duration_s(cooldown, f"{where}.cooldown")
    return ScaleRule(
        metric,
        comparison,  # type: ignore[arg-type]  # the pattern has no others
        float(threshold),
        statistic,  # type: ignore[arg-type]
        window_s,
        scale[1],  # type: ignore[arg-type]
        int(scale[2]),
        cooldown_s,
    )


def _schedule(document: Mapping[str, Any], where: str) -> ScaleSchedule:
    start, end = (_minute(document[name], f"{where}.{name}") for name in ("start", "end"))
    if start >= end:
        raise Invalid(
            f"{where}.end: expected a time after start; what goes over midnight is two schedules",
            param=f"{where}.end",
        )
    low, high = document["min_instances"], document["max_instances"]
    if low > high:
        raise Invalid(
            f"{where}.max_instances: {high} is below min_instances, {low}", param=f"{where}.max_instances"
        )
    zone = document.get("timezone") or "UTC"
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, KeyError):  # ZoneInfoNotFoundError is a KeyError
        raise Invalid(
            f"{where}.timezone: expected an IANA name such as Europe/Berlin, got {zone!r:.60}",
            param=f"{where}.timezone",
        ) from None
    return ScaleSchedule(
        document.get("name") or "", _days(document.get("days"), f"{where}.days"), start, end, zone, low, high
    )


def _days(given: Sequence[str] | None, where: str) -> tuple[int, ...]:
    if given is None:
        return tuple(range(7))
    days = []
    for each in given:
        match = [at for at, name in enumerate(DAYS) if len(each) >= 3 and name.startswith(each.lower())]
        if not match:
            raise Invalid(f"{where}: expected days such as monday or mon, got {each!r:.30}", param=where)
        days += match
    if not days:
        raise Invalid(f"{where}: expected at least one day; left out it means every day", param=where)
    return tuple(sorted(set(days)))


def _minute(value: object, where: str) -> int:
    found = _TIME.fullmatch(str(value))
    minute = int(found[1]) * 60 + int(found[2]) if found and int(found[2]) < 60 else -1
    if not 0 <= minute <= 1440:
        # YAML reads 08:00 without quotes as a number of minutes.
        raise Invalid(f'{where}: expected a time in quotes such as "08:00", got {value!r:.30}', param=where)
    return minute


def _time_text(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
