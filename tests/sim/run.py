"""One run of the simulation: a seed decides everything that happens in it."""

import argparse
import asyncio
import contextlib
import logging
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from catalog.price_book import put_list_prices
from core import ids
from core.changes import record_change
from functions.gateway import balancing, retrying
from metering.relay import Relay
from tests.sim.auditor import (
    NEW_BATCH_OUTPUT_PICO,
    NEW_PICO_PER_TOKEN,
    PICO_PER_MINUTE,
    Auditor,
    Facts,
    fingerprint,
)
from tests.sim.caller import Seen, call
from tests.sim.disk import SimDisk
from tests.sim.engine import Engine
from tests.sim.loop import SimLoop
from tests.sim.meter import OtherMeter
from tests.sim.network import Network
from tests.sim.platform import MODEL, Control, Installation, SimClock

SECONDS = 90  # of simulated time
CALLERS = 48


@dataclass
class Result:
    """What a run came to. `findings` is empty when every invariant held."""

    seed: int
    findings: list[str]
    calls: int
    statuses: Counter[Any] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)


class Simulation:
    """The world of one seed."""

    def __init__(self, seed: int, directory: Path, callers: int = CALLERS) -> None:
        self.seed = seed
        self.callers = callers
        self.loop = SimLoop(seed)
        self.network = Network(self.loop)
        self.clock = SimClock(self.loop)
        chance = self.loop.chance
        self.disk = SimDisk(chance, directory / "archive")
        # Each seed has its own weather: some are calm.
        self.engine = Engine(self.loop, self.network, chance.choice([0.0, 0.02, 0.2]))
        self.kill_every_s = chance.choice([None, 20.0, 60.0])
        self.power_cuts = chance.random() < 0.3
        self.jumps = chance.random() < 0.3
        self.disk_trouble = chance.random() < 0.3
        self.installation = Installation(self.loop, self.network, self.clock, directory)
        self.installation.set_up()
        self.control = Control(
            self.loop,
            self.clock,
            self.installation.db,
            self.installation.settings.journal_path,
            chance.choice([0.0, 0.01, 0.1]),
        )
        self.seen: list[Seen] = []
        self.price_change_ms = 0
        self.cuts = self.jumped = 0
        self.disk_troubles: list[tuple[float, float]] = []
        self.over = False

    async def run(self) -> None:
        """Everything that happens, and then quiet until all is recorded and closed."""
        self.installation.start_gateway(self.control)
        with self.loop.run_as("control"):
            control = self.loop.create_task(self.control.run())
        assert self.installation.template is not None
        self.meter = OtherMeter(self.loop, self.clock.now_ms, self.installation.template)
        meter = self.loop.create_task(self.meter.run(self.control.step, lambda: self.control.intake))
        others = [self.loop.create_task(self._caller(number)) for number in range(self.callers)]
        weather = self.loop.create_task(self._weather())
        await asyncio.sleep(SECONDS / 2)
        self._change_price()
        await asyncio.sleep(SECONDS / 2)
        self.over = True
        weather.cancel()
        meter.cancel()
        self.disk.full = self.disk.sync_fails = False
        await asyncio.wait(others)
        await asyncio.sleep(30)
        control.cancel()
        # One more start settles what the last kill left open.
        self.installation.kill_gateway()
        self.installation.start_gateway(self.control)
        await asyncio.sleep(1)
        self.meter.flush(self.control.step, lambda: self.control.intake)
        self.control.step(self.control.catch_up, may_die=False)
        self.installation.close_down()
        self.control.step(self.control.tick, may_die=False)
        self.loop.now += 40 * 86_400
        self.control.step(self.control.tick, may_die=False)
        self.control.step(self.control.invoice, may_die=False)

    def _change_price(self) -> None:
        """In the middle of everything, from the next minute on."""
        prices = NEW_PICO_PER_TOKEN | {
            "batch_output": NEW_BATCH_OUTPUT_PICO,
            "endpoint_minute": PICO_PER_MINUTE,
        }
        now_ms = self.clock.now_ms()
        with self.installation.db.begin() as connection:
            made = put_list_prices(connection, MODEL, prices, now_ms)
            record_change(connection, "model", MODEL, now_ms)
        assert made is not None
        self.price_change_ms = made.starts_ms

    async def _caller(self, number: int) -> None:
        chance = self.loop.chance
        keys = list(self.installation.keys)
        while not self.over:
            request: dict[str, Any] = {
                "model": MODEL,
                "messages": [{"role": "user", "content": "w " * chance.randint(1, 100)}],
                "max_tokens": chance.choice([1, 2, 5, 20]),
            }
            if chance.random() < 0.5:
                request["stream"] = True
                if chance.random() < 0.5:
                    request["stream_options"] = {"include_usage": True}
            patience = chance.uniform(0, 3) if chance.random() < 0.2 else None
            key = keys[number % len(keys)] if chance.random() < 0.98 else "fbx_sk_wrong"
            seen = await call(self.loop, self.network, key, request, patience)
            if seen is None:
                await asyncio.sleep(chance.uniform(0.05, 0.5))
                continue
            self.seen.append(seen)
            await asyncio.sleep(chance.uniform(0, 0.3) if seen.status == 200 else chance.uniform(0.2, 3))

    async def _weather(self) -> None:
        chance = self.loop.chance
        next_kill = self.loop.now + (self.kill_every_s or 1e9) * chance.uniform(0.2, 1.5)
        while True:
            await asyncio.sleep(chance.uniform(0.01, 2))
            if self.loop.now >= next_kill:
                next_kill = self.loop.now + (self.kill_every_s or 1e9) * chance.uniform(0.2, 1.5)
                cut = self.power_cuts and chance.random() < 0.5
                self.cuts += cut
                self.installation.kill_gateway(self.disk if cut else None)
                await asyncio.sleep(chance.uniform(0, 2))
                self.installation.start_gateway(self.control)
            if self.jumps and chance.random() < 0.05:
                # Less than five minutes in all: beyond that events of others are rightly taken to be of the future.
                self.clock.jumped_ms = chance.randint(-140_000, 140_000)
                self.jumped += 1
            if self.disk_trouble and chance.random() < 0.05:
                name = chance.choice(["full", "sync_fails"])
                began = self.loop.now
                setattr(self.disk, name, True)
                try:
                    await asyncio.sleep(chance.uniform(0.01, 5))
                finally:
                    setattr(self.disk, name, False)
                    # It is found to be well again by a probe, a second later at most.
                    self.disk_troubles.append((began, self.loop.now + 1.1))

    def facts(self) -> Facts:
        """What the auditor needs to know."""
        return Facts(
            self.installation,
            self.control,
            self.engine,
            self.seen,
            self.price_change_ms,
            self.cuts,
            self.jumped,
            self.control.deaths,
            self.disk_troubles,
            self.meter,
        )

    def check(self) -> list[str]:
        """The auditor's findings, and whether a replay of everything changes nothing."""
        findings = Auditor(self.facts()).audit()
        findings += [f"unexpected in the loop: {each}" for each in self.loop.failures[:3]]
        return findings or self._replay()

    def _replay(self) -> list[str]:
        before = fingerprint(self.installation)
        db = self.installation.db
        with db.begin() as connection:
            connection.execute(text("DELETE FROM journal_cursors"))
        archive = self.installation.settings.home / "archive"
        Relay(archive, db, self.clock, lambda _: None).catch_up()
        self.control.step(self.control.close, may_die=False)
        return (
            [] if fingerprint(self.installation) == before else ["a replay of all journals changed something"]
        )


