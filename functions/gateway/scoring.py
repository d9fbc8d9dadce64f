"""Calls to an online endpoint's scoring servers: any body there, any body back, one usage event per attempt.

What an answer means, and when a call is refused, is as in Azure Machine Learning (R4.26, R4.27 and the table of status
codes before them in our reference): 408 for one that takes longer than the deployment allows, 424 for whatever the
server answers but a success, 429 when twice as many calls are pending as the instances take at once.
"""

import asyncio
from typing import TYPE_CHECKING

from core.errors import FareboxError, NotFound, Timeout
from core.ids import new_id
from functions.gateway.balancing import Server
from functions.gateway.bandwidth import REQUEST_DELAY, RESPONSE_DELAY, delay_header
from functions.gateway.call import MeteredCall
from functions.gateway.exchange import Exchange, Receive, Scope, Send
from functions.gateway.hot import HotRoutes, authenticate, unknown_model
from functions.gateway.lookups import route_name
from functions.gateway.observed_call import payload_of
from functions.gateway.places import QueueRefused
from functions.gateway.reading import ENDPOINT_PLANS
from functions.gateway.scoring_http import (
    SCORE_PATH,
    SWAGGER_PATH,
    Header,
    answer_headers,
    is_path,
    scoring_head,
)
from functions.gateway.scoring_record import ScoringRecord, new_record
from functions.gateway.traffic import choose
from functions.gateway.traffic_figures import Ended
from functions.gateway.upstream import MAX_ERROR_BYTES, Answer, ServerGone, read_answer, server_of
from metering.model import Status
from serving.online.collecting import Collecting
from serving.route import Route
from serving.traffic import Scoring
from wire.dialects import Body

if TYPE_CHECKING:
    from functions.gateway.gateway import Gateway

MAX_WHOLE_BYTES = 4 * 1024 * 1024  # a larger answer, or one of unknown size, is passed on as it comes
LONGEST_HOLD_S = 600
_HOLD_HEADER = b"x-scale-up-timeout"
_NO_HOLD_S = 0.05  # long enough to have a start begun
_OURS = ("/v1/models", "/info", "/comparison")  # GET routes of every endpoint
_ENDPOINTS = "/endpoints/"


def scoring_path(method: str, path: str) -> tuple[str, str] | None:
    """The endpoint's name and what is asked of it, of a path that no other route has; None: not below an endpoint."""
    if not path.startswith(_ENDPOINTS):
        return None
    name, slash, rest = path[len(_ENDPOINTS) :].partition("/")
    rest = slash + rest
    if not name or not slash or rest in ENDPOINT_PLANS or (method != "POST" and rest.startswith(_OURS)):
        return None
    return name, rest


class ScoringRoutes:
    """Serves every path that `scoring_path` knows."""

    def __init__(self, gateway: "Gateway", hot: HotRoutes) -> None:
        self._gateway, self._hot = gateway, hot

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, endpoint_name: str, path: str
    ) -> None:
        received_ms = self._gateway.clock.now_ms()
        exchange = Exchange(scope, receive, send, new_id("req", received_ms))
        self._gateway.in_flight += 1
        admitted = self._admitted(exchange, scope["method"], endpoint_name, path, received_ms)
        await self._hot.serve(exchange, admitted)

    async def _admitted(
        self, exchange: Exchange, method: str, endpoint_name: str, path: str, received_ms: int
    ) -> "ScoringCall":
        gateway = self._gateway
        gateway.check_admission()
        exchange.check_headers()
        principal = await authenticate(gateway, exchange.headers, endpoint_name)
        head = await gateway.lookups.routes.find(route_name(principal, endpoint_name, ""))
        if head is None:
            raise unknown_model("", endpoint_name)
        gateway.reach.check_endpoint(head, exchange.address)
        route, shadow = choose(head, exchange.headers)
        asked = _server_path(route, method, path)
        body = await exchange.read_body(gateway.settings.max_body_bytes)
        scoring = route.scoring
        assert scoring is not None, "checked by _server_path"
        gateway.pending.check(route)
        record = new_record(exchange.request_id, principal, route, received_ms)
        if (waiting := gateway.limits.admit(record, body)) is not None:
            await waiting
        call = ScoringCall(gateway, exchange, record, scoring, method, asked, body)
        if shadow is not None and path == SCORE_PATH:
            gateway.mirrors.copy_scoring(record, shadow, call.head_for, body)
        return call


