"""Our own platform as a target: `farebox up` as a user starts it, its gateway alone on the measured core."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import farebox
import psutil
from farebox.types import LimitScope

from bench import machine
from bench.populate import AMPLE, AMPLE_USD, Population, populate
from bench.targets import KEY, PLAIN, Target
from bench.toolchain import BenchError
from serving.processes import free_port
from tests.platform import FAREBOX, ROOT, Platform, await_ready, environment

ORGANIZATION = "bench"
GATEWAYS = ("functions.gateway", "bench.memory_gateway")
# Chunks at every 10 ms, once with usage at the stream's end only, once with it in every chunk: vLLM's way, which
# the gateway asks of the servers that it starts itself, and takes out of the caller's chunks again.
VLLM_PACED = "10ms vllm"
_ENDPOINTS = {PLAIN: "bench-plain", "10ms": "bench-10ms", "1s": "bench-1s", VLLM_PACED: "bench-vllm"}
_FURTHER = "further"
_SETTLE_STALLED_S = 30


class PlatformTarget(Target):
    """The gateway process is what counts; the rest of the platform is reported beside it."""

    def __init__(self, name: str, platform: Platform, *, metered: bool) -> None:
        gateway = _gateway(platform)
        super().__init__(
            name, platform.url.removeprefix("http://"), gateway.pid, f"Farebox {farebox.__version__}"
        )
        self.control_pid = platform.process.pid
        self.metered = metered
        self.served = 0
        self._client = platform.client()
        self._home = platform.home

    def model(self, delay: str) -> str:
        return _ENDPOINTS[delay]

    def control_cpu_s(self) -> float:
        """Of everything but the gateway, so far."""
        return machine.cpu_seconds(self.control_pid) - machine.cpu_seconds(self.pid)

    def settle(self, served: int) -> None:
        """Wait until the ledger has an event for every call that the engine served. BenchError when it will not."""
        self.served += served
        if not self.metered:
            return
        seen, moved = -1, time.monotonic()
        while (counted := self.on_ledger()) != self.served:
            if counted != seen:
                seen, moved = counted, time.monotonic()
            if counted > self.served or time.monotonic() - moved > _SETTLE_STALLED_S:
                raise BenchError(f"{self.name}: {counted} calls metered, {self.served} served by the engine")
            time.sleep(0.2)

    def put_further_deployment(self, mirror_percent: int | None) -> None:
        """Another model behind the plain endpoint, with copies of so many of its calls; None: none."""
        endpoint, deployments = _ENDPOINTS[PLAIN], self._client.serverless_deployments
        if mirror_percent is not None:
            deployments.put(
                endpoint, _FURTHER, model=f"bench/{_ENDPOINTS['10ms']}", mirror_percent=mirror_percent
            )
        elif any(each["name"] == _FURTHER for each in deployments.list(endpoint)):
            deployments.delete(endpoint, _FURTHER)

    def on_ledger(self) -> int:
        """Calls that the usage report knows."""
        while True:
            with contextlib.suppress(
                farebox.FareboxError
            ):  # a large backlog can outlast one answer's patience
                return sum(
                    row["requests"] for row in self._client.usage.list(organization=ORGANIZATION)["data"]
                )
            time.sleep(1)

    def journal_bytes(self) -> int:
        """What of the journal is still on disk."""
        return sum(path.stat().st_size for path in (self._home / "journal").glob("*.seg*"))


@contextlib.contextmanager
def farebox_up(
    folder: Path, name: str, engine: str, *, durable: bool = True, many: Population | None = None
) -> Iterator[PlatformTarget]:
    """A platform in a home of its own, its engine attached, keys and endpoints made through its API."""
    home = folder / name
    if many is not None:
        with _running(home, durable=True) as platform:  # the first start makes the database
            _set_up(platform, engine)
        populate(home, ORGANIZATION, many)
    with _running(home, durable=durable) as platform:
        if many is None:
            _set_up(platform, engine)
        target = PlatformTarget(name, platform, metered=durable)
        if many is not None:
            target.key = many.key_pattern
        else:
            target.key = (home / "bench.key").read_text()
        yield target


def _set_up(platform: Platform, engine: str) -> None:
    """What a call needs, and what it is held to."""
    with platform.client() as client:
        client.organizations.create(ORGANIZATION)
        client.projects.create(ORGANIZATION, organization=ORGANIZATION)
        for delay, endpoint in _ENDPOINTS.items():
            pace = delay.split(" ")[0]
            client.models.add(_model(endpoint, engine, f"mock@{pace}" if pace else "mock", "vllm" in delay))
            client.serverless_endpoints.create(endpoint, model=f"bench/{endpoint}", project=ORGANIZATION)
        key = client.keys.create(project=ORGANIZATION, name=KEY)
        _hold_to_limits(client, key["id"])
    (platform.home / "bench.key").write_text(key["key"])


def _hold_to_limits(client: farebox.Client, key_id: str) -> None:
    """Limits and budgets of every scope, far above the load: every call is held to all of them and none refused."""
    scopes: list[tuple[LimitScope, str]] = [
        ("organization", ORGANIZATION),
        ("project", ORGANIZATION),
        ("key", key_id),
    ]
    scopes += [("endpoint", name) for name in _ENDPOINTS.values()]
    for scope, scope_id in scopes:
        client.limits.set(scope, scope_id, **asdict(AMPLE))
    client.budgets.create(organization=ORGANIZATION, amount_usd=AMPLE_USD, window="month")
    client.budgets.create(project=ORGANIZATION, amount_usd=AMPLE_USD, window="total")
    client.budgets.create(key=key_id, amount_usd=AMPLE_USD, window="day")


def _model(name: str, engine: str, served: str, continuous: bool) -> str:
    prices = '{input: "0.15", cached_input: "0.075", output: "0.60", endpoint_minute: "0.0005"}'
    flag = ", continuous_usage: true" if continuous else ""
    # A thousand streams at once: beyond the usual number of places most of them would wait.
    return (
        f"id: bench/{name}\ntask: chat\ncontext_length: 8192\nprices: {prices}\n"
        f'engine: {{kind: external, url: "http://{engine}", model: "{served}", max_parallel: 4096{flag}}}\n'
    )


@contextlib.contextmanager
def _running(home: Path, *, durable: bool) -> Iterator[Platform]:
    port, environ = free_port(), environment()
    program = [str(FAREBOX), "up"] if durable else [sys.executable, "-m", "bench.memory_gateway", "up"]
    process = subprocess.Popen(
        [*program, "--home", str(home), "--port", str(port)],
        stdout=subprocess.DEVNULL,
        env=environ,
        cwd=ROOT,
        preexec_fn=machine.on_core(machine.PROXY_CORE),
    )
    platform = Platform(f"http://127.0.0.1:{port}", home, process, environ)
    try:
        await_ready(platform)
        # The gateway inherited the measured core; whatever else there is goes elsewhere.
        machine.pin(process.pid, machine.REST_CORE)
        if machine.REST_CORE == machine.LOAD_CORE:
            # The load side of no other proxy has to wait for somebody.
            machine.give_way(process.pid)
        yield platform
    finally:
        children = platform.children() if process.poll() is None else []
        platform.stop()
        for child in psutil.wait_procs(children, timeout=5)[1]:
            child.kill()


def _gateway(platform: Platform) -> psutil.Process:
    for process in platform.children():
        if any(module in process.cmdline() for module in GATEWAYS):
            return process
    raise BenchError("the platform has no gateway process")
