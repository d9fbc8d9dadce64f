"""One run of one model server: recorded, prepared, begun, waited for, ended. `supervision` has the policy."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from core.clock import Clock
from core.database import Database
from core.errors import Unavailable
from core.log import get_logger
from metering.engine_counters import ReadingReason
from serving import processes, store
from serving.health import Health, check_health
from serving.launch import Launch, Launcher
from serving.model import Replica, ReplicaState
from serving.processes import Server
from serving.replica_logs import ReplicaLog

_log = get_logger(__name__)

ReadCounters = Callable[[Replica, ReadingReason], Awaitable[None]]


async def _read_nothing(_replica: Replica, _reason: ReadingReason) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Timing:
    """Times in milliseconds."""

    start_timeout: int
    scale_to_zero_after: int
    drain_grace: int = 30_000  # calls in flight to a deployment without endpoints get this long
    report_lasts: int = 15_000  # the gateway repeats calls in flight each second; silent for so long, it died
    idle_after: int = 30_000  # shown as idle after this long without calls
    poll: int = 200  # between health checks while starting
    tick: int = 500  # between looks at a ready server
    health_every: int = 5_000
    health_timeout: int = 3_000
    unwell_for: int = 30_000  # a ready server that answers errors for this long is ended
    silent_for: int = 120_000  # one that answers nothing: longer, a busy machine is not a broken server
    notice: int = 2_000  # the gateway hears of the stop and sends nobody there any more
    stop_grace: int = 25_000  # from SIGTERM to SIGKILL; vLLM lets calls in flight finish for 20 s
    backoff_first: int = 1_000
    backoff_cap: int = 300_000
    refusal_backoff: int = 5_000  # a refusal is cheap to repeat, and its cause may be mended at once
    steady_after: int = 60_000  # ready for this long: earlier deaths are forgotten
    max_quick_deaths: int = 3
    usual_start: int = 60_000  # expected before anything was measured
    log_max_bytes: int = 16 * 1024 * 1024


class DiedError(Exception):
    """The server ended unasked, or had to be ended. `final`: starting it again at once would be in vain."""

    def __init__(self, reason: str, *, final: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.final = reason, final


class StopAskedError(Exception):
    """Somebody asked for the end while the server was being started."""


class Recorder:
    """Writes runs to the database; what that cannot take now is written later, newest state only."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._unsaved: dict[str, Replica] = {}
        self._turn = asyncio.Lock()  # writes happen in the order of the states

    async def insert(self, replica: Replica) -> list[str]:
        """Record a run that is to begin; returns the runs forgotten for it. Raises when it cannot."""
        await self.flush()
        async with self._turn:
            return await asyncio.to_thread(self._insert, replica)

    async def save(self, replica: Replica) -> None:
        """Write the state, now or as soon as the database can take it."""
        self._unsaved[replica.id] = replica
        await self.flush()

    async def flush(self) -> None:
        """Write what is not written yet."""
        async with self._turn:
            for replica in list(self._unsaved.values()):
                try:
                    await asyncio.to_thread(self._save, replica)
                except (SQLAlchemyError, OSError) as error:
                    _log.warning(
                        "a replica's state cannot be written yet", extra={"reason": str(error)[:300]}
                    )
                    return
                if self._unsaved.get(replica.id) is replica:
                    del self._unsaved[replica.id]

    def _insert(self, replica: Replica) -> list[str]:
        with self._db.begin() as connection:
            return store.insert_replica(connection, replica, self._clock.now_ms())

    def _save(self, replica: Replica) -> None:
        with self._db.begin() as connection:
            store.save_replica(connection, replica, self._clock.now_ms())


@dataclass(slots=True)
class Surroundings:
    """What every run of one runtime shares."""

    db: Database
    clock: Clock
    launcher: Launcher
    timing: Timing
    logs: Path
    recorder: Recorder
    room: asyncio.Lock = field(default_factory=asyncio.Lock)
    reserved: dict[str, int] = field(default_factory=dict)  # run's id to bytes, until it is ready or gone
    jitter: Callable[[], float] = field(default=lambda: random.uniform(0.8, 1.2))
    read_counters: ReadCounters = _read_nothing  # never raises, and takes a few seconds at most

    def log_of(self, replica_id: str) -> ReplicaLog:
        """The log of a run."""
        return ReplicaLog(self.logs, replica_id)


