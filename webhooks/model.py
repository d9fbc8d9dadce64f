"""The events that customers are told of, and the endpoints they are sent to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from core.errors import Invalid
from wire.suggestions import unknown_name

BUDGET_THRESHOLD = "ai.farebox.budget.threshold.v1"
INVOICE_FINALIZED = "ai.farebox.invoice.finalized.v1"
ENDPOINT_STATE = "ai.farebox.endpoint.state.v1"
JOB_COMPLETED = "ai.farebox.job.completed.v1"
TEST = "ai.farebox.webhook.test.v1"

DeliveryState = Literal["pending", "delivered", "failed"]

MAX_ENDPOINTS = 20  # of one organization
MAX_DESCRIPTION = 200


class BudgetThreshold(msgspec.Struct, frozen=True):
    """Spending crossed a share of a budget. Once per threshold and window. Amounts in US dollars, exact."""

    budget_id: str
    scope: str
    scope_id: str
    threshold_percent: int
    amount_usd: str
    spent_usd: str
    window: str
    window_start: str | None
    resets_at: str | None
    hard: bool


class InvoiceFinalized(msgspec.Struct, frozen=True):
    """An invoice became final. Periods are [start, end); amounts are US dollars with two decimals."""

    invoice_id: str
    number: str
    period_start: str
    period_end: str
    currency: str
    total_usd: str
    due_usd: str


class EndpointStateChanged(msgspec.Struct, frozen=True):
    """A model endpoint was created, suspended, resumed or deleted."""

    endpoint_id: str
    name: str
    kind: str
    project_id: str
    model: str
    state: str
    previous_state: str | None


class JobCompleted(msgspec.Struct, frozen=True):
    """A batch job came to its end, good or bad."""

    job_id: str
    project_id: str
    endpoint_id: str
    status: str
    requests: int
    failed: int
    created_at: str
    completed_at: str


class WebhookTest(msgspec.Struct, frozen=True):
    """Somebody wants to see whether the webhook works."""

    webhook_id: str


EVENTS: Mapping[str, type[msgspec.Struct]] = {
    BUDGET_THRESHOLD: BudgetThreshold,
    INVOICE_FINALIZED: InvoiceFinalized,
    ENDPOINT_STATE: EndpointStateChanged,
    JOB_COMPLETED: JobCompleted,
    TEST: WebhookTest,
}


@dataclass(frozen=True, slots=True)
class Webhook:
    """An organization's address for events. Secrets are sealed; `previous` signs too until `previous_until_ms`."""

    id: str
    org_id: str
    url: str
    description: str
    event_types: tuple[str, ...]  # empty: all
    enabled: bool
    disabled_reason: str
    secret_sealed: str
    previous_sealed: str
    previous_until_ms: int
    last_success_ms: int
    created_ms: int

    def wants(self, event_type: str) -> bool:
        """Whether events of this type go here. A test goes where it is sent."""
        return self.enabled and (not self.event_types or event_type in self.event_types)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for one endpoint."""

    message_id: str
    webhook_id: str
    org_id: str
    event_type: str
    subject: str
    occurred_ms: int
    state: DeliveryState
    attempts: int
    next_ms: int
    last_status: int  # 0: no answer
    last_error: str
    delivered_ms: int


def check_types(types: Sequence[str], param: str = "events") -> tuple[str, ...]:
    """The types to send, each once; Invalid for one that does not exist."""
    for name in types:
        if name not in EVENTS:
            raise Invalid(f"{param}: {unknown_name(name, EVENTS, 'event type')}", param=param)
    return tuple(dict.fromkeys(types))
