"""What metering hands out and takes in, as frozen values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

QuarantineKind = Literal["poison", "conflict", "corrupt"]
MinuteKind = Literal["usage", "endpoint_minute", "correction"]

GROUPS = ("day", "model", "endpoint", "key", "sku", "project")
ENDPOINT_MINUTE_SKU = "endpoint_minute"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that an operator must look at: `sequence_gap`, `conflict`, `poison`, `unpriced`, …"""

    kind: str
    source: str
    detail: str


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One usage event as it lies in the database: one attempt of a request."""

    source: str
    event_id: str
    request_id: str
    attempt: int
    org_id: str
    project_id: str
    key_id: str
    endpoint_id: str
    deployment_id: str
    model_id: str
    operation: str
    stream: bool
    status: str
    http_status: int
    usage_source: str
    input: int
    cached_input: int
    output: int
    reasoning: int
    audio_ms: int
    batch: bool
    received_ms: int
    sent_ms: int
    first_byte_ms: int
    ended_ms: int
    engine_request_id: str
    finish_reason: str
    service_minute_ms: int
    billing_minute_ms: int


@dataclass(frozen=True, slots=True)
class ClosedMinute:
    """Quantities of one minute that are rated together: of one key at one endpoint, or of one endpoint.

    `quantities` are disjoint and billable, and negative only in a correction. A minute that is still open has
    the same shape, so that a preview rates it the same way.
    """

    id: str
    kind: MinuteKind
    billing_minute_ms: int
    service_minute_ms: int
    org_id: str
    project_id: str
    key_id: str
    endpoint_id: str
    model_id: str
    quantities: Mapping[str, int]

    def __post_init__(self) -> None:
        signed = self.kind == "correction"
        assert signed or all(quantity >= 0 for quantity in self.quantities.values()), self


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One group of a usage summary. `requests` counts all attempts, `errors` the failed, unbilled ones."""

    group: Mapping[str, str]
    quantities: Mapping[str, int]  # billable, by SKU, disjoint
    requests: int
    errors: int
    reasoning: int  # part of output
