"""What the platform costs when nothing happens: how soon it is ready, what it keeps in memory, what it burns."""

import tempfile
import time
from pathlib import Path

import psutil

from bench.figures import Spread, spread
from tests import platform as platforms

IDLE_WINDOW_S = 15
STARTS = 5


def measure_footprint() -> dict[str, Spread]:
    """By what is measured; the unit is in the name."""
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        home = Path(folder) / "home"
        first = _start_once(home)
        found = {"first start until ready, s": Spread(first, first, first)}
        found |= {"later starts until ready, s": spread([_start_once(home) for _ in range(STARTS)])}
        return found | _idle(home)


def _start_once(home: Path) -> float:
    began = time.monotonic()
    platform = platforms.start(home)
    try:
        platforms.await_ready(platform)
        return time.monotonic() - began
    finally:
        platform.stop()


def _idle(home: Path) -> dict[str, Spread]:
    """Memory (proportional, so shared pages count once) and CPU of all the platform's processes, with no call."""
    with platforms.running(home) as platform:
        time.sleep(3)
        family = [psutil.Process(platform.process.pid), *platform.children()]
        before = sum(_cpu_s(p) for p in family)
        time.sleep(IDLE_WINDOW_S)
        used = sum(_cpu_s(p) for p in family) - before
        memory_mb = sum(p.memory_full_info().pss for p in family) / 1e6
    found = {
        "idle, processes": float(len(family)),
        "idle, memory of all, MB": memory_mb,
        "idle, CPU of all, % of a core": 100 * used / IDLE_WINDOW_S,
    }
    return {what: Spread(value, value, value) for what, value in found.items()}


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
