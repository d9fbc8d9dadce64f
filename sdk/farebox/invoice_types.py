"""What the API answers about invoices, credit and contracts. Amounts are exact decimal texts in US dollars."""

from typing import TypedDict


class Party(TypedDict):
    name: str
    address: str
    email: str
    tax_id: str


class Invoice(TypedDict):
    """The head of an invoice; `state` is draft, finalized, paid or void."""

    id: str
    number: str | None
    organization_id: str
    kind: str
    state: str
    period_start: str
    period_end: str
    currency: str
    charges_exact_usd: str
    total_usd: str
    credit_usd: str
    due_usd: str
    open_usd: str
    issuer: Party | None
    customer: Party | None
    digest: str | None
    ledger_seq: int | None
    ledger_hash: str | None
    created_at: str
    finalized_at: str | None
    due_at: str | None
    paid_at: str | None
    voided_at: str | None
    payment_reference: str | None
    provider_id: str | None


class FullInvoiceLine(TypedDict):
    """A line: `amount_usd` is exact, `rounded_usd` what is charged."""

    line: int
    kind: str
    sku: str | None
    model: str | None
    endpoint_id: str | None
    endpoint: str | None
    quantity: int | None
    unit_price_usd: str | None
    price_per_million_usd: str | None
    price_version: str | None
    amount_usd: str
    rounded_usd: str
    text: str | None


class InvoiceMinute(TypedDict):
    id: str
    kind: str
    minute: str
    service_minute: str
    project_id: str
    key_id: str
    endpoint_id: str
    quantity: int
    amount_usd: str


class MinutesPage(TypedDict):
    """All pages together are the line's quantity and amount."""

    data: list[InvoiceMinute]
    next: str | None
    line_quantity: int
    line_amount_usd: str


class InvoiceEvent(TypedDict):
    id: str
    request_id: str | None
    status: str
    time: str
    quantity: int


class EventsPage(TypedDict):
    """All pages together are the minute's quantity."""

    data: list[InvoiceEvent]
    next: str | None
    minute_quantity: int


class InvoiceVerification(TypedDict):
    invoice_id: str
    number: str | None
    proved: bool
    events: int
    endpoint_minutes: int
    corrections: int
    ledger_transactions: int
    lines: int
    differences: list[str]


class Credit(TypedDict):
    id: str
    organization_id: str
    kind: str
    state: str
    amount_usd: str
    spent_usd: str | None
    reserved_usd: str | None
    available_usd: str | None
    left_usd: str
    priority: int
    models: list[str]
    skus: list[str]
    starts_at: str | None
    expires_at: str | None
    note: str
    source: str | None
    budget_id: str | None
    created_at: str


class CreditBalance(TypedDict):
    organization: str
    organization_id: str
    granted_usd: str
    spent_usd: str
    reserved_usd: str
    available_usd: str
    gone_usd: str
    credits: list[Credit]


class CreditNote(TypedDict):
    id: str
    number: str
    organization_id: str
    invoice_id: str
    reason: str
    amount_usd: str
    as_credit: bool
    lines: list[dict[str, int | str]]
    created_at: str


class Contract(TypedDict):
    id: str
    organization_id: str
    starts: str
    ends: str | None
    discount_percent: str
    minimum_usd: str
    created_at: str


class BillingProfile(TypedDict):
    organization: str
    organization_id: str
    legal_name: str
    address: str
    email: str
    tax_id: str
    due_days: int
    threshold_usd: str
    provider: str
    updated_at: str | None
