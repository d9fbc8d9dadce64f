"""Runs pip in an engine's environment: runs side by side, progress counted, failures put into words."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

Progress = Callable[[str, int, int], None]

_ARRIVED = re.compile(r"^(Collecting|Processing|Requirement already satisfied)\b")
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|name resolution|Network is unreachable|Connection refused"
    r"|ConnectTimeout|ReadTimeout|Read timed out|ProxyError|Max retries exceeded|Connection broken|SSLError"
)
_NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]")
_NO_MATCH = re.compile(r"No matching distribution found for (\S+)")
_KEPT_LINES = 200


class EngineInstallError(Exception):
    """An engine cannot be installed or used. The message is for people: one screen, says what to do."""


class PipError(EngineInstallError):
    """One pip run failed. `not_found` is true when the index has no fitting file for a package."""

    def __init__(self, message: str, *, not_found: bool) -> None:
        super().__init__(message)
        self.not_found = not_found


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for pip and for the engine's Python: ours, without what would bend either.

    PYTHONDONTWRITEBYTECODE would make every later start compile vLLM again (8 s more), PYTHONPATH could put
    the platform's packages before the engine's.
    """
    dropped = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER"}
    # FAREBOX_STRIPE_...: secrets of the platform.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_STRIPE_")}
    kept = {name: value for name, value in ours.items() if name not in dropped}
    return kept | {"PIP_NO_INPUT": "1", "PYTHONUNBUFFERED": "1"} | (extra or {})


class PipRun:
    """One `pip install` in the background, its output read as it comes."""

    def __init__(self, python: Path, arguments: Sequence[str], *, keep_open: Sequence[int] = ()) -> None:
        """Starts at once. `keep_open` are descriptors the child inherits: the install lock, so that it stays
        held while an orphaned pip is still writing."""
        self.arrived = 0
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        # No bytecode from pip: most of the modules are never imported, and `check` compiles the others.
        command = [str(python), "-m", "pip", "install", "--no-deps", "--only-binary", ":all:", "--no-compile"]
        self._process = subprocess.Popen(
            [*command, "--progress-bar", "off", "--retries", "2", "--timeout", "30", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", env=child_environment(), start_new_session=True, pass_fds=tuple(keep_open),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.append(line.rstrip())
            if _ARRIVED.match(line):
                self.arrived += 1

    @property
    def running(self) -> bool:
        """Whether pip is still at work."""
        return self._process.poll() is None

    def stop(self) -> None:
        """Ends pip and what it started. Harmless when it has ended."""
        if self.running:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._reader.join(5)

    def finish(self) -> None:
        """Waits for the end. Raises PipError with the reason in words."""
        status = self._process.wait()
        self._reader.join(5)
        if status != 0:
            raise explain_failure(list(self._lines))


def run_all(runs: Sequence[PipRun], site_packages: Path, total: int, progress: Progress) -> None:
    """Waits for all runs, telling `progress` how many of `total` packages have arrived, then are installed.

    Does not raise for a failed run: ask each one with `finish`.
    """
    told = (-1, -1)
    while any(run.running for run in runs):
        arrived = min(total, sum(run.arrived for run in runs))
        installed = min(total, len(list(site_packages.glob("*.dist-info"))))
        if (arrived, installed) != told:
            step = ("download", arrived) if arrived < total else ("install", installed)
            progress(step[0], step[1], total)
            told = (arrived, installed)
        time.sleep(0.3)


def explain_failure(lines: Sequence[str]) -> PipError:
    """Puts the output of a failed pip run into words: disk, network, nothing fitting, or its last lines."""
    text = "\n".join(lines)
    if _NO_SPACE.search(text):
        return PipError("The disk is full. Free some space and run the same command again.", not_found=False)
    missing = _NO_MATCH.search(text)
    if _NO_NETWORK.search(text):
        return PipError(
            "The package index cannot be reached.\n"
            "Check the network, or point pip at a mirror (the variable PIP_INDEX_URL),\n"
            "then run the same command again: it goes on where it stopped.",
            not_found=missing is not None,
        )
    if missing:
        return PipError(
            f"The package index has no {missing[1]} for this machine and this Python.\n"
            "The engines run on Linux x86_64 with glibc 2.31 or newer and Python 3.11 to 3.13.",
            not_found=True,
        )
    return PipError("pip failed. Its last lines:\n  " + "\n  ".join(lines[-12:]), not_found=False)
