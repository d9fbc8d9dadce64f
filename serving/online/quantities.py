"""Amounts as Kubernetes and Azure ML write them: `500m` of a core, `1.5Gi` of memory, `PT1S` of time."""

import re
from decimal import Decimal
from typing import Final

from core.errors import Invalid

_NUMBER: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(m|[KMGTP]i?|k)?")
_UNITS: Final = {"": 1, "k": 10**3, "K": 10**3} | {
    f"{letter}{binary}": (1024 if binary else 1000) ** (power + 1)
    for power, letter in enumerate("KMGTP")
    for binary in ("", "i")
}
_DURATION: Final = re.compile(r"PT(?:(\d{1,3})H)?(?:(\d{1,4})M)?(?:(\d{1,6})S)?")


def cpu_milli(value: object, param: str) -> int:
    """Thousandths of a core of `2`, `"0.5"` or `"500m"`."""
    number, unit = _split(value, param, 'a number of cores such as "0.5" or "500m"')
    if unit not in ("", "m"):
        raise Invalid(f'{param}: expected cores such as "0.5" or "500m", got {value!r:.40}', param=param)
    return int(number if unit == "m" else number * 1000)


def memory_bytes(value: object, param: str) -> int:
    """Bytes of `"512Mi"`, `"1.5Gi"`, `"1G"` or a plain number."""
    number, unit = _split(value, param, 'an amount of memory such as "512Mi" or "1.5Gi"')
    if unit == "m":
        raise Invalid(
            f'{param}: expected memory such as "512Mi" (with a capital M), got {value!r:.40}', param=param
        )
    return int(number * _UNITS[unit])


def gpu_count(value: object, param: str) -> int:
    """Whole GPUs."""
    number, unit = _split(value, param, 'a whole number of GPUs such as "1"')
    if unit or number != int(number):
        raise Invalid(f'{param}: expected a whole number of GPUs such as "1", got {value!r:.40}', param=param)
    return int(number)


def duration_s(value: object, param: str) -> int:
    """Seconds of a number or of ISO 8601's `PT1M30S`."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**7:
        return value
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    parts = [int(part or 0) for part in found.groups()] if found else [0, 0, 0]
    seconds = parts[0] * 3600 + parts[1] * 60 + parts[2]
    if seconds <= 0:
        raise Invalid(f"{param}: expected seconds, as 10 or PT10S, got {value!r:.40}", param=param)
    return seconds


def _split(value: object, param: str, expected: str) -> tuple[Decimal, str]:
    found = None if isinstance(value, bool) else _NUMBER.fullmatch(str(value).strip()[:60])
    if found is None:
        raise Invalid(f"{param}: expected {expected}, got {value!r:.40}", param=param)
    return Decimal(found[1]), found[2] or ""
