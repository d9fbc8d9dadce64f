"""The home directory: made once, checked at every start, locked while a platform runs in it."""

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

from core.errors import FareboxError, Unavailable
from core.settings import Settings

_MIN_FREE_BYTES = 64 * 1024 * 1024


class HomeUnusable(FareboxError):
    """The home cannot be made, written or locked; the message says what to do."""

    code = "home_unusable"


def prepare_home(settings: Settings) -> None:
    """Make the home's folders, private to this user. HomeUnusable when that fails or the disk is full."""
    home = settings.home
    try:
        for folder in (
            home,
            settings.journal_path,
            settings.logs_path,
            settings.logs_path / "replicas",
            home / "run",
        ):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.control_socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = home / "run" / f".probe-{os.getpid()}"
        probe.write_bytes(b"x" * 4096)
        probe.unlink()
    except OSError as error:
        raise HomeUnusable(_explain(home, error)) from error
    free = os.statvfs(home)
    if free.f_bavail * free.f_frsize < _MIN_FREE_BYTES:
        raise HomeUnusable(
            f"{home}: the disk has under {_MIN_FREE_BYTES >> 20} MiB free; make room or use --home DIR"
        )


def _explain(home: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"{home}: the disk is full; make room or use --home DIR"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{home} is not writable for this user; choose another with --home DIR or FAREBOX_HOME"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{home}: a file is in the way where a folder should be; choose another with --home DIR"
    return f"{home} cannot be used: {error.strerror}; choose another with --home DIR"


def lock_home(settings: Settings) -> IO[str]:
    """Hold the home for this process until the returned file is closed. Unavailable when another has it."""
    path = settings.home / "run" / "up.lock"
    handle = open(path, "a+", encoding="ascii")  # noqa: SIM115  held open on purpose: closing it gives up the lock
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        handle.seek(0)
        owner = handle.read(32).strip() or "unknown"
        handle.close()
        raise Unavailable(
            f"Farebox already runs in {settings.home} (process {owner}); stop it first, or use another --home"
        ) from error
    handle.truncate(0)
    handle.write(str(os.getpid()))
    handle.flush()
    return handle