def _server_path(route: Route, method: str, path: str) -> str:
    """What a server is asked for. NotFound: it is not a scoring server, or does not have this."""
    scoring = route.scoring
    if scoring is None or (route.task != "scoring" and path == SCORE_PATH):
        raise NotFound(
            f"`{route.endpoint_name}` serves OpenAI's calls and has no {path[:64]}: POST to "
            f"/endpoints/{route.endpoint_name}/v1/chat/completions, or see /docs.",
            code="unknown_url",
        )
    if path == SCORE_PATH:
        return scoring.path
    if route.task == "scoring" and (path == SWAGGER_PATH or path == scoring.path):
        return path
    if scoring.any_path and is_path(path):
        return path
    raise NotFound(
        f"The deployment `{scoring.deployment}` has no {method} {path[:64]}; it has {SCORE_PATH} and {SWAGGER_PATH}.",
        code="unknown_url",
    )


class ScoringCall(MeteredCall):
    """A scoring call that passed every check."""

    __slots__ = (
        "_answered",
        "_began",
        "_collecting",
        "_ended",
        "_method",
        "_path",
        "_payload",
        "_scoring",
        "_scoring_record",
    )

    def __init__(
        self,
        gateway: "Gateway",
        exchange: Exchange,
        record: ScoringRecord,
        scoring: Scoring,
        method: str,
        path: str,
        body: bytes,
    ) -> None:
        super().__init__(gateway, exchange, record)
        self._scoring, self._method, self._path, self._payload = scoring, method, path, body
        self._began = 0.0
        self._ended = Ended(scoring.deployment, method, exchange.path, 0, "", 0, len(body))
        self._answered: tuple[bytes, bytes] | None = None  # content type and body, where it is to be kept
        wanted = scoring.collecting
        self._collecting = wanted if wanted is not None and gateway.collector.chosen(wanted) else None
        # Counted from here, not from `run`: nothing may come between the check and the count.
        gateway.pending.begin(record.route.deployment_id)

    async def run(self) -> None:
        """Serve the call to its end."""
        self._began = asyncio.get_running_loop().time()
        label = (b"azureml-model-deployment", self._scoring.deployment.encode())
        self._exchange.more_headers = [*self._exchange.more_headers, label]
        try:
            await super().run()
        finally:
            self._gateway.pending.end(self._record.route.deployment_id)
            self._gateway.traffic.ended(
                self._ended, self._exchange, self._record, logged=self._scoring.logged
            )
            if self._collecting is not None:
                self._collect(self._collecting)

    def _collect(self, wanted: Collecting) -> None:
        """Hand to the collector what was sent, and what was answered; a stream's answer is not kept."""
        if wanted.request:
            self._offer(wanted, "request", self._exchange.headers.get(b"content-type", b""), self._payload)
        if wanted.response and self._answered is not None:
            self._offer(wanted, "response", *self._answered)

    def _offer(self, wanted: Collecting, collection: str, kind: bytes, body: bytes) -> None:
        payload = payload_of(self._exchange, self._record, wanted, collection, Body(kind, body))
        self._gateway.collector.offer(payload)

    def head_for(self, url: str, path: str, request_id: str) -> bytes:
        """The head of the request as the server at `url` gets it."""
        return scoring_head(
            server_of(url),
            self._method,
            path,
            self._exchange.query,
            self._exchange.headers,
            len(self._payload),
            request_id,
        )

    # -- the way there --

    async def _serve(self) -> None:
        delay = self._take_bandwidth(len(self._payload))
        if delay:
            self._exchange.more_headers = [*self._exchange.more_headers, *delay_header(REQUEST_DELAY, delay)]
            self._ended.request_delay_ms = round(delay * 1000)
            await asyncio.sleep(delay)
            self._began += delay  # it is not the script's time
        try:
            answer = await self._send_until_answered()
        except QueueRefused:
            if not self._gateway.places.of(self._record.route).urls:
                raise
            raise QueueRefused(self._timeout("no instance was free")) from None
        self._record.first_byte_ms = self._gateway.clock.now_ms()
        self._ended.model_status = answer.status
        if 200 <= answer.status < 300:
            await self._pass_through(answer)
        else:
            await self._show_failure(answer)

    def _take_bandwidth(self, size: int) -> float:
        route = self._record.route
        now_s = asyncio.get_running_loop().time()
        return self._gateway.bandwidth.take(route.endpoint_id, route.endpoint_name, size, now_s)

    async def _post(self, url: str) -> Answer:
        head = self.head_for(url, self._path, self._record.attempt_id)
        return await self._gateway.upstream.send(url, head, self._payload)

    def _judge(self, server: Server, answer: Answer) -> ServerGone | None:
        # A script's own failure says nothing of its server, and the script has run: it is not sent again.
        server.answered(200)
        return None

    def _patience_s(self) -> float:
        if self._gateway.places.of(self._record.route).urls:
            return self._scoring.timeout_ms / 1000
        asked = self._exchange.headers.get(_HOLD_HEADER, b"")
        if asked.isdigit() and len(asked) < 6:
            return min(max(int(asked), _NO_HOLD_S), LONGEST_HOLD_S)
        return max(self._scoring.hold_ms / 1000, _NO_HOLD_S)

    def _total_s(self) -> float:
        # What it waited for an instance is not the script's time, but for one that was only busy it is.
        waited = asyncio.get_running_loop().time() - self._began
        total = self._scoring.timeout_ms / 1000
        return max(0.001, total - waited) if waited < total else total

    def _cut_short(self) -> tuple[FareboxError, Status]:
        return self._timeout("the model did not answer"), "error"

    def _timeout(self, what: str) -> Timeout:
        error = Timeout(
            f"Within the {self._scoring.timeout_ms} ms that the deployment `{self._scoring.deployment}` allows "
            f"(request_timeout_ms) {what}.",
            code="request_timeout",
        )
        error.status = 408
        return error

    # -- the way back --

    async def _pass_through(self, answer: Answer) -> None:
        record, exchange = self._record, self._exchange
        kind, headers = answer.headers.get(b"content-type", b""), answer_headers(answer.headers)
        length = answer.headers.get(b"content-length", b"")
        if answer.status == 204 or (length.isdigit() and int(length) <= MAX_WHOLE_BYTES):
            body = await read_answer(answer, MAX_WHOLE_BYTES)
            if record.copy is not None:
                record.copy.answer = body
            self._answered = (kind, body)
            self._ended.sent = len(body)
            headers += await self._wait_for_bandwidth(len(body))
            await self._settle("completed", answer.status)
            await exchange.answer(answer.status, body, headers, kind)
            return
        await exchange.begin(answer.status, [(b"content-type", kind), *headers] if kind else headers)
        while part := await answer.read():
            self._sending = True
            await self._pause(self._take_bandwidth(len(part)))
            await exchange.write(part)
            self._sending = False
            self._ended.sent += len(part)
        await self._settle("completed", answer.status)
        await exchange.finish(b"")

    async def _wait_for_bandwidth(self, size: int) -> list[Header]:
        """Before a whole answer goes out: its instance is free for others."""
        delay = self._take_bandwidth(size)
        if delay:
            self._record.leave_place()
            await self._pause(delay)
        return delay_header(RESPONSE_DELAY, delay)

    async def _pause(self, delay: float) -> None:
        """Wait for bandwidth, which is not the script's time."""
        if not delay:
            return
        self._ended.response_delay_ms += round(delay * 1000)
        if self._too_long is not None:
            later = self._too_long.when() + delay
            self._too_long.cancel()
            self._too_long = asyncio.get_running_loop().call_at(later, self._on_too_long)
        await asyncio.sleep(delay)

    async def _show_failure(self, answer: Answer) -> None:
        """Whatever the server answered but a success: 424, with its own words and status."""
        body = await read_answer(answer, MAX_ERROR_BYTES)
        kind = answer.headers.get(b"content-type", b"text/plain")
        self._answered = (kind, body)
        model = model_error(answer.status, body)
        self._ended.sent, self._ended.model_reason = len(body), model[-1][1].decode("latin-1")
        model += await self._wait_for_bandwidth(len(body))
        await self._settle("error", 424)
        await self._exchange.answer(424, body, [*answer_headers(answer.headers), *model], kind)


def model_error(status: int, body: bytes) -> list[Header]:
    """The headers by which Azure tells the model's own status from the endpoint's."""
    reason = bytes(byte if 0x20 <= byte < 0x7F else 0x20 for byte in body[:256]).strip()
    return [
        (b"ms-azureml-model-error-statuscode", b"%d" % status),
        (b"ms-azureml-model-error-reason", reason or b"model_error"),
    ]
