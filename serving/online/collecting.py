"""What a deployment's `data_collector` asks for, as a document has it (R7.3)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from core.errors import Invalid
from wire.suggestions import unknown_name

Rolling = Literal["minute", "hour", "day", "month", "year"]
PAYLOADS: Final = ("request", "response")  # what the gateway collects; other names are a script's own
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MAX_COLLECTIONS: Final = 7  # these two, and at most five of a script


@dataclass(frozen=True, slots=True)
class Collecting:
    """Which payloads of which share of calls are kept, and how long one file goes on."""

    request: bool
    response: bool
    sampling_rate: float = 1.0  # 0 to 1
    rolling: Rolling = "hour"


def collecting(document: Mapping[str, Any] | None) -> tuple[Collecting | None, list[str]]:
    """What is asked for (None: nothing is collected), and notes on what has no effect. Invalid names the field."""
    if document is None:
        return None, []
    where = "data_collector"
    _known(document, ("sampling_rate", "rolling_rate", "request_logging", "collections"), where)
    rate = document.get("sampling_rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise Invalid(
            f"{where}.sampling_rate: expected a number from 0 to 1, got {rate!r:.40}",
            param=f"{where}.sampling_rate",
        )
    rolling = str(document.get("rolling_rate") or "hour").lower()
    if rolling not in get_args(Rolling):
        raise Invalid(
            f"{where}.rolling_rate: expected one of {', '.join(get_args(Rolling))}, got {rolling!r:.40}",
            param=f"{where}.rolling_rate",
        )
    enabled = _collections(document.get("collections"), f"{where}.collections")
    notes = []
    if document.get("request_logging"):
        notes.append(f"{where}.request_logging: headers are not collected, they may hold secrets")
    if not set(enabled) & set(PAYLOADS):
        return None, notes
    found = Collecting("request" in enabled, "response" in enabled, float(rate), rolling)  # type: ignore[arg-type]
    return found, notes


def script_collections(document: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a script's own `Collector` keeps: names, sample, how long a file goes on. Empty when it keeps nothing,
    and for a document that `collecting` refuses: one stored by an older version must not stop a deployment."""
    try:
        collecting(document)
        enabled = _collections((document or {}).get("collections"), "")
    except Invalid:
        return {}
    names = sorted(set(enabled) - set(PAYLOADS))
    if document is None or not names:
        return {}
    return {
        "collections": names,
        "rolling": str(document.get("rolling_rate") or "hour").lower(),
        "sampling_rate": float(document.get("sampling_rate", 1)),
    }


def _collections(given: object, where: str) -> list[str]:
    """Names of those that are enabled."""
    if given is None:
        return []
    if not isinstance(given, Mapping) or len(given) > MAX_COLLECTIONS:
        raise Invalid(f"{where}: expected at most {MAX_COLLECTIONS} collections by name", param=where)
    enabled = []
    for name, each in given.items():
        if not _NAME.fullmatch(str(name)):
            raise Invalid(
                f"{where}.{str(name)[:64]}: a collection's name has 1 to 64 letters, digits, - and _",
                param=f"{where}.{str(name)[:64]}",
            )
        if not isinstance(each, Mapping):
            raise Invalid(f"{where}.{name}: expected enabled: true or false", param=f"{where}.{name}")
        _known(each, ("enabled", "data"), f"{where}.{name}")
        flag = each.get("enabled", False)
        if str(flag).lower() not in ("true", "false"):  # Azure's examples write 'True' in quotes
            raise Invalid(
                f"{where}.{name}.enabled: expected true or false, got {flag!r:.40}",
                param=f"{where}.{name}.enabled",
            )
        if str(flag).lower() == "true":
            enabled.append(str(name))
    return enabled


def _known(document: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in document:
        if name not in names:
            raise Invalid(
                f"{where}.{name}: {unknown_name(str(name), names, 'field')}", param=f"{where}.{name}"
            )
