"""What all calls of a gateway process share: its dependencies, pollers, pools, and whether it takes calls."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

from msgspec import structs

from access.keyring import PublicKey
from core import huge_pages
from core.errors import FareboxError, JournalFull, Unavailable
from core.log import get_logger
from functions.gateway.activity import Activity
from functions.gateway.bandwidth import Bandwidth, parse_exceptions
from functions.gateway.collector import Collector
from functions.gateway.content_safety import ContentSafety
from functions.gateway.counting import COUNT_S, Counting
from functions.gateway.deadlines import Deadlines
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.idempotency import Outcomes
from functions.gateway.limiter import Limiter, no_limits
from functions.gateway.lookups import Lookups
from functions.gateway.metrics import Metrics
from functions.gateway.mirrors import Mirrors
from functions.gateway.networks import Reach
from functions.gateway.pending import Pending
from functions.gateway.places import Places
from functions.gateway.record import CallRecord
from functions.gateway.traffic_figures import TrafficFigures
from functions.gateway.upstream import Upstream
from functions.gateway.waking import WaitingRoom

_log: Final = get_logger(__name__)
_DRAIN_LOOK_EVERY_S: Final = 0.05
_SETTLE_S: Final = COUNT_S + 1.0


class Gateway:
    """The state of one gateway process."""

    def __init__(self, dependencies: GatewayDependencies) -> None:
        self.settings = settings = dependencies.settings
        self.clock = dependencies.clock
        self.metrics = Metrics()
        self.journal = dependencies.journal
        self.control = dependencies.control
        self.reach = Reach(settings)
        self.list_routes = dependencies.list_routes
        self.find_bearer = dependencies.find_bearer
        self.lookups = Lookups(
            clock=dependencies.clock,
            find_principal=dependencies.find_principal,
            resolve_route=dependencies.resolve_route,
            poll_changes=dependencies.poll_changes,
            last_seq=dependencies.last_seq,
            on_policy=lambda change: self.limits.changed(change),
        )
        limiting = dependencies.limiting or no_limits()
        self.bandwidth = Bandwidth(
            settings.online_bandwidth_bytes_per_s, parse_exceptions(settings.online_bandwidth_exceptions)
        )
        self.safety = ContentSafety(settings) if settings.content_safety_url else None
        self.limits = Limiter(limiting, self.clock, self.settings, dependencies.control)
        self.upstream = Upstream(settings)
        self.counting = Counting(self.upstream, dependencies.control)
        self.deadlines = Deadlines(self.upstream.pool.expire)
        self.waiting = WaitingRoom(
            dependencies.control,
            dependencies.clock,
            max_waiting=settings.max_waiting_per_deployment,
            on_ready=self.lookups.routes.forget,
            metrics=self.metrics,
        )
        self.places = Places(
            self.waiting,
            self.lookups.routes.find,
            dependencies.clock,
            self.metrics,
            each=settings.max_parallel_per_replica or settings.max_concurrent_requests,
            max_waiting=settings.max_waiting_per_deployment,
            max_waiting_per_org=settings.max_waiting_per_organization,
        )
        self.traffic = TrafficFigures()
        self.activity = Activity(dependencies.control, dependencies.clock, self.traffic)
        self.outcomes = Outcomes(dependencies.clock)
        self.pending = Pending()
        self.mirrors = Mirrors(self)
        self.collector = Collector(
            settings.collected_path,
            limiting.gateway or "gateway",
            settings.collected_max_bytes,
            PublicKey(settings.keyring_path) if settings.customer_key_file else None,
        )
        self.free_calls = 0
        self.in_flight = 0
        self.connections = self.connections_made = 0  # of callers: open now, and since the start
        self.draining = False
        self.interrupt_fast_calls: Callable[[], None] = lambda: None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Open the pools and start the pollers."""
        self.upstream.open()
        self.deadlines.start()
        await self.control.open()
        if self.safety is not None:
            await self.safety.open()
        loop = asyncio.get_running_loop()
        await self.limits.start()
        runs = [self.lookups.run(), self.activity.run(), self.limits.run()]
        if self.settings.huge_pages:
            runs.append(huge_pages.keep())
        self._tasks = [loop.create_task(each) for each in runs]

    async def stop(self) -> None:
        """The reverse. The journal stays open: who opened it closes it, so calls cut now are settled first."""
        self.draining = True
        await self.places.close()
        await self.waiting.close()
        # uvicorn has cancelled the tasks of the slow lane; here are none to cancel.
        self.interrupt_fast_calls()
        await self._until_idle(_SETTLE_S)
        await self.mirrors.close()
        await asyncio.to_thread(self.collector.close)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        with contextlib.suppress(Unavailable):
            await self.activity.report()
        await self.limits.stop()
        self.deadlines.stop()
        self.upstream.close()
        await self.control.close()
        if self.safety is not None:
            await self.safety.close()

    async def drain(self) -> bool:
        """Take no new calls and wait for those in flight, at most `drain_grace_s`; True when none is left."""
        self.draining = True
        return await self._until_idle(self.settings.drain_grace_s)

    async def _until_idle(self, at_most_s: float) -> bool:
        loop = asyncio.get_running_loop()
        end = loop.time() + at_most_s
        while self.in_flight and loop.time() < end:  # noqa: ASYNC110  # rare, and a counter is all the path has
            await asyncio.sleep(_DRAIN_LOOK_EVERY_S)
        return not self.in_flight

    def check_admission(self) -> None:
        """Unavailable while no call can be taken at all."""
        if self.draining:
            raise Unavailable("This gateway is stopping; try again.", code="stopping", retry_after_s=1)
        if self.in_flight > self.settings.max_concurrent_requests:
            raise Unavailable("Too many calls are in flight; try again.", code="overloaded", retry_after_s=1)
        self.journal.check()

    def owe(self, record: CallRecord) -> None:
        """The event of a call that ended could not be written. What the caller has of it is billed all the same."""
        self.metrics.unrecorded += 1
        event, chunks = record.last_event, record.chunks
        delivered = chunks is not None and chunks.chunks > 0
        if event is None or event.status == "error" or not (delivered or event.status == "client_disconnect"):
            self.limits.release(record)
            return
        if event.status == "completed":  # the caller is told otherwise, and gets no end
            event = record.last_event = structs.replace(event, status="interrupted")
        settle = self.limits.settle_later(record)

        def on_done(error: Exception | None) -> None:
            settle()
            if error is None:
                self.metrics.settled(event, self.clock.now_ms())

        self.journal.owe(event, on_done)

    async def problems(self) -> list[str]:
        """Why this gateway does not serve; empty when it does."""
        found = ["draining"] if self.draining else []
        try:
            self.journal.check()
        except JournalFull as error:
            found.append(f"journal: {error.message}")
        if not self.lookups.database_reachable:
            found.append("database: the change feed cannot be read")
        if not self.limits.ready:
            found.append("limits: not loaded yet")
        try:
            await self.control.ping()
        except FareboxError as error:
            found.append(f"control: {error.message}")
        return found
