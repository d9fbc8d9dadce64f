"""A real platform for tests: `farebox up` as a user starts it, on a free port, in a home of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import farebox
import psutil

from serving.processes import free_port

ROOT = Path(__file__).resolve().parents[1]
FAREBOX = Path(sys.executable).with_name("farebox")


@dataclass
class Platform:
    """A running platform: its address, its admin key, its process."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    environ: dict[str, str]

    @property
    def admin_key(self) -> str:
        return (self.home / "admin.key").read_text().strip()

    def client(self) -> farebox.Client:
        """The published client with the admin key."""
        return farebox.Client(self.url, self.admin_key)

    def cli(self, *arguments: str, ok: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """One `farebox` command with the admin key, as a user types it."""
        variables = self.environ | {"FAREBOX_URL": self.url, "FAREBOX_API_KEY": self.admin_key} | environ
        run = subprocess.run(
            [FAREBOX, *arguments], capture_output=True, text=True, env=variables, timeout=120
        )
        assert not ok or run.returncode == 0, f"{arguments}: {run.stdout}{run.stderr}"
        return run

    def children(self) -> list[psutil.Process]:
        """Every process below the platform's."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def running(self, text: str) -> list[psutil.Process]:
        """The children whose command line holds `text`; one that has just ended does not count."""
        found = []
        for process in self.children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one too
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def stop(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Send the signal, wait; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(timeout)


def environment(**settings: str) -> dict[str, str]:
    """This process's variables without any that configure Farebox, and with `settings`."""
    return {k: v for k, v in os.environ.items() if not k.startswith("FAREBOX_")} | settings


def start(home: Path, port: int | None = None, **settings: str) -> Platform:
    """`farebox up --home HOME --port PORT`, not waited for."""
    port = port or free_port()
    environ = environment(**settings)
    command: list[Any] = [FAREBOX, "up", "--home", home, "--port", str(port)]
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    return Platform(f"http://127.0.0.1:{port}", home, process, environ)


def await_ready(platform: Platform, timeout: float = 90) -> None:
    """Until `/readyz` answers 200."""
    give_up = time.monotonic() + timeout
    while time.monotonic() < give_up:
        assert platform.process.poll() is None, "the platform ended"
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(platform.url + "/readyz", timeout=2).close()
            return
        time.sleep(0.05)
    log = platform.home / "logs" / "platform.log"
    raise AssertionError("not ready in time: " + (log.read_text()[-3000:] if log.exists() else "no log"))


@contextmanager
def running(home: Path, **settings: str) -> Iterator[Platform]:
    """A ready platform; stopped at the end, and no process of it may be left."""
    platform = start(home, **settings)
    try:
        await_ready(platform)
        yield platform
    finally:
        family = platform.children() if platform.process.poll() is None else []
        platform.stop()
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
    assert not alive, f"left behind: {alive}"


def external_model(
    url: str, model_id: str = "acme/mock-chat", prices: Mapping[str, str] | None = None
) -> str:
    """The YAML of a model served by an attached server."""
    listed = prices or {
        "input": "0.15",
        "cached_input": "0.075",
        "output": "0.60",
        "endpoint_minute": "0.0005",
    }
    quoted = ", ".join(f'{sku}: "{price}"' for sku, price in listed.items())
    return (
        f"id: {model_id}\ntask: chat\ncontext_length: 8192\n"
        f'engine: {{kind: external, url: "{url}"}}\nprices: {{{quoted}}}\n'
    )
