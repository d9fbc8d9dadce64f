"""Receipts: what one request used and cost, exact, whether its minute is closed yet or not."""

from sqlalchemy import Connection

from billing.model import Attempt, CorrectedAttempt, PriceBook, Receipt
from billing.rate import Prices, rate
from core.errors import NotFound
from metering.corrections import StoredCorrection, corrections_of
from metering.model import Usage
from metering.records import StoredEvent
from metering.store import receipt_row

UNBILLED = "error"  # the one status that costs nothing: the platform or the engine failed


def receipt(conn: Connection, request_id: str, book: PriceBook) -> Receipt:
    """The receipt of a request; NotFound when no event of it arrived. The caller checks the organization."""
    events = receipt_row(conn, request_id)
    if not events:
        raise NotFound(f"no request {request_id!r} is on record", param="request_id")
    prices = Prices(conn, book)
    last = events[-1]
    price = prices.at(last.org_id, last.model_id, last.service_minute_ms)
    return Receipt(
        request_id=request_id,
        org_id=last.org_id,
        project_id=last.project_id,
        key_id=last.key_id,
        endpoint_id=last.endpoint_id,
        model_id=last.model_id,
        operation=last.operation,
        stream=last.stream,
        batch=last.batch,
        price_version=price.id if price else "",
        attempts=tuple(_attempt(event, prices) for event in events),
        corrections=tuple(_corrected(each, last.org_id, prices) for each in corrections_of(conn, request_id)),
    )


def _attempt(event: StoredEvent, prices: Prices) -> Attempt:
    usage = Usage(
        event.input, event.cached_input, event.output, event.reasoning, event.audio_ms, batch=event.batch
    )
    quantities = {} if event.status == UNBILLED else usage.billable()
    items, unpriced = rate(quantities, prices.at(event.org_id, event.model_id, event.service_minute_ms))
    return Attempt(
        event_id=event.event_id,
        attempt=event.attempt,
        status=event.status,
        http_status=event.http_status,
        deployment_id=event.deployment_id,
        engine_request_id=event.engine_request_id,
        finish_reason=event.finish_reason,
        usage=_counts(usage),
        usage_source=event.usage_source,
        items=tuple(items),
        held=tuple(unpriced),
        received_ms=event.received_ms,
        sent_ms=event.sent_ms,
        first_byte_ms=event.first_byte_ms,
        ended_ms=event.ended_ms,
    )


def _corrected(found: StoredCorrection, org_id: str, prices: Prices) -> CorrectedAttempt:
    price = prices.at(org_id, found.model_id, found.service_minute_ms)
    items, unpriced = rate(found.quantities, price)
    return CorrectedAttempt(
        event_id=found.event_id,
        corrects_id=found.corrects_id,
        reason=found.reason,
        recorded_ms=found.recorded_ms,
        billing_minute_ms=found.billing_minute_ms,
        usage=_counts(found.usage),
        items=tuple(items),
        held=tuple(unpriced),
    )


def _counts(usage: Usage) -> dict[str, int]:
    return {
        "input": usage.input,
        "cached_input": usage.cached_input,
        "output": usage.output,
        "reasoning": usage.reasoning,
        "audio_ms": usage.audio_ms,
    }
