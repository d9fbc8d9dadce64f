"""What commands on documents share: `-f` and `--set`, refusals with the file's line, waiting for an operation."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from farebox.cli.files import read_file
from farebox.cli.framework import EXIT_REFUSED, State, is_terminal, note
from farebox.documents import Document, absolute_paths, load, parse, set_fields
from farebox.errors import FareboxAPIError, FareboxConfigError

if TYPE_CHECKING:
    from farebox.polling import LROPoller

file_option = click.option(
    "-f",
    "--file",
    "path",
    metavar="FILE",
    help="A YAML file with Azure ML's fields; paths in it are relative to it. Options win over it.",
)
set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="K=V",
    help="A field, as instance_count=2 or tags.a=b; may be repeated.",
)
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until it is done.")
local_option = click.option(
    "--local",
    is_flag=True,
    help="On this machine, where everything is anyway; refused together with traffic.",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


def name_option(what: str, *flags: str) -> Callable[[Any], Any]:
    """`-n/--name`, required where nothing else names it."""
    return click.option(*(flags or ("-n", "--name")), metavar="NAME", help=f"The {what}'s name.")


def read_document(file: str | None, settings: Sequence[str], /, **fields: object) -> Document:
    """The file, if any, with `--set` and then the options that were given put into it."""
    document = Document({}, source="--set")
    if file == "-":
        document = parse(read_file(file), "standard input")
    elif file is not None:
        read_file(file)  # says what is wrong with the name
        document = load(file)
    set_fields(document.value, settings)
    document.value |= {name: value for name, value in fields.items() if value is not None}
    absolute_paths(document.value)  # those of the options: relative to where we are
    return document


def required(document: Document, name: str, option: str) -> str:
    """A field that must be there."""
    value = document.value.get(name)
    if not isinstance(value, str) or not value:
        where = (
            f" in {document.source}, or give {option}"
            if document.source != "--set"
            else f": give {option} or -f FILE"
        )
        raise click.UsageError(f"{name}: the field is missing{where}")
    return value


@contextmanager
def located(document: Document) -> Iterator[None]:
    """While inside: a refusal of a field says where in the file it is."""
    try:
        yield
    except FareboxAPIError as error:
        if error.param and document.lines:
            error.extra.setdefault("where", document.where(error.param))
        raise


def parse_shares(text: str | None, option: str) -> dict[str, int] | None:
    """`blue=90 green=10` (or with commas) as a mapping; FareboxConfigError for anything else."""
    if text is None:
        return None
    shares: dict[str, int] = {}
    for part in text.replace(",", " ").split():
        name, separator, share = part.partition("=")
        number = share.removesuffix("%")
        if not separator or not name or not (number.isascii() and number.isdigit()) or len(number) > 6:
            raise FareboxConfigError(f'{option}: expected "blue=90 green=10", got {part!r}')
        if name in shares:
            raise FareboxConfigError(f"{option}: {name!r} is given twice")
        shares[name] = int(number)
    if not shares:
        raise FareboxConfigError(f'{option}: expected "blue=90 green=10", got nothing')
    return shares


def refuse_local(local: bool, **given: object) -> None:
    """A usage error for options that a local endpoint has not (R4.25)."""
    if not local:
        return
    for name, value in given.items():
        if value:
            raise click.UsageError(
                f"--local and --{name.replace('_', '-')}: a local endpoint has no traffic rules; leave one out"
            )


def say_notes(answer: dict[str, Any]) -> None:
    """Fields that have no effect here, once."""
    for text in answer.get("notes") or []:
        note(f"Note: {text}")


def wait_for(state: State, poller: "LROPoller[Any]", what: str, *, next_step: str = "") -> None:
    """Until the operation has ended, with its phases on stderr; exit 1 when it failed."""
    progress = _Progress(what)
    try:
        poller.wait(progress=progress.tell)
    except KeyboardInterrupt:
        progress.end()
        note(f"It goes on without us: operation {poller.operation['id']}")
        raise
    progress.end()
    error = poller.operation.get("error")
    if error:
        note(f"Error: {what} failed: {error.get('code')}: {error.get('message')}")
        if next_step:
            note(f"  Next: {next_step}")
        raise click.exceptions.Exit(EXIT_REFUSED)


class _Progress:
    """One line that changes, on a terminal; else one line for each phase."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._began = time.monotonic()
        self._live = is_terminal(sys.stderr)
        self._last = ""

    def tell(self, phase: str) -> None:
        text = phase or "in progress"
        if self._live:
            seconds = int(time.monotonic() - self._began)
            click.echo(f"\r\x1b[K{self._what}: {text} ({seconds} s)"[:200], nl=False, err=True)
        elif text != self._last:
            note(f"{self._what}: {text}")
        self._last = text

    def end(self) -> None:
        if self._live and self._last:
            click.echo("\r\x1b[K", nl=False, err=True)
