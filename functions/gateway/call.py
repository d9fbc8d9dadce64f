"""One admitted call: to a server, its answer back, and exactly one usage event per attempt, whatever happens.

The order that money depends on: the event is durable before the answer's last byte is sent.
"""

import asyncio
from typing import TYPE_CHECKING, Final, Literal

from core.errors import BadRequest, FareboxError, Unavailable, UpstreamFailed
from core.log import get_logger
from functions.gateway.balancing import Server
from functions.gateway.content_safety import FILTERED, ContentWithheld, Screen
from functions.gateway.exchange import Exchange
from functions.gateway.figures import headers_of
from functions.gateway.places import QueueRefused
from functions.gateway.record import CallRecord, cut_short, refusal, silent
from functions.gateway.retrying import busy, may_try_again, pause_s
from functions.gateway.upstream import MAX_ERROR_BYTES, Answer, ServerGone, read_answer
from functions.gateway.watchdog import Watchdog
from metering.model import Status, UsageEvent
from wire.dialects import Body

if TYPE_CHECKING:
    from functions.gateway.gateway import Gateway

_log = get_logger(__name__)

PROGRESS_EVERY_S: Final = 1.0
CLIENT_CLOSED = 499  # nginx's word for a caller who left; never sent

_StopReason = Literal["hang_up", "silent_server", "silent_caller", "too_long"]


