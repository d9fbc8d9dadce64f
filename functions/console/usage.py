"""Usage in quantities, and receipts of single calls."""

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from access import store as access_store
from access.model import Organization
from access.principal import Principal
from billing.model import Attempt, CorrectedAttempt, Receipt
from billing.receipts import receipt
from catalog import price_book
from core.clock import iso
from core.errors import Invalid, NotFound
from core.money import format_pico
from functions.console.dependencies import Caller, Deps
from functions.console.periods import span
from functions.console.routing import console_router
from functions.console.scope import read_scope
from functions.console.shapes import After, Limit, Page, iso_or_none
from metering.records import GROUPS, UsageRow
from metering.store import list_requests, usage_summary
from serving.store import endpoint_names
from wire.suggestions import unknown_name

router = console_router("usage and receipts")

Named = Annotated[str | None, Query(max_length=200, description="Its id or name.")]
Moment = Annotated[str | None, Query(max_length=40, examples=["2026-11-01", "2026-11-23T12:00:00Z"])]


class UsageRowOut(BaseModel):
    """One group. Members depend on the grouping; quantities are disjoint and are what is billed."""

    model_config = ConfigDict(extra="allow")

    requests: int
    errors: int


class UsageOut(BaseModel):
    """Usage of [start, end)."""

    organization: str
    start: str
    end: str
    data: list[UsageRowOut]
    next: None = None


class TokenCounts(BaseModel):
    """As the engine reports them: `input` includes `cached_input`, `output` includes `reasoning`."""

    input: int
    cached_input: int
    output: int
    reasoning: int
    audio_ms: int = Field(default=0, description="Audio that was transcribed; such a call has no tokens.")


class BilledCounts(BaseModel):
    """The same, disjoint: each is multiplied by its own price."""

    input: int
    cached_input: int
    output: int
    audio_second: int = Field(default=0, description="Seconds of audio, rounded up.")
    batch_input: int = Field(default=0, description="Of batch calls, as are the two below.")
    batch_cached_input: int = 0
    batch_output: int = 0


class AttemptOut(BaseModel):
    """One attempt at the call."""

    attempt: int
    status: str
    http_status: int
    deployment: str
    engine_request_id: str | None
    finish_reason: str | None
    usage: TokenCounts
    usage_source: str
    cost_usd: str
    unpriced: list[str] = Field(description="SKUs used that the model has no price for.")
    received_at: str | None
    sent_at: str | None
    first_byte_at: str | None
    ended_at: str | None


class CorrectionOut(BaseModel):
    """A correction of an attempt: billed as a difference, in the minute that was open when it came."""

    id: str
    corrects: str = Field(description="The attempt's event id.")
    reason: str
    usage: TokenCounts = Field(description="What the attempt used in truth.")
    cost_usd: str = Field(description="The difference; below zero when the attempt was billed too high.")
    unpriced: list[str]
    recorded_at: str
    billed_at: str


class ReceiptOut(BaseModel):
    """What a call used and cost, to the last digit."""

    request_id: str = Field(examples=["req_01kafn3m8hzq4v6p9x2c7d5b1w"])
    organization: str
    organization_id: str
    project: str
    project_id: str
    key_id: str
    endpoint: str
    endpoint_id: str
    model: str = Field(examples=["acme/mock-chat"])
    status: str = Field(examples=["completed"])
    operation: str
    stream: bool
    batch: bool = Field(description="Of a batch job.")
    time: str
    usage: TokenCounts
    billed: BilledCounts
    usage_source: str
    price_version: str | None
    cost_usd: str = Field(examples=["0.00000615"])
    attempts: list[AttemptOut]
    corrections: list[CorrectionOut] = []


@router.get("/usage", summary="Summarize usage")
def get_usage(
    caller: Caller,
    deps: Deps,
    organization: Named = None,
    project: Named = None,
    start: Moment = None,
    end: Moment = None,
    group_by: Annotated[
        str, Query(max_length=100, description=f"Comma list of {', '.join(GROUPS)}.", examples=["day,model"])
    ] = "",
) -> UsageOut:
    """Quantities of [start, end), by default of this month until now. A project's key sees its own."""
    groups = _groups(group_by)
    deps.catch_up()
    start_ms, end_ms = span(start, end, deps.clock.now_ms())
    with deps.db.read() as connection:
        scope = read_scope(connection, caller, organization, project)
        rows = usage_summary(connection, scope.organization.id, scope.project_id, start_ms, end_ms, groups)
        names = _Names(connection, rows)
    data = [_usage_row(row, names) for row in rows]
    return UsageOut(organization=scope.organization.name, start=iso(start_ms), end=iso(end_ms), data=data)


