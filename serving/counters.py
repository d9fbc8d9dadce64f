"""Reads what engines have counted (`/metrics`): every minute, when one becomes ready, before one is stopped.

Bounded in size and time, and never in the way: an engine that does not answer is noted as such.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp
from sqlalchemy.exc import SQLAlchemyError

from core.clock import MINUTE_MS, Clock
from core.database import Database
from core.log import get_logger
from metering.engine_counters import Reading, ReadingReason, forget_readings, store_readings
from wire.prometheus import EngineCounts, engine_counts

KEEP_MS = 8 * 86_400_000
_MAX_PAGE_BYTES = 4 * 1024 * 1024
_TIMEOUT_S = 3.0
_AT_ONCE = 16
_ASK_AGAIN_MS = 3_600_000  # an engine without counters
_AFTER_THE_MINUTE_MS = 100
_MAX_SERVERS = 10_000
_PLAIN = {"accept-encoding": "identity"}  # nothing that grows when it is unpacked

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CountedServer:
    """One engine that may have counters. `series` tells it from others of its deployment, and from its successor."""

    deployment_id: str
    series: str
    url: str


Servers = Callable[[], Awaitable[Sequence[CountedServer]]]
ReadPage = Callable[[str], Awaitable[bytes | None]]


class CounterReader:
    """Reads engines and keeps what they said. For one event loop."""

    def __init__(
        self, db: Database, clock: Clock, servers: Servers, read_page: ReadPage | None = None
    ) -> None:
        """`read_page` gives the page at a URL, None where there is none; OSError or TimeoutError when it fails."""
        self._db, self._clock, self._servers = db, clock, servers
        self._read_page = read_page or read_metrics_page
        self._without: dict[
            str, int
        ] = {}  # series without counters: when to ask again, on the monotonic clock
        self._forgot_ms = 0
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Read all engines just after each minute begins, until cancelled."""
        while True:
            await asyncio.sleep((MINUTE_MS - self._clock.now_ms() % MINUTE_MS + _AFTER_THE_MINUTE_MS) / 1000)
            try:
                await self.read_all("minute")
            except SQLAlchemyError as error:
                _log.warning("engine counters cannot be kept", extra={"reason": str(error)[:300]})
            except Exception:
                _log.exception("reading engine counters failed")

    async def read_all(self, reason: ReadingReason) -> None:
        """One round: every engine that is up, at about the same instant."""
        servers = list(await self._servers())[:_MAX_SERVERS]
        at_ms = self._clock.now_ms()
        readings = await asyncio.gather(*(self._read(server, at_ms, reason) for server in servers))
        await asyncio.to_thread(self._keep, [reading for reading in readings if reading is not None])

    async def read_one(self, server: CountedServer, reason: ReadingReason) -> None:
        """This engine alone; what goes wrong is logged, for it must not keep a server from starting or ending."""
        try:
            reading = await self._read(server, self._clock.now_ms(), reason)
            if reading is not None:
                await asyncio.to_thread(self._keep, [reading])
        except Exception as error:
            _log.warning("an engine's counters cannot be kept", extra={"reason": str(error)[:300]})

    async def _read(self, server: CountedServer, at_ms: int, reason: ReadingReason) -> Reading | None:
        if self._without.get(server.series, 0) > self._clock.monotonic_ms():
            return None
        counts: EngineCounts | None = None
        try:
            async with self._slots, asyncio.timeout(_TIMEOUT_S):
                page = await self._read_page(server.url)
            if page is not None:
                counts = await asyncio.to_thread(engine_counts, page)
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError):
            return self._reading(server, at_ms, reason, None, failed=True)
        return self._reading(server, at_ms, reason, counts)

    def _reading(
        self,
        server: CountedServer,
        at_ms: int,
        reason: ReadingReason,
        counts: EngineCounts | None,
        *,
        failed: bool = False,
    ) -> Reading:
        read_ms = max(at_ms, self._clock.now_ms())
        if counts is None:
            if not failed:
                if len(self._without) >= _MAX_SERVERS:
                    self._without.clear()
                self._without[server.series] = self._clock.monotonic_ms() + _ASK_AGAIN_MS
            state = "failed" if failed else "none"
            return Reading(server.deployment_id, server.series, at_ms, read_ms, reason, state)  # type: ignore[arg-type]  # one of two literals
        return Reading(
            server.deployment_id,
            server.series,
            at_ms,
            read_ms,
            reason,
            "read",
            counts.started_ms,
            counts.input,
            counts.cached_input,
            counts.output,
            counts.requests,
            counts.running,
        )

    def _keep(self, readings: Sequence[Reading]) -> None:
        now_ms = self._clock.now_ms()
        due = abs(now_ms - self._forgot_ms) >= _ASK_AGAIN_MS
        if not readings and not due:
            return
        with self._db.begin() as connection:
            store_readings(connection, readings)
            if due:
                forget_readings(connection, now_ms - KEEP_MS)
        self._forgot_ms = now_ms if due else self._forgot_ms


async def read_metrics_page(url: str) -> bytes | None:
    """The page at `url`/metrics; None when the server has none, or one that is larger than any engine's."""
    async with (
        aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()) as session,
        session.get(f"{url}/metrics", allow_redirects=False, headers=_PLAIN) as answer,
    ):
        if answer.status != 200:
            if answer.status >= 500:
                raise OSError(f"the metrics page answers {answer.status}")
            return None
        page = bytearray()
        async for piece in answer.content.iter_chunked(65_536):
            page += piece
            if len(page) > _MAX_PAGE_BYTES:
                return None
        return bytes(page)
