"""One admitted call: to a server, its answer back, and exactly one usage event per attempt, whatever happens.

The order that money depends on: the event is durable before the answer's last byte is sent.
"""

import asyncio
import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import aiohttp

from access.model import Principal
from core.errors import FareboxError, Timeout, Unavailable, UpstreamFailed
from core.log import get_logger
from functions.gateway.exchange import Exchange
from functions.gateway.upstream import MAX_ERROR_BYTES, ServerGone, read_answer
from functions.gateway.watchdog import Watchdog
from metering.model import Status, Usage, UsageEvent, UsageSource
from serving.model import Route
from wire.openai import (
    ModelRequest,
    Operation,
    TokenCounts,
    estimate_input_tokens,
    map_engine_error,
    parse_answer,
    upstream_body,
)
from wire.openai_stream import StreamFilter, error_event
from wire.sse import DONE_EVENT

if TYPE_CHECKING:
    from functions.gateway.gateway import Gateway

_log = get_logger(__name__)

_ATTEMPTS = 2
_PAUSE_BEFORE_RETRY_S = 0.2
_PROGRESS_EVERY_S = 1.0
_CLIENT_CLOSED = 499  # nginx's word for a caller who left; never sent

_StopReason = Literal["hang_up", "silent_server", "silent_caller"]


