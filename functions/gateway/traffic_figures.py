"""What calls to online endpoints came to: figures of each online deployment, and a line in the log where one asks for it.

Sources: R7.1 and R7.2 of our reference (Azure Machine Learning's endpoint metrics, and its table of traffic).
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from access.principal import Principal
from core.log import get_logger
from functions.gateway.exchange import Exchange
from functions.gateway.exposition import Family, Sample
from functions.gateway.metrics import CALL_TIMES, Histogram
from functions.gateway.record import CallRecord
from metering.model import UsageEvent
from serving.online.calls import MAX_DURATIONS

_log = get_logger(__name__)

_MAX_DEPLOYMENTS: Final = 1000
_MAX_STATUSES: Final = 50  # of one deployment
_MAX_USER_AGENT: Final = 70
LEFT: Final = 499  # a caller who left was answered nothing


@dataclass(slots=True)
class Ended:
    """One call that is over. `model_status` 0: no server answered. Sizes in bytes, without headers."""

    deployment: str  # its name
    method: str
    path: str
    model_status: int
    model_reason: str
    sent: int  # of the answer
    received: int  # of the request
    request_delay_ms: int = 0  # it waited so long for bandwidth
    response_delay_ms: int = 0


class _Figures:
    __slots__ = ("bytes_in", "bytes_out", "duration", "statuses")

    def __init__(self) -> None:
        self.statuses: dict[tuple[int, int], int] = {}  # the caller's, the model's
        self.duration = Histogram(CALL_TIMES)
        self.bytes_in = self.bytes_out = 0


class _Recent:
    __slots__ = ("durations_ms", "ended")

    def __init__(self) -> None:
        self.ended = 0
        self.durations_ms: list[int] = []

    def add(self, duration_ms: int) -> None:
        self.ended += 1
        if len(self.durations_ms) < MAX_DURATIONS:
            self.durations_ms.append(duration_ms)
        elif (place := random.randrange(self.ended)) < MAX_DURATIONS:  # each has the same chance to stay
            self.durations_ms[place] = duration_ms


class TrafficFigures:
    """Of one gateway process, by endpoint and deployment."""

    def __init__(self) -> None:
        self._by: dict[tuple[str, str], _Figures] = {}
        self._recent: dict[str, _Recent] = {}  # by deployment's id

    def ended(self, call: Ended, exchange: Exchange, record: CallRecord, *, logged: bool) -> None:
        """Count it; `logged`: its deployment wants a line for each call."""
        status = exchange.status or LEFT
        self.count(record, call.deployment, status, call.model_status, call.received, call.sent)
        if logged and record.last_event is not None:
            _write(call, exchange, record, record.last_event, status)

    def count(
        self, record: CallRecord, deployment: str, status: int, model_status: int, received: int, sent: int
    ) -> None:
        """Count one call by the caller's status and the model's."""
        figures = self._of(record.route.endpoint_name, deployment)
        name = status, model_status
        if name in figures.statuses or len(figures.statuses) < _MAX_STATUSES:
            figures.statuses[name] = figures.statuses.get(name, 0) + 1
        figures.bytes_in += received
        figures.bytes_out += sent
        event = record.last_event
        if event is not None:
            figures.duration.note((event.ended_ms - event.received_ms) * 1000)
            self._recent.setdefault(record.route.deployment_id, _Recent()).add(
                event.ended_ms - event.received_ms
            )

    def take_recent(self) -> dict[str, dict[str, Any]]:
        """`{deployment id: {"ended": calls since the last time, "durations_ms": of some of these}}`."""
        taken, self._recent = self._recent, {}
        return {
            name: {"ended": each.ended, "durations_ms": each.durations_ms} for name, each in taken.items()
        }

    def _of(self, endpoint: str, deployment: str) -> _Figures:
        if (endpoint, deployment) not in self._by and len(self._by) >= _MAX_DEPLOYMENTS:
            endpoint = deployment = "other"
        return self._by.setdefault((endpoint, deployment), _Figures())

    def families(self) -> Iterable[Family]:
        """For `GET /metrics`."""
        series = [
            ((("endpoint", endpoint), ("deployment", deployment)), figures)
            for (endpoint, deployment), figures in list(self._by.items())
        ]
        requests: list[Sample] = [
            ("", (*labels, ("status_code", str(status)), ("model_status_code", str(model or ""))), count)
            for labels, figures in series
            for (status, model), count in list(figures.statuses.items())
        ]
        yield Family(
            "farebox_gateway_deployment_requests_total", "counter", "Calls of a deployment", requests
        )
        network: list[Sample] = []
        for labels, figures in series:
            network.append(("", (*labels, ("direction", "in")), figures.bytes_in))
            network.append(("", (*labels, ("direction", "out")), figures.bytes_out))
        yield Family(
            "farebox_gateway_deployment_network_bytes_total",
            "counter",
            "Bytes of bodies of a deployment's calls",
            network,
        )
        yield Family(
            "farebox_gateway_deployment_duration_seconds",
            "histogram",
            "From receiving a call of a deployment to the end of its answer",
            (sample for labels, figures in series for sample in figures.duration.samples(labels)),
        )


def _auth_type(principal: Principal) -> str:
    """What the caller showed, in the words of `auth_mode`."""
    if not principal.key_id.startswith("key_"):
        return "aad_token"
    return "aml_token" if principal.kind == "endpoint" and principal.expires_ms else "key"


def _write(call: Ended, exchange: Exchange, record: CallRecord, event: UsageEvent, status: int) -> None:
    """Azure's fields under its names; neither bodies nor keys."""
    first = event.first_byte_ms or event.ended_ms
    sent = event.sent_ms or first
    _log.info(
        "traffic",
        extra={
            "Method": call.method,
            "Path": call.path,
            "EndpointName": record.route.endpoint_name,
            "DeploymentName": call.deployment,
            "Protocol": f"HTTP/{exchange.http_version}",
            "ResponseCode": status,
            "ResponseCodeReason": event.status,
            "ModelStatusCode": call.model_status,
            "ModelStatusReason": call.model_reason,
            "RequestPayloadSize": call.received,
            "ResponsePayloadSize": call.sent,
            "UserAgent": exchange.headers.get(b"user-agent", b"").decode("latin-1")[:_MAX_USER_AGENT],
            "XRequestId": exchange.request_id,
            "XMSClientRequestId": exchange.client_request_id.decode("latin-1"),
            "TotalDurationMs": event.ended_ms - event.received_ms,
            "RequestDurationMs": sent - event.received_ms,  # until it was sent to the model, waiting included
            "ModelDurationMs": first - sent,
            "ResponseDurationMs": event.ended_ms - first,
            "RequestThrottlingDelayMs": call.request_delay_ms,
            "ResponseThrottlingDelayMs": call.response_delay_ms,
            "AuthType": _auth_type(record.principal),
            "IdentityData": record.principal.key_id,
        },
    )
