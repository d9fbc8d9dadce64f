"""Virtual environments for scoring scripts: built once for what they hold, kept, the longest unused forgotten.

One lies in `environments/{hash}` of the home, with a file `complete` once it is whole: what a killed build left
is removed by the next one. Its log is `environments/{hash}.log`.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import psutil

from core.errors import FareboxError
from core.settings import Settings
from serving.requirements import Requirements, requirements_of

Report = Callable[[str], None]

KEPT = 20
OLDEST_PYTHON = 9  # of 3.x: what the scorer is written for
SCORER_NEEDS = ("httptools>=0.6", "uvloop>=0.20; sys_platform != 'win32'")
MAX_BUILD_S = 3600
_ERROR_LINES = 3
_MAX_LOG_TAIL = 64 * 1024


class EnvironmentBuildFailed(FareboxError):
    """Why it could not be built, in the words of pip where it was pip."""

    status, code = 422, "ImageBuildFailure"


class VirtualEnvironments:
    """See `serving.online.launch.Environments`."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home / "environments"
        # What a script's own collectors encrypt with.
        self._needs = (*SCORER_NEEDS, *(["pyrage>=1.2,<2"] if settings.customer_key_file else []))

    def python(self, environment: Mapping[str, object] | None, model: Path | None) -> Path:
        """Where its interpreter is, or will be."""
        return self._folder(requirements_of(environment, model)) / "bin" / "python"

    def build(self, environment: Mapping[str, object] | None, model: Path | None, report: Report) -> None:
        """Build it unless it is there. EnvironmentBuildFailed says why it cannot be; `report` may raise to end it."""
        wanted = requirements_of(environment, model)
        folder = self._folder(wanted)
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _lock(folder.with_suffix(".lock"), report):
            if not (folder / "complete").exists():
                self._build(folder, wanted, report)
            os.utime(folder / "complete")
        self._forget_old(folder)

    def _folder(self, wanted: Requirements) -> Path:
        text = json.dumps([_interpreter(wanted.python), wanted.lines, self._needs])
        return self._home / hashlib.sha256(text.encode()).hexdigest()[:24]

    def _build(self, folder: Path, wanted: Requirements, report: Report) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # what a killed build left
        log = folder.with_suffix(".log")
        log.write_text("".join(f"note: {note}\n" for note in wanted.notes))
        interpreter = _interpreter(wanted.python)
        if wanted.python and not _is_version(interpreter, wanted.python):
            why = "cannot run the scorer" if _too_old(wanted.python) else "is not on this machine"
            _note(log, f"note: Python {wanted.python} {why}; {interpreter} is used instead")
        report("making the environment")
        _run([interpreter, "-m", "venv", str(folder)], log, report)
        (folder / "requirements.txt").write_text("\n".join((*wanted.lines, *self._needs)) + "\n")
        report(f"installing {len(wanted.lines)} packages")
        pip = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--no-compile",  # tests of numpy and the like are most of it; what is imported is compiled then
        ]
        _run([*pip, "-r", str(folder / "requirements.txt")], log, report)
        (folder / "complete").touch()

    def _forget_old(self, newest: Path) -> None:
        """Those that nothing was started in for longest, but none that something runs in."""
        complete = [each for each in self._home.iterdir() if (each / "complete").exists() and each != newest]
        if len(complete) < KEPT:
            return
        complete.sort(key=lambda each: (each / "complete").stat().st_mtime, reverse=True)
        used = _in_use()
        for old in complete[KEPT - 1 :]:
            if str(old / "bin" / "python") in used:
                continue
            shutil.rmtree(old, ignore_errors=True)
            old.with_suffix(".log").unlink(missing_ok=True)


def _in_use() -> set[str]:
    """The first words of all processes' command lines."""
    lines = (each.info["cmdline"] for each in psutil.process_iter(["cmdline"]))
    return {line[0] for line in lines if line}


def _too_old(version: str) -> bool:
    numbers = version.split(".")
    minor = numbers[1] if len(numbers) > 1 and numbers[1].isdigit() else "99"
    return numbers[0] == "2" or (numbers[0] == "3" and int(minor) < OLDEST_PYTHON)


def _interpreter(version: str) -> str:
    """The Python that was asked for if the machine has it and the scorer runs on it, else ours."""
    wanted = version and not _too_old(version)
    found = shutil.which("python" + ".".join(version.split(".")[:2])) if wanted else None
    return found or str(getattr(sys, "_base_executable", sys.executable))


def _is_version(interpreter: str, version: str) -> bool:
    wanted = ".".join(version.split(".")[:2])
    return interpreter.endswith(f"python{wanted}") or wanted == f"{sys.version_info[0]}.{sys.version_info[1]}"


@contextlib.contextmanager
def _lock(path: Path, report: Report) -> Iterator[None]:
    """One builder at a time, in whatever process."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                report("waiting for the same environment to be built")
                time.sleep(0.5)
        yield


def _run(command: list[str], log: Path, report: Report) -> None:
    """Run to the end, its output to the log, a line of it now and then to `report`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
        )
    deadline = time.monotonic() + MAX_BUILD_S
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if (doing := _newest_step(log)) is not None:
                report(doing)
            if time.monotonic() > deadline:
                raise EnvironmentBuildFailed(
                    f"the environment was not built within {MAX_BUILD_S} s; see {log}"
                )
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise EnvironmentBuildFailed(f"the environment cannot be built: {_reason(log)} (all of it: {log})")


def _newest_step(log: Path) -> str | None:
    for line in reversed(_tail(log)):
        if line.startswith(("Collecting ", "Downloading ", "Building ", "Installing collected")):
            return line.split(" (from")[0][:100]
    return None


def _reason(log: Path) -> str:
    """pip's own words: its ERROR lines, else the last ones."""
    lines = [line.strip() for line in _tail(log) if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return "; ".join(errors[:_ERROR_LINES] or lines[-_ERROR_LINES:])[:1000] or "no reason was given"


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MAX_LOG_TAIL))
        return file.read().decode("utf-8", "replace").splitlines()


def _note(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text + "\n")