@router.get("/receipts", summary="List receipts")
def list_receipts(
    caller: Caller,
    deps: Deps,
    organization: Named = None,
    project: Named = None,
    start: Moment = None,
    end: Moment = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[ReceiptOut]:
    """Calls that ended in [start, end), newest first; by default this month's. A project sees its own."""
    deps.catch_up()
    start_ms, end_ms = span(start, end, deps.clock.now_ms())
    with deps.db.read() as connection:
        scope = read_scope(connection, caller, organization, project)
        ids = list_requests(
            connection,
            scope.organization.id,
            start_ms,
            end_ms,
            project_id=scope.project_id,
            limit=limit + 1,
            after=after or None,
        )
        found = [receipt(connection, request_id, price_book) for request_id in ids[:limit]]
        return Page(data=_receipts(connection, found), next=ids[limit - 1] if len(ids) > limit else None)


@router.get("/receipts/{request_id}", summary="Show a receipt")
def get_receipt(request_id: str, caller: Caller, deps: Deps) -> ReceiptOut:
    """By the call's `x-request-id`. A project's or an endpoint's key finds its own calls only."""
    deps.catch_up()
    with deps.db.read() as connection:
        found = receipt(connection, request_id, price_book)
        if not _may_see(caller, found):
            raise NotFound(f"no request {request_id!r} is on record", param="request_id")
        return _receipts(connection, [found])[0]


def _may_see(caller: Principal, found: Receipt) -> bool:
    if caller.kind == "endpoint":
        return found.endpoint_id == caller.endpoint_id
    return caller.kind == "admin" or found.project_id == caller.project_id


def _groups(text: str) -> list[str]:
    groups = [name.strip() for name in text.split(",") if name.strip()]
    for name in groups:
        if name not in GROUPS:
            raise Invalid(f"group_by: {unknown_name(name, GROUPS, 'group')}", param="group_by")
    return groups


class _Names:
    """Names of what the rows point to by id."""

    def __init__(self, connection: Connection, rows: Sequence[UsageRow]) -> None:
        self._endpoints = endpoint_names(connection, _ids(rows, "endpoint"))
        projects = {i: access_store.get_project(connection, i) for i in _ids(rows, "project")}
        self._projects = {i: project.name for i, project in projects.items() if project}
        keys = {i: access_store.get_key(connection, i) for i in _ids(rows, "key")}
        self._keys = {i: key.name for i, key in keys.items() if key}

    def row(self, group: dict[str, Any]) -> dict[str, Any]:
        """The group with names beside the ids."""
        shown: dict[str, Any] = {}
        for name, value in group.items():
            if name == "endpoint":
                shown |= {"endpoint": self._endpoints.get(value, value) or None, "endpoint_id": value or None}
            elif name == "project":
                shown |= {"project": self._projects.get(value, value), "project_id": value}
            elif name == "key":
                # An endpoint's minutes belong to no key.
                shown |= {"key": self._keys.get(value, value) or None, "key_id": value or None}
            else:
                shown[name] = value
        return shown


def _ids(rows: Sequence[UsageRow], name: str) -> Collection[str]:
    return {row.group[name] for row in rows if row.group.get(name)}


def _usage_row(row: UsageRow, names: _Names) -> UsageRowOut:
    shown = names.row(dict(row.group))
    if "sku" in row.group:
        shown["quantity"] = row.quantities[row.group["sku"]]
    else:
        shown |= dict(row.quantities) | {"reasoning": row.reasoning}
    return UsageRowOut(**shown, requests=row.requests, errors=row.errors)


def _receipts(connection: Connection, found: Sequence[Receipt]) -> list[ReceiptOut]:
    endpoints = endpoint_names(connection, {each.endpoint_id for each in found})
    projects = {i: access_store.get_project(connection, i) for i in {each.project_id for each in found}}
    shown = []
    for each in found:
        project = projects[each.project_id]
        organization = Organization(each.org_id, project.org_name if project else each.org_id, 0)
        name = project.name if project else each.project_id
        shown.append(_receipt(each, organization, name, endpoints.get(each.endpoint_id, each.endpoint_id)))
    return shown


def _receipt(found: Receipt, organization: Organization, project: str, endpoint: str) -> ReceiptOut:
    return ReceiptOut(
        request_id=found.request_id,
        organization=organization.name,
        organization_id=organization.id,
        project=project,
        project_id=found.project_id,
        key_id=found.key_id,
        endpoint=endpoint,
        endpoint_id=found.endpoint_id,
        model=found.model_id,
        status=found.status,
        operation=found.operation,
        stream=found.stream,
        batch=found.batch,
        time=iso(found.last.ended_ms),
        usage=TokenCounts(**found.last.usage),
        billed=BilledCounts(**found.billed),
        usage_source=found.last.usage_source,
        price_version=found.price_version or None,
        cost_usd=format_pico(found.amount_pico),
        attempts=[_attempt(attempt) for attempt in found.attempts],
        corrections=[_correction(each) for each in found.corrections],
    )


def _correction(found: CorrectedAttempt) -> CorrectionOut:
    return CorrectionOut(
        id=found.event_id,
        corrects=found.corrects_id,
        reason=found.reason,
        usage=TokenCounts(**found.usage),
        cost_usd=format_pico(found.amount_pico),
        unpriced=list(found.held),
        recorded_at=iso(found.recorded_ms),
        billed_at=iso(found.billing_minute_ms),
    )


def _attempt(attempt: Attempt) -> AttemptOut:
    return AttemptOut(
        attempt=attempt.attempt,
        status=attempt.status,
        http_status=attempt.http_status,
        deployment=attempt.deployment_id,
        engine_request_id=attempt.engine_request_id or None,
        finish_reason=attempt.finish_reason or None,
        usage=TokenCounts(**attempt.usage),
        usage_source=attempt.usage_source,
        cost_usd=format_pico(attempt.amount_pico),
        unpriced=list(attempt.held),
        received_at=iso_or_none(attempt.received_ms),
        sent_at=iso_or_none(attempt.sent_ms),
        first_byte_at=iso_or_none(attempt.first_byte_ms),
        ended_at=iso_or_none(attempt.ended_ms),
    )
