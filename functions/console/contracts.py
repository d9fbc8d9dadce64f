"""Contracts, and how organizations are invoiced."""

import re
from typing import Literal

from fastapi import status
from pydantic import BaseModel, Field

from access.store import find_organization
from billing.invoicing.contracts import end_contract, list_contracts, make_contract
from billing.invoicing.model import Profile
from billing.invoicing.store import profile_of, put_profile
from billing.model import Contract
from billing.period import percent
from core.clock import iso
from core.errors import Invalid
from core.money import format_pico, parse_usd
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.invoice_actions import cents_of
from functions.console.periods import month
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, iso_or_none, page
from functions.console.usage import Named

router = console_router("contracts")
Provider = Literal["", "stripe_items", "stripe_meters"]


class NewContract(Input):
    """What was agreed, by the UTC month."""

    organization: Text = Field(examples=["acme"], description="Its id or name.")
    starts: Text = Field(examples=["2026-12"], description="The first month.")
    ends: Text | None = Field(default=None, description="The month that it no longer holds in.")
    discount_percent: Text = Field(default="0", examples=["12.5"], description="On all charges of a month.")
    minimum_usd: Text = Field(default="0", examples=["500.00"], description="The least that a month costs.")


class ContractEnd(Input):
    """When it ends."""

    ends: Text = Field(examples=["2027-01"], description="The month that it no longer holds in.")


class ContractOut(BaseModel):
    """A contract; immutable but for its end."""

    id: str = Field(examples=["contract_01kafn3m8hzq4v6p9x2c7d5b1w"])
    organization_id: str
    starts: str = Field(examples=["2026-12"])
    ends: str | None
    discount_percent: str
    minimum_usd: str
    created_at: str


class ProfileChange(Input):
    """What is to change; what is left out stays."""

    legal_name: Text | None = None
    address: Text | None = Field(default=None, description="Lines separated by line breaks.")
    email: Text | None = None
    tax_id: Text | None = None
    due_days: int | None = Field(default=None, ge=0, le=365)
    threshold_usd: Text | None = Field(
        default=None, description="An invoice within the month from this on; 0: none."
    )
    provider: Provider | None = Field(
        default=None, description="How invoices are handed to the payment provider."
    )


class ProfileOut(BaseModel):
    """How an organization is invoiced, and what stands on its invoices from the next one on."""

    organization: str
    organization_id: str
    legal_name: str
    address: str
    email: str
    tax_id: str
    due_days: int
    threshold_usd: str
    provider: Provider
    updated_at: str | None


@router.post("/contracts", status_code=status.HTTP_201_CREATED, summary="Make a contract")
def create(body: NewContract, deps: Deps) -> ContractOut:
    """From a month that is not closed and has no invoice. 409 when another one holds then."""
    now_ms = deps.clock.now_ms()
    starts_ms = month(body.starts, now_ms, "starts")[0]
    ends_ms = 0 if body.ends is None else month(body.ends, now_ms, "ends")[0]
    with deps.db.begin() as connection:
        made = make_contract(
            connection,
            find_organization(connection, body.organization).id,
            starts_ms=starts_ms,
            ends_ms=ends_ms,
            discount_bp=_basis_points(body.discount_percent),
            minimum_pico=cents_of(body.minimum_usd, "minimum_usd") * 10**10,
            now_ms=now_ms,
        )
    return _contract(made)


@router.get("/contracts", summary="List contracts")
def list_all(
    deps: Deps, organization: Named = None, limit: Limit = 50, after: After = ""
) -> Page[ContractOut]:
    """In order of creation, one organization's or all."""
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = list_contracts(connection, org_id, limit=limit + 1, after=after)
    return page(found, limit, _contract, lambda each: each.id)


@router.post("/contracts/{contract_id}/end", summary="End a contract")
def end(contract_id: str, body: ContractEnd, deps: Deps) -> ContractOut:
    """At the beginning of a month that is not closed and has no invoice."""
    with deps.db.begin() as connection:
        return _contract(end_contract(connection, contract_id, month(body.ends, 0, "ends")[0]))


@router.get("/billing-profiles/{organization}", summary="Show how an organization is invoiced")
def get_profile(organization: str, deps: Deps) -> ProfileOut:
    """The defaults when nothing was set."""
    with deps.db.read() as connection:
        found = find_organization(connection, organization)
        return _profile(profile_of(connection, found.id), found.name)


@router.patch("/billing-profiles/{organization}", summary="Change how an organization is invoiced")
def change_profile(organization: str, body: ProfileChange, deps: Deps) -> ProfileOut:
    """From the next invoice on."""
    with deps.db.begin() as connection:
        found = find_organization(connection, organization)
        now = profile_of(connection, found.id)
        wanted = {name: value for name, value in body.model_dump().items() if value is not None}
        if (threshold := wanted.pop("threshold_usd", None)) is not None:
            wanted["threshold_pico"] = cents_of(threshold, "threshold_usd") * 10**10
        values = {name: getattr(now, name) for name in Profile.__slots__} | wanted
        changed = Profile(**values | {"updated_ms": deps.clock.now_ms()})
        check_provider(deps, changed.provider)
        put_profile(connection, changed)
        return _profile(changed, found.name)


def check_provider(deps: ConsoleDependencies, provider: str) -> None:
    """Invalid for a payment provider that is not configured."""
    if provider and deps.payments is None:
        raise Invalid(
            f"provider: {provider} needs a Stripe key: set FAREBOX_STRIPE_API_KEY for the platform and start it again",
            param="provider",
        )


def _basis_points(text: str) -> int:
    try:
        return parse_usd(text, decimals=2)
    except ValueError:
        raise Invalid(
            f'discount_percent: expected a percentage such as "12.5", got {text[:20]!r}',
            param="discount_percent",
        ) from None


def _contract(found: Contract) -> ContractOut:
    return ContractOut(
        id=found.id,
        organization_id=found.org_id,
        starts=iso(found.starts_ms)[:7],
        ends=iso(found.ends_ms)[:7] if found.ends_ms else None,
        discount_percent=re.sub(" %$", "", percent(found.discount_bp)),
        minimum_usd=format_pico(found.minimum_pico),
        created_at=iso(found.created_ms),
    )


def _profile(found: Profile, name: str) -> ProfileOut:
    provider: Provider = "stripe_items" if found.provider == "stripe_items" else ""
    if found.provider == "stripe_meters":
        provider = "stripe_meters"
    return ProfileOut(
        organization=name,
        organization_id=found.org_id,
        legal_name=found.legal_name,
        address=found.address,
        email=found.email,
        tax_id=found.tax_id,
        due_days=found.due_days,
        threshold_usd=format_pico(found.threshold_pico),
        provider=provider,
        updated_at=iso_or_none(found.updated_ms),
    )