class Run:
    """One server. `replica` is always what is true now; the table follows."""

    def __init__(self, around: Surroundings, replica: Replica, server: Server | None = None) -> None:
        self.replica = replica
        self.server = server  # None: not begun yet
        self.launch: Launch | None = None
        self._around = around
        self.log = around.log_of(replica.id)

    async def record(self) -> None:
        """Make the row, before there is a process that nobody would know of. Unavailable when that fails."""
        try:
            forgotten = await self._around.recorder.insert(self.replica)
        except (SQLAlchemyError, OSError) as error:
            raise Unavailable(f"the start cannot be recorded in the database: {error}"[:400]) from error
        for replica_id in forgotten:
            await asyncio.to_thread(self._around.log_of(replica_id).remove)

    async def begin(
        self, make: Callable[[int], Launch], phase: Callable[[str], None], check_stop: Callable[[], None]
    ) -> None:
        """Prepare, check for room, start the process. FareboxError: refused. `check_stop` may raise.

        `make` gives the command for a port, and may be asked twice.
        """
        port = await asyncio.to_thread(processes.free_port)
        launch = self.launch = await asyncio.to_thread(make, port)
        loop = asyncio.get_running_loop()

        def report(text: str) -> None:  # called from the thread that prepares; a raise there ends its work
            check_stop()
            loop.call_soon_threadsafe(phase, text)

        await asyncio.to_thread(launch.prepare, report)
        check_stop()
        # Again: what was prepared may change the command (a model's folder that was not there before).
        launch = self.launch = await asyncio.to_thread(make, port)
        await self._reserve(launch)
        phase("starting the server")
        try:
            self.server = await asyncio.to_thread(processes.spawn, launch, self.replica.id, self.log.path)
        except OSError as error:
            raise Unavailable(f"the server cannot be started: {error}") from error
        await self.save(
            pid=self.server.pid,
            process_mark=self.server.mark,
            port=port,
            spec_hash=launch.spec_hash,
            spawned_ms=self._around.clock.now_ms(),
            phase="starting the server",
        )

    async def _reserve(self, launch: Launch) -> None:
        # One at a time: what the one before reserved must be seen by the next.
        async with self._around.room:
            refusal = await asyncio.to_thread(launch.refusal, sum(self._around.reserved.values()))
            if refusal:
                raise Unavailable(refusal, code="no_room")
            self._around.reserved[self.replica.id] = launch.needed_bytes

    async def wait_until_ready(
        self, rest: Callable[[int], Awaitable[None]], timeout_ms: int | None = None
    ) -> None:
        """Poll until the server is well; DiedError when it ends or takes too long. `rest` may raise."""
        timing, clock = self._around.timing, self._around.clock
        timeout_ms = timing.start_timeout if timeout_ms is None else timeout_ms
        deadline = clock.monotonic_ms() + timeout_ms
        while True:
            if self.has_ended():
                raise DiedError(await self.reason_of_death())
            if await self.health(min(timing.health_timeout, 2_000)) == "well" and await self._is_ours():
                break
            if clock.monotonic_ms() >= deadline:
                seconds = timeout_ms // 1000
                raise DiedError(
                    f"the server was not ready within {seconds} s: {await self._lacks()}", final=True
                )
            await rest(timing.poll)
        self._around.reserved.pop(self.replica.id, None)
        await self._around.read_counters(self.replica, "ready")  # before anybody is sent there
        await self.save(state="ready", ready_ms=clock.now_ms(), phase="")

    async def _lacks(self) -> str:
        assert self.launch is not None, "begun"
        if await self._is_ours():
            return f"it does not answer GET {self.launch.health_path} with a success"
        return f"it does not listen on the port that it was given, {self.replica.port}"

    async def _is_ours(self) -> bool:
        # Another program may have taken the port since we looked: it must not get the calls.
        server, port = self.server, self.replica.port
        assert server is not None, "begun"
        assert port is not None, "begun"

        def look() -> bool:
            return processes.listens(processes.members(server.replica_id, server.pid, server.mark), port)

        return await asyncio.to_thread(look)

    async def health(self, timeout_ms: int, path: str | None = None) -> Health:
        """One look at the server, at its usual path or another."""
        assert self.replica.port is not None, "begun"
        assert self.launch is not None, "begun"
        return await check_health(self.replica.port, path or self.launch.health_path, timeout_ms / 1000)

    def has_ended(self) -> bool:
        """True once the server's process is gone."""
        assert self.server is not None, "begun"
        return self.server.ended()

    async def reason_of_death(self) -> str:
        """Why it ended, in one line, from its log and exit status."""
        assert self.server is not None, "begun"
        return await asyncio.to_thread(self.log.reason, self.server.exit_code)

    async def rotate_log(self) -> None:
        """Keep the log within its bound."""
        await asyncio.to_thread(self.log.rotate, self._around.timing.log_max_bytes)

    async def finish(self, state: ReplicaState, reason: str) -> None:
        """End every process of the run and record how it came out."""
        if self.server is not None:
            if state == "stopped" and self.replica.ready_ms is not None and not self.has_ended():
                await self._around.read_counters(self.replica, "stop")
            gone = await asyncio.to_thread(processes.end, self.server, self._around.timing.stop_grace / 1000)
            if not gone:
                reason += f"; its processes (group {self.server.pid}) could not be ended"
            await self.rotate_log()
        self._around.reserved.pop(self.replica.id, None)
        await self.save(state=state, reason=reason, stopped_ms=self._around.clock.now_ms(), phase="")

    async def save(self, **changes: Any) -> None:
        """Change the run's values and write them."""
        self.replica = replace(self.replica, **changes)
        await self._around.recorder.save(self.replica)
