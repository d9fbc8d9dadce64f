"""Stored files under the customer's key: each encrypted as a whole beside its name (`model.pkl.age`), or line by line.

A file has either its plain or its encrypted form, never neither: the second is complete before the first goes.
"""

import os
import stat
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Final

from access.keyring import Keyring, NotOurs

SEALED: Final = ".age"  # behind the name of a file that was encrypted as a whole
SEALED_LINES: Final = ".agelines"  # of one whose every line is base64 of an age message
_UNFINISHED: Final = ".age-unfinished"


def seal_tree(folder: Path, keyring: Keyring, report: Callable[[str], None]) -> int:
    """Encrypt every file below the folder that is not yet; returns how many. Begun and broken off, it is begun again."""
    plain = [each for each in _files(folder) if not _is_sealed(each, keyring)]
    for number, path in enumerate(plain, 1):
        if number == 1 or number % 100 == 0 or number == len(plain):
            report(f"encrypting file {number} of {len(plain)} in {folder}")
        seal_file(path, keyring)
    return len(plain)


def seal_file(path: Path, keyring: Keyring) -> None:
    """Put the encrypted form in the place of the plain one."""
    unfinished = path.with_name(path.name + _UNFINISHED)
    with open(path, "rb") as source, open(unfinished, "wb") as target:
        os.fchmod(target.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
        keyring.seal_stream(source, target)
        target.flush()
        os.fsync(target.fileno())
    unfinished.replace(path.with_name(path.name + SEALED))
    path.unlink()


def open_file(path: Path, target: Path, keyring: Keyring) -> None:
    """Write what an encrypted file holds to `target`, whole or not at all, with the file's mode."""
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    unfinished = target.with_name(target.name + _UNFINISHED)
    try:
        with open(path, "rb") as source, open(unfinished, "wb") as plain:
            os.fchmod(plain.fileno(), stat.S_IMODE(os.fstat(source.fileno()).st_mode))
            open_to(path, source, plain, keyring)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(target)


def open_to(path: Path, source: BufferedIOBase, target: BufferedIOBase, keyring: Keyring) -> None:
    """Decrypt `source`, the file at `path`, in the way that its name says. NotOurs names it."""
    try:
        if path.name.endswith(SEALED_LINES):
            for line in source:
                target.write(keyring.open_line(line))
        else:
            keyring.open_stream(source, target)
    except NotOurs as error:
        raise NotOurs(f"{path}: {error.message}") from error


def opened_name(name: str) -> str:
    """Of the plain form; the same name when it is no encrypted file's."""
    return name.removesuffix(SEALED_LINES if name.endswith(SEALED_LINES) else SEALED)


def is_stored(path: Path) -> bool:
    """Whether there is such a file, in either form."""
    return path.is_file() or path.with_name(path.name + SEALED).is_file()


def _files(folder: Path) -> Iterator[Path]:
    """Longest names first in each folder: a plain `x.age` has to be out of the way before `x` becomes one."""
    for where, _, names in os.walk(folder):
        for name in sorted(names, reverse=True):
            yield Path(where) / name


def _is_sealed(path: Path, keyring: Keyring) -> bool:
    if path.name.endswith(_UNFINISHED):  # of a broken-off run: its plain form is still there
        path.unlink()
        return True
    if path.name.endswith(SEALED_LINES):
        return True
    if not path.name.endswith(SEALED):
        return False
    try:  # somebody's own file may be called like that
        with open(path, "rb") as source, open(os.devnull, "wb") as nowhere:
            keyring.open_stream(source, nowhere)
    except NotOurs:
        return False
    return True
