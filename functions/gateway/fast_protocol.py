"""A fast lane before uvicorn's HTTP protocol: everything but warm metered calls is uvicorn's own.

One parser reads both lanes' requests, so both are equally strict. A request is a candidate of the fast lane when
its head is complete; whatever then is not as usual goes to uvicorn's queue and the ASGI application, with what
was read of the body. While a fast call is answered, `_Busy` stands for it in uvicorn's eyes, so that a
pipelined request waits for its turn.

uvicorn's protocol is a part, not the base: compiled, a class reads its own attributes many times faster than those
of a base that is not.
"""

import math
from functools import partial
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from core.log import get_logger
from functions.gateway.exchange import MAX_HEADER_BYTES, MAX_HEADERS, Header, Receive, Scope, Send
from functions.gateway.fast_call import FastCall
from functions.gateway.fast_lane import FastLane
from functions.gateway.hot import OPERATIONS, HotRoutes, hot_route
from functions.gateway.record import CallRecord
from functions.gateway.upstream import ServerGone
from wire.openai import Operation

_log: Final = get_logger(__name__)

_BODY_PATIENCE_S: Final = 1.0  # for a body that did not come with its head; then the slow lane waits for it
_HEAD_TIMEOUT_S = 30.0  # a test makes it shorter; as `Final` it would be compiled in
# Of a head that does not end; a whole one may still be refused politely.
_MAX_HEAD_READ: Final = 2 * MAX_HEADER_BYTES
_NEVER: Final[float] = math.inf
_BY_URL: Final = {path.encode(): (operation, "") for path, operation in OPERATIONS.items()}


class _Nobody:
    """Waits for an event of the fast lane."""

    def set(self) -> None:
        """See `asyncio.Event`."""


_NOBODY: Final = _Nobody()


class _Busy:
    """Stands for an answer that the fast lane gives, where uvicorn looks for a cycle of its own."""

    def __init__(self) -> None:
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True
        self.message_event = _NOBODY


class _Candidate:
    """A request whose head is complete and which the fast lane may serve."""

    __slots__ = ("endpoint_name", "headers", "keep_alive", "operation", "parts", "raw_headers", "url")

    def __init__(
        self,
        url: bytes,
        raw_headers: list[Header],
        headers: dict[bytes, bytes],
        found: tuple[Operation, str],
        keep_alive: bool,
    ) -> None:
        self.url = url
        self.raw_headers = raw_headers
        self.headers = headers
        self.operation, self.endpoint_name = found
        self.keep_alive = keep_alive
        self.parts: list[bytes] = []

    # What uvicorn asks of its parser when a head is complete, answered later than the parser could.

    def get_http_version(self) -> str:
        return "1.1"

    def get_method(self) -> bytes:
        return b"POST"

    def should_upgrade(self) -> bool:
        return False

    def should_keep_alive(self) -> bool:
        return self.keep_alive


