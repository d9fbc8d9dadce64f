"""The load generator and the mock engine, as processes; what one run found, as a value."""

import json
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import LOAD_CORE, PROXY_CORE, REST_CORE, on_core
from bench.toolchain import BenchError


@dataclass(frozen=True, slots=True)
class Load:
    """One measured window. CPU is that of the process measured alone, in microseconds; 0 where none was named."""

    requests: int
    all_requests: int  # with those of the warm-up
    errors: int
    rps: float
    p50_ms: float
    p99_ms: float
    cpu_us_request: float
    chunks: int = 0
    chunks_s: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p99_ms: float = 0.0
    cpu_us_chunk: float = 0.0
    load_side: float = (
        0.0  # share of their core that load generator and engine took; near 1 they are the limit
    )
    others: float = 0.0  # the most that strangers took of one of the two cores: what makes figures rough
    last_error: str = ""


def parse_load(text: str) -> Load:
    """The load generator's one line of JSON."""
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise BenchError(f"the load generator said {text[:300]!r}") from error
    return Load(
        requests=found["requests"],
        all_requests=found["all_requests"],
        errors=found["errors"],
        rps=found["rps"],
        p50_ms=found["p50_ms"],
        p99_ms=found["p99_ms"],
        cpu_us_request=found.get("cpu_ms_req", 0.0) * 1000,
        chunks=found.get("chunks", 0),
        chunks_s=found.get("chunks_s", 0.0),
        ttft_p50_ms=found.get("ttft_p50_ms", 0.0),
        ttft_p99_ms=found.get("ttft_p99_ms", 0.0),
        cpu_us_chunk=found.get("cpu_us_chunk", 0.0),
        load_side=found["load_cpu"] + found.get("up_cpu", 0.0),
        others=_strangers(found),
        last_error=found.get("last_error", ""),
    )


def _strangers(found: Mapping[str, float]) -> float:
    """From the busy shares of the cores, less what each of our own processes used."""
    proxy, platform = found.get("gw_cpu"), found.get("aux_cpu", 0.0)
    load = found[f"core{LOAD_CORE}"] - found["load_cpu"] - found.get("up_cpu", 0.0)
    if proxy is None:  # a direct call: what happens on the other core does not matter
        return max(0.0, load)
    if platform and REST_CORE == LOAD_CORE:
        load -= platform - proxy  # the control process, of whose family the gateway is
    measured = found[f"core{PROXY_CORE}"] - proxy if PROXY_CORE != LOAD_CORE else 0.0
    return max(0.0, load, measured)


class Generator:
    """Starts runs of the load generator on its core."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def start(self, flags: Sequence[str]) -> subprocess.Popen[str]:
        """A run in the background."""
        return subprocess.Popen(
            [str(self._program), "-json", *flags],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=on_core(LOAD_CORE),
        )

    def run(self, flags: Sequence[str]) -> Load:
        """A whole run. BenchError when a call failed: a figure over failures says nothing."""
        return finish(self.start(flags))


def finish(process: subprocess.Popen[str]) -> Load:
    """Wait for a run and read its figures."""
    out, _ = process.communicate()
    if process.returncode:
        raise BenchError(f"the load generator ended with status {process.returncode}")
    found = parse_load(out)
    if found.errors:
        raise BenchError(
            f"{found.errors} calls failed, {found.requests} did not; the last: {found.last_error}"
        )
    return found


class Engine:
    """The mock engine: counts what it served, so that what was metered can be held against it."""

    def __init__(self, program: Path, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._process = subprocess.Popen(
            [str(program), "-addr", self.address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=on_core(LOAD_CORE),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def served(self) -> int:
        """Requests so far."""
        with urllib.request.urlopen(f"http://{self.address}/stats", timeout=10) as answer:
            return int(json.load(answer)["requests"])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
