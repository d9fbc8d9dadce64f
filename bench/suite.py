"""The measurements: every scenario in rounds, in each round every target after the other.

Rounds rather than one target after the other: what else the machine does then strikes all of them alike, and the
ratios are taken within a round.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench import machine
from bench.figures import Samples
from bench.load import Engine, Generator, Load, finish
from bench.platform_target import VLLM_PACED, PlatformTarget
from bench.populate import Population
from bench.targets import PACED, PLAIN, SLOW, Target
from bench.toolchain import BenchError

STREAMS = 1000
_LOAD_SIDE_AT_MOST = 0.6  # of its core, where latencies are measured: fuller, it would measure itself
_DISTURBED = 0.15  # of a core taken by strangers: the measurement is repeated
_REPEATS = 2
_CHUNKS_PER_S = 100
_WARM_S = 1.5
_OWN = ("farebox", "memory-journal", "many-keys")
_SAME_RATE = 0.6  # of what the slowest of our own gateways answered with all callers at it


@dataclass
class Suite:
    """One run of the bench over targets that are up."""

    engine: Engine
    generator: Generator
    targets: list[Target]
    seconds: float
    rounds: int
    population: Population

    def __post_init__(self) -> None:
        self.samples = Samples()
        self.notes: list[str] = []
        self.others: list[float] = []
        self._worst = 0.0
        self._most_streams = 0
        self._swept = False

    def run(self) -> Samples:
        """Everything. BenchError when our own platform fails or does not meter what was served."""
        plain = {"direct", "farebox", "envoy", "nginx", "litellm"}
        own = {"farebox", "memory-journal"}
        all_own = set(_OWN)
        proxies = plain - {"direct"}
        # Memory first: a process that was loaded before has room left over, and would seem to need none.
        self._rounds("1,000 slow streams", self._memory, proxies, rounds=1)
        self._rounds("plain requests", self._plain, plain | all_own)
        # What tells our own gateways apart is less than what the rounds of a busy machine differ by: twice as many.
        self._rounds("plain requests, our own gateways", self._plain, all_own)
        self._rounds(
            "plain requests, our own gateways at one rate", self._same_rate, all_own, 2 * self.rounds
        )
        self._rounds("one connection", self._one, plain | own)
        self._rounds("plain requests at half load", self._half, proxies | own)
        self._rounds("streams", self._paced, proxies)
        self._rounds("streams with usage in every chunk", self._paced_vllm, {"farebox"})
        self._rounds("first token at half load", self._first_token, proxies)
        return self.samples

    def _rounds(
        self, title: str, measure: Callable[[Target], Mapping[str, float]], names: set[str], rounds: int = 0
    ) -> None:
        able = [t for t in self.targets if t.name in names]
        for number in range(1, (rounds or self.rounds) + 1):
            for target in list(able):
                sys.stderr.write(f"bench: {title}, round {number}: {target.name}\n")
                try:
                    self.samples.add(target.name, self._undisturbed(measure, target))
                except BenchError as error:
                    if isinstance(target, PlatformTarget) or target.name == "direct":
                        raise
                    self.notes.append(f"{target.name} failed ({title}): {error}")
                    able.remove(target)

    def _undisturbed(
        self, measure: Callable[[Target], Mapping[str, float]], target: Target
    ) -> Mapping[str, float]:
        """The attempt during which other programs took least of the cores; the first one that will do is kept."""
        attempts: list[tuple[float, Mapping[str, float]]] = []
        while True:
            self._worst = 0.0
            found = measure(target)
            attempts.append((self._worst, found))
            if self._worst <= _DISTURBED or len(attempts) > _REPEATS * (self.rounds > 1):
                break
        least, found = min(attempts, key=lambda attempt: attempt[0])
        self.others.append(least)
        return found

    # -- scenarios --

    def _memory(self, target: Target) -> dict[str, float]:
        self._load(target, PLAIN, "-c", "1", "-d", "500ms", "-warm", "500ms")
        before = machine.resident_bytes(target.pid)
        served = self.engine.served()
        # 9 s each, begun within 3 s: after 6 s all of them are open.
        length = ("-tokens", "9", "-stagger", "3s", "-warm", "4s", "-d", "3s", "-finish", "60s")
        run = self.generator.start([*self._to(target, SLOW), "-stream", "-c", str(STREAMS), *length])
        try:
            time.sleep(6)
            grown = machine.resident_bytes(target.pid) - before
            opened = self.engine.served() - served
            self._settle(target, served, finish(run))
        finally:
            _end(run)
        if opened != STREAMS:
            raise BenchError(f"{opened} of {STREAMS} streams were open")
        return {"stream_kb": grown / STREAMS / 1000}

    def _plain(self, target: Target) -> dict[str, float]:
        control = target.control_cpu_s() if isinstance(target, PlatformTarget) else 0.0
        found = self._load(target, PLAIN, "-c", "32", *self._window(), *self._spread_over_keys(target))
        values = {"rps": found.rps, "p50": found.p50_ms, "p99": found.p99_ms}
        values["load_busy"] = 100 * found.load_side
        if target.pid:
            values["cpu"] = values["platform_cpu"] = found.cpu_us_request
        if isinstance(target, PlatformTarget):
            # Usage is put on the ledger after the answer: all that the calls caused counts, whenever it was done.
            caused = (target.control_cpu_s() - control) * 1e6 / found.all_requests
            values["platform_cpu"] = found.cpu_us_request + caused
        return values

    def _same_rate(self, target: Target) -> dict[str, float]:
        # A call costs less the more of them there are at once: as many a second of each, or there is nothing to compare.
        names = {each.name for each in self.targets}
        rate = _SAME_RATE * min(self._median(name, "rps") for name in _OWN if name in names)
        flags = ("-c", "32", "-rate", f"{rate:.0f}", *self._window(), *self._spread_over_keys(target))
        return {"same_cpu": self._load(target, PLAIN, *flags).cpu_us_request, "same_rate": rate}

    def _one(self, target: Target) -> dict[str, float]:
        found = self._load(target, PLAIN, "-c", "1", *self._window())
        values = {"one_p50": found.p50_ms}
        return values | {"one_cpu": found.cpu_us_request} if target.pid else values

    def _half(self, target: Target) -> dict[str, float]:
        # The same rate with and without durable metering, or there would be nothing to compare.
        base = "farebox" if target.name == "memory-journal" else target.name
        rate = self._median(base, "rps") / 2
        flags = ("-c", "64", "-rate", f"{rate:.0f}", *self._window())
        direct, found = self._load(self._direct(), PLAIN, *flags), self._load(target, PLAIN, *flags)
        return {"half_p50": found.p50_ms - direct.p50_ms, "half_p99": found.p99_ms - direct.p99_ms}

    def _paced(self, target: Target) -> dict[str, float]:
        return {"chunk": self._streams(target, PACED, 64).cpu_us_chunk}

    def _paced_vllm(self, target: Target) -> dict[str, float]:
        return {"chunk_vllm": self._streams(target, VLLM_PACED, 64).cpu_us_chunk}

    def _first_token(self, target: Target) -> dict[str, float]:
        if not self._most_streams:
            self._most_streams = int(
                64 * _LOAD_SIDE_AT_MOST / self._streams(self._direct(), PACED, 64).load_side
            )
        busy_per_stream = self._median(target.name, "chunk") * 1e-6 * _CHUNKS_PER_S
        count = max(1, min(self._most_streams, round(0.5 / busy_per_stream)))
        direct, found = self._streams(self._direct(), PACED, count), self._streams(target, PACED, count)
        return {
            "ttft_p50": found.ttft_p50_ms - direct.ttft_p50_ms,
            "ttft_p99": found.ttft_p99_ms - direct.ttft_p99_ms,
        }

    # -- parts of them --

    def _median(self, name: str, key: str) -> float:
        found = self.samples.spread(name, key)
        if found is None:
            raise BenchError(f"it depends on {key}, which could not be measured")
        return found.median

    def _streams(self, target: Target, delay: str, count: int) -> Load:
        flags = ("-stream", "-tokens", "64", "-c", str(count), "-stagger", "650ms")
        return self._load(target, delay, *flags, *self._window())

    def _window(self) -> tuple[str, ...]:
        return "-warm", f"{_WARM_S}s", "-d", f"{self.seconds}s"

    def _spread_over_keys(self, target: Target) -> tuple[str, ...]:
        if target.name != "many-keys":
            return ()
        wanted = self.population
        flags = (
            "-keys",
            str(wanted.keys),
            "-models",
            str(wanted.endpoints),
            "-model",
            wanted.endpoint_pattern,
        )
        if self._swept:
            return flags
        # Once, so that every key and endpoint is known to the gateway, as they are after a day's work.
        self._swept = True
        return (*flags, "-sweep")

    def _load(self, target: Target, delay: str, *flags: str) -> Load:
        served = self.engine.served()
        found = self.generator.run([*self._to(target, delay), *flags])
        self._settle(target, served, found)
        self._worst = max(self._worst, found.others)
        return found

    def _settle(self, target: Target, served_before: int, found: Load) -> None:
        served = self.engine.served() - served_before
        if isinstance(target, PlatformTarget) and served != found.all_requests:
            raise BenchError(
                f"{target.name}: {served} calls reached the engine, {found.all_requests} were answered"
            )
        target.settle(served)

    def _to(self, target: Target, delay: str) -> list[str]:
        flags = ["-addr", target.address, "-key", target.key, "-model", target.model(delay)]
        flags += ["-pid", str(target.pid), "-uppid", str(self.engine.pid)]
        return [*flags, "-auxpid", str(target.control_pid)] if isinstance(target, PlatformTarget) else flags

    def _direct(self) -> Target:
        return next(t for t in self.targets if t.name == "direct")


def _end(run: "subprocess.Popen[str]") -> None:
    if run.poll() is None:
        run.kill()
        run.wait()
