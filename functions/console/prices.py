"""Changes of prices: proposed by one person, tried out, approved by another."""

from typing import Annotated, Literal

from fastapi import Query, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access.store import find_organization, get_organization_name
from billing.rerate import Candidate, Rerated, organizations_using, rerate
from catalog import price_book
from catalog.batch_prices import BATCH, discounted
from catalog.load import prices_document
from catalog.model import INSTANCE_MODEL
from catalog.price_document import Unit, parse_price, terms_out
from catalog.proposals import Proposal, Wanted, approve, check, get_proposal, list_proposals, propose, reject
from catalog.store import get_model
from catalog.terms import Scheme, SkuTerms, Tier
from core.clock import iso
from core.errors import Invalid
from core.money import format_cents
from functions.console.dependencies import Caller, Deps
from functions.console.invoices import LineOut, line_out
from functions.console.periods import month
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, instant, iso_or_none, page

router = console_router("prices")


class TierIn(Input):
    """Units up to `up_to` (left out: all further ones) at `price`, in the units of `prices`."""

    up_to: int | None = Field(default=None, ge=1, examples=[1_000_000_000])
    price: Text = Field(examples=["0.30"])


class TermsIn(Input):
    """How a month's quantity of one SKU is priced. Calls still cost the list price; the difference is a line."""

    scheme: Scheme = Field(default="per_unit", examples=["graduated"])
    tiers: list[TierIn] = Field(default=[], max_length=20)
    package_size: int = Field(default=0, ge=0)
    package_price: Text = Field(default="0", description="US dollars of one package.")
    included: int = Field(default=0, ge=0, description="Units of every month that are free.")


class PriceIn(Input):
    """Prices of a model, for everybody or for one organization."""

    model: Text = Field(examples=["acme/mock-chat"])
    organization: Text | None = Field(default=None, description="Its id or name; left out: for everybody.")
    starts_at: Text | None = Field(
        default=None,
        examples=["2027-01-01T00:00:00Z"],
        description="A full minute in the future; left out: the next one after the approval.",
    )
    prices: dict[str, Text] = Field(
        default={},
        max_length=20,
        examples=[{"input": "0.12", "output": "0.50"}],
        description="US dollars per million tokens, or per second or minute. What is left out stays as it is.",
    )
    terms: dict[str, TermsIn] = Field(default={}, max_length=20, description="By SKU.")
    batch_discount_percent: Annotated[int, Field(ge=0, le=100)] | None = Field(
        default=None, description="Sets the prices of batch calls: so much less than the others."
    )
    ended: bool = Field(default=False, description="Of an organization's own prices: back to everybody's.")
    note: Annotated[str, Field(max_length=1000)] = ""


class DecisionIn(Input):
    """Why."""

    note: Annotated[str, Field(max_length=1000)] = ""


class ProposalOut(BaseModel):
    """A change of prices and what became of it."""

    id: str = Field(examples=["proposal_01kafn3m8hzq4v6p9x2c7d5b1w"])
    state: str = Field(examples=["proposed"])
    model: str
    organization: str | None = Field(description="null: for everybody.")
    starts_at: str | None = Field(description="null: the next full minute after the approval.")
    prices: dict[str, str]
    terms: dict[str, dict[str, object]]
    ended: bool
    note: str
    proposed_by: str = Field(description="A key's id.")
    proposed_at: str
    decided_by: str | None
    decided_at: str | None
    decision_note: str
    price_version: str | None


class RerateIn(PriceIn):
    """Prices to try out on a month."""

    period: Text | None = Field(
        default=None, examples=["2026-11"], description="YYYY-MM; left out: this month."
    )
    only: Text | None = Field(
        default=None, description="One organization; left out: all that used the model."
    )


class ReratedOut(BaseModel):
    """One organization's month as it is, and as it would be."""

    organization: str
    organization_id: str
    before_usd: str
    after_usd: str
    difference_usd: str
    unpriced: list[str] = Field(description="SKUs used that the new prices do not name.")
    before: list[LineOut]
    after: list[LineOut]


