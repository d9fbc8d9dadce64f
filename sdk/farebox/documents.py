"""YAML documents of endpoints, deployments, models and environments: read strictly, with the line of every field.

Paths in a document are relative to its file; here they become absolute. What the fields mean is the server's matter.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from farebox.errors import FareboxConfigError

MAX_BYTES = 256 * 1024
_MAX_DEPTH = 16
_MAX_NODES = 20_000

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,40}|[0-9]{1,40}(\.[0-9]{0,40})?)([eE][-+]?[0-9]{1,3})?")
_NAMED: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}

# Where a document names a file or folder of this machine.
_PATHS = (
    ("path",),
    ("conda_file",),
    ("requirements_file",),
    ("build", "path"),
    ("model", "path"),
    ("code_configuration", "code"),
    ("inferencing_server", "code_configuration", "code"),
    ("environment", "conda_file"),
    ("environment", "requirements_file"),
    ("environment", "build", "path"),
)


class DocumentError(FareboxConfigError):
    """A document that cannot be read; the message names the file and the line."""


@dataclass
class Document:
    """The fields of a file, and on which line each is, by dotted name."""

    value: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)
    source: str = ""

    def line(self, param: str | None) -> int:
        """The line of a field that the server named, or of the one around it; 0 when it is not in the file."""
        name = param or ""
        while name:
            if name in self.lines:
                return self.lines[name]
            name = name.rpartition(".")[0]
        return 0

    def where(self, param: str | None) -> str:
        """`blue.yml, line 7`, or just the file."""
        line = self.line(param)
        return f"{self.source}, line {line}" if line else self.source


def load(path: str | Path) -> Document:
    """The document in the file; DocumentError says what is wrong with it, and on which line."""
    file = Path(path)
    try:
        with open(file, "rb") as reader:
            content = reader.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise DocumentError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    document = parse(content, str(path))
    _absolute(document.value, file.parent.absolute())
    for name in ("model", "environment"):
        reference = document.value.get(name)
        if isinstance(reference, str) and reference.startswith("file:"):
            inner = load(file.parent / reference.removeprefix("file:").removeprefix("//"))
            document.value[name] = inner.value
    return document


def parse(content: bytes, source: str) -> Document:
    """The one mapping in `content`."""
    import yaml

    if len(content) > MAX_BYTES:
        raise DocumentError(f"{source}: is larger than {MAX_BYTES // 1024} KiB; is it the right file?")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError(f"{source}, line {line}: expected text in UTF-8") from None
    reader = _Reader(text, source)
    try:
        value = reader.read()
    except DocumentError:  # a ValueError too, and says all of it
        raise
    except yaml.MarkedYAMLError as error:
        raise _syntax_error(error, text, source) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"{source}: this is not YAML: {error}") from None
    if not isinstance(value, dict):
        raise DocumentError(f"{source}: expected fields such as `name: blue`, got {type(value).__name__}")
    return Document(value, reader.lines, source)


def set_fields(document: dict[str, Any], settings: Sequence[str]) -> None:
    """Put `a.b=c`, as from `--set`, into the document. The value is read as YAML: `2` is a number, `"2"` a text."""
    for setting in settings:
        name, separator, text = setting.partition("=")
        steps = name.strip().split(".")
        if not separator or not all(steps):
            raise FareboxConfigError(
                f"--set {setting}: expected field=value, e.g. instance_count=2 or tags.team=a"
            )
        inner = document
        for step in steps[:-1]:
            found = inner.setdefault(step, {})
            if not isinstance(found, dict):
                raise FareboxConfigError(f"--set {setting}: {step} is {found!r:.60}, which has no fields")
            inner = found
        inner[steps[-1]] = _value(text, setting)


def _value(text: str, setting: str) -> Any:
    import yaml

    try:
        return _Reader(text, "--set").read() if text.strip() else ""
    except (yaml.YAMLError, ValueError, DocumentError):
        raise FareboxConfigError(
            f"--set {setting}: the value is not YAML; put it in quotes if it is a text"
        ) from None


def absolute_paths(document: dict[str, Any]) -> None:
    """Paths that are relative to where we are become absolute."""
    _absolute(document, Path.cwd())


def _absolute(document: dict[str, Any], base: Path) -> None:
    for steps in _PATHS:
        inner: Any = document
        for step in steps[:-1]:
            inner = inner.get(step) if isinstance(inner, Mapping) else None
        written = inner.get(steps[-1]) if isinstance(inner, dict) else None
        if not isinstance(written, str) or not written or "://" in written or written.startswith("azureml:"):
            continue
        inner[steps[-1]] = str((base / Path(written.removeprefix("file:")).expanduser()).resolve())


def _syntax_error(error: Any, text: str, source: str) -> DocumentError:
    mark: Any = error.problem_mark or error.context_mark
    if mark is None:
        return DocumentError(f"{source}: this is not YAML: {error.problem or error.context}")
    row = text.splitlines()[mark.line : mark.line + 1]
    if row and "\t" in row[0][: mark.column + 1] and not row[0][: mark.column].strip():
        return DocumentError(f"{source}, line {mark.line + 1}: a tab is used to indent; use spaces there")
    context = f" {error.context}" if error.context else ""
    return DocumentError(
        f"{source}, line {mark.line + 1}: this is not YAML:{context} {error.problem or ''}".rstrip()
    )


class _Reader:
    """Turns the parser's events into values: nothing is constructed, and every field's line is known."""

    def __init__(self, text: str, source: str) -> None:
        import yaml

        self._yaml = yaml
        self._events: Iterator[Any] = iter(yaml.parse(text, Loader=yaml.SafeLoader))
        self._source = source
        self.lines: dict[str, int] = {}
        self._nodes = 0

    def read(self) -> Any:
        next(self._events)
        if isinstance(next(self._events), self._yaml.StreamEndEvent):
            raise DocumentError(f"{self._source}: is empty")
        value = self._node(next(self._events), "", 0)
        next(self._events)
        event: Any = next(self._events)
        if not isinstance(event, self._yaml.StreamEndEvent):
            raise self._error(event, "", "expected one document, found a second; put it in a file of its own")
        return value

    def _node(self, event: Any, name: str, depth: int) -> Any:
        self._nodes += 1
        if isinstance(event, self._yaml.AliasEvent) or event.anchor is not None:
            raise self._error(event, name, "anchors (&) and aliases (*) are not allowed; write the value out")
        if event.tag is not None:
            raise self._error(event, name, "tags (!) are not allowed; write the plain value")
        if depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise self._error(event, name, "nested too deeply or too long")
        if isinstance(event, self._yaml.MappingStartEvent):
            return self._mapping(name, depth)
        if isinstance(event, self._yaml.SequenceStartEvent):
            found: list[Any] = []
            while not isinstance(event := next(self._events), self._yaml.SequenceEndEvent):
                found.append(self._node(event, f"{name}.{len(found)}".removeprefix("."), depth + 1))
            return found
        return self._scalar(event)

    def _mapping(self, name: str, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        event: Any
        while not isinstance(event := next(self._events), self._yaml.MappingEndEvent):
            if not isinstance(event, self._yaml.ScalarEvent) or event.anchor is not None:
                raise self._error(event, name, "a field's name must be a plain text")
            if event.value == "<<" and event.implicit[0]:
                raise self._error(event, name, "merge keys (<<) are not allowed; write the fields out")
            inner = f"{name}.{event.value}".removeprefix(".")
            if event.value in found:
                raise self._error(
                    event, inner, f"the field is given twice, first on line {self.lines[inner]}"
                )
            mark: Any = event.start_mark
            self.lines[inner] = mark.line + 1
            found[event.value] = self._node(next(self._events), inner, depth + 1)
        return found

    def _scalar(self, event: Any) -> Any:
        """Numbers, true and false and null as YAML 1.2 has them: `no` and `2024-01-01` are texts."""
        text: str = event.value
        if not event.implicit[0]:
            return text
        if text in _NAMED:
            return _NAMED[text]
        if _INT.fullmatch(text):
            return int(text)
        # 012 is no number: more likely a version, or a date.
        return float(text) if _FLOAT.fullmatch(text) and not text.isdigit() else text

    def _error(self, event: Any, name: str, message: str) -> DocumentError:
        where = f"{self._source}, line {event.start_mark.line + 1}"
        return DocumentError(f"{where}: {name}: {message}" if name else f"{where}: {message}")
