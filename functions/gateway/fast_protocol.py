"""uvicorn's HTTP protocol with a fast lane beside it: everything but warm metered calls is uvicorn's own.

One parser reads both lanes' requests, so both are equally strict. A request is a candidate of the fast lane when
its head is complete; whatever then is not as usual goes to uvicorn's queue and the ASGI application, with what
was read of the body. While a fast call is answered, `_Busy` stands for it in uvicorn's eyes, so that a
pipelined request waits for its turn.
"""

import math
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from core.log import get_logger
from functions.gateway.exchange import MAX_HEADER_BYTES, MAX_HEADERS, Header, Receive, Scope, Send
from functions.gateway.fast_call import FastCall
from functions.gateway.fast_lane import MAX_FAST_BODY, FastLane
from functions.gateway.hot import OPERATIONS, HotRoutes, hot_route
from functions.gateway.record import CallRecord
from functions.gateway.upstream import ServerGone
from wire.openai import Operation

_log = get_logger(__name__)

_BODY_PATIENCE_S = 1.0  # for a body that did not come with its head; then the slow lane waits for it
_HEAD_TIMEOUT_S = 30.0
_MAX_HEAD_READ = (
    2 * MAX_HEADER_BYTES
)  # of a head that does not end; a whole one may still be refused politely
_NEVER = math.inf
_BY_URL = {path.encode(): (operation, "") for path, operation in OPERATIONS.items()}


class _Busy:
    """Stands for an answer that the fast lane gives, where uvicorn looks for a cycle of its own."""

    def __init__(self) -> None:
        self.response_complete = True
        self.disconnected = False
        self.keep_alive = True
        self.message_event = self

    def set(self) -> None:
        """Nobody waits for an event of the fast lane."""


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


