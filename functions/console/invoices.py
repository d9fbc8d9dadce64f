"""The invoice that a month would get now."""

from typing import Annotated, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from access.model import Organization
from billing.model import TOKEN_SKUS, Line, LineKind, Preview
from billing.preview import invoice_preview
from catalog import price_book
from core.clock import iso
from core.money import format_cents, format_per_million, format_pico, round_to_cents
from functions.console.dependencies import Caller, Deps
from functions.console.periods import month
from functions.console.routing import console_router
from functions.console.scope import read_scope
from functions.console.usage import Named

router = console_router("invoices")


class LineOut(BaseModel):
    """A charge: quantity × unit_price_usd = amount_usd, to the last digit; rounded_usd is what would be charged.

    Lines of other kinds have an amount only, and say in `text` what they are.
    """

    kind: LineKind = Field(
        description="charge, terms (tiers, included amounts), discount, minimum or credit."
    )
    sku: str | None = Field(default=None, examples=["input"])
    model: str | None = Field(default=None, description="Of a line of tokens.", examples=["acme/mock-chat"])
    endpoint: str | None = Field(default=None, description="Of a line of endpoint minutes.")
    quantity: int | None = Field(default=None, examples=[41])
    unit_price_usd: str | None = Field(
        default=None, description="Of one token or one minute.", examples=["0.00000015"]
    )
    price_per_million_usd: str | None = Field(default=None, description="Of tokens.", examples=["0.15"])
    amount_usd: str = Field(examples=["0.00000615"])
    rounded_usd: str = Field(examples=["0.00"])
    text: str | None = None


class HeldOut(BaseModel):
    """Usage without a price: not in the total until it gets one."""

    sku: str
    model: str
    quantity: int
    reason: str


class PreviewOut(BaseModel):
    """What the invoice for [period_start, period_end) would show if it were made at as_of."""

    organization: str = Field(examples=["acme"])
    organization_id: str
    period_start: str = Field(examples=["2026-11-01T00:00:00.000Z"])
    period_end: str = Field(examples=["2026-12-01T00:00:00.000Z"])
    as_of: str
    currency: Literal["usd"] = "usd"
    lines: list[LineOut]
    total_exact_usd: str = Field(examples=["0.00050615"])
    total_usd: str = Field(description="The sum of the rounded lines.", examples=["0.00"])
    status: Literal["preview"] = "preview"
    held: list[HeldOut] = Field(description="Usage that could not be priced; tell the operator.")


@router.get("/invoices/preview", summary="Preview an invoice", response_model_exclude_none=True)
def preview_invoice(
    caller: Caller,
    deps: Deps,
    organization: Named = None,
    period: Annotated[
        str | None, Query(max_length=20, description="YYYY-MM (UTC).", examples=["2026-11"])
    ] = None,
) -> PreviewOut:
    """The month's lines as they stand, by default of the current month. Exact: nothing is estimated."""
    deps.catch_up()
    now_ms = deps.clock.now_ms()
    start_ms, end_ms = month(period, now_ms)
    with deps.db.read() as connection:
        chosen = read_scope(connection, caller, organization).organization
        found = invoice_preview(connection, chosen.id, start_ms, end_ms, now_ms, price_book)
    return _preview(found, chosen)


def _preview(found: Preview, organization: Organization) -> PreviewOut:
    return PreviewOut(
        organization=organization.name,
        organization_id=organization.id,
        period_start=iso(found.start_ms),
        period_end=iso(found.end_ms),
        as_of=iso(found.as_of_ms),
        lines=[line_out(line) for line in found.lines],
        total_exact_usd=format_pico(found.total_pico),
        total_usd=format_cents(found.total_cents),
        held=[HeldOut(sku=h.sku, model=h.model_id, quantity=h.quantity, reason=h.reason) for h in found.held],
    )


def line_out(line: Line) -> LineOut:
    """A line for people and programs."""
    is_charge = line.kind == "charge"
    return LineOut(
        kind=line.kind,
        sku=line.sku or None,
        model=None if line.endpoint_id else line.model_id or None,
        endpoint=line.endpoint_name if line.endpoint_id else None,
        quantity=line.quantity if is_charge else None,
        unit_price_usd=format_pico(line.unit_price_pico) if is_charge else None,
        price_per_million_usd=format_per_million(line.unit_price_pico)
        if is_charge and line.sku in TOKEN_SKUS
        else None,
        amount_usd=format_pico(line.amount_pico),
        rounded_usd=format_cents(round_to_cents(line.amount_pico)),
        text=line.text or None,
    )
