"""The API's answers as typed dictionaries: exactly the server's JSON, nothing renamed.

Amounts of money are decimal texts (`"0.0000123"`), never floats; times are ISO 8601 in UTC.
"""

from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar

T = TypeVar("T")

KeyType = Literal["primary", "secondary"]
ContentSafety = Literal["enabled", "disabled"]
LimitScope = Literal["key", "project", "organization", "endpoint"]
BudgetWindow = Literal["day", "month", "total"]


class Page(TypedDict, Generic[T]):
    """One page of a list; `next` is the cursor of the page after it."""

    data: list[T]
    next: str | None


class Organization(TypedDict):
    id: str
    name: str
    created_at: str


class Project(TypedDict):
    id: str
    name: str
    organization_id: str
    organization: str
    created_at: str


class ApiKey(TypedDict):
    """A key as it is listed: never the key itself, only its `hint`."""

    id: str
    name: str
    hint: str
    project_id: str
    organization_id: str
    status: Literal["ok", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class CreatedApiKey(ApiKey):
    """The answer to a creation: the only time `key` is shown."""

    key: str


class Model(TypedDict, total=False):
    """A catalog entry; members that a model has no use for may be missing."""

    id: str
    name: str
    publisher: str
    task: str
    context_length: int
    engine: dict[str, Any]
    prices: dict[str, str]
    capabilities: dict[str, bool]
    source: dict[str, Any]
    license: dict[str, Any]
    marketplace: dict[str, str]
    requirements: dict[str, Any]
    tags: list[str]
    origin: Literal["builtin", "operator"]
    created_at: str
    updated_at: str


class PriceVersion(TypedDict):
    """Prices from `starts_at` on (None: since ever) until the next version starts."""

    id: str
    model: str
    starts_at: str | None
    prices: dict[str, str]
    created_at: str


class InstancePrice(TypedDict):
    """What a minute of an instance costs, from `starts_at` on."""

    instance_type: str
    per_minute_usd: str
    model: str
    starts_at: str


class PutModel(TypedDict):
    """What became of a model that was sent."""

    id: str
    outcome: Literal["added", "changed", "unchanged"]
    message: str
    price_version: NotRequired[PriceVersion]
    model: Model


class Replica(TypedDict):
    """One run of one model server."""

    id: str
    state: Literal["starting", "ready", "stopping", "stopped", "failed"]
    phase: str | None
    url: str | None
    pid: int | None
    started_at: str
    ready_at: str | None
    stopped_at: str | None
    reason: str | None


class Failure(TypedDict):
    at: str | None
    reason: str


class Deployment(TypedDict):
    """The resources that serve one model. `external`: an attached server, not started by Farebox."""

    id: str
    model: str
    state: Literal["stopped", "starting", "ready", "idle", "failed"]
    external: bool
    phase: str | None
    in_flight: int | None
    last_call_at: str | None
    stops_at: str | None
    retry_at: str | None
    created_at: str
    replicas: list[Replica]
    last_failure: Failure | None


class ServerlessEndpoint(TypedDict):
    id: str
    name: str
    state: str
    model: str
    project_id: str
    organization_id: str
    scoring_uri: str
    openai_base_url: str
    created_at: str
    tags: dict[str, str]
    content_safety: Literal["enabled", "disabled", "not configured"]
    deployment: Deployment


class EndpointKeys(TypedDict):
    primaryKey: str
    secondaryKey: str


class TokenCounts(TypedDict, total=False):
    """`input` includes `cached_input`, `output` includes `reasoning`."""

    input: int
    cached_input: int
    output: int
    reasoning: int
    audio_ms: int


class BilledCounts(TypedDict, total=False):
    """What is multiplied by a price; nothing is counted twice."""

    input: int
    cached_input: int
    output: int
    audio_second: int
    batch_input: int
    batch_cached_input: int
    batch_output: int


class Receipt(TypedDict, total=False):
    """What one call used and what it cost. `billed` splits the same tokens into parts that do not overlap."""

    request_id: str
    organization: str
    organization_id: str
    project: str
    project_id: str
    key_id: str
    endpoint: str
    endpoint_id: str
    model: str
    status: Literal["completed", "client_disconnect", "error", "interrupted"]
    operation: str
    stream: bool
    batch: bool
    time: str
    usage: TokenCounts
    billed: BilledCounts
    usage_source: str
    price_version: str | None
    cost_usd: str
    attempts: list[dict[str, Any]]


class InvoiceLine(TypedDict):
    """A charge: `quantity` × `unit_price_usd` = `amount_usd`, to the last digit; `rounded_usd` is what is charged.

    Lines of other kinds (`terms`, `discount`, `minimum`, `credit`) have an amount, and say in `text` what they are.
    """

    kind: str
    sku: NotRequired[str]
    model: NotRequired[str]
    endpoint: NotRequired[str]
    quantity: NotRequired[int]
    unit_price_usd: NotRequired[str]
    price_per_million_usd: NotRequired[str]
    amount_usd: str
    rounded_usd: str
    text: NotRequired[str]


class HeldUsage(TypedDict):
    """Usage without a price: not in the total until it gets one."""

    sku: str
    model: str
    quantity: int
    reason: str


class InvoicePreview(TypedDict):
    organization: str
    organization_id: str
    period_start: str
    period_end: str
    as_of: str
    currency: str
    lines: list[InvoiceLine]
    total_exact_usd: str
    total_usd: str
    status: str
    held: list[HeldUsage]


class PriceProposal(TypedDict):
    """A change of prices: proposed by one admin key, approved by another."""

    id: str
    state: str
    model: str
    organization: str | None
    starts_at: str | None
    prices: dict[str, str]
    terms: dict[str, dict[str, object]]
    ended: bool
    note: str
    proposed_by: str
    proposed_at: str
    decided_by: str | None
    decided_at: str | None
    decision_note: str
    price_version: str | None


class ReratedOrganization(TypedDict):
    """One organization's month as it is, and as it would be."""

    organization: str
    organization_id: str
    before_usd: str
    after_usd: str
    difference_usd: str
    unpriced: list[str]
    before: list[InvoiceLine]
    after: list[InvoiceLine]


class PriceDryRun(TypedDict):
    """What a month would cost under other prices. Nothing was changed."""

    model: str
    period_start: str
    period_end: str
    organizations: list[ReratedOrganization]
    before_usd: str
    after_usd: str
    difference_usd: str


class OwnPrice(TypedDict):
    """A version of an organization's own prices; `ended`: from then on everybody's again."""

    id: str
    model: str
    starts_at: str
    ended: bool
    prices: dict[str, str]
    terms: dict[str, dict[str, object]]


class Limits(TypedDict):
    """The limits in force for one scope; None: no limit."""

    scope: LimitScope
    id: str
    organization_id: str
    requests_per_minute: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    parallel_requests: int | None
    on_outage: Literal["closed", "open"] | None
    source: Literal["default", "set"]


class Budget(TypedDict):
    """A budget as it stands in its current window (total: in the only one)."""

    id: str
    scope: Literal["key", "project", "organization"]
    scope_id: str
    organization_id: str
    amount_usd: str
    window: BudgetWindow
    hard: bool
    window_start: str | None
    resets_at: str | None
    spent_usd: str
    held_usd: str
    remaining_usd: str
    alerts: list[int]
    alerted_percent: int
    created_at: str


class EventAnswer(TypedDict):
    """What became of one event; `refused`: nothing was kept of it."""

    index: int
    id: str
    source: str
    status: Literal["new", "duplicate", "quarantined", "refused"]
    param: str | None
    reason: str | None
    quarantine_id: str | None


class EventAnswers(TypedDict):
    """Counts, and one answer for each event in the order sent."""

    new: int
    duplicate: int
    quarantined: int
    refused: int
    data: list[EventAnswer]


class EventType(TypedDict):
    type: str
    direction: Literal["in", "out"]
    description: str
    schema_url: str


class QuarantineEntry(TypedDict):
    """An event that could not be taken in. `event` and `payload` only when one is shown, `outcome` of a replay."""

    id: str
    kind: Literal["poison", "conflict", "corrupt"]
    state: Literal["open", "replayed", "dropped"]
    source: str
    event_id: str
    reason: str
    organization_id: str | None
    received_at: str
    resolved_at: str | None
    event: NotRequired[dict[str, Any] | None]
    payload: NotRequired[str]
    outcome: NotRequired[Literal["new", "duplicate"]]


class Webhook(TypedDict):
    """An organization's address for events; `secret` only when it was just made."""

    id: str
    organization_id: str
    url: str
    description: str
    events: list[str]
    enabled: bool
    disabled_reason: str | None
    last_success_at: str | None
    created_at: str
    secret: NotRequired[str]


class WebhookAttempt(TypedDict):
    """One POST; `status` None: no answer."""

    at: str
    duration_ms: int
    status: int | None
    error: str | None


class WebhookDelivery(TypedDict):
    """One message for one webhook; `log` only when one is shown."""

    message: str
    type: str
    subject: str
    occurred_at: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    next_at: str | None
    last_status: int | None
    last_error: str | None
    delivered_at: str | None
    log: NotRequired[list[WebhookAttempt]]


class AuditLine(TypedDict):
    """Who did what to what."""

    id: str
    at: str
    actor: str
    action: str
    object: str
    organization_id: str | None
    detail: dict[str, Any]


class UsageReport(TypedDict):
    """Quantities of [start, end); the members of a row depend on the grouping."""

    organization: str
    start: str
    end: str
    data: list[dict[str, Any]]
    next: None


class ReconciledHour(TypedDict):
    """One hour of an endpoint, of a deployment that several share, or of what is of no endpoint."""

    hour: str
    scope: Literal["endpoint", "deployment", "platform"]
    id: str
    name: str
    organization_id: str | None
    organization: str | None
    model: str | None
    deployment: str | None
    figures: dict[str, dict[str, int | None]]
    invoice: str | None
    no_counters: str | None
    differences: list[dict[str, Any]]
    verdict: Literal["equal", "explained", "unexplained"]


class Reconciliation(TypedDict):
    """All records of [start, end) compared; `unexplained` is the number of differences that nothing explains."""

    start: str
    end: str
    as_of: str
    verdict: Literal["equal", "explained", "unexplained"]
    unexplained: int
    truncated: bool
    data: list[ReconciledHour]
    invoices: list[dict[str, Any]]
    hourly: list[dict[str, Any]]


class Alarm(TypedDict):
    """Something that an operator must look at."""

    at: str
    kind: str
    source: str
    detail: str


class Status(TypedDict):
    """Put together by the client from the health routes and the deployments."""

    url: str
    healthy: bool
    ready: bool
    problems: list[str]
    version: str | None
    api_version: str | None
    deployments: list[Deployment] | None
