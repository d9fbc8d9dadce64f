"""`up`, `engine`, `demo`: commands of the platform, found where it is installed beside this package."""

import sys

import click

from farebox.cli.framework import Command

GROUP = "farebox.platform"


def command(name: str, summary: str, examples: list[str], verb: str = "") -> Command:
    """A command that hands everything behind its name to the platform, `--help` too; with `verb`, behind that verb."""

    @click.pass_context
    def delegate(context: click.Context, args: tuple[str, ...]) -> None:
        context.exit(run(name, [verb, *args] if verb else list(args)))

    return Command(
        verb or name,
        callback=delegate,
        params=[click.Argument(["args"], nargs=-1, type=click.UNPROCESSED)],
        help=summary,
        examples=examples,
        common=False,
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )


def run(name: str, args: list[str]) -> int:
    """Hands `args` to the platform's command; 2 when the platform is not here."""
    from importlib.metadata import entry_points

    found = [each for each in entry_points(group=GROUP) if each.name == name]
    if not found:
        _explain(
            name, f"the package farebox-platform is not installed beside this command ({sys.executable})"
        )
        return 2
    try:
        command = found[0].load()
    except (ImportError, AttributeError) as error:
        _explain(name, f"the package farebox-platform is installed, but cannot be loaded ({error})")
        return 2
    result = command(list(args))
    return int(result or 0)


def _explain(name: str, reason: str) -> None:
    click.echo(f"Error: `farebox {name}` is part of the platform: {reason}.", err=True)
    click.echo(
        "  Next: in a clone of the repository run `make setup`, then `.venv/bin/farebox "
        f"{name}`; or install farebox-platform into this Python environment.\n"
        "        To talk to a server elsewhere, set FAREBOX_URL: everything else works without the platform.",
        err=True,
    )