class FastLaneProtocol:
    """One connection of a caller: an `asyncio.Protocol`, and its parser's callbacks."""

    def __init__(self, lane: FastLane, hot: HotRoutes, slow: HttpToolsProtocol) -> None:
        """`slow` is uvicorn's own protocol for the same connection, not connected yet."""
        self.lane, self.hot = lane, hot
        self.deadline = _NEVER
        self.call: FastCall | None = None
        self.gone = False
        self.keep_alive = True
        self.client_request_id = b""
        self._slow = slow
        self._slowly = False  # uvicorn has had a request of this connection
        self._loop: Any = slow.loop
        self._keep_alive_s = float(slow.timeout_keep_alive)
        self._transport: Any = None
        # uvicorn's own parser, which is set to be as lenient as uvicorn is; only it calls back to this object.
        self._parser: Any = httptools.HttpRequestParser(self)
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._url = b""
        self._headers: list[Header] = []
        self._expects = False  # to be told to go on before it sends its body
        self._busy = _Busy()
        self._candidate: _Candidate | None = None  # while its body is read
        self._served: _Candidate | None = None  # while the fast lane answers it
        self._allowed = slow.limit_concurrency is None  # else the slow lane says why not
        self._caller_slow = False
        self._in_head = False
        self._head_since = 0.0  # when one did not come in one piece
        self._head_bytes = 0  # read after the piece in which it began
        self._header_bytes = 0

    # -- the transport's side --

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        slow = self._slow
        slow.connection_made(transport)
        slow.parser = self._parser
        # The server closes what is in this set, and waits for it.
        slow.connections.discard(slow)
        slow.connections.add(self)  # type: ignore[arg-type]
        gateway = self.lane.gateway
        gateway.connections += 1
        gateway.connections_made += 1
        self._allowed = self._allowed and self.lane.may_connect(slow.client[0] if slow.client else "")
        self.deadline = self._loop.time() + self._keep_alive_s
        self.lane.deadlines.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.lane.gateway.connections -= 1
        self.lane.deadlines.forget(self)
        self._candidate = None
        self._slow.connections.discard(self)
        self._slow.connection_lost(exc)
        self._parser = None  # it holds this object
        call, self.call = self.call, None
        if call is not None:
            call.hang_up()

    def eof_received(self) -> None:
        """The transport closes."""

    def data_received(self, data: bytes) -> None:
        self.deadline = _NEVER
        if self._slowly:
            self._slow._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._slow.send_400_response("Invalid HTTP request received.")
            return
        except httptools.HttpParserUpgrade:
            self._slow._unsupported_upgrade_warning()  # to WebSocket or HTTP/2: answered as if it had not asked
        if self._candidate is not None:
            self.deadline = self._loop.time() + _BODY_PATIENCE_S
        elif self._in_head and self._head_bytes > _MAX_HEAD_READ:
            self._refuse(431)
        elif self._in_head:
            if not self._head_since:
                self._head_since = self._loop.time()
            self.deadline = self._head_since + _HEAD_TIMEOUT_S

    def pause_writing(self) -> None:
        self._caller_slow = True
        self._slow.pause_writing()
        if self.call is not None:
            self.call.hold()

    def resume_writing(self) -> None:
        self._caller_slow = False
        self._slow.resume_writing()
        if self.call is not None:
            self.call.release()

    def shutdown(self) -> None:
        """The server stops: close when nothing is being answered, else after the answer."""
        if self.call is not None:
            self.keep_alive = False
        else:
            self._slow.shutdown()

    def on_deadline(self) -> None:
        self.deadline = _NEVER
        if self._candidate is not None:
            candidate, self._candidate = self._candidate, None
            self._go_slowly(candidate, more_body=True)
        elif self._in_head:
            self._refuse(408)
        elif self._transport.get_write_buffer_size():
            self._transport.abort()  # idle, and has not even taken its last answer
        else:
            self._transport.close()

    def _refuse(self, status: int) -> None:
        """A head that is not to be read to its end."""
        if not self._transport.is_closing():
            self._transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self._transport.close()

    # -- the parser's side --

    def on_message_begin(self) -> None:
        # uvicorn's scope is made when the slow lane needs it.
        self._url = b""
        self._expects = False
        self._headers = []
        self._header_bytes = 0
        self._head_bytes = 0  # what else came in the same piece may be of the request before
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        self._headers.append((name, value))
        self._header_bytes += len(name) + len(value)

    def on_headers_complete(self) -> None:
        self._in_head, self._head_since = False, 0.0
        self._candidate = self._find_candidate()
        if self._candidate is None:
            slow = self._slow
            if self._served is not None and (slow.cycle is None or slow.cycle.response_complete):
                slow.cycle = self._busy  # type: ignore[assignment]
            self._begin_slowly(self._url, self._headers, self._expects)

    def on_body(self, body: bytes) -> None:
        if self._candidate is not None:
            self._candidate.parts.append(body)
        else:
            self._slow.on_body(body)

    def on_message_complete(self) -> None:
        candidate = self._candidate
        if candidate is None:
            self._slow.on_message_complete()
            return
        self._candidate = None
        self._serve(candidate)

    def _begin_slowly(self, url: bytes, headers: list[Header], expects: bool) -> None:
        """uvicorn has a request whose head is complete."""
        self._slowly = True
        slow = self._slow
        slow.on_message_begin()
        slow.url, slow.expect_100_continue = url, expects
        slow.headers.extend(headers)  # the scope holds this very list
        slow.on_headers_complete()

    def _find_candidate(self) -> _Candidate | None:
        url = self._url
        found = _BY_URL.get(url)
        if found is None:
            found = hot_route(url.decode("latin-1")) if b"%" not in url and b"?" not in url else None
        if (
            found is None
            or self._header_bytes > MAX_HEADER_BYTES
            or len(self._headers) > MAX_HEADERS
            or self._expects
            or self._served is not None
            or self._caller_slow
            or not self._allowed
            or (self._slowly and self._slow.cycle is not None and not self._slow.cycle.response_complete)
        ):
            return None
        parser = self._parser
        headers = dict(self._headers)
        length = headers.get(b"content-length", b"")
        keep_alive: bool = parser.should_keep_alive()
        if (
            parser.get_method() != b"POST"
            or not length.isdigit()
            or int(length) > self.lane.max_body_bytes
            or b"transfer-encoding" in headers
        ):
            return None
        # Who says nothing of the connection and keeps it speaks HTTP/1.1 and asks for no upgrade.
        if (b"connection" in headers or not keep_alive) and (
            parser.get_http_version() != "1.1" or parser.should_upgrade()
        ):
            return None
        return _Candidate(url, self._headers, headers, found, keep_alive)

    # -- serving --

    def _serve(self, candidate: _Candidate) -> None:
        parts = candidate.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._served = candidate
        self.keep_alive = candidate.keep_alive
        self._busy.response_complete = False
        if self.lane.begin(self, candidate.headers, body, candidate.operation, candidate.endpoint_name):
            candidate.parts = []
        else:
            self._served = None
            self._go_slowly(candidate, more_body=False)

    def _go_slowly(self, candidate: _Candidate, *, more_body: bool, app: Any = None) -> RequestResponseCycle:
        """Let uvicorn serve it by the ASGI application, as if its head had been complete just now."""
        slow = self._slow
        newest: Any = slow.cycle
        if newest is self._busy:
            newest = None
        state = (slow.url, slow.headers) if newest is not None else (b"", [])
        usual_app = slow.app
        slow.parser, slow.cycle = candidate, None  # type: ignore[assignment]  # answers what is asked of a parser
        slow.app = app or usual_app
        try:
            self._begin_slowly(candidate.url, candidate.raw_headers, expects=False)  # else it is no candidate
        finally:
            slow.parser, slow.app = self._parser, usual_app
            slow.url, slow.headers = state
        self._busy.response_complete = True
        cycle = slow.cycle
        cycle.body = bytearray(b"".join(candidate.parts))
        cycle.more_body = more_body
        cycle.message_event.set()
        if newest is not None and not newest.response_complete:
            slow.cycle = newest  # pipelined: it may still get its body
        return cycle

    # -- what the fast lane asks for --

    def write(self, data: bytes) -> None:
        """To the caller, buffered."""
        self._transport.write(data)

    def abort(self) -> None:
        """Close the connection at once."""
        self.gone = True
        self._transport.abort()

    def default_headers(self) -> list[Header]:
        """uvicorn's: the date."""
        return self._slow.server_state.default_headers

    def answer_over(self) -> None:
        """The answer's last byte was written."""
        self.call = self._served = None
        self._busy.response_complete = True
        if not self.keep_alive:
            self._transport.close()
        if self._slowly and (self._slow.pipeline or self._slow.flow.read_paused):
            self._slow.on_response_complete()
            return
        self.deadline = self._loop.time() + self._keep_alive_s

    def go_on_slowly(self, record: CallRecord, gone: ServerGone, *, started: bool) -> None:
        """The slow lane takes over a call whose server was gone before the first byte."""
        candidate, self.call, self._served = self._served, None, None
        assert candidate is not None, "a call is served"

        async def resume(scope: Scope, receive: Receive, send: Send) -> None:
            await self.hot.resume(scope, receive, send, record, gone, started=started)

        candidate.keep_alive = self.keep_alive
        cycle = self._go_slowly(candidate, more_body=False, app=resume)
        if started:  # a streaming caller has seen that it waits
            cycle.response_started = cycle.chunked_encoding = True


def protocol_class(lane: FastLane, hot: HotRoutes) -> Any:
    """For `uvicorn.Config(http=..., ws="none")`, which calls it with what its own protocol wants to know."""
    return partial(_protocol, lane, hot)


def _protocol(lane: FastLane, hot: HotRoutes, *arguments: Any, **named: Any) -> FastLaneProtocol:
    return FastLaneProtocol(lane, hot, HttpToolsProtocol(*arguments, **named))