class MeteredCall:
    """A call that passed every check. `run` never raises but for cancellation from outside."""

    __slots__ = (
        "_answer",
        "_body",
        "_exchange",
        "_gateway",
        "_gone",
        "_record",
        "_screen",
        "_sending",
        "_settling",
        "_stop_reason",
        "_task",
        "_too_long",
        "_watchdog",
        "completed",
    )

    def __init__(
        self,
        gateway: "Gateway",
        exchange: Exchange,
        record: CallRecord,
        gone: ServerGone | None = None,
        screen: Screen | None = None,
    ) -> None:
        """`gone`: the fast lane made the first attempt in vain. `screen`: the answer is to be checked."""
        self._gone = gone
        self._screen = screen
        self._gateway = gateway
        self._exchange = exchange
        self._record = record
        self._body = b""
        self._answer: Answer | None = None
        self._watchdog: Watchdog | None = None
        self._too_long: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_reason: _StopReason | None = None
        self._settling = False
        self._sending = False
        self.completed = False  # the whole answer was there, and is billed

    async def run(self) -> None:
        """Serve the call to its end."""
        activity = self._gateway.activity
        self._task = asyncio.current_task()
        self._exchange.watch(self._on_hang_up)
        activity.begin(self._record.route.deployment_id)
        try:
            await self._serve()
        except asyncio.CancelledError:
            await self._stopped()
        except QueueRefused as refused:
            await self._refuse(refused.error)
        except FareboxError as error:
            await self._fail(error)
        except Exception:
            _log.exception("a call failed unexpectedly", extra={"request_id": self._exchange.request_id})
            await self._fail(FareboxError(f"Internal error in request {self._exchange.request_id}."))
        finally:
            self._leave_server()
            self._record.leave_place()
            self._gateway.limits.release(self._record)
            activity.end(self._record.route.deployment_id)

    # -- the way there --

    async def _serve(self) -> None:
        record = self._record
        self._body = record.upstream_body()
        if record.request.stream:
            self._exchange.start_comments(self._gateway.settings.sse_comment_every_s)
        answer = await self._send_until_answered()
        record.first_byte_ms = self._gateway.clock.now_ms()
        if answer.status != 200:
            record.refused = True
            raise refusal(answer.status, answer.headers, await read_answer(answer, MAX_ERROR_BYTES))
        if record.request.stream and answer.content_type == "text/event-stream":
            try:
                await self._relay(answer)
            except ContentWithheld:
                await self._withhold_rest()
        else:
            await self._pass_on(answer)

    async def _send_until_answered(self) -> Answer:
        """The head of an answer, from another attempt where a server was gone before its first byte."""
        gateway, record = self._gateway, self._record
        if record.place is None:
            await gateway.places.take(record, self._patience_s())
        loop = asyncio.get_running_loop()
        self._too_long = loop.call_later(self._total_s(), self._on_too_long)
        while True:
            self._watchdog = Watchdog(self._on_silence, gateway.settings.upstream_first_byte_timeout_s)
            try:
                if self._gone is not None:
                    gone, self._gone = self._gone, None
                    raise gone
                return await self._send()
            except ServerGone as gone:
                self._watchdog.stop()
                await self._prepare_another(gone)

    async def _send(self) -> Answer:
        gateway, record = self._gateway, self._record
        server = record.place
        assert server is not None, "the call has a place"
        record.sent_ms, record.server = gateway.clock.now_ms(), server.url
        try:
            self._answer = answer = await self._post(server.url)
        except (ServerGone, UpstreamFailed):
            server.failed()
            raise
        if (gone := self._judge(server, answer)) is not None:
            self._answer = None
            answer.close()
            raise gone
        self._body = b""  # may be large, and the answer may take long
        return answer

    async def _post(self, url: str) -> Answer:
        record = self._record
        return await self._gateway.upstream.post(
            url,
            record.operation,
            self._body,
            body_type=record.body_type,
            route=record.route,
            attempt_id=record.attempt_id,
            caller_headers=self._exchange.headers,
        )

    def _judge(self, server: Server, answer: Answer) -> ServerGone | None:
        """What the head of an answer says of its server; not None: the call is to be sent again."""
        if answer.status >= 500 or server.troubled:
            server.answered(answer.status)
        return busy(self._record, answer.status, answer.headers)

    async def _prepare_another(self, gone: ServerGone) -> None:
        """Put the attempt on record and move to a server for the next one; Unavailable: there is none."""
        gateway, record = self._gateway, self._record
        if not may_try_again(record):
            raise Unavailable(
                "The model server does not answer; try again in a moment.",
                code="model_unavailable",
                retry_after_s=2,
            ) from gone
        await self._settle("error", gone.http_status, last=False)
        self._settling = False
        record.next_attempt()
        if self._stop_reason is not None:
            raise asyncio.CancelledError from None
        await asyncio.sleep(max(gone.wait_s, pause_s(record.attempt - 1)))
        if gateway.places.move(record) or record.route.external or gone.http_status == 503:
            return
        held, deployment_id = record.place, record.route.deployment_id
        assert held is not None, "the call has a place"
        # Nobody else is sent there until it is known again who serves.
        held.group.follow((), 0)
        gateway.lookups.routes.forget(deployment_id)
        record.place = held.group.move(held, await gateway.waiting.wait(deployment_id, self._patience_s()))

    def _patience_s(self) -> float:
        """How long the call waits for a place."""
        settings = self._gateway.settings
        return settings.wait_for_start_s if self._record.request.stream else settings.hold_plain_call_s

    def _total_s(self) -> float:
        """How long it may take from then on."""
        return self._gateway.settings.upstream_total_timeout_s

    def _cut_short(self) -> tuple[FareboxError, Status]:
        """How it ends when that is over."""
        return cut_short(self._record)

    # -- the way back --

    async def _pass_on(self, answer: Answer) -> None:
        """An answer that is not streamed."""
        body = await read_answer(answer)
        if self._exchange.started:
            raise UpstreamFailed("The model server's answer could not be understood.")
        self._record.note_answer(body)
        shown = self._record.render(body)
        if self._screen is not None:
            shown = await self._screened(shown)
        self._note_shown(shown)
        await self._settle("completed", 200)
        await self._exchange.answer(
            200, shown.data, headers_of(self._record.cost_lines()), shown.content_type
        )

    def _note_shown(self, shown: Body) -> None:
        """For those who keep answers."""

    async def _screened(self, shown: Body) -> Body:
        assert self._screen is not None, "only what is checked comes here"
        said, without = await self._screen.whole(shown.data)
        if without:
            self._record.finish_reason = FILTERED
        return Body(shown.content_type, said)

    async def _relay(self, answer: Answer) -> None:
        """A streamed answer, piece by piece as the caller takes it."""
        loop = asyncio.get_running_loop()
        settings, watchdog = self._gateway.settings, self._watchdog
        assert watchdog is not None, "set before sending"
        chunks = self._record.begin_stream()
        watchdog.touch(settings.upstream_between_bytes_timeout_s)
        progress_at = loop.time() + PROGRESS_EVERY_S
        forwarding = False
        while True:
            try:
                data = await answer.read()
            except UpstreamFailed:
                break
            if not data:
                break
            out = chunks.feed(data)
            if out and self._screen is not None:
                out = await self._screen.release(out)
            if out:
                if not forwarding:
                    forwarding = True
                    self._record.first_byte_ms = self._gateway.clock.now_ms()  # not its head, not a comment
                    await self._exchange.stop_comments()
                    self._record.forget_request()
                self._sending = True
                await self._exchange.write(out)
                self._sending = False
            watchdog.touch()
            if chunks.done or chunks.error is not None:
                break
            if loop.time() >= progress_at:
                progress_at = loop.time() + PROGRESS_EVERY_S
                now_ms = self._gateway.clock.now_ms()
                self._gateway.journal.note_progress(self._record.event("interrupted", 200, now_ms))
                self._gateway.limits.keep(self._record, now_ms)
        held = b""
        last = self._record.end_stream(self._gateway.clock.now_ms())
        if self._screen is not None:
            held = await self._screen.release(self._record.take_rest(), last=True)
            last = self._record.stream_end()
        await self._settle("completed", 200)
        if self._record.tally is not None:
            last = self._record.stream_end()  # what it counted and cost was not known before
        await self._exchange.stop_comments()
        await self._exchange.finish(held + last)

    async def _withhold_rest(self) -> None:
        """The rest of a stream must not go out. What the server made of it by now is billed."""
        record, screen = self._record, self._screen
        assert screen is not None and record.chunks is not None, "only what is checked is withheld"
        self._leave_server()
        record.chunks.finish_reason, record.ended_ms = FILTERED, self._gateway.clock.now_ms()
        await self._settle("interrupted", 200)
        record.take_rest()
        end = screen.finish_event()
        last = end + record.stream_end() if end else self._exchange.error_event(_withheld())
        await self._exchange.stop_comments()
        await self._exchange.finish(last)

    def _leave_server(self) -> None:
        """Close the connection unless the answer was read to its end: the server then stops its work."""
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._too_long is not None:
            self._too_long.cancel()
        if self._answer is not None:
            self._answer.close()

    # -- ends --

    def _on_hang_up(self) -> None:
        self._stop("hang_up")

    def _on_silence(self) -> None:
        self._stop("silent_caller" if self._sending else "silent_server")

    def _on_too_long(self) -> None:
        self._stop("silent_caller" if self._sending else "too_long")

    def _stop(self, reason: _StopReason) -> None:
        if self._stop_reason is None:
            self._stop_reason = reason
            # Once settling, the outcome is decided and only the caller's last bytes are at stake.
            if not self._settling and self._task is not None:
                self._task.cancel()

    async def _stopped(self) -> None:
        """The task was cancelled: by our own timers and watchers, or by a server that is shutting down."""
        self._leave_server()
        if self._stop_reason is None:
            await self._fail(Unavailable("The gateway is stopping.", retry_after_s=1), status="interrupted")
            raise asyncio.CancelledError
        if self._task is not None:
            self._task.uncancel()
        if self._stop_reason == "silent_server":
            server = self._record.place
            if server is not None and not self._record.first_byte_ms:
                server.failed()
            await self._fail(silent())
            return
        if self._stop_reason == "too_long":
            await self._fail(*self._cut_short())
            return
        if self._record.finished:
            await self._settle_or_log("completed", 200)
        else:
            await self._settle_or_log("client_disconnect", CLIENT_CLOSED)

    async def _fail(self, error: FareboxError, status: Status = "error") -> None:
        self._leave_server()
        await self._settle_or_log(status, error.status)
        await self._answer_failure(error)

    async def _refuse(self, error: FareboxError) -> None:
        """Nothing was done for the call: no event, no cost."""
        self._gateway.limits.release(self._record)
        self._gateway.metrics.refused(error)
        await self._answer_failure(error)

    async def _answer_failure(self, error: FareboxError) -> None:
        await self._exchange.stop_comments()
        if self._exchange.finished:
            return
        if self._exchange.started:
            await self._exchange.finish(self._exchange.error_event(error))
        else:
            await self._exchange.answer_error(error)

    async def _settle_or_log(self, status: Status, http_status: int) -> None:
        """For ends where the caller gets no answer that could be withheld."""
        if self._settling:
            return
        try:
            await self._settle(status, http_status)
        except FareboxError as error:
            _log.error(
                "a usage event could not be recorded",
                extra={"request_id": self._exchange.request_id, "reason": error.message},
            )

    async def _settle(self, status: Status, http_status: int, *, last: bool = True) -> None:
        """Return when the attempt's usage event is durable; cancellation does not stop it.

        What is reserved for the call is settled with its last attempt.
        """
        self._settling = True
        if last:
            self._record.leave_place()
        append = asyncio.ensure_future(self._append(status, http_status))
        try:
            await asyncio.shield(append)
        except asyncio.CancelledError:
            await asyncio.wait({append})
            raise
        finally:
            if not append.cancelled() and append.exception() is None:
                self._gateway.metrics.settled(append.result(), self._gateway.clock.now_ms())
                if last:
                    self._gateway.limits.settle(self._record)
            elif last:
                self._gateway.owe(self._record)
        self.completed = status == "completed"

    async def _append(self, status: Status, http_status: int) -> UsageEvent:
        gateway, record = self._gateway, self._record
        event = record.event(status, http_status, gateway.clock.now_ms())
        if event.usage_source == "estimated":
            event = await gateway.counting.recount(record, event)
        await gateway.journal.append(event)
        return event


def _withheld() -> BadRequest:
    """The end of a stream, in APIs whose streams have no word for it."""
    return BadRequest("The answer was withheld by this endpoint's content filter.", code=FILTERED)
