"""OpenAI's calls to deployments of online endpoints: as any other, and counted, logged and collected by deployment."""

import asyncio

from functions.gateway.balancing import Server
from functions.gateway.bandwidth import REQUEST_DELAY, delay_header
from functions.gateway.call import MeteredCall
from functions.gateway.collector import Payload
from functions.gateway.content_safety import Screen
from functions.gateway.exchange import Exchange
from functions.gateway.gateway import Gateway
from functions.gateway.record import CallRecord
from functions.gateway.traffic_figures import Ended
from functions.gateway.upstream import Answer, ServerGone
from serving.online.collecting import Collecting
from serving.traffic import Scoring
from wire.dialects import JSON, Body


def make_call(
    gateway: Gateway,
    exchange: Exchange,
    record: CallRecord,
    *,
    gone: ServerGone | None = None,
    screen: Screen | None = None,
    body: bytes = b"",
) -> MeteredCall:
    """The call, observed where its deployment is one of an online endpoint. `body` is as the caller sent it."""
    scoring = record.route.scoring
    if scoring is None or scoring.serverless:
        return MeteredCall(gateway, exchange, record, gone, screen)
    return ObservedCall(gateway, exchange, record, gone, screen, scoring, body)


class ObservedCall(MeteredCall):
    """A call whose deployment wants to know of it."""

    __slots__ = ("_body_sent", "_collecting", "_delay_ms", "_model_status", "_scoring", "_shown")

    def __init__(
        self,
        gateway: Gateway,
        exchange: Exchange,
        record: CallRecord,
        gone: ServerGone | None,
        screen: Screen | None,
        scoring: Scoring,
        body: bytes,
    ) -> None:
        super().__init__(gateway, exchange, record, gone, screen)
        self._scoring = scoring
        wanted = scoring.collecting
        self._collecting = wanted if wanted is not None and gateway.collector.chosen(wanted) else None
        self._body_sent = body if self._collecting is not None else b""
        self._shown: Body | None = None
        self._model_status = self._delay_ms = 0

    async def run(self) -> None:
        """Serve the call to its end."""
        try:
            await super().run()
        finally:
            self._tell()
            if self._collecting is not None:
                self._collect(self._collecting)

    async def _serve(self) -> None:
        exchange, delay = self._exchange, self._take_bandwidth(self._record.body_bytes)
        if delay:
            self._delay_ms = round(delay * 1000)
            exchange.more_headers = [*exchange.more_headers, *delay_header(REQUEST_DELAY, delay)]
            await asyncio.sleep(delay)
        await super()._serve()

    def _take_bandwidth(self, size: int) -> float:
        route = self._record.route
        now_s = asyncio.get_running_loop().time()
        return self._gateway.bandwidth.take(route.endpoint_id, route.endpoint_name, size, now_s)

    def _judge(self, server: Server, answer: Answer) -> ServerGone | None:
        self._model_status = answer.status
        return super()._judge(server, answer)

    def _note_shown(self, shown: Body) -> None:
        self._shown = shown

    def _tell(self) -> None:
        exchange, record, name = self._exchange, self._record, self._scoring.deployment
        sent, received = exchange.sent_bytes, record.body_bytes
        ended = Ended(name, "POST", exchange.path, self._model_status, "", sent, received, self._delay_ms)
        self._take_bandwidth(sent)
        self._gateway.traffic.ended(ended, exchange, record, logged=self._scoring.logged)

    def _collect(self, wanted: Collecting) -> None:
        """Hand to the collector what was sent, and what was answered; a stream's answer is not kept."""
        if wanted.request:
            kind = self._exchange.headers.get(b"content-type", JSON)
            self._offer(wanted, "request", Body(kind, self._body_sent))
        if wanted.response and self._shown is not None:
            self._offer(wanted, "response", self._shown)

    def _offer(self, wanted: Collecting, collection: str, body: Body) -> None:
        self._gateway.collector.offer(payload_of(self._exchange, self._record, wanted, collection, body))


def payload_of(
    exchange: Exchange, record: CallRecord, wanted: Collecting, collection: str, body: Body
) -> Payload:
    """One body for the collector."""
    scoring = record.route.scoring
    assert scoring is not None, "of an online endpoint"
    return Payload(
        record.route.endpoint_name,
        scoring.deployment,
        collection,
        wanted.rolling,
        record.received_ms,
        exchange.request_id,
        exchange.client_request_id.decode("latin-1"),
        body.content_type.decode("latin-1"),
        body.data,
    )
