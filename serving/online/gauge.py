"""What the processes of a deployment's instances use, read from the machine."""

import contextlib
import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

import psutil

from serving.online.gpus import GpuUse, gpu_use
from serving.online.spec import ResourceAmounts

_SHORTEST_S = 0.5  # between two turns; clocks of processes are too coarse for less


class Gauge:
    """Measures in turns: CPU and energy are what was used since the turn before."""

    def __init__(self, disk: Path) -> None:
        """`disk`: a folder on the disk whose use is told."""
        self._disk = disk
        self.energy_j: float | None = None  # of GPUs, since the first turn that saw one
        self._energy_mj: dict[int, int] = {}
        self._cpu: dict[tuple[int, float], float] = {}  # seconds by process and its start
        self._at: float | None = None
        self._at_wall = 0.0
        self._last: Mapping[str, float] = {}

    def measure(self, leaders: Collection[int], each: ResourceAmounts) -> Mapping[str, float]:
        """Percent of CPU and memory of an instance, on average, of what it asked for; else of the machine's. Of GPUs,
        where it has some, and of the disk.

        `leaders` are the instances' first processes. Empty on the first turn, and where there are none.
        """
        now, before, wall = time.monotonic(), self._cpu, self._at_wall
        if self._at is not None and now - self._at < _SHORTEST_S:
            return self._last
        used, memory, self._cpu = 0.0, 0, {}
        for leader in leaders:
            for process in _family(leader):
                found = _read(process)
                if found is not None:
                    key, seconds, resident = found
                    self._cpu[key] = seconds
                    memory += resident
                    # One that ran before the last turn, unseen, used an unknown part of it since.
                    start = before.get(key, 0.0 if key[1] >= wall else seconds)
                    used += max(0.0, seconds - start)
        elapsed, self._at = (now - self._at if self._at is not None else 0.0), now
        self._at_wall = time.time()
        self._last = self._averages(len(leaders), used, memory, elapsed, each)
        if self._last:
            self._last = {**self._last, **self._disk_use(), **self._gpu_use()}
        return self._last

    def _disk_use(self) -> Mapping[str, float]:
        with contextlib.suppress(OSError):
            return {"DiskUtilization": psutil.disk_usage(str(self._disk)).percent}
        return {}

    def _gpu_use(self) -> Mapping[str, float]:
        found = gpu_use({pid for pid, _ in self._cpu})
        if found is None:
            self._energy_mj = {}
            return {}
        self._add_energy(found)
        return {
            "GpuUtilizationPercentage": found.percent,
            "GpuMemoryUtilizationPercentage": found.memory_percent,
        }

    def _add_energy(self, found: GpuUse) -> None:
        """A GPU counts from the turn that first saw it used; its counter starts again with its driver."""
        used = sum(max(0, now - self._energy_mj.get(gpu, now)) for gpu, now in found.energy_mj.items())
        if found.energy_mj:
            self.energy_j = (self.energy_j or 0.0) + used / 1000
        self._energy_mj = found.energy_mj

    @staticmethod
    def _averages(
        leaders: int, used: float, memory: int, elapsed: float, each: ResourceAmounts
    ) -> Mapping[str, float]:
        if not leaders or elapsed <= 0:
            return {}
        cores = each.cpu_milli / 1000 or len(os.sched_getaffinity(0))
        total = each.memory_bytes or psutil.virtual_memory().total
        return {
            "CpuUtilizationPercentage": 100 * used / elapsed / cores / leaders,
            "CpuMemoryUtilizationPercentage": 100 * memory / total / leaders,
        }


def _family(leader: int) -> list[psutil.Process]:
    try:
        first = psutil.Process(leader)
        return [first, *first.children(recursive=True)]
    except psutil.Error:
        return []


def _read(process: psutil.Process) -> tuple[tuple[int, float], float, int] | None:
    try:
        with process.oneshot():
            times = process.cpu_times()
            return (process.pid, process.create_time()), times.user + times.system, process.memory_info().rss
    except psutil.Error:
        return None
