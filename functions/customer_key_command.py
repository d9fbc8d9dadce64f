"""`farebox customer-key new | decrypt`: what is done with the customer's key on the machine that has it."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from access.files import read_secret_file, write_secret_file
from access.keyring import CustomerKeyError, new_customer_key, read_keyring
from access.sealed_files import SEALED, SEALED_LINES, open_file, open_to, opened_name
from core.errors import FareboxError, Invalid
from core.settings import Settings, load_settings

_NEW_EPILOG = """\
Examples:
  farebox customer-key new /etc/farebox/customer.key
  FAREBOX_CUSTOMER_KEY_FILE=/etc/farebox/customer.key farebox up

The file is an age identity, as age-keygen makes them. Keep a copy where the home is not: without it nothing that
is encrypted can be read again, by anybody. Exit status: 0 made, 1 it could not be (the message says why).
"""
_DECRYPT_EPILOG = """\
Examples:
  farebox customer-key decrypt ~/.farebox/collected/modelDataCollector/iris/blue/request | jq .data
  farebox customer-key decrypt ~/.farebox/online/dep_1/1/model --to ./model

Needs FAREBOX_HOME and FAREBOX_CUSTOMER_KEY_FILE as the platform has them; the platform may run meanwhile. Exit status:
0 done, 1 something does not open (the message names it), 2 wrong option.
"""


def main(argv: Sequence[str]) -> int:
    """The command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.verb == "new":
            _new(arguments.file)
        else:
            _decrypt(load_settings(os.environ), arguments.paths, arguments.to)
    except BrokenPipeError:  # `| head` has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  closed by the process's end
        return 0
    except (FareboxError, OSError) as error:
        _say(f"farebox customer-key: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farebox customer-key", description="Make and use a customer's key."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="new|decrypt")
    raw = argparse.RawDescriptionHelpFormatter
    text = "Make a customer's key, in a file that only you may read."
    new = verbs.add_parser("new", help=text, description=text, epilog=_NEW_EPILOG, formatter_class=raw)
    new.add_argument("file", metavar="FILE", type=Path, help="must not be there yet")
    text = "Decrypt collected data, or copies of code and models."
    decrypt = verbs.add_parser(
        "decrypt", help=text, description=text, epilog=_DECRYPT_EPILOG, formatter_class=raw
    )
    decrypt.add_argument(
        "paths", metavar="PATH", type=Path, nargs="+", help="a file, or a folder with all below"
    )
    decrypt.add_argument(
        "--to",
        metavar="FOLDER",
        type=Path,
        help="write files there (default: one after the other, to stdout)",
    )
    return parser


def _new(file: Path) -> None:
    if read_secret_file(file, "customer's key", is_ours=False) is not None:
        raise Invalid(f"FILE: {file} is there already; a key is never overwritten", param="FILE")
    secret, public = new_customer_key()
    write_secret_file(file, f"# public key: {public}\n{secret}", "customer's key")
    _say(f"{file}: {public}. Keep a copy where the home is not.")


def _decrypt(settings: Settings, paths: Sequence[Path], to: Path | None) -> None:
    keyring = read_keyring(settings.keyring_path, settings.customer_key_file)
    if keyring is None:
        raise CustomerKeyError(f"nothing is encrypted in {settings.home}: there is no keyring.json")
    found = [each for path in paths for each in _sealed(path)]
    for path, relative in found:
        if to is None:
            with open(path, "rb") as source, open(sys.stdout.fileno(), "wb", closefd=False) as output:
                open_to(path, source, output, keyring)
        elif (to / opened_name(str(relative))).exists():
            raise Invalid(f"--to: {to / opened_name(str(relative))} is there already", param="--to")
        else:
            open_file(path, to / opened_name(str(relative)), keyring)
    if to is not None or not found:
        _say(f"{len(found)} files decrypted")


def _sealed(path: Path) -> Iterator[tuple[Path, Path]]:
    """The encrypted files at `path`, with their places below it, in order."""
    if not path.exists():
        raise Invalid(f"PATH: there is nothing at {path}", param="PATH")
    if path.is_file():
        yield path, Path(path.name)
        return
    for each in sorted(path.rglob("*")):
        if each.name.endswith((SEALED, SEALED_LINES)) and each.is_file():
            yield each, each.relative_to(path)


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201  the user's terminal, not a log
