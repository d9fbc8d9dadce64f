"""One HTTP/1.1 connection to a model server: a request written, its answer handed to a sink as it comes.

No task, future or queue per request: the parser's callbacks are the sink's calls. Who waits for an answer
watches the time (`deadlines.py`); who reads slower than the server writes calls `pause`.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol, cast

import httptools

from core.errors import UpstreamFailed
from functions.gateway.origin import Origin

# Of an answer's head, and of what comes between two pieces of its body: chunk sizes, extensions, trailers.
MAX_OVERHEAD_BYTES: Final = 64 * 1024
_COPIED_BYTES: Final = 16 * 1024  # a smaller body is cheaper copied than written apart


class ServerGone(Exception):  # tells what is so, and that another attempt is safe
    """The server refused or closed the connection before the first byte of an answer, or said it is busy.

    `http_status`: what goes on record for the attempt. `wait_s`: how long the server wants to be left alone.
    """

    def __init__(self, reason: str, http_status: int = 502, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.http_status = http_status
        self.wait_s = wait_s


class AnswerSink(Protocol):
    """Who gets an answer. After `answer_ended` or `answer_failed` nothing more comes."""

    def head_received(self, status: int, headers: dict[bytes, bytes]) -> None: ...

    def data_received(self, data: bytes) -> None: ...

    def answer_ended(self) -> None: ...

    def answer_failed(self, error: ServerGone | UpstreamFailed) -> None: ...


class UpstreamConnection:
    """Serves one request at a time; `free` is called when it can take the next one.

    An `asyncio.Protocol`, but not derived from it, so that it can be compiled.
    """

    __slots__ = (
        "_began",
        "_body",
        "_closed",
        "_free",
        "_head_told",
        "_headers",
        "_keep_alive",
        "_message_done",
        "_overhead",
        "_parser",
        "_paused",
        "_sink",
        "_status",
        "_transport",
        "_until_eof",
        "idle_since",
        "origin",
    )

    def __init__(self, origin: Origin, free: Callable[["UpstreamConnection", bool], None]) -> None:
        """`free(connection, reusable)`: the answer was read, or the connection is no more."""
        self.origin = origin
        self.idle_since = 0.0
        self._free = free
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._sink: AnswerSink | None = None
        self._closed = False
        self._paused = False
        self._reset()

    def _reset(self) -> None:
        self._began = False  # a byte of the answer has come
        self._head_told = False
        self._keep_alive = False
        self._message_done = False
        self._until_eof = False
        self._overhead = 0
        self._status = 0  # of the answer itself, not of a 1xx before it
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []

    # -- for who sends --

    def send(self, head: bytes, body: bytes, sink: AnswerSink) -> None:
        """Write a request; its answer goes to `sink`, which may be told of a failure before this returns."""
        self._sink = sink
        if self._transport is None or self._closed:
            self._fail()
        elif len(body) < _COPIED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)

    def pause(self) -> None:
        """Read no more for now: the server is held back by TCP."""
        if not self._paused and not self._closed and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused:
            self._paused = False
            if not self._closed and self._transport is not None:
                self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once and tell nobody: the server sees that its answer is not wanted any more."""
        self._sink = None
        self._close()

    # -- the transport's side --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop has a class of its own

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self._close()  # nobody asked for anything
            return
        self._began = True
        self._overhead += len(data)
        broken = False
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            broken = True
        if self._overhead > MAX_OVERHEAD_BYTES:
            self._fail()
            return
        self._hand_over()
        if self._message_done:
            self._end(reusable=self._keep_alive and not broken)
        elif broken:
            self._fail()

    def eof_received(self) -> None:
        """The server closes: the transport does the same."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        if self._sink is None:
            self._free(self, False)
        elif self._until_eof and exc is None:
            self._end(reusable=False)
        else:
            self._fail()

    # -- the parser's side: only notes what came; the sink is called when the parser has returned --

    def on_message_begin(self) -> None:
        if self._message_done:
            self._keep_alive = False  # more than was asked for
            raise ValueError("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._status:
            self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._status = status
        framed = b"content-length" in self._headers or b"transfer-encoding" in self._headers
        self._until_eof = not framed and status not in (204, 304)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._status:
            self._message_done = True
            self._keep_alive = self._parser.should_keep_alive()
        else:
            self._headers = {}  # of a 1xx

    # -- ends --

    def _hand_over(self) -> None:
        sink = self._sink
        if self._status and not self._head_told and sink is not None:
            self._head_told = True
            headers, self._headers = self._headers, {}
            sink.head_received(self._status, headers)
        parts = self._body
        if parts:
            self._body = []
            sink = self._sink  # it may have gone when it saw the head
            if sink is not None:
                sink.data_received(parts[0] if len(parts) == 1 else b"".join(parts))

    def _end(self, *, reusable: bool) -> None:
        sink, self._sink = self._sink, None
        if sink is None:  # it went within the last piece
            return
        transport = self._transport
        # An answer that came before the whole request was written leaves the rest of it in the way.
        if (
            reusable
            and not self._closed
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        ):
            self.resume()
            self._reset()
            self._free(self, True)
        else:
            self._close()
        sink.answer_ended()

    def _fail(self) -> None:
        sink, self._sink = self._sink, None
        self._close()
        if sink is None:
            return
        if not self._began:
            sink.answer_failed(ServerGone("closed"))
        elif self._head_told:
            sink.answer_failed(UpstreamFailed("The model server broke off within its answer."))
        else:
            sink.answer_failed(UpstreamFailed("The model server's answer could not be understood."))

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._transport is not None:
                self._transport.abort()
        self._free(self, False)