class FastLaneProtocol(HttpToolsProtocol):
    """One connection of a caller."""

    def __init__(self, lane: FastLane, hot: HotRoutes, *arguments: Any, **named: Any) -> None:
        """uvicorn's arguments come last."""
        super().__init__(*arguments, **named)
        self.lane, self.hot = lane, hot
        self.deadline = _NEVER
        self.call: FastCall | None = None
        self.gone = False
        self.keep_alive = True
        self.client_request_id = b""
        self._busy: Any = _Busy()
        self._candidate: _Candidate | None = None  # while its body is read
        self._served: _Candidate | None = None  # while the fast lane answers it
        self._allowed = True  # else the slow lane says why not
        self._in_head = False
        self._head_since: float | None = None  # when one did not come in one piece
        self._head_bytes = 0

    # -- the transport's side --

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.lane.gateway.connections += 1
        self.lane.gateway.connections_made += 1
        self._allowed = self.lane.may_connect(self.client[0] if self.client else "")
        self.deadline = self.loop.time() + self.timeout_keep_alive
        self.lane.deadlines.watch(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.lane.gateway.connections -= 1
        self.lane.deadlines.forget(self)
        self._candidate = None
        super().connection_lost(exc)
        call, self.call = self.call, None
        if call is not None:
            call.hang_up()

    def data_received(self, data: bytes) -> None:
        self._head_bytes += len(data)
        super().data_received(data)
        if self._candidate is not None:
            self.deadline = self.loop.time() + _BODY_PATIENCE_S
        elif not self._in_head:
            self._head_bytes = 0
        elif self._head_bytes > _MAX_HEAD_READ:
            self._refuse(431)
        else:
            if self._head_since is None:
                self._head_since = self.loop.time()
            self.deadline = self._head_since + _HEAD_TIMEOUT_S

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.call is not None:
            self.call.hold()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.call is not None:
            self.call.release()

    def shutdown(self) -> None:
        if self.call is not None:
            self.keep_alive = False
        else:
            super().shutdown()

    def _unset_keepalive_if_required(self) -> None:
        self.deadline = _NEVER
        if self.timeout_keep_alive_task is not None:
            super()._unset_keepalive_if_required()

    def on_deadline(self) -> None:
        self.deadline = _NEVER
        if self._candidate is not None:
            candidate, self._candidate = self._candidate, None
            self._go_slowly(candidate, more_body=True)
        elif self._in_head:
            self._refuse(408)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # idle, and has not even taken its last answer
        else:
            self.transport.close()

    def _refuse(self, status: int) -> None:
        """A head that is not to be read to its end."""
        if not self.transport.is_closing():
            self.transport.write(STATUS_LINE[status] + b"content-length: 0\r\nconnection: close\r\n\r\n")
            self.transport.close()

    # -- the parser's side --

    def on_message_begin(self) -> None:
        # The scope is made when the slow lane needs it.
        self.url = b""
        self.expect_100_continue = False
        self.headers = []
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head, self._head_since = False, None
        self._candidate = self._find_candidate()
        if self._candidate is None:
            self._begin_scope(self.url, self.headers)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._candidate is not None:
            self._candidate.parts.append(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        candidate = self._candidate
        if candidate is None:
            super().on_message_complete()
            return
        self._candidate = None
        self._serve(candidate)

    def _begin_scope(self, url: bytes, headers: list[Header]) -> None:
        expects = self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)  # the scope holds this very list

    def _find_candidate(self) -> _Candidate | None:
        url = self.url
        found = _BY_URL.get(url)
        if found is None:
            found = hot_route(url.decode("latin-1")) if b"%" not in url and b"?" not in url else None
        if (
            found is None
            or self._head_bytes > MAX_HEADER_BYTES + MAX_FAST_BODY
            or len(self.headers) > MAX_HEADERS
            or self.expect_100_continue
            or (self.cycle is not None and not self.cycle.response_complete)
            or self.flow.write_paused
            or self.limit_concurrency is not None
            or not self._allowed
        ):
            return None
        parser = self.parser
        headers = dict(self.headers)
        length = headers.get(b"content-length", b"")
        if (
            parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not length.isdigit()
            or int(length) > self.lane.max_body_bytes
            or b"transfer-encoding" in headers
            or parser.should_upgrade()
        ):
            return None
        return _Candidate(url, self.headers, headers, found, parser.should_keep_alive())

    # -- serving --

    def _serve(self, candidate: _Candidate) -> None:
        parts = candidate.parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        self.cycle = self._busy
        self._busy.response_complete = False
        self._served = candidate
        self.keep_alive = candidate.keep_alive
        operation, endpoint_name = candidate.operation, candidate.endpoint_name
        if self.lane.begin(self, candidate.headers, body, operation, endpoint_name):
            candidate.parts = []
        else:
            self._served = None
            self._go_slowly(candidate, more_body=False)

    def _go_slowly(self, candidate: _Candidate, *, more_body: bool, app: Any = None) -> RequestResponseCycle:
        """Let uvicorn serve it by the ASGI application, as if its head had been complete just now."""
        newest = self.cycle if self.cycle is not self._busy else None
        state = self.parser, self.app, self.url, self.headers
        self.parser, self.cycle = candidate, None  # type: ignore[assignment]  # answers what is asked of a parser
        self.app = app or self.app
        try:
            self._begin_scope(candidate.url, candidate.raw_headers)
            super().on_headers_complete()
        finally:
            self.parser, self.app, self.url, self.headers = state
        self._busy.response_complete = True
        cycle = self.cycle
        cycle.body = bytearray(b"".join(candidate.parts))
        cycle.more_body = more_body
        cycle.message_event.set()
        if newest is not None and not newest.response_complete:
            self.cycle = newest  # pipelined: it may still get its body
        return cycle

    # -- what the fast lane asks for --

    def write(self, data: bytes) -> None:
        """To the caller, buffered."""
        self.transport.write(data)

    def abort(self) -> None:
        """Close the connection at once."""
        self.gone = True
        self.transport.abort()

    def default_headers(self) -> list[Header]:
        """uvicorn's: the date."""
        return self.server_state.default_headers

    def answer_over(self) -> None:
        """The answer's last byte was written."""
        self.call = self._served = None
        self._busy.response_complete = True
        if not self.keep_alive:
            self.transport.close()
        if self.pipeline or self.flow.read_paused:
            self.on_response_complete()
            return
        self.server_state.total_requests += 1
        self.deadline = self.loop.time() + self.timeout_keep_alive

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
    """For `uvicorn.Config(http=...)`, which calls it. No class of its own: a compiled one has no subclasses."""
    return partial(FastLaneProtocol, lane, hot)
