"""The output of model servers: bounded files, last lines, and the one line that says why a server ended."""

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

MAX_LINES = 5000
_TAIL_BYTES = 512 * 1024
_REASON_BYTES = 64 * 1024
_MAX_REASON = 400

# "(EngineCore pid=12) ERROR 11-23 12:00:00 [core.py:708] ", "INFO:     "
_PREFIX = re.compile(
    r"^(\([^)]{1,80}\)\s*)?"
    r"((DEBUG|INFO|WARNING|ERROR|CRITICAL):?\s+(\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\s+)?(\[[^\]]{1,80}\]\s*)?)?"
)
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Failure)(: |$)")
_SCORER = re.compile(r"^UserScript(ImportError|FunctionNotFound|InitFailed): ")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# True, but never the cause.
_EMPTY_WORDS = ("Engine core initialization failed", "See root cause above", "See stack trace", "cancelled")
_HINTS = (
    (re.compile(r"CUDA out of memory|OutOfMemoryError", re.I), "the GPU's memory is too small for it: "),
    (re.compile(r"No space left on device"), "the disk is full: "),
    (re.compile(r"[Aa]ddress already in use"), "its port was taken by another program: "),
)


class ReplicaLog:
    """One run's log file and at most one older part of it, `.1`."""

    def __init__(self, directory: Path, replica_id: str) -> None:
        self.path = directory / f"{replica_id}.log"
        self.older = directory / f"{replica_id}.log.1"

    def rotate(self, max_bytes: int) -> None:
        """Move the content aside once it is half of `max_bytes`; the server goes on appending to the file."""
        half = max_bytes // 2
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as source:
            size = source.seek(0, os.SEEK_END)
            if size <= half:
                return
            source.seek(size - half)
            with self.older.open("wb") as target:
                shutil.copyfileobj(source, target, 256 * 1024)
            os.truncate(self.path, 0)

    def tail(self, lines: int) -> list[str]:
        """The last lines, at most `MAX_LINES`."""
        wanted = max(0, min(lines, MAX_LINES))
        found = _last_lines(self.path, _TAIL_BYTES)
        if len(found) < wanted:
            found = _last_lines(self.older, _TAIL_BYTES) + found
        return found[len(found) - wanted :] if wanted < len(found) else found

    def remove(self) -> None:
        """Delete the files."""
        self.path.unlink(missing_ok=True)
        self.older.unlink(missing_ok=True)

    def reason(self, exit_code: int | None) -> str:
        """Why the server ended, in one line."""
        return distill(_last_lines(self.path, _REASON_BYTES), exit_code)


def _last_lines(path: Path, max_bytes: int) -> list[str]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_bytes))
            text = file.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return []
    lines = text.splitlines()
    return lines[1:] if size > max_bytes else lines


def distill(lines: list[str], exit_code: int | None) -> str:
    """One line for people from the last lines of a log and the exit status (negative: a signal)."""
    how = _how(exit_code)
    clean = [_PREFIX.sub("", _COLOURS.sub("", line).strip(), count=1).strip() for line in lines]
    clean = [line for line in clean if line]
    # The scorer's own word goes before the exception of the script that it is about.
    causes = [line for line in clean if _SCORER.match(line)] or [
        line for line in clean if _EXCEPTION.match(line) and not any(word in line for word in _EMPTY_WORDS)
    ]
    if causes:
        cause = causes[-1]
        for pattern, hint in _HINTS:
            if pattern.search(cause):
                cause = hint + cause
                break
    elif exit_code is not None and exit_code < 0:
        cause = ""  # killed from outside: the last line it happened to write is no cause
    else:
        cause = clean[-1] if clean else ""
    text = f"{how}: {cause}" if cause else how
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"


def _how(exit_code: int | None) -> str:
    if exit_code is None:
        return "the server ended"
    if exit_code >= 0:
        return f"the server ended with status {exit_code}"
    if exit_code == -signal.SIGKILL:
        return "the server was killed (SIGKILL), perhaps by the system for want of memory"
    try:
        return f"the server was ended by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"the server was ended by signal {-exit_code}"
