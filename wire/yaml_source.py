"""YAML as people write it, read strictly: one small document, and the line of every field for messages.

Read from the parser's events, not with a loader: nothing is constructed, depth and size are bounded, and a
document means what it says (YAML 1.2's core scalars only: `no` is a text, `2024-01-01` too; a duplicate
field, an anchor, an alias, a tag or a second document is an error).
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import yaml

from core.errors import Invalid, TooLarge

MAX_BYTES = 256 * 1024
MAX_DEPTH = 16
_MAX_NODES = 20_000

Path = tuple[str | int, ...]

_FAST: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_INT: Final = re.compile(r"[-+]?[0-9]+")  # to the base of ten, whatever it begins with
_MAX_DIGITS = 18
_FLOAT: Final = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_NAMED: Final[dict[str, bool | None]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


@dataclass(frozen=True, slots=True)
class Document:
    """A document's value (str, int, float, bool, None, list, dict) and the line of each of its fields."""

    value: Any
    lines: dict[Path, int]

    def line(self, path: Path) -> int:
        """The line of `path`, or of the nearest field around it; 0 when lines are not known (JSON)."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 0)


def dotted(path: Path) -> str:
    """`("engine", "args", 0)` as people write it: `engine.args[0]`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def invalid(message: str, path: Path = (), line: int = 0) -> Invalid:
    """An Invalid that names the field and the line."""
    name = dotted(path)
    where = f"{name} (line {line})" if name and line else name or (f"line {line}" if line else "")
    return Invalid(
        f"{where}: {message}" if where else message,
        param=name or None,
        extra={"line": line} if line else None,
    )


def parse_yaml(source: bytes | str, max_bytes: int = MAX_BYTES, *, fast: bool = False) -> Document:
    """The one document in `source`, whatever its bytes: Invalid or TooLarge says what is wrong and where.

    `fast`: by libyaml where it is, ten times as fast; it takes some odd documents that YAML's specification and PyYAML
    do not, so it is for those whose text is known.
    """
    text = _decode(source, max_bytes)
    try:
        return _Reader(text, _FAST if fast else yaml.SafeLoader).document()
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise invalid(
            f"a character that YAML does not allow: U+{ord(text[error.position]):04X}", (), line
        ) from error
    except (ValueError, IndexError, RecursionError) as error:  # the parser's own slips on odd input
        raise invalid("this is not YAML") from error


def _decode(source: bytes | str, max_bytes: int) -> str:
    size = len(source) if isinstance(source, bytes) else len(source.encode("utf-8", "surrogatepass"))
    if size > max_bytes:
        raise TooLarge(f"the document has {size} bytes; at most {max_bytes} are allowed")
    if isinstance(source, str):
        return source.removeprefix("\ufeff")
    try:
        return source.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = source.count(b"\n", 0, error.start) + 1
        raise invalid(f"expected text in UTF-8, got byte 0x{source[error.start]:02x}", (), line) from error


def _syntax_error(error: yaml.MarkedYAMLError, text: str) -> Invalid:
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return invalid(f"this is not YAML: {error.problem or error.context}")
    row = text.splitlines()[mark.line : mark.line + 1]
    if row and "\t" in row[0][: mark.column + 1] and not row[0][: mark.column].strip():
        return invalid("a tab is used to indent; YAML allows only spaces there", (), mark.line + 1)
    context = f" {error.context}" if error.context else ""
    return invalid(f"this is not YAML:{context} {error.problem or ''}".rstrip(), (), mark.line + 1)


class _Reader:
    """Turns the events of one document into values."""

    def __init__(self, text: str, loader: Any) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=loader))
        self._lines: dict[Path, int] = {}

    def document(self) -> Document:
        next(self._events)  # the stream starts
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise invalid("the document is empty")
        value = self._node(next(self._events), ())
        next(self._events)  # the document ends
        event = next(self._events)
        if not isinstance(event, yaml.StreamEndEvent):
            raise invalid("expected one document, found a second", (), event.start_mark.line + 1)
        return Document(value, self._lines)

    def _node(self, event: Any, path: Path) -> Any:
        line = event.start_mark.line + 1
        self._lines.setdefault(path, line)
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise invalid("anchors (&) and aliases (*) are not allowed; write the value out", path, line)
        if event.tag is not None:
            raise invalid("tags (!) are not allowed; write the plain value", path, line)
        if len(path) > MAX_DEPTH or len(self._lines) > _MAX_NODES:
            raise invalid("nested too deeply or too long", path[:3], line)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(path)
        return _scalar(event, path, line)

    def _mapping(self, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
                raise invalid("a field's name must be a plain text", path, line)
            name = event.value
            if name == "<<" and event.implicit[0]:
                raise invalid("merge keys (<<) are not allowed; write the fields out", path, line)
            inner = (*path, name)
            if name in found:
                raise invalid(f"the field is given twice, first on line {self._lines[inner]}", inner, line)
            self._lines[inner] = line
            found[name] = self._node(next(self._events), inner)
        return found

    def _sequence(self, path: Path) -> list[Any]:
        found: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            found.append(self._node(event, (*path, len(found))))
        return found


def _scalar(event: Any, path: Path, line: int) -> Any:
    text: str = event.value
    if not event.implicit[0]:  # quoted, or a block of text
        return text
    if text in _NAMED:
        return _NAMED[text]
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > _MAX_DIGITS:
            said = f"a number of more than {_MAX_DIGITS} digits; put it in quotes if it is a text"
            raise invalid(said, path, line)
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
