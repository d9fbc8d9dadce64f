"""`make bench`: what the platform costs when nothing happens, and what it adds to a call.

Every figure is measured now, on this machine, and printed as a table (or JSON with `-o json`).
"""

import argparse
import json
import os
import platform as machine
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from bench.calls import measure_calls
from tests import platform as platforms

IDLE_WINDOW_S = 15
STARTS = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    parser.add_argument("--seconds", type=int, default=5, help="length of each load window")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="farebox-bench-") as folder:
        home = Path(folder) / "home"
        figures: dict[str, Any] = {"machine": _machine()}
        figures |= {"first_start_s": round(_start_once(home), 2)}
        figures |= {"warm_start_s": _spread([_start_once(home) for _ in range(STARTS)])}
        figures |= _idle(home)
        figures |= measure_calls(Path(folder), arguments.seconds)
    _print(figures, arguments.output)
    return 0


def _machine() -> str:
    model = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),  # noqa: SIM115
        machine.processor(),
    )
    return f"{os.cpu_count()} × {model}, Linux {machine.release()}, Python {machine.python_version()}"


def _start_once(home: Path) -> float:
    began = time.monotonic()
    platform = platforms.start(home)
    platforms.await_ready(platform)
    seconds = time.monotonic() - began
    platform.stop()
    return seconds


def _idle(home: Path) -> dict[str, Any]:
    """Memory (proportional, so shared pages count once) and CPU of all the platform's processes, with no call."""
    with platforms.running(home) as platform:
        time.sleep(3)
        family = [psutil.Process(platform.process.pid), *platform.children()]
        before = sum(_cpu_s(p) for p in family)
        time.sleep(IDLE_WINDOW_S)
        used = sum(_cpu_s(p) for p in family) - before
        memory = [p.memory_full_info() for p in family]
    return {
        "idle_processes": len(family),
        "idle_pss_mb": round(sum(m.pss for m in memory) / 2**20, 1),
        "idle_rss_mb_each": [round(m.rss / 2**20, 1) for m in memory],
        "idle_cpu_percent_of_a_core": round(100 * used / IDLE_WINDOW_S, 2),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


def _print(figures: dict[str, Any], output: str) -> None:
    if output == "json":
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    table = Table(title=figures["machine"], title_justify="left", show_header=False)
    for name, value in figures.items():
        if name != "machine":
            table.add_row(name, json.dumps(value))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