class MeteredCall:
    """A call that passed every check. `run` never raises but for cancellation from outside."""

    __slots__ = (
        "_answer_estimate",
        "_attempt",
        "_body",
        "_chunks",
        "_counts",
        "_engine_id",
        "_exchange",
        "_finish_reason",
        "_first_byte_ms",
        "_gateway",
        "_input_estimate",
        "_operation",
        "_principal",
        "_received_ms",
        "_refused",
        "_request",
        "_response",
        "_route",
        "_sending",
        "_sent_ms",
        "_settling",
        "_stop_reason",
        "_task",
        "_watchdog",
    )

    def __init__(
        self,
        gateway: "Gateway",
        exchange: Exchange,
        operation: Operation,
        principal: Principal,
        request: ModelRequest,
        route: Route,
        received_ms: int,
    ) -> None:
        self._gateway = gateway
        self._exchange = exchange
        self._operation = operation
        self._principal = principal
        self._request = request
        self._route = route
        self._received_ms = received_ms
        self._attempt = 1
        self._sent_ms = 0
        self._first_byte_ms = 0
        self._engine_id = ""
        self._finish_reason = ""
        self._counts: TokenCounts | None = None  # of a plain answer
        self._chunks: StreamFilter | None = None  # of a streamed one
        self._answer_estimate = 0
        self._input_estimate: int | None = None
        self._refused = False  # by the engine: nothing was produced
        self._body = b""
        self._response: aiohttp.ClientResponse | None = None
        self._watchdog: Watchdog | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_reason: _StopReason | None = None
        self._settling = False
        self._sending = False

    async def run(self) -> None:
        """Serve the call to its end."""
        activity = self._gateway.activity
        self._task = asyncio.current_task()
        self._exchange.watch(self._on_hang_up)
        activity.begin(self._route.deployment_id)
        try:
            await self._serve()
        except asyncio.CancelledError:
            await self._stopped()
        except FareboxError as error:
            await self._fail(error)
        except Exception:
            _log.exception("a call failed unexpectedly", extra={"request_id": self._exchange.request_id})
            await self._fail(FareboxError(f"Internal error in request {self._exchange.request_id}."))
        finally:
            self._leave_server()
            activity.end(self._route.deployment_id)

    # -- the way there --

    async def _serve(self) -> None:
        settings, request, route = self._gateway.settings, self._request, self._route
        salted = route.continuous_usage and self._operation != "embeddings"
        self._body = upstream_body(
            request,
            served_model=route.served_model,
            continuous_usage=route.continuous_usage,
            cache_salt=_cache_salt(route.org_id) if salted else None,
        )
        if request.stream:
            self._exchange.start_comments(settings.sse_comment_every_s)
        response = await self._send_until_answered()
        self._first_byte_ms = self._gateway.clock.now_ms()
        if response.status != 200:
            await self._refused_by_server(response)
        elif request.stream and response.content_type == "text/event-stream":
            await self._relay(response)
        else:
            await self._pass_on(response)

    async def _send_until_answered(self) -> aiohttp.ClientResponse:
        """The head of an answer, from a second server where the first was gone before its first byte."""
        gateway, route = self._gateway, self._route
        url = route.urls[0] if route.urls else await self._wait_for_server()
        while True:
            self._sent_ms = gateway.clock.now_ms()
            self._watchdog = Watchdog(self._on_silence, gateway.settings.upstream_first_byte_timeout_s)
            try:
                self._response = await gateway.upstream.post(
                    url,
                    self._operation,
                    self._body,
                    route=route,
                    attempt_id=self._attempt_id(),
                    caller_headers=self._exchange.headers,
                )
                self._body = b""  # may be large, and the answer may take long
                return self._response
            except ServerGone as gone:
                self._watchdog.stop()
                if self._attempt >= _ATTEMPTS:
                    raise Unavailable(
                        "The model server does not answer; try again in a moment.",
                        code="model_unavailable",
                        retry_after_s=2,
                    ) from gone
                await self._settle("error", 502)
                self._settling = False
                self._attempt += 1
                self._sent_ms = 0
                if self._stop_reason is not None:
                    raise asyncio.CancelledError from None
                url = await self._other_server(url)

    async def _wait_for_server(self) -> str:
        settings = self._gateway.settings
        patience = settings.wait_for_start_s if self._request.stream else settings.hold_plain_call_s
        return await self._gateway.waiting.wait(self._route.deployment_id, patience)

    async def _other_server(self, gone_url: str) -> str:
        await asyncio.sleep(_PAUSE_BEFORE_RETRY_S)
        if self._route.external:
            return gone_url
        self._gateway.lookups.routes.forget(self._route.deployment_id)
        return await self._wait_for_server()

    # -- the way back --

    async def _pass_on(self, response: aiohttp.ClientResponse) -> None:
        """An answer that is not streamed."""
        body = await read_answer(response)
        answer = parse_answer(body)
        if answer is None or self._exchange.started:
            raise UpstreamFailed("The model server's answer could not be understood.")
        self._engine_id = str(answer.id or "")[:128]
        self._finish_reason = answer.finish_reason
        self._counts = answer.usage.counts() if answer.usage is not None else None
        if self._operation != "embeddings" and (self._counts is None or not self._counts.output):
            self._answer_estimate = answer.estimate_output_tokens()
        await self._settle("completed", 200)
        await self._exchange.answer(200, body)

    async def _relay(self, response: aiohttp.ClientResponse) -> None:
        """A streamed answer, piece by piece as the caller takes it."""
        loop = asyncio.get_running_loop()
        settings, watchdog = self._gateway.settings, self._watchdog
        assert watchdog is not None, "set before sending"
        chunks = self._chunks = StreamFilter(
            wants_usage=self._request.wants_usage,
            choices_per_prompt=self._request.choices,
            per_choice=self._route.continuous_usage,
        )
        read = response.content.readany
        watchdog.touch(settings.upstream_between_bytes_timeout_s)
        progress_at = loop.time() + _PROGRESS_EVERY_S
        forwarding = False
        while True:
            try:
                data = await read()
            except (aiohttp.ClientError, ConnectionError):
                break
            if not data:
                break
            out = chunks.feed(data)
            if out:
                if not forwarding:
                    forwarding = True
                    await self._exchange.stop_comments()
                    self._forget_request(chunks)
                self._sending = True
                await self._exchange.write(out)
                self._sending = False
            watchdog.touch()
            if chunks.done or chunks.error is not None:
                break
            if loop.time() >= progress_at:
                progress_at = loop.time() + _PROGRESS_EVERY_S
                self._gateway.journal.note_progress(self._event("interrupted", 200))
        await self._end_stream(chunks)

    async def _end_stream(self, chunks: StreamFilter) -> None:
        last = chunks.end()
        if chunks.error is not None:
            found = chunks.error
            raise _engine_error(found.status, found.message, found.code, found.param)
        if not chunks.chunks:
            raise UpstreamFailed("The model server ended its stream without an answer.")
        if not chunks.complete:
            raise UpstreamFailed("The model server broke off within its answer.")
        last += chunks.closing_events() + DONE_EVENT
        await self._settle("completed", 200)
        await self._exchange.stop_comments()
        await self._exchange.finish(last)

    async def _refused_by_server(self, response: aiohttp.ClientResponse) -> None:
        self._refused = True
        status = response.status
        body = await read_answer(response, MAX_ERROR_BYTES)
        if status in (401, 403) or status < 400:
            raise UpstreamFailed("The model server refused the gateway's request; tell the operator.")
        error = _engine_error(status, *map_engine_error(status, body))
        after = response.headers.get("retry-after", "")
        if after.isascii() and after.isdigit():
            error.retry_after_s = int(after)
        raise error

    def _leave_server(self) -> None:
        """Close the connection unless the answer was read to its end: the server then stops its work."""
        if self._watchdog is not None:
            self._watchdog.stop()
        if self._response is not None and not self._response.content.is_eof():
            self._response.close()

    # -- ends --

    def _on_hang_up(self) -> None:
        self._stop("hang_up")

    def _on_silence(self) -> None:
        self._stop("silent_caller" if self._sending else "silent_server")

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
            await self._fail(Timeout("The model server did not answer in time."))
            return
        finished = self._chunks is not None and self._chunks.complete
        if finished:
            await self._settle_or_log("completed", 200)
        else:
            await self._settle_or_log("client_disconnect", _CLIENT_CLOSED)

    async def _fail(self, error: FareboxError, status: Status = "error") -> None:
        self._leave_server()
        await self._settle_or_log(status, error.status)
        await self._exchange.stop_comments()
        if self._exchange.finished:
            return
        if self._exchange.started:
            await self._exchange.finish(error_event(error.status, error.message, error.code, error.param))
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

    async def _settle(self, status: Status, http_status: int) -> None:
        """Return when the attempt's usage event is durable; cancellation does not stop it."""
        self._settling = True
        append = asyncio.ensure_future(self._gateway.journal.append(self._event(status, http_status)))
        try:
            await asyncio.shield(append)
        except asyncio.CancelledError:
            await asyncio.wait({append})
            raise

    # -- figures --

    def _attempt_id(self) -> str:
        request_id = self._exchange.request_id
        return request_id if self._attempt == 1 else f"{request_id}:{self._attempt}"

    def _event(self, status: Status, http_status: int) -> UsageEvent:
        route, chunks = self._route, self._chunks
        usage, source = self._usage(status)
        return UsageEvent(
            request_id=self._exchange.request_id,
            org_id=route.org_id,
            project_id=route.project_id,
            key_id=self._principal.key_id,
            endpoint_id=route.endpoint_id,
            deployment_id=route.deployment_id,
            model_id=route.model_id,
            operation=self._operation,
            stream=self._request.stream,
            status=status,
            http_status=http_status,
            usage=usage,
            usage_source=source,
            received_ms=self._received_ms,
            sent_ms=self._sent_ms,
            first_byte_ms=self._first_byte_ms,
            ended_ms=self._gateway.clock.now_ms(),
            attempt=self._attempt,
            engine_request_id=chunks.engine_id if chunks is not None else self._engine_id,
            finish_reason=chunks.finish_reason if chunks is not None else self._finish_reason,
        )

    def _usage(self, status: Status) -> tuple[Usage, UsageSource]:
        """The engine's latest counts; what it left out is estimated and the whole marked so."""
        chunks = self._chunks
        nothing_came = self._counts is None and (chunks is None or not chunks.chunks)
        if not self._sent_ms or self._refused or (status == "error" and nothing_came):
            return Usage(), "none"
        counts = chunks.counts() if chunks is not None else self._counts
        produced = chunks.content_chunks if chunks is not None else self._answer_estimate
        if counts is None:
            return Usage(input=self._estimated_input(), output=produced), "estimated"
        if counts.input and (counts.output or not produced):
            return Usage(counts.input, counts.cached_input, counts.output, counts.reasoning), "engine"
        given = counts.input or self._estimated_input()
        return Usage(given, min(counts.cached_input, given), counts.output or produced), "estimated"

    def _estimated_input(self) -> int:
        if self._input_estimate is None:
            self._input_estimate = estimate_input_tokens(self._request)
        return self._input_estimate

    def _forget_request(self, chunks: StreamFilter) -> None:
        """Keep a figure, not the caller's text, while the answer streams."""
        counts = chunks.counts()
        if counts is None or not counts.input:
            self._estimated_input()
        self._request.members.clear()


@lru_cache(maxsize=4096)
def _cache_salt(org_id: str) -> str:
    """One organization's prompts share the engine's prefix cache; nobody can probe another's."""
    return hashlib.sha256(b"farebox prefix cache " + org_id.encode()).hexdigest()[:32]


def _engine_error(status: int, message: str, code: str, param: str | None) -> UpstreamFailed:
    error = UpstreamFailed(message, code=code, param=param)
    error.status = status
    return error
