"""Connections to model servers that are kept for the next call: per server, the last used first, bounded."""

import asyncio
import ssl
from typing import Any, Final

from functions.gateway.origin import Origin
from functions.gateway.upstream_protocol import ServerGone, UpstreamConnection

MAX_IDLE_PER_ORIGIN: Final = 1024
# Shorter than the five seconds after which vLLM closes: who closes last, loses the race.
MAX_IDLE_S: Final = 4.0


class Pool:
    """How many connections there are is bounded by the calls in flight; only idle ones are counted here."""

    def __init__(self, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._all: set[UpstreamConnection] = set()
        self._tls: ssl.SSLContext | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        """Needs a running event loop."""
        self._loop = asyncio.get_running_loop()

    def close(self) -> None:
        """Close every connection."""
        for connection in list(self._all):
            connection.abort()
        self._idle.clear()

    def sizes(self) -> tuple[int, int]:
        """Connections in use, and kept ones."""
        idle = sum(map(len, self._idle.values()))
        return len(self._all) - idle, idle

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """A connection that is open and was used a moment ago, None when there is none."""
        idle = self._idle.get(origin)
        if not idle:
            return None
        assert self._loop is not None, "open() was not called"
        connection = idle.pop()
        if self._loop.time() - connection.idle_since <= MAX_IDLE_S:
            return connection
        connection.abort()  # those below it are older still: `expire` ends them
        return None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """A new connection. ServerGone: there is none to be had in time."""
        assert self._loop is not None, "open() was not called"
        context = self._context() if origin.tls else None
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, made = await self._loop.create_connection(
                    lambda: self._protocol(origin), origin.host, origin.port, ssl=context
                )
        except (OSError, TimeoutError) as error:
            raise ServerGone(type(error).__name__) from error
        connection: UpstreamConnection = made
        self._all.add(connection)
        return connection

    def _protocol(self, origin: Origin) -> Any:
        """Any: it has a protocol's methods, and is not derived from asyncio's class."""
        return UpstreamConnection(origin, self._free)

    def expire(self, now: float) -> None:
        """Close what was idle for too long."""
        for origin, idle in list(self._idle.items()):
            while idle and now - idle[0].idle_since > MAX_IDLE_S:
                idle.pop(0).abort()
            if not idle:
                del self._idle[origin]  # servers come and go on ports of their own

    def _free(self, connection: UpstreamConnection, reusable: bool) -> None:
        if reusable:
            assert self._loop is not None, "it was needed to connect"
            idle = self._idle.setdefault(connection.origin, [])
            if len(idle) < MAX_IDLE_PER_ORIGIN:
                connection.idle_since = self._loop.time()
                idle.append(connection)
            else:
                connection.abort()
        elif connection in self._all:
            self._all.discard(connection)
            idle = self._idle.get(connection.origin, [])
            if connection in idle:
                idle.remove(connection)

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls
