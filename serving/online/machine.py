"""What this machine has for online deployments."""

import os
from functools import cache

import psutil

from serving.engines.memory import gpu_free_bytes
from serving.online.rules import Capacity


def capacity(instances: int = 0) -> Capacity:
    """Cores, memory and GPUs of the machine; `instances` is the quota of instances, 0 for none."""
    cores = len(os.sched_getaffinity(0))
    return Capacity(cores * 1000, psutil.virtual_memory().total, _gpus(), instances)


@cache  # asking takes a process, and a GPU does not come or go while we run
def _gpus() -> int:
    return len(gpu_free_bytes())
