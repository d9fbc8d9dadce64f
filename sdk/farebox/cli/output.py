"""Printing answers: aligned tables for people, the API's own JSON for programs, YAML, and TSV for `cut`."""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from farebox.cli.framework import State, is_terminal, note

# Never folded, on a terminal neither: an id or an address in pieces cannot be copied.
_WIDTH = 10_000


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list: a dotted path into the row or a function of it. `number` aligns at the point."""

    title: str
    value: str | Callable[[Mapping[str, Any]], object]
    number: bool = False

    def of(self, row: Mapping[str, Any]) -> str:
        raw = member(row, self.value) if isinstance(self.value, str) else self.value(row)
        return show(raw)


def print_list(state: State, rows: Sequence[Any], columns: Sequence[Column], *, empty: str) -> None:
    """A list: JSON and YAML as the API's `{"data": …, "next": null}`. `empty` says what to do next."""
    if not print_data(state, {"data": list(rows), "next": None}):
        print_rows(state, rows, columns, empty=empty)


def print_rows(
    state: State, rows: Sequence[Mapping[str, Any]], columns: Sequence[Column], *, empty: str = ""
) -> None:
    """The rows as a table or TSV, whichever is asked for."""
    cells = [[column.of(row) for column in columns] for row in rows]
    if state.output_format() == "tsv":
        for line in cells:
            click.echo("\t".join(_tsv(cell) for cell in line), color=True)
    elif not cells:
        note(empty)
    else:
        print_table([column.title for column in columns], cells, [column.number for column in columns])


def print_object(state: State, value: Any, *, skip: Sequence[str] = ()) -> None:
    """One thing: its members as a table of two columns, nested ones with dots."""
    if print_data(state, value):
        return
    shown = (
        {name: inner for name, inner in value.items() if name not in skip}
        if isinstance(value, dict)
        else value
    )
    pairs = flatten(shown)
    if state.output_format() == "tsv":
        for name, text in pairs:
            click.echo(f"{_tsv(name)}\t{_tsv(text)}", color=True)
    elif pairs:
        width = max(len(name) for name, _ in pairs)
        for name, text in pairs:
            first, *rest = text.split("\n")
            click.echo(f"{clean(name).ljust(width)}  {clean(first)}".rstrip())
            for line in rest:
                click.echo(f"{'':{width}}  {clean(line)}".rstrip())


def print_done(state: State, answer: Any, text: str) -> None:
    """What became of a thing that is no more: a sentence for people, the API's answer for programs."""
    if not print_data(state, answer):
        click.echo(text)


def print_data(state: State, value: Any) -> bool:
    """Prints JSON or YAML if that is asked for, or what `--query` asks for, and says whether it did."""
    if state.query is not None:
        query, state.query = state.query, None
        _print_part(state, _search(query, value))
        return True
    kind = state.output_format()
    if kind == "json":
        import json

        click.echo(json.dumps(value, indent=2, ensure_ascii=not _speaks_unicode()))
        return True
    if kind == "yaml":
        import yaml

        click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)
        return True
    return False


def _search(query: str, value: Any) -> Any:
    import jmespath

    try:
        return jmespath.search(query, value)
    except jmespath.exceptions.JMESPathError as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise click.UsageError(f"--query {query}: {reason}") from None


def _print_part(state: State, part: Any) -> None:
    """A part of an answer, of whatever form."""
    if print_data(state, part):
        return
    if isinstance(part, list) and part and all(isinstance(row, dict) for row in part):
        names = list(dict.fromkeys(name for row in part for name in row))
        columns = [Column(name, lambda row, name=name: row.get(name)) for name in names]  # type: ignore[misc]
        print_rows(state, part, columns)
    elif isinstance(part, dict):
        print_object(state, part)
    else:
        for each in part if isinstance(part, list) else [part]:
            text = show(each)
            click.echo(_tsv(text) if state.output_format() == "tsv" else clean(text), color=True)


def _speaks_unicode() -> bool:
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def print_table(
    titles: Sequence[str], cells: Sequence[Sequence[str]], numbers: Sequence[bool], *, footer_rows: int = 0
) -> None:
    """An aligned table on stdout; the last `footer_rows` rows are set apart as totals."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    styled = is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold" if styled else "")
    columns = [
        _numbers(title, [row[i] for row in cells])
        if numbers[i]
        else [clean(text) for text in (title, *column)]
        for i, (title, column) in enumerate(zip(titles, zip(*cells, strict=True), strict=True))
    ]
    for title, *_ in columns:
        table.add_column(Text(title), no_wrap=True)
    for index in range(len(cells)):
        row = (Text(column[index + 1]) for column in columns)
        table.add_row(*row, end_section=index == len(cells) - footer_rows - 1)
    console = Console(file=sys.stdout, highlight=False, width=_WIDTH)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def _numbers(title: str, texts: Sequence[str]) -> list[str]:
    """The title and its numbers, padded to one width: Rich itself would drop the blanks behind a number."""
    aligned = [title, *align_points([clean(text) for text in texts])]
    width = max(map(len, aligned))
    return [text.rjust(width) for text in aligned]


def align_points(texts: Sequence[str]) -> list[str]:
    """Numbers with blanks behind them, so that right-aligned their decimal points stand under each other."""
    tails = [len(text) - text.index(".") if "." in text else 0 for text in texts]
    longest = max(tails, default=0)
    return [text + " " * (longest - tail) for text, tail in zip(texts, tails, strict=True)]


def member(row: Mapping[str, Any], path: str) -> object:
    """The member at a dotted path; None where something on the way is missing."""
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def show(value: object) -> str:
    """A value for people."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={show(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(show(inner) for inner in value)
    return str(value)


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted names and shown values of a nested object; empty members are left out."""
    if not isinstance(value, Mapping):
        return [(prefix or "value", show(value))]
    pairs: list[tuple[str, str]] = []
    for name, inner in value.items():
        path = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(inner, Mapping):
            pairs += flatten(inner, path)
        elif isinstance(inner, list) and inner and all(isinstance(item, Mapping) for item in inner):
            for index, item in enumerate(inner):
                pairs += flatten(item, f"{path}[{index}]")
        elif inner is not None and inner != [] and inner != "":
            pairs.append((path, show(inner)))
    return pairs


def clean(text: str, *, keep: str = "") -> str:
    """Without control characters, which a name or an answer could use to play with the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else "�" for c in text)


def write_text(text: str) -> None:
    """A piece of text as it arrives; on a terminal without control characters."""
    if is_terminal(sys.stdout):
        text = clean(text, keep="\n\t")
    click.echo(text, nl=False, color=True)  # color: click would take escape sequences out of what is piped


def _tsv(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
