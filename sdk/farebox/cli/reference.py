"""`docs/cli.md`, written from the commands themselves: `python -m farebox.cli.reference > docs/cli.md`."""

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

import click

from farebox.cli.framework import ENVIRONMENT, EXIT_CODES, Command, Group
from farebox.cli.main import cli

_INTRODUCTION = """\
# The command line `farebox`

Written by `python -m farebox.cli.reference > docs/cli.md`; change the commands, not this file.

`farebox up`, `farebox engine` and `farebox demo` belong to the platform and need it installed beside the
command line. Everything else talks to a running server over HTTP and works from anywhere.

## Answers

- `-o table` is for people.
- `-o json` prints exactly the API's JSON and nothing else on stdout; `-o yaml` prints the same as YAML.
- `-o tsv` prints tab-separated values without a heading; for one object, a name and a value on each line.
  Tabs, line breaks and backslashes in a value become `\\t`, `\\n` and `\\\\`.

The default is a table on a terminal and JSON elsewhere, so a script that captures stdout reads JSON without
asking. Commands that answer with a text (`chat`, `get-logs`, `version`) print that text unless `-o` is given.
Notes, questions and errors go to stderr. Lists are fetched whole, except `receipts`, which has pages.

`--query` prints a part of the answer, chosen with JMESPath: a text is printed bare with `-o tsv`.

`-o`, `--query`, `--url` and `--api-key` may stand before or after the command's name. Amounts of money are exact decimal
texts in US dollars, never floats.

## Errors

One screen on stderr: what happened, the field it is about, what to do next, the request id to look for in the
server's log. `FAREBOX_DEBUG=1` adds a traceback where the command line itself is at fault.
"""


def reference() -> str:
    """The whole document."""
    parts = [_INTRODUCTION]
    parts.append(_table("Exit codes", ("code", "meaning"), EXIT_CODES))
    parts.append(_table("Environment", ("variable", "meaning"), ENVIRONMENT))
    parts.append("## Options of every command\n\n" + _options(cli))
    parts.append("## Commands\n")
    parts += [_section(path, command) for path, command in walk(cli, "farebox")]
    return "\n".join(parts)


def walk(group: click.Group, path: str) -> Iterator[tuple[str, click.Command]]:
    """Every command that can be run, with its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from walk(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


def _section(path: str, command: click.Command) -> str:
    arguments = " ".join(_metavar(each) for each in command.params if isinstance(each, click.Argument))
    lines = [
        f"### {path}",
        "",
        f"    {path} {arguments}".rstrip() + (" [OPTIONS]" if _own(command) else ""),
        "",
    ]
    lines += [cleandoc(command.help or ""), ""]
    options = _options(command)
    if options:
        lines += [options]
    if isinstance(command, Command | Group) and command.examples:
        lines += ["Examples:", "", *(f"    {example}" for example in command.examples), ""]
    return "\n".join(lines)


def _own(command: click.Command) -> list[click.Option]:
    shared = {"output", "query", "url", "api_key"} if command is not cli else set()
    return [each for each in command.params if isinstance(each, click.Option) and each.name not in shared]


def _options(command: click.Command) -> str:
    options = _own(command)
    if not options:
        return ""
    rows = [f"| `{_names(each)}` | {_describe(each)} |" for each in options]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows, ""])


def _names(option: click.Option) -> str:
    names = ", ".join(sorted(option.opts, key=len))
    return names if option.is_flag else f"{names} {_metavar(option)}"


def _describe(option: click.Option) -> str:
    text = option.help or ""
    if isinstance(option.type, click.Choice):
        text = f"{text} One of: {', '.join(map(str, option.type.choices))}.".strip()
    if option.show_default:
        text = f"{text} Default: {option.default}.".strip()
    if option.required:
        text = f"{text} Required."
    return text.replace("|", "\\|")


def _metavar(parameter: click.Parameter) -> str:
    kinds: dict[type[Any], str] = {click.IntRange: "N", click.FloatRange: "X", click.Choice: "KIND"}
    text = parameter.metavar or (
        kinds.get(type(parameter.type))
        if isinstance(parameter, click.Option)
        else (parameter.name or "").upper()
    )
    text = text or (parameter.name or "").upper()
    if parameter.nargs == -1:
        return f"[{text}]…"
    return text if parameter.required or isinstance(parameter, click.Option) else f"[{text}]"


def _table(title: str, heads: tuple[str, str], rows: tuple[tuple[str, str], ...]) -> str:
    lines = [f"## {title}", "", f"| {heads[0]} | {heads[1]} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {meaning} |" for name, meaning in rows), ""])


if __name__ == "__main__":
    print(reference(), end="")
