"""NVIDIA GPUs, as their driver tells of them through NVML; nothing where there is no driver.

Source: NVML API reference; `pynvml` is NVIDIA's own binding (package nvidia-ml-py).
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

from core.log import get_logger

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GpuUse:
    """Of the GPUs that some processes run on."""

    percent: float  # how busy the GPUs are, on average
    memory_percent: float  # of their memory, what these processes have
    energy_mj: dict[int, int]  # by GPU: millijoules since its driver was loaded; some do not tell


def gpu_use(pids: Collection[int]) -> GpuUse | None:
    """Of the GPUs that any of the processes runs on now; None where that is none, or cannot be told."""
    nvml = _nvml()
    if nvml is None or not pids:
        return None
    try:
        found = [_device(nvml, index, pids) for index in range(nvml.nvmlDeviceGetCount())]
    except nvml.NVMLError as error:
        _log.warning("the GPUs' driver does not tell", extra={"reason": str(error)})
        return None
    used = {index: each for index, each in enumerate(found) if each is not None}
    if not used:
        return None
    total = sum(each.total for each in used.values())
    return GpuUse(
        sum(each.percent for each in used.values()) / len(used),
        100 * sum(each.taken for each in used.values()) / total if total else 0.0,
        {index: each.energy_mj for index, each in used.items() if each.energy_mj is not None},
    )


@dataclass(frozen=True, slots=True)
class _Device:
    percent: int
    taken: int  # bytes of these processes
    total: int
    energy_mj: int | None


def _device(nvml: Any, index: int, pids: Collection[int]) -> _Device | None:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    processes = [each for each in nvml.nvmlDeviceGetComputeRunningProcesses(handle) if each.pid in pids]
    if not processes:
        return None
    try:
        energy = nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except nvml.NVMLError:  # older than Volta
        energy = None
    return _Device(
        nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        sum(each.usedGpuMemory or 0 for each in processes),  # None where the system hides it
        nvml.nvmlDeviceGetMemoryInfo(handle).total,
        energy,
    )


@cache
def _nvml() -> Any:
    """The binding, ready for use; None without a driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml
