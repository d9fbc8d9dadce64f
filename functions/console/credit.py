"""Credit: granted, listed, void, and what it stands at; credit notes."""

from typing import Annotated, Literal

from fastapi import status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access.admission.store import change_budget, create_budget, list_budgets
from access.store import find_organization
from billing.invoicing import credit
from billing.invoicing.balance import GrantBalance, credit_balance
from billing.invoicing.model import CreditScope, Grant, GrantKind
from billing.invoicing.notes import make_note
from billing.invoicing.notes_store import find_note, list_notes
from billing.invoicing.spend import spending_order
from catalog import price_book
from core.clock import iso
from core.errors import Invalid
from core.money import format_pico
from functions.console.dependencies import Caller, Deps
from functions.console.invoice_actions import cents_of
from functions.console.invoice_shapes import CreditNoteOut, note_out
from functions.console.routing import console_router
from functions.console.scope import read_scope
from functions.console.shapes import After, Input, Limit, Page, Text, instant, iso_or_none, page
from functions.console.usage import Named

router = console_router("credit")
_Names = Annotated[list[Text], Field(max_length=credit.MAX_SCOPE)]


class NewCredit(Input):
    """Credit for an organization, in whole cents."""

    organization: Text = Field(examples=["acme"], description="Its id or name.")
    amount_usd: Text = Field(examples=["100.00"])
    kind: GrantKind = Field(default="promotional", description="prepaid: paid for; promotional: a gift.")
    priority: int = Field(default=50, ge=0, le=100, description="Lower is spent first.")
    starts_at: Text | None = Field(
        default=None, description="Pays for usage from then on; without: for any that is not invoiced yet."
    )
    expires_at: Text | None = Field(default=None, description="Pays for usage before.")
    models: _Names = Field(default_factory=list, description="Only these models' usage.")
    skus: _Names = Field(default_factory=list, description="Only these SKUs.", examples=[["input", "output"]])
    note: Text = ""
    raise_budget: bool = Field(
        default=False,
        description="Add the amount to the organization's hard budget without end (or make one), so that calls are "
        "refused when the credit is used up.",
    )


class CreditOut(BaseModel):
    """A grant and what it stands at: amount = spent + reserved + available + what expired or was taken back."""

    id: str = Field(examples=["credit_01kafn3m8hzq4v6p9x2c7d5b1w"])
    organization_id: str
    kind: GrantKind
    state: Literal["active", "used", "expired", "void"]
    amount_usd: str
    spent_usd: str | None = Field(default=None, description="On invoices.")
    reserved_usd: str | None = Field(default=None, description="By usage that is not invoiced yet.")
    available_usd: str | None = None
    left_usd: str = Field(description="Not on an invoice yet.")
    priority: int
    models: list[str]
    skus: list[str]
    starts_at: str | None
    expires_at: str | None
    note: str
    source: str | None = Field(description="The invoice or credit note that it came from.")
    budget_id: str | None = Field(default=None, description="The budget that was raised.")
    created_at: str


class BalanceOut(BaseModel):
    """An organization's credit, live: with usage up to the last call that was answered."""

    organization: str
    organization_id: str
    granted_usd: str
    spent_usd: str
    reserved_usd: str
    available_usd: str
    gone_usd: str = Field(description="Expired or taken back.")
    credits: list[CreditOut] = Field(description="Those with something left, in the order of spending.")


class NewCreditNote(Input):
    """What to give back of an invoice: an amount, or lines, or (neither) all that is left of it."""

    invoice: Text = Field(examples=["FB-2026-000001"], description="Its id or number.")
    reason: Text = Field(examples=["wrong model deployed on 12 November"])
    amount_usd: Text | None = None
    lines: dict[str, Text | None] | None = Field(
        default=None,
        max_length=1000,
        description="Line number to amount; null: all of the line.",
        examples=[{"1": "2.50", "3": None}],
    )
    as_credit: bool = Field(default=False, description="As credit, instead of off what is due or paid back.")


@router.post("/credits", status_code=status.HTTP_201_CREATED, summary="Grant credit")
def grant(body: NewCredit, deps: Deps) -> CreditOut:
    """Spent by priority, then what expires sooner, then promotional before prepaid, then the older."""
    now_ms = deps.clock.now_ms()
    starts_ms = 0 if body.starts_at is None else instant(body.starts_at, "starts_at")
    expires_ms = 0 if body.expires_at is None else instant(body.expires_at, "expires_at")
    cents = cents_of(body.amount_usd, "amount_usd")
    with deps.db.begin() as connection:
        org_id = find_organization(connection, body.organization).id
        wanted = credit.NewGrant(
            org_id,
            body.kind,
            cents,
            body.priority,
            CreditScope(tuple(body.models), tuple(body.skus)),
            starts_ms,
            expires_ms,
            body.note,
        )
        made = credit.grant_credit(connection, wanted, now_ms)
        budget = _raise_budget(connection, org_id, made.amount_pico, now_ms) if body.raise_budget else None
    return _credit(made).model_copy(update={"budget_id": budget})


def _raise_budget(connection: Connection, org_id: str, amount_pico: int, now_ms: int) -> str:
    found = [
        stored.budget
        for stored in list_budgets(connection, org_id=org_id, limit=1000)
        if stored.budget.scope == "organization" and stored.budget.window == "total" and stored.budget.hard
    ]
    if found:
        amount = found[0].amount_pico + amount_pico
        change_budget(connection, found[0].id, now_ms, amount_pico=amount, hard=None)
        return found[0].id
    made = create_budget(
        connection,
        scope="organization",
        scope_id=org_id,
        org_id=org_id,
        amount_pico=amount_pico,
        window="total",
        hard=True,
        spent_pico=0,
        now_ms=now_ms,
    )
    return made.budget.id


@router.get("/credits", summary="List credit")
def list_all(deps: Deps, organization: Named = None, limit: Limit = 50, after: After = "") -> Page[CreditOut]:
    """In order of creation, one organization's or all."""
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = credit.list_grants(connection, org_id=org_id, limit=limit + 1, after=after)
    return page(found, limit, _credit, lambda each: each.id)


@router.get("/credits/balance", summary="What credit stands at")
def balance(caller: Caller, deps: Deps, organization: Named = None) -> BalanceOut:
    """Live: usage that is not invoiced yet is reserved as its invoice would be now."""
    deps.catch_up()
    with deps.db.read() as connection:
        chosen = read_scope(connection, caller, organization).organization
        found = credit_balance(connection, chosen.id, deps.clock.now_ms(), price_book)
    granted, spent = sum(b.grant.amount_pico for b in found), sum(b.spent_pico for b in found)
    reserved, available = sum(b.reserved_pico for b in found), sum(b.available_pico for b in found)
    return BalanceOut(
        organization=chosen.name,
        organization_id=chosen.id,
        granted_usd=format_pico(granted),
        spent_usd=format_pico(spent),
        reserved_usd=format_pico(reserved),
        available_usd=format_pico(available),
        gone_usd=format_pico(granted - spent - reserved - available),
        credits=[_with_balance(b) for b in in_order(found) if b.grant.left_pico > 0],
    )


def in_order(found: list[GrantBalance]) -> list[GrantBalance]:
    """By the order of spending."""
    by_id = {each.grant.id: each for each in found}
    return [by_id[grant.id] for grant in spending_order(each.grant for each in found)]


@router.delete("/credits/{credit_id}", summary="Take credit back")
def void(credit_id: str, deps: Deps) -> CreditOut:
    """What is left of it; what invoices took stays with them. A budget that it raised is not lowered."""
    with deps.db.begin() as connection:
        return _credit(credit.void_grant(connection, credit_id, deps.clock.now_ms()))


@router.post(
    "/credit-notes", status_code=status.HTTP_201_CREATED, summary="Give back something of an invoice"
)
def create_note(body: NewCreditNote, deps: Deps) -> CreditNoteOut:
    """Never more than the invoice; off what is due (or to be paid back by hand), or as credit."""
    amount = None if body.amount_usd is None else cents_of(body.amount_usd, "amount_usd")
    with deps.db.begin() as connection:
        note = make_note(
            connection,
            deps.issuer,
            body.invoice,
            reason=body.reason,
            amount_cents=amount,
            lines=None if body.lines is None else dict(_line(*each) for each in body.lines.items()),
            as_credit=body.as_credit,
            now_ms=deps.clock.now_ms(),
        )
    return note_out(note)


def _line(number: str, amount: str | None) -> tuple[int, int | None]:
    if not number.isascii() or not number.isdigit() or len(number) > 6:
        raise Invalid(f"lines: expected numbers of lines, got {number[:20]!r}", param="lines")
    return int(number), None if amount is None else cents_of(amount, "lines")


@router.get("/credit-notes", summary="List credit notes")
def list_all_notes(
    deps: Deps, organization: Named = None, limit: Limit = 50, after: After = ""
) -> Page[CreditNoteOut]:
    """Newest first, one organization's or all."""
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = list_notes(connection, org_id=org_id, limit=limit + 1, after=after)
    return page(found, limit, note_out, lambda each: each.id)


@router.get("/credit-notes/{note_id}", summary="Show a credit note")
def get_note(note_id: str, deps: Deps) -> CreditNoteOut:
    """By its id or number."""
    with deps.db.read() as connection:
        return note_out(find_note(connection, note_id))


def _with_balance(found: GrantBalance) -> CreditOut:
    return _credit(found.grant).model_copy(
        update={
            "spent_usd": format_pico(found.spent_pico),
            "reserved_usd": format_pico(found.reserved_pico),
            "available_usd": format_pico(found.available_pico),
        }
    )


def _credit(found: Grant) -> CreditOut:
    state: Literal["active", "used", "expired", "void"] = "active" if found.left_pico > 0 else "used"
    if found.voided_ms or found.expired_ms:
        state = "void" if found.voided_ms else "expired"
    return CreditOut(
        id=found.id,
        organization_id=found.org_id,
        kind=found.kind,
        state=state,
        amount_usd=format_pico(found.amount_pico),
        left_usd=format_pico(found.left_pico),
        priority=found.priority,
        models=list(found.scope.models),
        skus=list(found.scope.skus),
        starts_at=iso_or_none(found.starts_ms),
        expires_at=iso_or_none(found.expires_ms),
        note=found.note,
        source=found.source or None,
        created_at=iso(found.created_ms),
    )