@contextlib.contextmanager
def finished(seed: int, callers: int = CALLERS) -> Iterator[Simulation]:
    """A run that came to its end, in a folder of its own."""
    directory = Path(tempfile.mkdtemp(prefix=f"farebox-sim-{seed}-"))
    random_part = ids._random_part
    try:
        letters = random.Random(seed)
        for jitter in (balancing._chance, retrying._chance):
            jitter.seed(seed)
        ids._random_part = lambda: "".join(letters.choices(ids._ALPHABET, k=16))
        world = Simulation(seed, directory, callers)
        with world.disk:
            world.loop.run_until_complete(world.run())
            yield world
        world.installation.db.close()
    finally:
        ids._random_part = random_part
        shutil.rmtree(directory, ignore_errors=True)


def simulate(seed: int, callers: int = CALLERS) -> Result:
    """Run one seed and audit it."""
    with finished(seed, callers) as world:
        findings = world.check()
    faults = {
        "gateway kills": len(world.installation.killed_at),
        "power cuts": world.cuts,
        "control deaths": world.control.deaths,
        "clock jumps": world.jumped,
        "disk faults": world.disk.faults,
        "repeated events": world.meter.deliveries - len(world.meter.sent),
        "hang-ups": sum(seen.left for seen in world.seen),
        "engine failures": sum(work.failed for work in world.engine.work.values()),
    }
    statuses = Counter(seen.status for seen in world.seen)
    return Result(seed, findings, len(world.seen), statuses, faults)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tests.sim`: status 1 when a seed failed."""
    parser = argparse.ArgumentParser(prog="make sim ARGS=...", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="how many, one after the other")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument("--callers", type=int, default=CALLERS, help="how many at once")
    parser.add_argument("--seed", type=int, help="only this one")
    arguments = parser.parse_args(argv)
    logging.disable(logging.CRITICAL)
    seeds = (
        [arguments.seed]
        if arguments.seed is not None
        else range(arguments.first, arguments.first + arguments.seeds)
    )
    failed = 0
    for seed in seeds:
        began = time.process_time()
        result = simulate(seed, arguments.callers)
        took = time.process_time() - began
        rate = result.calls / took
        shown = ", ".join(f"{name} {count}" for name, count in result.faults.items() if count)
        print(
            f"seed {seed}: {result.calls} calls, {rate:.0f} a second of CPU, {dict(result.statuses)}; {shown}",
            flush=True,
        )
        for finding in result.findings:
            failed = 1
            print(f'  FOUND {finding}\n  again: make sim ARGS="--seed {seed}"', file=sys.stderr, flush=True)
    return failed
