"""Callers of the simulation: real HTTP/1.1 bytes to the gateway, and a note of everything that came back."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import httptools

from tests.sim.loop import SimLoop
from tests.sim.network import Network

GATEWAY = ("10.0.0.2", 8080)


@dataclass
class Seen:
    """What a caller knows of one of its calls."""

    key: str
    stream: bool
    status: int = 0
    request_id: str = ""
    chunks: int = 0  # with content, of a stream
    complete: bool = False  # the whole answer came, and it was a success
    usage: dict[str, Any] | None = None
    left: bool = False  # it hung up
    delivered: list[tuple[float, int]] = field(default_factory=list)  # chunks by time


class _Reader:
    """The caller's end of a connection."""

    def __init__(self, loop: SimLoop, seen: Seen) -> None:
        self._loop = loop
        self._seen = seen
        self._parser = httptools.HttpResponseParser(self)
        self._body = b""
        self._read = 0  # of the body, by events
        self.over: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: Any) -> None:
        """Nothing to do yet."""

    def eof_received(self) -> None:
        """The end is seen in `connection_lost`."""

    def pause_writing(self) -> None:
        """Requests are small."""

    def resume_writing(self) -> None:
        """Likewise."""

    def connection_lost(self, _: Exception | None) -> None:
        self._end()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-request-id":
            self._seen.request_id = value.decode()

    def on_headers_complete(self) -> None:
        self._seen.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body
        if self._seen.stream and self._seen.status == 200:
            self._read_events()

    def _read_events(self) -> None:
        while (end := self._body.find(b"\n\n", self._read)) >= 0:
            line, self._read = self._body[self._read : end], end + 2
            if not line.startswith(b"data: "):
                continue
            if line == b"data: [DONE]":
                self._seen.complete = True
                continue
            document = json.loads(line[6:])
            if any(choice["delta"].get("content") for choice in document.get("choices", ())):
                self._seen.chunks += 1
                self._seen.delivered.append((self._loop.now, self._seen.chunks))
            if "error" in document:
                return
            self._seen.usage = document.get("usage") or self._seen.usage

    def on_message_complete(self) -> None:
        if self._seen.status == 200 and not self._seen.stream:
            self._seen.complete = True
            self._seen.usage = json.loads(self._body)["usage"]
        elif self._seen.status >= 400:
            assert "error" in json.loads(self._body), self._body
        self._end()

    def _end(self) -> None:
        if not self.over.done():
            self.over.set_result(None)


async def call(
    loop: SimLoop, network: Network, key: str, request: dict[str, Any], leaves_after_s: float | None
) -> Seen | None:
    """One call on a connection of its own; None when nobody listens."""
    seen = Seen(key, bool(request.get("stream")))
    reader = _Reader(loop, seen)
    try:
        transport = network.connect(GATEWAY, "callers", reader)
    except ConnectionRefusedError:
        return None
    body = json.dumps(request).encode()
    transport.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer %b\r\n"
        b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (key.encode(), len(body), body)
    )
    try:
        async with asyncio.timeout(leaves_after_s):
            await reader.over
    except TimeoutError:
        seen.left = not seen.complete
    transport.close()
    return seen
