"""Changing some fields of a document."""

from collections.abc import Mapping
from typing import Any

_WHOLE = frozenset({"model", "environment", "traffic", "mirror_traffic", "data_collector"})


def merge_patch(document: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with the fields of `patch`, within objects too (RFC 7396); null removes a field.

    A model, an environment, a split and a data collector are replaced as a whole: half of two makes none.
    """
    return _merge(document, patch, _WHOLE)


def _merge(document: Mapping[str, Any], patch: Mapping[str, Any], whole: frozenset[str]) -> dict[str, Any]:
    merged = dict(document)
    for name, value in patch.items():
        before = merged.get(name)
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(before, Mapping) and name not in whole:
            merged[name] = _merge(before, value, frozenset())
        else:
            merged[name] = value
    return merged
