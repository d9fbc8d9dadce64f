"""Reading fields one by one from an untrusted document: each refusal names the dotted field and its line."""

import math
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from core.errors import Invalid
from wire.suggestions import suggest, unknown_name
from wire.yaml_source import Document, Path, invalid

_T = TypeVar("_T", bound=str)

_KINDS = {str: "a text", bool: "true or false", int: "a whole number", float: "a number", list: "a list"}


class Fields:
    """One mapping of the document. Every field must be in `known`; a field that is null counts as absent."""

    def __init__(self, document: Document, path: Path, known: Sequence[str]) -> None:
        self._document = document
        self._path = path
        value = document.value
        for step in path:
            value = value[step]
        if not isinstance(value, dict):
            raise self.wrong(None, f"expected fields ({', '.join(known[:6])}…), got {describe(value)}")
        for name in value:
            if name not in known:
                raise self.wrong(name, unknown_name(name, known))
        self._values = {name: inner for name, inner in value.items() if inner is not None}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def wrong(self, name: str | None, message: str) -> Invalid:
        """The error to raise for field `name` (None: the mapping itself)."""
        path = self._path if name is None else (*self._path, name)
        return invalid(message, path, self._document.line(path))

    def inner(self, name: str, known: Sequence[str]) -> "Fields | None":
        """The mapping in field `name`."""
        return Fields(self._document, (*self._path, name), known) if name in self else None

    def text(
        self, name: str, *, limit: int = 200, pattern: str = "", expected: str = "", needed: bool = False
    ) -> str:
        """A text on one line, trimmed; `expected` words the pattern for people."""
        value = self._one(name, str, needed)
        if value is None:
            return ""
        text = str(value).strip()
        if needed and not text:
            raise self.wrong(name, "must not be empty")
        if len(text) > limit:
            raise self.wrong(name, f"expected at most {limit} characters, got {len(text)}")
        if not text.isprintable():
            raise self.wrong(name, "expected one line of printable characters")
        if text and pattern and not re.fullmatch(pattern, text):
            raise self.wrong(name, f"expected {expected}, got {text!r}")
        return text

    def prose(self, name: str, *, limit: int) -> str:
        """A text of several lines."""
        value = self._one(name, str, needed=False)
        text = "" if value is None else " ".join(str(value).split())
        if len(text) > limit:
            raise self.wrong(name, f"expected at most {limit} characters, got {len(text)}")
        return text

    def choice(self, name: str, choices: Sequence[_T], *, default: _T | None = None) -> _T:
        """One of `choices`; needed when there is no default."""
        value = self._one(name, str, needed=default is None)
        if value is None:
            assert default is not None
            return default
        for choice in choices:
            if value == choice:
                return choice
        close = suggest(str(value), choices)
        hint = f", did you mean {close!r}?" if close else ""
        raise self.wrong(name, f"expected one of {', '.join(choices)}; got {str(value)[:80]!r}{hint}")

    def flag(self, name: str) -> bool:
        """true or false; false when absent."""
        return bool(self._one(name, bool, needed=False))

    def whole(self, name: str, *, low: int, high: int, needed: bool = False) -> int:
        """A whole number in a range; 0 when absent."""
        value = self._one(name, int, needed)
        if value is None:
            return 0
        assert isinstance(value, int)
        if not low <= value <= high:
            raise self.wrong(name, f"expected {low} to {high}, got {value}")
        return value

    def number(self, name: str, *, high: float) -> float:
        """A number over 0, at most `high`; 0 when absent."""
        value = self._one(name, float, needed=False)
        if value is None:
            return 0
        assert isinstance(value, int | float)
        if not (math.isfinite(value) and 0 < value <= high):
            raise self.wrong(name, f"expected more than 0, at most {high:g}, got {value}")
        return float(value)

    def texts(
        self, name: str, *, most: int, limit: int, pattern: str = r"(?s)[^\0]*", expected: str = "a text"
    ) -> tuple[str, ...]:
        """A list of texts of one form; `expected` words the pattern for people."""
        values = self._one(name, list, needed=False)
        if values is None:
            return ()
        assert isinstance(values, list)
        if len(values) > most:
            raise self.wrong(name, f"expected at most {most} entries, got {len(values)}")
        for i, value in enumerate(values):
            good = isinstance(value, str) and 0 < len(value) <= limit and _is_text(value)
            if not good or not re.fullmatch(pattern, value):
                path = (*self._path, name, i)
                message = f"expected {expected} of 1 to {limit} characters, got {describe(value)}"
                raise invalid(message, path, self._document.line(path))
        return tuple(values)

    def price(self, name: str, parse: Callable[[object], int]) -> int | None:
        """A price in pico-dollars; None when absent."""
        if name not in self:
            return None
        value = self._values[name]
        if isinstance(value, float | int) and not isinstance(value, bool):
            raise self.wrong(
                name, f'put the price in quotes: "{_plain(value)}" (a bare number may lose digits)'
            )
        try:
            return parse(value)
        except ValueError as error:
            raise self.wrong(name, str(error)) from error

    def _one(self, name: str, kind: type, needed: bool) -> object:
        if name not in self._values:
            if needed:
                raise self.wrong(name, "the field is missing")
            return None
        value = self._values[name]
        if isinstance(value, str) and not _is_text(value):
            raise self.wrong(name, "expected Unicode text, got half of a surrogate pair")
        allowed = (int, float) if kind is float else (kind,)
        if not isinstance(value, allowed) or (isinstance(value, bool) and kind is not bool):
            hint = "; put it in quotes" if kind is str and isinstance(value, int | float) else ""
            raise self.wrong(name, f"expected {_KINDS[kind]}, got {describe(value)}{hint}")
        return value


def describe(value: object) -> str:
    """A value in a message: its kind and, when short, itself."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _is_text(value: str) -> bool:
    """False for a lone surrogate, which JSON can express and no encoding can store."""
    return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)


def _plain(value: float) -> str:
    return f"{value:.12f}".rstrip("0").rstrip(".") if abs(value) < 1e9 else str(value)
