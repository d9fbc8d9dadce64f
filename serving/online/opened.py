"""Decrypted copies of code and models, for as long as instances run from them.

Under a customer's key copies are stored encrypted (`copies`). Before an instance starts, its generation is decrypted once
to `FAREBOX_OPENED_DIR`, by default a folder in memory; when no instance runs from it any more it is removed.
"""

import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from access.keyring import Keyring
from access.sealed_files import SEALED, open_file, opened_name
from core.errors import FareboxError, Unavailable
from serving.online.spec import DeploymentSpec

_COMPLETE: Final = ".complete"
_KEPT_S: Final = 60  # an instance that begins just now is in nobody's list yet
# What MLflow wrote beside a model: needed before the environment is known, and so before the rest.
_DESCRIPTIONS: Final = ("MLmodel", "requirements.txt", "conda.yaml", "python_env.yaml")


class OpenedDirUnusable(FareboxError):
    """The folder for decrypted copies is not there, or somebody else's."""

    status, code = 409, "opened_dir_unusable"


class OpenedCopies:
    """Of one home. From any thread, and any process of it."""

    def __init__(self, home: Path, root: Path, keyring: Keyring) -> None:
        self._stored, self._root, self._keyring = home / "online", root, keyring

    def check(self) -> None:
        """Make the folder. OpenedDirUnusable: it cannot be made, or others may read it."""
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._root.lstat()
        except OSError as error:
            raise _unusable(self._root, error.strerror or str(error)) from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise _unusable(self._root, "it is no folder of this user")
        if found.st_mode & 0o077:
            raise _unusable(self._root, "others may look into it; chmod 700")

    def moved(self, spec: DeploymentSpec) -> DeploymentSpec:
        """The specification with the paths that its code and model have, or will have, once they are decrypted."""
        return replace(spec, code_path=self._moved(spec.code_path), model_path=self._moved(spec.model_path))

    def describe(self, model_path: str) -> Path:
        """Where the decrypted model is, or will be; what describes an MLflow model is there already."""
        target = Path(self._moved(model_path))
        with self._locked():
            for name in _DESCRIPTIONS:
                stored = Path(model_path) / (name + SEALED)
                if stored.is_file() and not (target / name).exists():
                    open_file(stored, target / name, self._keyring)
        return target

    def open(self, spec: DeploymentSpec, report: Callable[[str], None]) -> None:
        """Decrypt what the deployment runs from, unless that is done. Unavailable: there is no room for it."""
        for name in self.generations(spec):
            with self._locked():
                self._open(name, report)

    def open_folder(self, stored: Path) -> Path:
        """The decrypted copies of one folder `{home}/online/{id}/{generation}`. Unavailable: there is no room."""
        with self._locked():
            self._open(str(stored.relative_to(self._stored)), lambda _: None)
        return Path(self._moved(str(stored)))

    def generations(self, spec: DeploymentSpec) -> set[str]:
        """`{deployment id}/{generation}` of the stored copies that a specification refers to."""
        inside = f"{self._stored}/"
        paths = [path for path in (spec.code_path, spec.model_path) if path.startswith(inside)]
        return {"/".join(path.removeprefix(inside).split("/")[:2]) for path in paths}

    def forget(self, used: Collection[str], min_age_s: float = _KEPT_S) -> None:
        """Remove those of other generations than `used`, unless they were asked for less than `min_age_s` ago.

        Not while others are being decrypted: that may take minutes, and who calls this has more to do.
        """
        if not self._root.is_dir():
            return
        with contextlib.suppress(BlockingIOError), self._locked(wait=min_age_s == 0):
            for folder in [each for each in self._root.glob("*/*") if each.is_dir()]:
                old = time.time() - folder.stat().st_mtime >= min_age_s
                if old and f"{folder.parent.name}/{folder.name}" not in used:
                    shutil.rmtree(folder, ignore_errors=True)
                    with contextlib.suppress(OSError):  # other generations are still in it
                        folder.parent.rmdir()

    def _open(self, name: str, report: Callable[[str], None]) -> None:
        stored, target = self._stored / name, self._root / name
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(target)  # in use
        if (target / _COMPLETE).exists():
            return
        files = [Path(where) / each for where, _, names in os.walk(stored) for each in names]
        size, free = sum(each.stat().st_size for each in files), shutil.disk_usage(target).free
        if size > free:
            raise Unavailable(
                f"{size >> 20} MiB of code and model to decrypt, {free >> 20} MiB are free in {self._root}; set "
                "FAREBOX_OPENED_DIR to a folder with more room, in memory or on an encrypted disk",
                code="no_room",
            )
        for number, each in enumerate(files, 1):
            report(f"decrypting file {number} of {len(files)}")
            relative = each.relative_to(stored)
            open_file(each, target / relative.with_name(opened_name(relative.name)), self._keyring)
        (target / _COMPLETE).touch()

    def _moved(self, path: str) -> str:
        inside = f"{self._stored}/"
        return f"{self._root}/{path.removeprefix(inside)}" if path.startswith(inside) else path

    @contextlib.contextmanager
    def _locked(self, *, wait: bool = True) -> Iterator[None]:
        """BlockingIOError: somebody else has it, and `wait` is false."""
        self.check()
        with open(self._root / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def _unusable(root: Path, why: str) -> OpenedDirUnusable:
    return OpenedDirUnusable(
        f"FAREBOX_OPENED_DIR: {root} cannot hold decrypted code and models: {why}. Name a folder of this user's own, in "
        "memory or on an encrypted disk",
        param="FAREBOX_OPENED_DIR",
    )
