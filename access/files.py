"""Small secret files: mode 0600, written whole or not at all."""

import contextlib
import os
from pathlib import Path

from core.errors import FareboxError

_MAX_BYTES = 4096


class SecretFileError(FareboxError):
    """A secret file in the home cannot be read, written or understood; the message says what to do."""

    code = "secret_file_unusable"


def read_secret_file(
    path: Path, what: str, max_bytes: int = _MAX_BYTES, *, is_ours: bool = True
) -> str | None:
    """The file's text without its end, None when there is no file; others' access to one of ours is taken away."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, what, "read", error) from error
    try:
        if is_ours and os.fstat(descriptor).st_mode & 0o077:
            with contextlib.suppress(PermissionError):
                os.fchmod(descriptor, 0o600)
        data = os.read(descriptor, max_bytes)
    except OSError as error:
        raise _unusable(path, what, "read", error) from error
    finally:
        os.close(descriptor)
    return data.decode("utf-8", "replace").strip()


def write_secret_file(path: Path, text: str, what: str) -> None:
    """Write `text` and a line end: into a new file beside it, synced, then renamed over it."""
    temporary = path.with_name(f".{path.name}.new")
    try:
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, text.encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
        _sync_directory(path.parent)
    except OSError as error:
        raise _unusable(path, what, "write", error) from error


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, what: str, verb: str, error: OSError) -> SecretFileError:
    return SecretFileError(
        f"cannot {verb} the {what} file {path}: {error.strerror or error}. "
        "Give this user access to it (and room on the disk), or choose another --home",
        param=str(path),
    )
