"""Copies of a user's code and model, so that later edits do not change what a deployment runs.

`{home}/online/{deployment id}/{generation}/code|model/…`. Copied beside it first and renamed when the change is
recorded, so a folder by its final name is whole. Under a customer's key they are encrypted as they are copied, and
decrypted for instances only (`opened`).
"""

import hashlib
import os
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

from access.keyring import Keyring
from access.sealed_files import SEALED
from core.errors import Invalid, TooLarge, Unavailable
from core.ids import new_id

MAX_CODE_BYTES = 300 * 1024 * 1024
MAX_MODEL_BYTES = 50 * 1024**3
MAX_FILES = 20_000
_SKIPPED = frozenset({".git", "__pycache__", ".ipynb_checkpoints"})
_CHUNK = 1024 * 1024
_KEPT_S = 3600


@dataclass(frozen=True, slots=True)
class Found:
    """What a folder or a single file holds: its files by relative path, in order, and their bytes together."""

    root: Path
    files: tuple[str, ...]
    size: int


def look(path: str, param: str, max_bytes: int) -> Found:
    """What is at `path`. Invalid when there is nothing to copy, TooLarge beyond `max_bytes` or MAX_FILES files."""
    if not os.path.isabs(path):
        raise Invalid(
            f"{param}: expected an absolute path, got {path!r:.200}; the command line makes relative ones absolute",
            param=param,
        )
    root = Path(path)
    try:
        mode = root.stat().st_mode
    except FileNotFoundError:
        raise Invalid(
            f"{param}: there is nothing at {path!r:.200} on the machine that the server runs on{_nearest(root)}",
            param=param,
        ) from None
    except (OSError, ValueError) as error:
        raise Invalid(f"{param}: {path!r:.200} cannot be read: {_reason(error)}", param=param) from None
    if stat.S_ISREG(mode):
        return _bounded(root.parent, [(root.name, root.stat().st_size)], param, max_bytes)
    if not stat.S_ISDIR(mode):
        raise Invalid(f"{param}: {path!r:.200} is neither a folder nor a file", param=param)
    return _bounded(root, _walk(root, param), param, max_bytes)


def _walk(root: Path, param: str) -> Iterator[tuple[str, int]]:
    def fail(error: OSError) -> None:
        raise Invalid(f"{param}: {error.filename!r:.200} cannot be read: {_reason(error)}", param=param)

    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True, onerror=fail):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            raise Invalid(f"{param}: {folder!r:.200} contains a link to a folder around it", param=param)
        seen.add((here.st_dev, here.st_ino))
        folders[:] = sorted(name for name in folders if name not in _SKIPPED)
        for name in sorted(files):
            full = os.path.join(folder, name)
            try:
                found = os.stat(full)
            except OSError as error:
                raise Invalid(
                    f"{param}: {full!r:.200} cannot be read: {_reason(error)}", param=param
                ) from None
            if not stat.S_ISREG(found.st_mode):
                raise Invalid(f"{param}: {full!r:.200} is no regular file", param=param)
            yield os.path.relpath(full, root), found.st_size


def _bounded(
    root: Path, files: Iterator[tuple[str, int]] | list[tuple[str, int]], param: str, most: int
) -> Found:
    names: list[str] = []
    size = 0
    for name, length in files:
        names.append(name)
        size += length
        if len(names) > MAX_FILES or size > most:
            raise TooLarge(
                f"{param}: {str(root)!r:.200} holds more than {MAX_FILES} files or {_size(most)}; is it the right "
                "folder? Leave out what the deployment does not need",
                param=param,
            )
    if not names:
        raise Invalid(f"{param}: {str(root)!r:.200} is empty", param=param)
    return Found(root, tuple(names), size)


def copy(found: Found, target: Path, param: str, keyring: Keyring | None = None) -> str:
    """Copy the files below `target`, with a keyring encrypted; returns a digest of names and plain contents.

    Unavailable: the disk is full.
    """
    digest = hashlib.sha256()
    try:
        free = shutil.disk_usage(target.parent if target.parent.exists() else target.anchor).free
        if found.size > free:
            raise Unavailable(
                f"{param}: {_size(found.size)} to copy, {_size(free)} are free in the Farebox home",
                param=param,
            )
        for name in found.files:
            digest.update(f"{name}\0".encode("utf-8", "surrogateescape"))
            digest.update(_copy_file(found.root / name, target / name, keyring))
    except OSError as error:
        raise Unavailable(f"{param}: cannot be copied: {_reason(error)}", param=param) from error
    return digest.hexdigest()


