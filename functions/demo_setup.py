"""What `make run` needs before the first call: an engine, the sample model, a running platform."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from catalog import sample
from core.errors import Unavailable
from core.settings import Settings
from functions.home import prepare_home
from serving.engines import install

_READY_TIMEOUT_S = 60
_STOP_GRACE_S = 60


class Bars:
    """Progress by step name; where there is no terminal, one line when a step begins and one when it ends."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._ended: set[str] = set()

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, step: str, done: int, total: int) -> None:
        """Called from any thread, as often as there is news."""
        if step not in self._tasks:
            self._tasks[step] = self._progress.add_task(step, total=total)
            self._began[step] = time.monotonic()
            self._plain(f"  {step} …")
        self._progress.update(self._tasks[step], completed=done, total=total)
        if total and done >= total and step not in self._ended:
            self._ended.add(step)
            self._plain(f"  {step}: done in {time.monotonic() - self._began[step]:.0f} s")

    def _plain(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(text, markup=False)


def ensure_engine_and_model(console: Console, settings: Settings) -> None:
    """Install the engine that fits this machine and build the sample model, as far as they are not there."""
    prepare_home(settings)
    kind = install.detect_kind()
    installed = {e.kind for e in install.list_installed(settings.engines_path) if e.complete}
    if kind in installed and sample.is_built(settings.models_path):
        console.print(f"Engine {kind} and the sample model are in place")
        return
    if kind not in installed:
        console.print(
            f"Installing the model engine {kind} into {settings.engines_path} (a few minutes, once)"
        )
    with Bars(console) as bars:
        python = install.install(kind, settings.engines_path, progress=bars)
        if not sample.is_built(settings.models_path):
            sample.build(python, settings.models_path, bars)


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform that this process started."""

    url: str
    admin_key: str
    process: subprocess.Popen[bytes]

    def wait(self) -> int:
        """Until it ends; its exit status."""
        return self.process.wait()


@contextmanager
def running_platform(console: Console, settings: Settings) -> Iterator[Platform]:
    """`farebox up` as a child, ready to serve; stopped, with all its children, at the end."""
    began = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "functions.embedded",
        "--home",
        str(settings.home),
        "--port",
        str(settings.port),
    ]
    # A group of its own: Ctrl-C in the terminal reaches this process, which then stops the platform in order.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{settings.port}"
        _await_ready(url, process)
        console.print(
            f"Platform ready on {url} after {time.monotonic() - began:.1f} s, state in {settings.home}"
        )
        yield Platform(url, settings.admin_key_path.read_text().strip(), process)
    finally:
        _stop(console, process)


def _await_ready(url: str, process: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + _READY_TIMEOUT_S
    while time.monotonic() < give_up:
        if process.poll() is not None:  # it has said why on standard error
            raise Unavailable("the platform did not start")
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{url}/readyz", timeout=2).close()
            return
        time.sleep(0.05)
    raise Unavailable(
        f"the platform was not ready within {_READY_TIMEOUT_S} s; see logs/platform.log in the home"
    )


def _stop(console: Console, process: subprocess.Popen[bytes]) -> None:
    if process.poll() is not None:
        return
    with console.status("stopping the platform and its model servers"):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