class DryRunOut(BaseModel):
    """What a month would cost under other prices. Nothing was changed."""

    model: str
    period_start: str
    period_end: str
    organizations: list[ReratedOut]
    before_usd: str
    after_usd: str
    difference_usd: str


@router.post("/price-proposals", status_code=status.HTTP_201_CREATED, summary="Propose prices")
def create(body: PriceIn, caller: Caller, deps: Deps) -> ProposalOut:
    """Checked as if it were approved now. Another admin key has to approve it."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        wanted = _wanted(connection, body)
        return _shown(connection, propose(connection, wanted, caller.key_id, now_ms))


@router.get("/price-proposals", summary="List price proposals")
def list_all(
    deps: Deps,
    state: Annotated[Literal["proposed", "approved", "rejected", "withdrawn"] | None, Query()] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[ProposalOut]:
    """In order of proposal."""
    with deps.db.read() as connection:
        found = list_proposals(connection, state=state, limit=limit + 1, after=after)
        return page(found, limit, lambda each: _shown(connection, each), lambda each: each.id)


@router.get("/price-proposals/{proposal_id}", summary="Show a price proposal")
def get(proposal_id: str, deps: Deps) -> ProposalOut:
    """As it stands."""
    with deps.db.read() as connection:
        return _shown(connection, get_proposal(connection, proposal_id))


@router.post("/price-proposals/{proposal_id}/approve", summary="Approve a price proposal")
def approve_one(proposal_id: str, body: DecisionIn, caller: Caller, deps: Deps) -> ProposalOut:
    """By another key than the one that proposed it. The version is immutable from then on."""
    with deps.db.begin() as connection:
        return _shown(
            connection, approve(connection, proposal_id, caller.key_id, deps.clock.now_ms(), body.note)
        )


@router.post("/price-proposals/{proposal_id}/reject", summary="Reject or withdraw a price proposal")
def reject_one(proposal_id: str, body: DecisionIn, caller: Caller, deps: Deps) -> ProposalOut:
    """By the key that proposed it, it is withdrawn."""
    with deps.db.begin() as connection:
        return _shown(
            connection, reject(connection, proposal_id, caller.key_id, deps.clock.now_ms(), body.note)
        )


@router.post("/price-proposals/{proposal_id}/dry-run", summary="Try out a price proposal")
def dry_run(
    proposal_id: str,
    deps: Deps,
    period: Annotated[str | None, Query(max_length=20, examples=["2026-11"])] = None,
    organization: Annotated[str | None, Query(max_length=200)] = None,
) -> DryRunOut:
    """A month as it is and as it would be at these prices, whatever the proposal's start."""
    deps.catch_up()
    with deps.db.read() as connection:
        wanted = get_proposal(connection, proposal_id).wanted
        return _tried(connection, wanted, month(period, deps.clock.now_ms()), organization)


@router.post("/price-dry-runs", summary="Try out prices")
def rerate_period(body: RerateIn, deps: Deps) -> DryRunOut:
    """The same for prices that nobody proposed yet."""
    deps.catch_up()
    now_ms = deps.clock.now_ms()
    with deps.db.read() as connection:
        wanted = _wanted(connection, body)
        check(connection, wanted, now_ms)
        return _tried(connection, wanted, month(body.period, now_ms), body.only)


@router.get("/organizations/{organization}/prices", summary="List an organization's own prices")
def own_prices(organization: str, deps: Deps) -> Page["OwnPriceOut"]:
    """Every version, by model and start. What is not here costs what it costs everybody."""
    with deps.db.read() as connection:
        found = find_organization(connection, organization)
        versions = price_book.own_versions(connection, found.id)
    return Page(
        data=[
            OwnPriceOut(
                id=each.id,
                model=each.model_id,
                starts_at=iso(each.starts_ms),
                ended=each.ended,
                prices=prices_document(each.unit_prices),
                terms=terms_out(each.terms),
            )
            for each in versions
        ]
    )


class OwnPriceOut(BaseModel):
    """A version of an organization's own; `ended`: from then on everybody's prices again."""

    id: str
    model: str
    starts_at: str
    ended: bool
    prices: dict[str, str]
    terms: dict[str, dict[str, object]]


def _wanted(connection: Connection, body: PriceIn) -> Wanted:
    if not body.model.startswith(INSTANCE_MODEL):
        get_model(connection, body.model)
    org_id = "" if body.organization is None else find_organization(connection, body.organization).id
    now = price_book.price_versions(connection, body.model, org_id) or price_book.price_versions(
        connection, body.model
    )
    given = {sku: parse_price(sku, text, f"prices.{sku}") for sku, text in body.prices.items()}
    unit_prices = {**(now[-1].unit_prices if now else {}), **given}
    if body.batch_discount_percent is not None:
        clash = next((sku for sku in given if sku.startswith(BATCH)), "")
        if clash:
            param = "batch_discount_percent"
            raise Invalid(f"{param}: give either {param} or prices.{clash}, not both", param=param)
        unit_prices |= discounted(unit_prices, body.batch_discount_percent)
    terms = dict(now[-1].terms) if now else {}
    terms |= {sku: _terms(sku, each) for sku, each in body.terms.items()}
    return Wanted(
        body.model,
        org_id,
        0 if body.starts_at is None else instant(body.starts_at, "starts_at"),
        {} if body.ended else unit_prices,
        {} if body.ended else {sku: each for sku, each in terms.items() if each != SkuTerms()},
        body.ended,
        body.note,
    )


def _terms(sku: str, body: TermsIn) -> SkuTerms:
    where = f"terms.{sku}"
    tiers = tuple(
        Tier(each.up_to, parse_price(sku, each.price, f"{where}.tiers[{number}].price"))
        for number, each in enumerate(body.tiers)
    )
    package = parse_price(sku, body.package_price, f"{where}.package_price", unit=Unit.WHOLE)
    return SkuTerms(body.scheme, tiers, body.package_size, package, body.included)


def _tried(connection: Connection, wanted: Wanted, period: tuple[int, int], only: str | None) -> DryRunOut:
    if wanted.ended:
        raise Invalid(
            "ended: there is nothing to try out; a month at everybody's prices is the preview", param="ended"
        )
    start_ms, end_ms = period
    candidate = Candidate(wanted.model_id, wanted.org_id, wanted.unit_prices, wanted.terms)
    if only is not None:
        organizations = [find_organization(connection, only, "only").id]
    elif wanted.org_id:
        organizations = [wanted.org_id]
    else:
        organizations = organizations_using(connection, wanted.model_id, start_ms, end_ms)
    found = [rerate(connection, org_id, start_ms, end_ms, candidate, price_book) for org_id in organizations]
    before, after = sum(each.before_cents for each in found), sum(each.after_cents for each in found)
    return DryRunOut(
        model=wanted.model_id,
        period_start=iso(start_ms),
        period_end=iso(end_ms),
        organizations=[_rerated(connection, each) for each in found],
        before_usd=format_cents(before),
        after_usd=format_cents(after),
        difference_usd=format_cents(after - before),
    )


def _rerated(connection: Connection, found: Rerated) -> ReratedOut:
    return ReratedOut(
        organization=get_organization_name(connection, found.org_id),
        organization_id=found.org_id,
        before_usd=format_cents(found.before_cents),
        after_usd=format_cents(found.after_cents),
        difference_usd=format_cents(found.after_cents - found.before_cents),
        unpriced=list(found.unpriced),
        before=[line_out(line) for line in found.before],
        after=[line_out(line) for line in found.after],
    )


def _shown(connection: Connection, found: Proposal) -> ProposalOut:
    wanted = found.wanted
    return ProposalOut(
        id=found.id,
        state=found.state,
        model=wanted.model_id,
        organization=get_organization_name(connection, wanted.org_id) if wanted.org_id else None,
        starts_at=iso_or_none(wanted.starts_ms),
        prices=prices_document(wanted.unit_prices),
        terms=terms_out(wanted.terms),
        ended=wanted.ended,
        note=wanted.note,
        proposed_by=found.proposed_by,
        proposed_at=iso(found.proposed_ms),
        decided_by=found.decided_by or None,
        decided_at=iso_or_none(found.decided_ms),
        decision_note=found.decision_note,
        price_version=found.version_id or None,
    )
