"""Reconciliation on demand, what the hourly one found, and alarms."""

import asyncio
import threading
from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from access.store import find_organization
from billing.payments.store import provider_amount
from core.clock import iso
from core.errors import Invalid, Unavailable
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Limit, Page, instant, page
from functions.console.usage import Moment, Named
from functions.reconcile import HOUR_MS, MAX_HOURS, Reconciler
from functions.reconcile_hourly import kept_hours
from functions.reconcile_report import Report
from metering.alarms import RaisedAlarm, raised_alarms

router = console_router("reconciliation")

_DEFAULT_HOURS = 24
_one_at_a_time = threading.Lock()

Verdict = Literal["equal", "explained", "unexplained"]


class FiguresOut(BaseModel):
    """One SKU in the five records. null: that record says nothing about this hour."""

    engine: int | None = Field(description="By the engine's own counters.")
    events: int | None = Field(description="By the gateways' usage events, added up anew.")
    ledger: int | None
    invoice: int | None = Field(
        description="The ledger's, where a final invoice covers the hour and equals it."
    )
    provider: int | None


class DifferenceOut(BaseModel):
    """A difference between two neighbouring records: the first less the second."""

    between: Literal["engine", "events", "ledger"] = Field(
        description="engine: and events. events: and closed minutes. ledger: events and ledger."
    )
    kind: str = Field(examples=["hang_up"])
    explained: bool
    detail: str
    sku: str | None
    quantity: int
    count: int = Field(description="Of calls, minutes or numbers.")
    ids: list[str] = Field(description="Some of them: ids of events, minutes or ledger transactions.")


class HourOut(BaseModel):
    """One hour of an endpoint; of a deployment that several endpoints share; or of what is of no endpoint."""

    hour: str = Field(examples=["2026-11-23T12:00:00.000Z"])
    scope: Literal["endpoint", "deployment", "platform"]
    id: str
    name: str
    organization_id: str | None
    organization: str | None
    model: str | None
    deployment: str | None
    figures: dict[str, FiguresOut]
    invoice: str | None = Field(description="Number of the invoice that covers the hour.")
    no_counters: str | None = Field(description="Why the engine's counters say nothing.")
    differences: list[DifferenceOut]
    verdict: Verdict


class InvoiceDifferenceOut(BaseModel):
    """The ledger less the invoice's lines, or the invoice less what the provider has (in cents)."""

    kind: str
    explained: bool
    detail: str
    sku: str | None
    quantity: int


class InvoiceCheckOut(BaseModel):
    """A final invoice that charges a part of the period."""

    id: str
    number: str | None
    organization_id: str
    state: str
    period_start: str
    period_end: str
    provider: str | None = Field(description="Its id at the payment provider.")
    differences: list[InvoiceDifferenceOut]
    verdict: Verdict


class HourlyRunOut(BaseModel):
    """What the hourly run found about an hour, at its newest look."""

    hour: str
    made_at: str
    verdict: Verdict
    unexplained: int


class ReconciliationOut(BaseModel):
    """All records of [start, end) compared."""

    start: str
    end: str
    as_of: str
    verdict: Verdict
    unexplained: int = Field(description="Differences that nothing explains.")
    truncated: bool = Field(description="There are more rows; those with unexplained differences come first.")
    data: list[HourOut]
    invoices: list[InvoiceCheckOut]
    hourly: list[HourlyRunOut] = Field(description="The newest results of the run that happens by itself.")


class AlarmOut(BaseModel):
    """Something that an operator must look at."""

    at: str
    kind: str = Field(examples=["reconciliation", "sequence_gap", "conflict", "unpriced"])
    source: str
    detail: str


@router.get("/reconciliation", summary="Reconcile")
async def get_reconciliation(
    deps: Deps, organization: Named = None, start: Moment = None, end: Moment = None
) -> ReconciliationOut:
    """Engine counters, events, ledger, invoices and provider compared by the hour: the last day by default.

    Engines are read first. At most seven days at a time; one comparison runs at a time.
    """
    now_ms = deps.clock.now_ms()
    end_ms = now_ms + 1 if end is None else instant(end, "end")
    start_ms = max(0, end_ms - _DEFAULT_HOURS * HOUR_MS) if start is None else instant(start, "start")
    start_ms -= start_ms % HOUR_MS
    if start_ms >= min(end_ms, now_ms + 1):
        raise Invalid(f"start: expected a time before the end and before now, got {start}", param="start")
    if end_ms - start_ms > (MAX_HOURS + 1) * HOUR_MS:
        raise Invalid(f"start: expected at most {MAX_HOURS // 24} days before the end", param="start")
    if not _one_at_a_time.acquire(blocking=False):
        raise Unavailable("another reconciliation is running", retry_after_s=5)
    try:
        await deps.runtime.read_counters()
        return await asyncio.to_thread(_reconcile, deps, organization, start_ms, end_ms)
    finally:
        _one_at_a_time.release()


def _reconcile(
    deps: ConsoleDependencies, organization: str | None, start_ms: int, end_ms: int
) -> ReconciliationOut:
    org_id = None
    if organization is not None:
        with deps.db.read() as connection:
            org_id = find_organization(connection, organization).id
    report = Reconciler(deps.db, deps.clock, deps.catch_up, provider_amount).report(start_ms, end_ms, org_id)
    with deps.db.read() as connection:
        hourly = [
            HourlyRunOut(
                hour=iso(each.hour_ms),
                made_at=iso(each.made_ms),
                verdict=each.verdict,  # type: ignore[arg-type]  # as it was written
                unexplained=each.unexplained,
            )
            for each in kept_hours(connection, _DEFAULT_HOURS)
        ]
    return _answer(report, hourly)


def _answer(report: Report, hourly: list[HourlyRunOut]) -> ReconciliationOut:
    return ReconciliationOut.model_validate({**report.as_json(), "hourly": hourly})


@router.get("/alarms", summary="List alarms")
def list_alarms(
    deps: Deps,
    kind: Annotated[str | None, Query(max_length=60, description="Only these.")] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[AlarmOut]:
    """What an operator must look at, newest first."""
    if after and not (after.isascii() and after.isdigit() and len(after) < 19):
        raise Invalid(f"after: expected `next` of the page before, got {after[:40]!r}", param="after")
    with deps.db.read() as connection:
        found = raised_alarms(connection, limit + 1, before=int(after) if after else None, kind=kind)
    return page(found, limit, _alarm, lambda alarm: str(alarm.row_id))


def _alarm(alarm: RaisedAlarm) -> AlarmOut:
    return AlarmOut(at=iso(alarm.at_ms), kind=alarm.kind, source=alarm.source, detail=alarm.detail)
