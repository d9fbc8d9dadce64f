"""`make bench ARGS=--rollout`: an online endpoint under an even load, calm and then while it is rolled out.

Blue serves; then, under the same load, green is deployed, mirrored, given a tenth, half and all of the calls, replaced by
a new generation of itself, and everything goes back to blue. No call may fail; the target for the slowest percent of
calls is twice that of the calm.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from farebox import MLClient
from farebox.entities import (
    CodeConfiguration,
    Environment,
    ManagedOnlineDeployment,
    ManagedOnlineEndpoint,
    OnlineRequestSettings,
    ProbeSettings,
)

from bench import machine, toolchain
from bench.load import Generator, Load, parse_load
from tests import platform as platforms

SCRIPT = "import json\ndef init():\n    pass\ndef run(data):\n    return {'by': NAME}\n"
NAME = "bench"
PAUSE_S = 2.0  # between two steps: calls of the one before have to be among those measured


@dataclass(frozen=True, slots=True)
class Round:
    """Both windows, and how long the steps took."""

    calm: Load
    rolling: Load
    steps_s: float

    @property
    def ratio(self) -> float:
        """Of the slowest percent's latencies."""
        return self.rolling.p99_ms / self.calm.p99_ms


def main(argv: list[str]) -> int:
    """Exit status 0 when all was measured, whether or not the targets are met."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=--rollout", description=__doc__)
    parser.add_argument("--rate", type=float, default=500, help="calls a second (default: 500)")
    parser.add_argument("--seconds", type=float, default=30, help="length of each window (default: 30)")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(argv)
    _, load = toolchain.go_programs(toolchain.cache_folder())
    sys.stdout.write(f"{machine.describe()}, load average {machine.load_average()}\n")
    with tempfile.TemporaryDirectory() as folder, platforms.running(Path(folder) / "home") as platform:
        roll_out = RollOut(platform, Path(folder), Generator(load), options.rate, options.seconds)
        try:
            rounds = [roll_out.measure() for _ in range(options.runs)]
        except toolchain.BenchError as error:
            sys.stderr.write(f"bench: {error}\n")
            return 1
    for number, each in enumerate(rounds):
        sys.stdout.write(f"round {number + 1}: calm {_shown(each.calm)}; ")
        sys.stdout.write(f"rolled out within {each.steps_s:.0f} s {_shown(each.rolling)}; ")
        sys.stdout.write(f"ratio of p99 {each.ratio:.2f}\n")
    ratio = statistics.median(each.ratio for each in rounds)
    failed = sum(each.rolling.errors for each in rounds)
    sys.stdout.write(f"ratio of p99: {ratio:.2f} (target 2); failed calls: {failed} (target 0)\n")
    return 0


def _shown(load: Load) -> str:
    failed = f"{load.errors} failed ({load.last_error[:100]})" if load.errors else "none failed"
    return f"{load.requests} calls, p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms, {failed}"


class RollOut:
    """An endpoint with blue on it, and what is done to it."""

    def __init__(
        self, platform: platforms.Platform, folder: Path, generator: Generator, rate: float, seconds: float
    ) -> None:
        self._folder, self._generator = folder, generator
        self._ml = MLClient(url=platform.url, api_key=platform.admin_key)
        with platform.client() as client:
            client.organizations.create(NAME)
            client.projects.create(NAME, organization=NAME)
        self._ml.online_endpoints.begin_create_or_update(
            ManagedOnlineEndpoint(name=NAME, project=NAME)
        ).result()
        with platform.client() as client:  # beyond Azure's 30,000 calls a minute
            client.limits.set("endpoint", NAME, requests_per_minute=10**9)
        self._deploy("blue")
        self._split({"blue": 100})
        keys: Any = self._ml.online_endpoints.get_keys(NAME)
        self._flags = ["-addr", platform.url.removeprefix("http://"), "-path", f"/endpoints/{NAME}/score"]
        self._flags += ["-key", keys.primary_key, "-rate", str(rate), "-c", "16", "-d", f"{seconds}s"]

    def measure(self) -> Round:
        """A calm window, then one with a roll-out. BenchError: the steps took longer than the window."""
        calm = _finish(self._start())
        running = self._start()
        began = time.monotonic()
        self._steps()
        took = time.monotonic() - began
        if running.poll() is not None:
            raise toolchain.BenchError(f"rolling out took {took:.0f} s; give more --seconds")
        found = Round(calm, _finish(running), took)
        self._ml.online_deployments.begin_delete("green", NAME).result()
        return found

    def _steps(self) -> None:
        time.sleep(PAUSE_S)
        self._deploy("green")
        for traffic, copies in (
            ({"blue": 100}, {"green": 20}),
            ({"blue": 90, "green": 10}, {}),
            ({"blue": 50, "green": 50}, {}),
            ({"green": 100}, {}),
        ):
            self._split(traffic, copies)
            time.sleep(PAUSE_S)
        self._deploy("green", "# another generation\n")
        time.sleep(PAUSE_S)
        self._split({"blue": 100})

    def _start(self) -> subprocess.Popen[str]:
        return self._generator.start(self._flags)

    def _deploy(self, name: str, more: str = "") -> None:
        code = self._folder / name
        code.mkdir(exist_ok=True)
        (code / "score.py").write_text(more + SCRIPT.replace("NAME", repr(name)))
        deployment = ManagedOnlineDeployment(
            name=name,
            endpoint_name=NAME,
            code_configuration=CodeConfiguration(code=code, scoring_script="score.py"),
            environment=Environment(conda_file={"dependencies": ["python"]}),
            request_settings=OnlineRequestSettings(max_concurrent_requests_per_instance=64),
            readiness_probe=ProbeSettings(initial_delay=1, period=1),
            instance_count=1,
        )
        self._ml.online_deployments.begin_create_or_update(deployment).result()

    def _split(self, traffic: dict[str, int], copies: dict[str, int] | None = None) -> None:
        endpoint = self._ml.online_endpoints.get(NAME)
        endpoint.traffic, endpoint.mirror_traffic = traffic, copies or {}
        self._ml.online_endpoints.begin_create_or_update(endpoint).result()


def _finish(process: subprocess.Popen[str]) -> Load:
    """Its figures, with failures: here they are what is asked for."""
    out, _ = process.communicate()
    if process.returncode:
        raise toolchain.BenchError(f"the load generator ended with status {process.returncode}")
    return parse_load(out)
