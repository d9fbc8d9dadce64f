"""The models of these tests, their prices, and what a call must come to."""

from core.money import format_pico
from metering.model import Usage, UsageEvent
from tests.gateway_fixture import ENDPOINT, MODEL, RunningGateway

TARIFF = {"input": 150_000, "cached_input": 75_000, "output": 600_000, "audio_second": 100_000_000}
EMBEDDER, RERANKER, EAR = "acme/embedder", "acme/reranker", "acme/ear"
ROUTES_OF_TASK = {
    "chat": {"endpoint_id": "ep_1", "endpoint_name": ENDPOINT, "model_id": MODEL},
    "embedding": {"endpoint_id": "ep_2", "endpoint_name": "my-embedder", "model_id": EMBEDDER},
    "rerank": {"endpoint_id": "ep_3", "endpoint_name": "my-reranker", "model_id": RERANKER},
    "transcription": {"endpoint_id": "ep_4", "endpoint_name": "my-ear", "model_id": EAR},
}


def cost(usage: Usage) -> str:
    """By hand."""
    billable = usage.billable()
    return format_pico(sum(TARIFF[sku] * quantity for sku, quantity in billable.items() if quantity))


def only_event(gateway: RunningGateway, operation: str, usage: Usage, *, stream: bool = False) -> UsageEvent:
    """The only event there is, which must be of a completed call with this usage by the engine's count."""
    [event] = gateway.journal.wait_events(1)
    assert (event.operation, event.status, event.stream) == (operation, "completed", stream)
    assert (event.usage, event.usage_source) == (usage, "engine")
    return event
