"""One warm call in the fast lane: `call.py` as a state machine that callbacks drive, without a task of its own.

Same order: the usage event is durable before the answer's last byte is sent. Same ends, same events. It sends
once; when the server was gone before the first byte, the slow lane takes over (`FastLane.hand_over`).
"""

import asyncio
from typing import TYPE_CHECKING, Final

from core.errors import FareboxError, JournalFull, Unavailable, UpstreamFailed
from core.log import get_logger
from functions.gateway.call import CLIENT_CLOSED, PROGRESS_EVERY_S
from functions.gateway.exchange import FIRST_COMMENT_S
from functions.gateway.origin import Origin
from functions.gateway.record import CallRecord, cut_short, refusal, silent
from functions.gateway.retrying import busy
from functions.gateway.traffic_figures import LEFT
from functions.gateway.upstream import (
    MAX_ANSWER_BYTES,
    MAX_ERROR_BYTES,
    ServerGone,
    content_type,
    request_head,
    server_of,
    too_large_an_answer,
)
from functions.gateway.upstream_protocol import UpstreamConnection
from metering.model import Status, UsageEvent
from wire.dialects import AnswerStream
from wire.openai_stream import error_event
from wire.sse import WAITING_COMMENT

if TYPE_CHECKING:
    from functions.gateway.fast_lane import FastLane
    from functions.gateway.fast_protocol import FastLaneProtocol as Caller

_log: Final = get_logger(__name__)


