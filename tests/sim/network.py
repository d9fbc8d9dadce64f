"""Connections within the simulation: bytes arrive in order, a while later, until somebody closes or is killed."""

import asyncio
from collections.abc import Callable
from typing import Any

from tests.sim.loop import SimLoop

_HIGH_WATER = 64 * 1024
_LOW_WATER = 16 * 1024


class SimTransport(asyncio.Transport):
    """One end of a connection. What it is told of its peer runs in the process that owns this end."""

    def __init__(self, loop: SimLoop, process: str, name: tuple[str, int], latency_s: float) -> None:
        super().__init__({"peername": name, "sockname": name})
        self._loop = loop
        self._context = loop.context_of(process)
        self._process = process
        self._latency_s = latency_s
        self._protocol: Any = None
        self.peer: SimTransport | None = None
        self._closing = False
        self._lost = False
        self._reading = True
        self._arrived: list[bytes] = []
        self._unread = 0  # bytes of ours that the peer has not taken
        self._paused = False
        self._next = 0.0  # nothing more arrives here before

    def start(self, protocol: Any) -> None:
        """The connection is there."""
        self._protocol = protocol
        self._context.run(protocol.connection_made, self)

    # -- what a protocol calls --

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        data = bytes(data)
        self._unread += len(data)
        if self._unread > _HIGH_WATER and not self._paused:
            self._paused = True
            self._protocol.pause_writing()
        assert self.peer is not None
        self._later(self.peer, self.peer._receive, data)

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            assert self.peer is not None
            self._later(self.peer, self.peer._end, None)
            self._loop.call_soon(self._lose, None, context=self._context)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._arrived:
            self._loop.call_soon(self._hand_over, context=self._context)

    def is_reading(self) -> bool:
        return self._reading

    def get_write_buffer_size(self) -> int:
        return self._unread

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Fixed here."""

    def can_write_eof(self) -> bool:
        return False

    def get_protocol(self) -> Any:
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    # -- the wire --

    def cut(self) -> None:
        """The owner of this end was killed: the operating system tells the peer."""
        self._closing = self._lost = True
        if self.peer is not None and not self.peer._lost:
            self._later(self.peer, self.peer._end, ConnectionResetError())

    def _later(self, end: "SimTransport", call: Callable[[Any], None], argument: Any) -> None:
        # Strictly one after the other: of two timers for the same instant either may be first.
        end._next = max(end._next + 1e-9, self._loop.now + self._latency_s)
        self._loop.call_at(end._next, call, argument, context=end._context)

    def _receive(self, data: bytes) -> None:
        if self._lost:
            return
        self._arrived.append(data)
        self._hand_over()

    def _hand_over(self) -> None:
        while self._arrived and self._reading and not self._lost:
            data = self._arrived.pop(0)
            if not self._closing:
                self._protocol.data_received(data)
            assert self.peer is not None
            self._later(self.peer, self.peer._taken, len(data))

    def _taken(self, size: int) -> None:
        self._unread -= size
        if self._paused and self._unread < _LOW_WATER and not self._lost:
            self._paused = False
            self._protocol.resume_writing()

    def _end(self, error: Exception | None) -> None:
        if self._arrived and not self._reading and error is None:
            self._loop.call_later(
                0.01, self._end, error, context=self._context
            )  # what came first is read first
        elif not self._lost:
            if error is None and not self._closing:
                self._protocol.eof_received()
            self._closing = True
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self._lost:
            self._lost = True
            self._protocol.connection_lost(error)


class Network:
    """Who listens where; connections between processes."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._listening: dict[tuple[str, int], tuple[str, Callable[[], Any]]] = {}
        self._ends: dict[str, list[SimTransport]] = {}
        loop.create_connection = self._create_connection  # type: ignore[method-assign,assignment]

    def listen(self, address: tuple[str, int], process: str, accept: Callable[[], Any]) -> None:
        """From now on connections to `address` are `process`'s; `accept()` makes a protocol."""
        self._listening[address] = (process, accept)

    def kill(self, process: str) -> None:
        """End the process: it stops listening, its connections are reset."""
        self._listening = {a: found for a, found in self._listening.items() if found[0] != process}
        self._loop.kill(process)
        for end in self._ends.pop(process, ()):
            end.cut()

    def connect(self, address: tuple[str, int], process: str, protocol: Any) -> SimTransport:
        """A connection from `process`. ConnectionRefusedError: nobody listens."""
        found = self._listening.get(address)
        if found is None or not self._loop.alive(found[0]):
            raise ConnectionRefusedError(f"nobody listens on {address}")
        server, accept = found
        latency_s = self._loop.chance.uniform(0.00005, 0.002)
        near = SimTransport(self._loop, process, address, latency_s)
        far = SimTransport(self._loop, server, ("10.0.0.1", 1), latency_s)
        near.peer, far.peer = far, near
        for name, end in ((process, near), (server, far)):
            ends = self._ends.setdefault(name, [])
            ends.append(end)
            if len(ends) > 512:
                ends[:] = [each for each in ends if not each._lost]
        far.start(far._context.run(accept))
        near.start(protocol)
        return near

    async def _create_connection(self, factory: Callable[[], Any], host: str, port: int, **_: Any) -> Any:
        from tests.sim.loop import _process

        await asyncio.sleep(self._loop.chance.uniform(0.0001, 0.002))
        protocol = factory()
        return self.connect((host, port), _process.get(), protocol), protocol
