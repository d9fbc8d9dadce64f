"""`make bench ARGS=--split`: what further deployments of an endpoint and copies of its calls cost the gateway a call.

The same plain calls through the same platform, in turns: to an endpoint with its own model alone; with another model
behind it, to which nobody goes; and with a tenth of the calls copied to that one. A copy is a call of its own; what it
costs is told apart, as what the third adds beyond the second, for each copy.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from bench import machine, toolchain
from bench.load import Engine, Generator
from bench.platform_target import PlatformTarget, farebox_up
from bench.targets import PLAIN
from bench.toolchain import BenchError
from serving.processes import free_port

MIRROR_PERCENT = 10
KINDS = ("alone", "split", "mirrored")
_TOLD_S = 2.0  # until the gateway has heard of a change


def main(argv: list[str]) -> int:
    """Exit status 0 when all was measured, whether or not the target is met."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=--split", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4, help="length of each window (default: 4)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args(argv)
    machine.many_files()
    mock, load = toolchain.go_programs(toolchain.cache_folder())
    sys.stdout.write(f"{machine.describe()}, load average {machine.load_average()}\n")
    machine.pin(os.getpid(), machine.REST_CORE)
    engine = Engine(mock, free_port())
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            farebox_up(Path(folder), "farebox", engine.address) as target,
        ):
            found = _measure(target, engine, Generator(load), options.seconds, options.runs)
    except BenchError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    finally:
        engine.stop()
    _tell(found)
    return 0


def _measure(
    target: PlatformTarget, engine: Engine, generator: Generator, seconds: float, runs: int
) -> dict[str, list[float]]:
    """Microseconds of the gateway's CPU a call, by kind."""
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    flags = ["-addr", target.address, "-key", target.key, "-model", target.model(PLAIN), "-c", "32"]
    flags += ["-pid", str(target.pid), "-uppid", str(engine.pid), "-warm", "1s", "-d", f"{seconds}s"]
    for _ in range(runs):
        for kind in KINDS:
            target.put_further_deployment(None if kind == "alone" else MIRROR_PERCENT * (kind == "mirrored"))
            time.sleep(_TOLD_S)
            served = engine.served()
            found[kind].append(generator.run(flags).cpu_us_request)
            target.settle(engine.served() - served)
    return found


def _tell(found: dict[str, list[float]]) -> None:
    for kind, values in found.items():
        shown = ", ".join(f"{value:.1f}" for value in values)
        sys.stdout.write(f"{kind}: {statistics.median(values):.1f} µs of CPU a call ({shown})\n")
    pairs = {
        kind: statistics.median(b - a for a, b in zip(found[before], found[kind], strict=True))
        for before, kind in (("alone", "split"), ("split", "mirrored"))
    }
    sys.stdout.write(f"a split adds {pairs['split']:.1f} µs a call (target 10, copies apart)\n")
    a_copy = pairs["mirrored"] * 100 / MIRROR_PERCENT
    sys.stdout.write(
        f"copies of {MIRROR_PERCENT} % add {pairs['mirrored']:.1f} µs a call: {a_copy:.0f} µs a copy\n"
    )