class FastCall:
    """A call that was admitted. It is over, and has told the lane so, after exactly one usage event."""

    __slots__ = (
        "_caller",
        "_caller_slow",
        "_chunks",
        "_comment_at",
        "_connecting",
        "_connection",
        "_counting",
        "_ends_at",
        "_failure",
        "_gateway",
        "_headers",
        "_lane",
        "_last",
        "_loop",
        "_max_bytes",
        "_over",
        "_parts",
        "_progress_at",
        "_sent",
        "_settling",
        "_silent_at",
        "_size",
        "_started",
        "_status",
        "deadline",
        "record",
    )

    def __init__(self, lane: "FastLane", caller: "Caller", record: CallRecord) -> None:
        self._lane = lane
        self._gateway = lane.gateway
        self._loop = lane.loop
        self._caller = caller
        self.record = record
        self.deadline = 0.0
        self._ends_at = 0.0
        self._silent_at = 0.0
        self._comment_at = 0.0  # 0: no more comments
        self._progress_at = 0.0
        self._connection: UpstreamConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._counting: asyncio.Task[None] | None = None
        self._status = 0
        self._headers: dict[bytes, bytes] | None = None
        self._chunks: AnswerStream | None = None
        self._parts: list[bytes] = []  # of an answer that is not streamed
        self._size = 0
        self._sent = 0  # bytes of a stream, without its last
        self._max_bytes = MAX_ANSWER_BYTES
        self._last = b""
        self._failure: FareboxError | None = None
        self._caller_slow = False
        self._started = False  # the caller has the head of a stream
        self._settling = False
        self._over = False

    # -- the way there --

    def begin(self, traceparent: bytes | None, tracestate: bytes | None) -> None:
        """Send it. Whatever goes wrong is the call's own end, not an exception."""
        gateway, record = self._gateway, self.record
        gateway.activity.begin(record.route.deployment_id)
        now = self._loop.time()
        settings = gateway.settings
        self._ends_at = now + settings.upstream_total_timeout_s
        self._silent_at = self.deadline = min(now + settings.upstream_first_byte_timeout_s, self._ends_at)
        if record.request.stream:
            self._comment_at = self.deadline = now + min(FIRST_COMMENT_S, settings.sse_comment_every_s)
        self._lane.deadlines.watch(self)
        record.sent_ms = record.received_ms
        assert record.place is not None, "the call has a place"
        try:
            record.server = record.place.url
            target = server_of(record.server)
            body = record.upstream_body()
            head = request_head(
                target, record.operation, len(body), record.route, record.request_id, traceparent, tracestate
            )
        except FareboxError as error:
            self._fail(error)
            return
        connection = gateway.upstream.pool.take(target.origin)
        if connection is not None:
            self._connection = connection
            connection.send(head, body, self)
        else:
            self._connecting = self._loop.create_task(self._connect(target.origin, head, body))

    async def _connect(self, origin: Origin, head: bytes, body: bytes) -> None:
        try:
            connection = await self._gateway.upstream.pool.connect(origin)
        except ServerGone as gone:
            self.answer_failed(gone)
            return
        finally:
            self._connecting = None
        self._connection = connection
        connection.send(head, body, self)

    # -- the way back: the server's side --

    def head_received(self, status: int, headers: dict[bytes, bytes]) -> None:
        record = self.record
        record.first_byte_ms = self._gateway.clock.now_ms()
        self._status = status
        server = record.place
        assert server is not None, "the call has a place"
        if status >= 500 or server.troubled:
            server.answered(status)
        if status != 200:
            gone = busy(record, status, headers)
            if gone is not None:
                self._leave_server()
                self._go_on_slowly(gone)
                return
            record.refused = True
            self._headers = headers
            self._max_bytes = MAX_ERROR_BYTES
        elif record.request.stream and content_type(headers) == "text/event-stream":
            self._chunks = record.begin_stream()
            self._progress_at = self._loop.time() + PROGRESS_EVERY_S
            self._sign_of_life()

    def data_received(self, data: bytes) -> None:
        chunks = self._chunks
        if chunks is None:
            self._parts.append(data)
            self._size += len(data)
            if self._size > self._max_bytes:
                self._fail(too_large_an_answer(self._max_bytes))
            return
        if self._settling:  # after [DONE]
            return
        try:
            out = chunks.feed(data)
        except Exception as error:
            self._fail(self._expected(error))
            return
        if out:
            if self._comment_at:
                self._comment_at = 0.0
                self.record.first_byte_ms = self._gateway.clock.now_ms()  # not its head, not a comment
                self.record.forget_request()
            self._sent += len(out)
            if self._started:
                self._caller.write(chunk_of(out))
            else:
                self._start(out)
        now = self._sign_of_life()
        if chunks.done or chunks.error is not None:
            self._end_stream()
        elif now >= self._progress_at:
            self._progress_at = now + PROGRESS_EVERY_S
            gateway = self._gateway
            now_ms = gateway.clock.now_ms()
            gateway.journal.note_progress(self.record.event("interrupted", 200, now_ms))
            gateway.limits.keep(self.record, now_ms)

    def answer_ended(self) -> None:
        self._connection = None
        if self._settling:
            return
        if self._chunks is not None:
            self._end_stream()
        elif self._status != 200:
            assert self._headers is not None, "set with the status"
            self._fail(refusal(self._status, self._headers, b"".join(self._parts)))
        else:
            self._end_plain()

    def answer_failed(self, error: ServerGone | UpstreamFailed) -> None:
        self._connection = None
        if self._settling:
            return
        if self._chunks is not None:
            self._end_stream()
        else:
            if not self._status and self.record.place is not None:
                self.record.place.failed()
            if isinstance(error, ServerGone):
                self._go_on_slowly(error)
            else:
                self._fail(error)

    def _go_on_slowly(self, gone: ServerGone) -> None:
        self._leave()
        self._lane.hand_over(self, self._caller, gone, started=self._started)

    def _end_plain(self) -> None:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        try:
            if self._started:
                raise UpstreamFailed("The model server's answer could not be understood.")
            self.record.note_answer(body)
        except Exception as error:
            self._fail(self._expected(error))
            return
        self._last = body
        self._settle("completed", 200)

    def _end_stream(self) -> None:
        try:
            self._last = self.record.end_stream(self._gateway.clock.now_ms())
        except Exception as error:
            self._fail(self._expected(error))
            return
        self._settle("completed", 200)

    # -- the caller's side --

    def hang_up(self) -> None:
        """The caller left."""
        if self._settling or self._over:  # the outcome is decided
            return
        if self.record.finished:
            self._settle("completed", 200)
        else:
            self._settle("client_disconnect", CLIENT_CLOSED)
        self._leave_server()

    def hold(self) -> None:
        """The caller reads slower than the server writes."""
        self._caller_slow = True
        if self._connection is not None:
            self._connection.pause()

    def release(self) -> None:
        """The caller can take more."""
        self._caller_slow = False
        if self._connection is not None:
            self._connection.resume()

    def interrupt(self) -> None:
        """The process ends now."""
        self._fail(Unavailable("The gateway is stopping.", retry_after_s=1), "interrupted")

    def _start(self, data: bytes) -> None:
        self._started = True
        head = self._lane.stream_head(self._caller, self.record)
        self._caller.write(head + chunk_of(data))

    # -- time --

    def _sign_of_life(self) -> float:
        now: float = self._loop.time()
        silent_at = now + self._gateway.settings.upstream_between_bytes_timeout_s
        self._silent_at = silent_at = silent_at if silent_at < self._ends_at else self._ends_at
        self.deadline = min(silent_at, self._comment_at) if self._comment_at else silent_at
        return now

    def on_deadline(self) -> None:
        now = self._loop.time()
        if now < self._silent_at:
            if self._comment_at and now >= self._comment_at:
                self._comment(now)
        elif self._caller_slow:
            self.hang_up()
            self._caller.abort()
        elif now >= self._ends_at:
            self._fail(*cut_short(self.record))
        else:
            if not self._status and self.record.place is not None:
                self.record.place.failed()
            self._fail(silent())

    def _comment(self, now: float) -> None:
        """Show a streaming caller that it waits; commits the answer to 200."""
        self._comment_at = now + self._gateway.settings.sse_comment_every_s
        self.deadline = min(self._silent_at, self._comment_at)
        if self._started:
            self._caller.write(chunk_of(WAITING_COMMENT))
        else:
            self._start(WAITING_COMMENT)

    # -- ends --

    def _expected(self, error: Exception) -> FareboxError:
        if isinstance(error, FareboxError):
            return error
        _log.error("a call failed unexpectedly", exc_info=error, extra={"request_id": self.record.request_id})
        return FareboxError(f"Internal error in request {self.record.request_id}.")

    def _fail(self, error: FareboxError, status: Status = "error") -> None:
        if self._settling or self._over:
            return
        self._failure = error
        self._settle(status, error.status)
        self._leave_server()

    def _settle(self, status: Status, http_status: int) -> None:
        self._settling = True
        self._lane.deadlines.forget(self)
        self.record.leave_place()
        event = self.record.event(status, http_status, self._gateway.clock.now_ms())
        if event.usage_source == "estimated":
            self._counting = self._loop.create_task(self._count(event))
        else:
            self._append(event)

    async def _count(self, event: UsageEvent) -> None:
        event = await self._gateway.counting.recount(self.record, event)
        if self.record.tally is not None and self._last and self._chunks is not None:
            self._last = self.record.stream_end()  # what it counted and cost was not known before
        self._append(event)

    def _append(self, event: UsageEvent) -> None:
        try:
            self._gateway.journal.append_nowait(event, self._settled)
        except JournalFull as error:
            self._settled(error)

    def _settled(self, error: Exception | None) -> None:
        """The usage event is durable, or cannot be made so: now the caller may have the end."""
        if error is not None:
            reason = str(error)
            _log.error(
                "a usage event could not be recorded",
                extra={"request_id": self.record.request_id, "reason": reason},
            )
            if self._failure is None:
                self._failure = self._expected(error)
            self._gateway.owe(self.record)
        else:
            self._gateway.limits.settle(self.record)
            self._gateway.metrics.settled(self.record.last_event, self._gateway.clock.now_ms())
        caller = self._caller
        if caller.gone:
            pass
        elif self._failure is not None:
            self._answer_failure(self._failure)
        elif self._chunks is not None:
            if not self._started:
                self._start(self._last)
                caller.write(b"0\r\n\r\n")
            else:
                caller.write(b"%b0\r\n\r\n" % chunk_of(self._last))
        else:
            costs = self.record.cost_lines()
            caller.write(self._lane.plain_answer(caller, self.record, 200, self._last, costs))
        scoring = self.record.route.scoring
        if scoring is not None and not scoring.serverless:
            self._tell(scoring.deployment)
        self._leave()
        self._lane.over(self, caller)

    def _tell(self, deployment: str) -> None:
        """Count it for its deployment."""
        failure = self._failure
        status = LEFT if self._caller.gone else 200 if failure is None or self._started else failure.status
        sent = self._sent + (len(self._last) if failure is None else 0)
        self._gateway.traffic.count(
            self.record, deployment, status, self._status, self.record.body_bytes, sent
        )

    def _answer_failure(self, error: FareboxError) -> None:
        if self._started:
            event = error_event(error.status, error.message, error.code, error.param)
            self._caller.write(b"%b0\r\n\r\n" % chunk_of(event))
        else:
            self._caller.write(self._lane.error_answer(self._caller, self.record, error))

    def _leave_server(self) -> None:
        """Close the connection unless the answer was read to its end: the server then stops its work."""
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def _leave(self) -> None:
        if not self._settling:  # else it is forgotten already
            self._lane.deadlines.forget(self)
        self._over = self._settling = True
        if self._connection is not None or self._connecting is not None:
            self._leave_server()
        self._gateway.activity.end(self.record.route.deployment_id)


_CHUNK_HEADS: Final = [b"%x\r\n" % size for size in range(4096)]


def chunk_of(data: bytes) -> bytes:
    """Data that is not empty, as one chunk of HTTP/1.1's chunked coding (RFC 9112, section 7.1)."""
    size = len(data)
    head = _CHUNK_HEADS[size] if size < len(_CHUNK_HEADS) else b"%x\r\n" % size
    return b"%b%b\r\n" % (head, data)
