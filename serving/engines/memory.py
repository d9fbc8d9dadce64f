"""How much memory a server needs and how much there is: reasons to refuse a deployment early."""

import math
import shutil
import subprocess
from pathlib import Path

_GIB = 1024**3
_BITS = {
    "float32": 32, "fp32": 32, "bfloat16": 16, "bf16": 16, "float16": 16, "fp16": 16,
    "fp8": 8, "int8": 8, "int4": 4, "fp4": 4, "nvfp4": 4, "mxfp4": 4, "awq": 4, "gptq": 4,
}  # fmt: skip
# Measured with vLLM 0.32 on a CPU: 1.6 GB for the two processes of a server of a tiny model, before keys and
# values.
_CPU_RUNTIME_BYTES = 2 * _GIB
# The CUDA context, the libraries' work space and the captured graphs of one GPU server.
_GPU_RUNTIME_BYTES = 2 * _GIB
_PROC_MEMINFO = Path("/proc/meminfo")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_PROC_CGROUP = Path("/proc/self/cgroup")


def weight_bytes(parameters: int, precision: str) -> int:
    """Bytes of the weights. Raises ValueError for a precision it does not know."""
    bits = _BITS.get(precision.lower())
    if bits is None:
        raise ValueError(f"precision: expected one of {', '.join(sorted(_BITS))}, got {precision!r}")
    # 4-bit formats carry a scale for each group of weights, about half a bit each.
    return math.ceil(parameters * (bits + (0.5 if bits == 4 else 0)) / 8)


def needed_bytes(
    parameters: int, precision: str, kind: str, context_length: int, kv_cache_bytes: int | None = None
) -> int:
    """An estimate, in bytes, of what one server takes: host memory for `vllm-cpu`, memory of all its
    GPUs for `vllm`.

    `kv_cache_bytes` is the memory set aside for keys and values; None estimates that of one call of
    `context_length` tokens. Raises ValueError for an unknown precision.
    """
    # On a CPU, vLLM here runs in bfloat16 whatever the file holds, if that is larger.
    weights = weight_bytes(parameters, precision)
    runtime = _GPU_RUNTIME_BYTES
    if kind == "vllm-cpu":
        weights, runtime = max(weights, 2 * parameters), _CPU_RUNTIME_BYTES
    cache = kv_cache_bytes if kv_cache_bytes is not None else context_length * kv_bytes_per_token(parameters)
    return weights + cache + runtime


def kv_bytes_per_token(parameters: int) -> int:
    """A rule of thumb for 16-bit keys and values with grouped heads: 128 KiB at 8 billion parameters, growing
    with the square root, as width and depth do."""
    return math.ceil(128 * 1024 * math.sqrt(max(parameters, 1) / 8e9))


def available_bytes() -> int:
    """Bytes of host memory a new server can take: what is free, within this process's cgroup limit."""
    free = parse_meminfo(_PROC_MEMINFO.read_text(encoding="ascii"))
    room = cgroup_room(_CGROUP_ROOT, _PROC_CGROUP)
    return free if room is None else min(free, room)


def parse_meminfo(text: str) -> int:
    """Bytes of `MemAvailable`. Raises ValueError when the line is missing."""
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise ValueError("meminfo has no line MemAvailable")


def cgroup_room(root: Path, own: Path) -> int | None:
    """Bytes left under the tightest memory limit of this process's cgroups (v1 or v2); None: no limit."""
    rooms = [
        room
        for group, limit, usage in _cgroup_files(root, own)
        for folder in (group, *group.parents)
        if folder == root or root in folder.parents
        if (room := _room_in(folder, limit, usage)) is not None
    ]
    return min(rooms, default=None)


def _cgroup_files(root: Path, own: Path) -> list[tuple[Path, str, str]]:
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found: list[tuple[Path, str, str]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append((root / path.lstrip("/"), "memory.max", "memory.current"))
        elif "memory" in controllers.split(","):
            group = root / "memory" / path.lstrip("/")
            found.append((group, "memory.limit_in_bytes", "memory.usage_in_bytes"))
    return found


def _room_in(folder: Path, limit: str, usage: str) -> int | None:
    try:
        most = int((folder / limit).read_text(encoding="ascii"))
        used = int((folder / usage).read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such controller here, or "max": no limit
        return None
    return None if most >= 1 << 60 else max(0, most - used)


def gpu_free_bytes() -> list[int]:
    """Free bytes of each NVIDIA GPU, in `nvidia-smi` order; empty without a GPU or its tool."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True, timeout=15, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_gpu_free(ran.stdout)


def parse_gpu_free(text: str) -> list[int]:
    """Bytes from `nvidia-smi`'s numbers in MiB; a GPU that does not tell (`[N/A]`) counts as full."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [int(line) * 1024**2 if line.isdigit() else 0 for line in lines]


def explain_refusal(
    model_id: str, kind: str, needed: int, available: int, *, gpus_wanted: int = 1, gpus_found: int = 0
) -> str | None:
    """Why a server of `model_id` cannot be started now, in words for people; None when it can.

    `needed` and `available` are bytes: of host memory for `vllm-cpu`, of all wanted GPUs together for `vllm`.
    """
    if kind == "vllm" and gpus_found < gpus_wanted:
        return (
            f"{model_id} needs {gpus_wanted} NVIDIA GPU{'s' if gpus_wanted > 1 else ''}; "
            f"this machine has {gpus_found}."
            "\nChoose a smaller model (farebox model list) or a machine with more GPUs."
        )
    if needed <= available:
        return None
    what = "memory" if kind == "vllm-cpu" else "GPU memory"
    return (
        f"{model_id} needs about {needed / _GIB:.1f} GiB of {what}; {available / _GIB:.1f} GiB are free.\n"
        "Stop another deployment, choose a smaller model or a shorter context, or use a larger machine."
    )