def _copy_file(source: Path, target: Path, keyring: Keyring | None) -> bytes:
    target.parent.mkdir(parents=True, exist_ok=True)
    if keyring is not None:
        target = target.with_name(target.name + SEALED)
    with open(source, "rb") as reader, open(target, "xb") as writer:
        hashed = _Hashed(reader)
        if keyring is not None:
            keyring.seal_stream(hashed, writer)
        else:
            while chunk := hashed.read(_CHUNK):
                writer.write(chunk)
    shutil.copymode(source, target)
    return hashed.digest()


class _Hashed(BufferedIOBase):
    """Reads a file, and knows the digest of what was read."""

    def __init__(self, source: BufferedIOBase) -> None:
        self._source, self._digest = source, hashlib.sha256()

    def read(self, size: int | None = -1, /) -> bytes:
        chunk = self._source.read(size)
        self._digest.update(chunk)
        return chunk

    def digest(self) -> bytes:
        return self._digest.digest()


@dataclass(frozen=True, slots=True)
class Staged:
    """Copies that no recorded change knows of yet: which parts there are, and their digests."""

    folder: Path
    code_digest: str = ""
    model_digest: str = ""
    model_entry: str = ""  # name of the model's folder or file


def stage(
    home: Path,
    code: str | None,
    model: str | None,
    *,
    max_model_bytes: int = MAX_MODEL_BYTES,
    keyring: Keyring | None = None,
    code_param: str = "code_configuration.code",
) -> Staged | None:
    """Copy the folders named, if any; encrypted with a keyring. Both are looked at before either is copied."""
    code_found = None if code is None else look(code, code_param, MAX_CODE_BYTES)
    model_found = None if model is None else look(model, "model.path", max_model_bytes)
    if code_found is None and model_found is None:
        return None
    if code is not None and not os.path.isdir(code):
        raise Invalid(
            f"{code_param}: expected a folder, {code!r:.200} is a file",
            param=code_param,
        )
    folder = home / "online" / ".staging" / new_id("copy")
    folder.mkdir(parents=True)
    code_digest = model_digest = entry = ""
    try:
        if code_found is not None:
            code_digest = copy(code_found, folder / "code", code_param, keyring)
        if model_found is not None:
            entry = os.path.basename(str(model))
            target = folder / "model" / entry if os.path.isdir(str(model)) else folder / "model"
            model_digest = copy(model_found, target, "model.path", keyring)
    except BaseException:
        discard(folder)
        raise
    return Staged(folder, code_digest, model_digest, entry)


def settle(staging: Path, home: Path, deployment_id: str, generation: int) -> Path:
    """Give the copies their final place; what a crash left there goes. The caller holds the endpoint's lock."""
    final = folder_of(home, deployment_id, generation)
    if final.exists():
        shutil.rmtree(final, ignore_errors=True)
    final.parent.mkdir(parents=True, exist_ok=True)
    os.replace(staging, final)
    return final


def folder_of(home: Path, deployment_id: str, generation: int) -> Path:
    """Where the copies of one generation are."""
    return home / "online" / deployment_id / str(generation)


def folders_of(home: Path, deployment_id: str) -> list[Path]:
    """The copies of every generation that are still there."""
    folder = home / "online" / deployment_id
    return sorted(folder.iterdir()) if folder.is_dir() else []


def discard(folder: Path) -> None:
    """Remove copies that nobody needs."""
    shutil.rmtree(folder, ignore_errors=True)


def owner(home: Path, path: str) -> str:
    """Whose copies a path is in: a deployment's id, or a package's; "" when it is in none."""
    inside = f"{home / 'online'}/"
    return path.removeprefix(inside).partition("/")[0] if path.startswith(inside) else ""


def sweep(home: Path, used: Collection[str]) -> list[str]:
    """Remove the copies of deployments that are not in `used`, and what a crash left of a copy that was begun.

    What is younger than an hour stays: a change that is being recorded is not in any table yet.
    """
    folder = home / "online"
    entries = [each for each in folder.iterdir() if each.name != ".staging"] if folder.is_dir() else []
    begun = folder / ".staging"
    entries += begun.iterdir() if begun.is_dir() else []
    old = [each for each in sorted(entries) if each.name not in used and _age_s(each) > _KEPT_S]
    for entry in old:
        discard(entry)
    return [each.name for each in old]


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:  # gone meanwhile
        return 0


def _nearest(path: Path) -> str:
    for parent in path.parents:
        if parent.is_dir():
            return f" ({str(parent)!r:.200} exists)"
    return ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _size(count: int) -> str:
    for unit, size in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"
