"""Prometheus' text format, version 0.0.4. Pure."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = tuple[tuple[str, str], ...]
Kind = Literal["counter", "gauge", "histogram"]
Sample = tuple[str, Labels, int | float]
"""Suffix of the name, labels, value."""


class Family(NamedTuple):
    """One metric with all its series."""

    name: str
    kind: Kind
    text: str
    samples: Iterable[Sample]


def render(families: Iterable[Family]) -> Iterator[str]:
    """Line by line, so that who serves calls beside it can pause."""
    for name, kind, text, samples in families:
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
        for suffix, labels, value in samples:
            quoted = ",".join(f'{key}="{_quote(each)}"' for key, each in labels)
            yield f"{name}{suffix}{{{quoted}}} {value!r}\n" if quoted else f"{name}{suffix} {value!r}\n"


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
