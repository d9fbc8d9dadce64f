"""The machine: what it is, which core does what, and what a process used of it."""

import contextlib
import os
import platform
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import psutil

CORES = sorted(os.sched_getaffinity(0))
LOAD_CORE = CORES[0]  # mock engine and load generator
PROXY_CORE = CORES[1 % len(CORES)]  # what is measured, and nothing else
REST_CORE = CORES[2] if len(CORES) > 2 else LOAD_CORE  # the platform's control process


def describe() -> str:
    """Processor, kernel and Python in one line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU"
    )
    memory = psutil.virtual_memory().total / 2**30
    python = f"Python {platform.python_version()}"
    return f"{len(CORES)} × {model}, {memory:.0f} GiB, Linux {platform.release()}, {python}"


def load_average() -> float:
    """How busy the machine was within the last minute: the warning that others worked on it."""
    return round(os.getloadavg()[0], 2)


def on_core(core: int) -> Callable[[], None]:
    """A `preexec_fn` that pins the new process, and by inheritance whatever it starts."""
    return lambda: os.sched_setaffinity(0, {core})


def pin(pid: int, core: int) -> None:
    """Pin every thread that a running process has now; threads made later inherit it."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread), {core})


def give_way(pid: int) -> None:
    """Every thread that a running process has now runs only while nobody else wants its core; later ones inherit it."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setscheduler(int(thread), os.SCHED_IDLE, os.sched_param(0))


def many_files() -> None:
    """1,000 streams are 2,000 sockets in a proxy; children inherit the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def family(pid: int) -> list[psutil.Process]:
    """A process and everything below it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and everything alive below it."""
    total = 0.0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def resident_bytes(pid: int) -> int:
    """Resident memory of the process and everything below it."""
    total = 0
    for process in family(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def first_line_of(*command: str) -> str:
    """What a program says of its version; nginx says it on stderr."""
    run = subprocess.run(command, capture_output=True, text=True)
    return (run.stdout.strip() or run.stderr.strip()).splitlines()[0]
