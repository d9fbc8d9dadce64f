"""What every command shares: options, examples in the help, the connection, exit codes."""

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from farebox.client import Client

FORMATS = ("table", "json", "yaml", "tsv")

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_AUTHENTICATION = 4
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141

EXIT_CODES = (
    ("0", "done"),
    ("1", "the server refused (its message says why)"),
    ("2", "wrong use of the command line, a file that cannot be read, a question answered no"),
    ("3", "cannot connect"),
    ("4", "authentication: the key is missing, wrong, expired or revoked, or may not do this"),
    ("130", "Ctrl-C"),
    ("141", "the reader of a pipe went away"),
)

ENVIRONMENT = (
    ("FAREBOX_URL", "the server; default http://127.0.0.1:8080"),
    (
        "FAREBOX_API_KEY",
        "the key; for a server on this machine, default: the contents of FAREBOX_HOME/admin.key",
    ),
    ("FAREBOX_HOME", "the platform's folder; default ~/.farebox"),
    ("FAREBOX_OUTPUT", "default of -o"),
    ("NO_COLOR", "no colours"),
)


@dataclass
class State:
    """The options in force, and the client once a command asked for it."""

    url: str | None = None
    api_key: str | None = None
    output: str | None = None
    query: str | None = None
    _client: "Client | None" = field(default=None, repr=False)

    @property
    def client(self) -> "Client":
        """Made on first use: a command that only prints help must not pay for it."""
        if self._client is None:
            from farebox.client import Client

            self._client = Client(self.url, self.api_key)
        return self._client

    @property
    def key_source(self) -> str:
        """Where the key in use came from, for messages."""
        return self._client.connection.key_source if self._client else ""

    def output_format(self, *, text_by_default: bool = False) -> str:
        """`-o`, else FAREBOX_OUTPUT, else a table for people and JSON for programs.

        Commands whose answer is a text (a chat, a log) print that by default: the empty format.
        """
        if self.output:
            return self.output
        if text_by_default:
            return ""
        preferred = os.environ.get("FAREBOX_OUTPUT", "").strip().lower()
        if preferred:
            if preferred not in FORMATS:
                raise click.UsageError(
                    f"FAREBOX_OUTPUT: expected one of {', '.join(FORMATS)}, got {preferred!r}"
                )
            return preferred
        return "table" if is_terminal(sys.stdout) else "json"

    def close(self) -> None:
        if self._client is not None:
            self._client.close()


pass_state = click.make_pass_decorator(State, ensure=True)


def is_terminal(stream: Any) -> bool:
    """Whether people look at it."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def note(text: str) -> None:
    """A remark for people: on stderr, so that stdout stays data."""
    click.echo(text, err=True)


def common_options() -> list[click.Option]:
    """`-o`, `--query`, `--url`, `--api-key`: accepted before and after the command's name; the later one wins."""

    def keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
        state = context.ensure_object(State)
        if value is not None and parameter.name is not None:
            setattr(state, parameter.name, value)

    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(FORMATS, case_sensitive=False),
            callback=keep,
            expose_value=False,
            help="How to print the answer. Default: table on a terminal, json elsewhere.",
        ),
        click.Option(
            ["--query"],
            metavar="JMESPATH",
            callback=keep,
            expose_value=False,
            help="Print only this part of the answer, as scoring_uri or data[].name (jmespath.org).",
        ),
        click.Option(
            ["--url"],
            metavar="URL",
            callback=keep,
            expose_value=False,
            help="The server. Default: FAREBOX_URL.",
        ),
        click.Option(
            ["--api-key"],
            metavar="KEY",
            callback=keep,
            expose_value=False,
            help="The key. Default: FAREBOX_API_KEY, which other users of this machine cannot see.",
        ),
    ]


class Command(click.Command):
    """A command with the common options and an Examples section in its help."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), common: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        if common:
            self.params += common_options()

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


class Group(click.Group):
    """A group whose commands are of the kinds in this file, listed in the order they were added."""

    command_class = Command

    def __init__(self, *args: Any, examples: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        write_examples(self.examples, formatter)
        super().format_epilog(ctx, formatter)


Group.group_class = Group


def write_examples(examples: Sequence[str], formatter: click.HelpFormatter) -> None:
    """The section as it is typed: never re-wrapped."""
    if examples:
        with formatter.section("Examples"):
            for example in examples:
                formatter.write(" " * formatter.current_indent + example + "\n")


def write_pairs(title: str, pairs: Sequence[tuple[str, str]], formatter: click.HelpFormatter) -> None:
    """A section of two columns."""
    with formatter.section(title):
        formatter.write_dl(list(pairs))


def parse_tags(
    context: click.Context, parameter: click.Parameter, values: Sequence[str]
) -> Mapping[str, str]:
    """`--tag k=v`, repeated, as a mapping."""
    tags: dict[str, str] = {}
    for text in values:
        name, separator, value = text.partition("=")
        if not separator or not name.strip():
            raise click.BadParameter(f"expected name=value, got {text!r}", context, parameter)
        if name.strip() in tags:
            raise click.BadParameter(f"{name.strip()!r} is given twice", context, parameter)
        tags[name.strip()] = value
    return tags


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_duration(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """`30d`, `12h`, … as seconds."""
    if text is None:
        return None
    number, unit = text.strip()[:-1], text.strip()[-1:].lower()
    if (
        unit not in _SECONDS
        or not number.isascii()
        or not number.isdigit()
        or not 0 < int(number[:9]) < 10**8
    ):
        raise click.BadParameter(
            f"expected a duration such as 30d, 12h, 45m or 90s, got {text!r}", context, parameter
        )
    return int(number) * _SECONDS[unit]


def parse_time(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """A day (its first instant, UTC) or an ISO 8601 time, as the API wants it: UTC with a Z."""
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(
            f"expected a day such as 2026-01-31 or a time such as 2026-01-31T12:00:00Z (UTC), got {text!r}",
            context,
            parameter,
        ) from None
    moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace(
        "+00:00", "Z"
    )


def parse_month(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    """`YYYY-MM`."""
    if text is not None and not re.fullmatch(r"[0-9]{4}-(0[1-9]|1[0-2])", text):
        raise click.BadParameter(f"expected a month such as 2026-01, got {text!r}", context, parameter)
    return text
