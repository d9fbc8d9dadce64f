"""Budgets of keys, projects and organizations, with what is spent, held and left."""

from typing import Annotated

from fastapi import Query, status
from pydantic import BaseModel, Field

from access.admission.model import MAX_AMOUNT_PICO, BudgetScope, BudgetWindow, window_end, window_start
from access.admission.store import (
    DEFAULT_ALERTS,
    MAX_ALERT_PERCENT,
    MAX_ALERTS,
    StoredBudget,
    change_budget,
    create_budget,
    delete_budget,
    get_budget,
    list_budgets,
)
from access.store import find_organization
from core.clock import iso
from core.errors import Invalid
from core.money import format_pico, parse_usd
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.limits import resolve_scope
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, iso_or_none, page
from metering.store import lock_first_open_minute

router = console_router("limits and budgets")

_PICO_DECIMALS = 12
_ALERTS = "Whole per cent of the amount; each is told of once per window, when spending crosses it."

Alerts = Annotated[
    list[Annotated[int, Field(ge=1, le=MAX_ALERT_PERCENT)]],
    Field(max_length=MAX_ALERTS, examples=[[50, 80, 100]]),
]


class NewBudget(Input):
    """A budget of exactly one organization, project or key."""

    organization: Text | None = Field(default=None, examples=["acme"], description="Its id or name.")
    project: Text | None = Field(default=None, description="Id, name, or organization/name.")
    key: Text | None = Field(default=None, description="A key's id.")
    amount_usd: Text = Field(examples=["25.00"], description="US dollars as a decimal in quotes.")
    window: BudgetWindow = Field(
        examples=["month"], description="UTC calendar day or month, or total: prepaid credit."
    )
    hard: bool = Field(default=True, description="Whether calls are refused when it is used up.")
    alerts: Alerts = Field(default=list(DEFAULT_ALERTS), description=_ALERTS)


class BudgetChange(Input):
    """What is to change; what was spent stays spent. A larger amount of a total budget is a top-up."""

    amount_usd: Text | None = Field(default=None, examples=["50.00"])
    hard: bool | None = None
    alerts: Alerts | None = Field(default=None, description=_ALERTS)


class BudgetOut(BaseModel):
    """A budget as it stands in its current window."""

    id: str = Field(examples=["budget_01kafn3m8hzq4v6p9x2c7d5b1w"])
    scope: BudgetScope
    scope_id: str
    organization_id: str
    amount_usd: str = Field(examples=["25"])
    window: BudgetWindow
    hard: bool
    window_start: str | None = Field(description="null for total.")
    resets_at: str | None
    spent_usd: str = Field(description="On record, to the last call that was answered.")
    held_usd: str = Field(description="Reserved by calls in flight, about a second old.")
    remaining_usd: str = Field(
        description="amount - spent - held; below zero only for a soft budget or a smaller amount."
    )
    alerts: list[int] = Field(description="Shares in per cent at which webhooks are told, hard or soft.")
    alerted_percent: int = Field(description="The highest share told of in this window; 0: none.")
    created_at: str


@router.post("/budgets", status_code=status.HTTP_201_CREATED, summary="Create a budget")
def create(body: NewBudget, deps: Deps) -> BudgetOut:
    """A day's or month's budget counts what was spent in it already; a total one begins with nothing spent."""
    scope, name = _scope(body)
    amount_pico = _amount(body.amount_usd)
    deps.catch_up()
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        scope_id, org_id = resolve_scope(connection, scope, name)
        # Nothing is recorded between the counting and the first charge.
        lock_first_open_minute(connection, exclusive=True)
        spent = deps.keeper.spent_so_far(connection, scope_id, org_id, body.window, now_ms)
        stored = create_budget(
            connection,
            scope=scope,
            scope_id=scope_id,
            org_id=org_id,
            amount_pico=amount_pico,
            window=body.window,
            hard=body.hard,
            alerts=body.alerts,
            spent_pico=spent,
            now_ms=now_ms,
        )
    return _shown(stored, deps)


@router.get("/budgets", summary="List budgets")
def list_all(
    deps: Deps,
    organization: Annotated[str | None, Query(max_length=200, description="Its id or name.")] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[BudgetOut]:
    """In order of creation, one organization's or all."""
    deps.catch_up()
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = list_budgets(connection, org_id=org_id, limit=limit + 1, after=after)
    return page(found, limit, lambda stored: _shown(stored, deps), lambda stored: stored.budget.id)


@router.get("/budgets/{budget_id}", summary="Show a budget")
def get(budget_id: str, deps: Deps) -> BudgetOut:
    """As it stands now."""
    deps.catch_up()
    with deps.db.read() as connection:
        return _shown(get_budget(connection, budget_id), deps)


@router.patch("/budgets/{budget_id}", summary="Change a budget")
def change(budget_id: str, body: BudgetChange, deps: Deps) -> BudgetOut:
    """In force at every gateway within a second."""
    amount_pico = None if body.amount_usd is None else _amount(body.amount_usd)
    with deps.db.begin() as connection:
        stored = change_budget(
            connection,
            budget_id,
            deps.clock.now_ms(),
            amount_pico=amount_pico,
            hard=body.hard,
            alerts=body.alerts,
        )
    return _shown(stored, deps)


@router.delete("/budgets/{budget_id}", summary="Delete a budget")
def delete(budget_id: str, deps: Deps) -> BudgetOut:
    """Calls are no longer held to it. What was spent stays on the ledger. Answers with its last state."""
    with deps.db.begin() as connection:
        return _shown(delete_budget(connection, budget_id, deps.clock.now_ms()), deps)


def _scope(body: NewBudget) -> tuple[BudgetScope, str]:
    named: list[tuple[BudgetScope, str | None]] = [
        ("organization", body.organization),
        ("project", body.project),
        ("key", body.key),
    ]
    given = [(scope, name) for scope, name in named if name is not None]
    if len(given) != 1:
        raise Invalid("organization: give exactly one of organization, project and key", param="organization")
    return given[0]


def _amount(text: str) -> int:
    try:
        amount_pico = parse_usd(text, decimals=_PICO_DECIMALS)
    except ValueError as error:
        raise Invalid(f"amount_usd: {error}", param="amount_usd") from None
    if not amount_pico <= MAX_AMOUNT_PICO:
        raise Invalid("amount_usd: expected at most a billion dollars", param="amount_usd")
    return amount_pico


def _shown(stored: StoredBudget, deps: ConsoleDependencies) -> BudgetOut:
    budget, now_ms = stored.budget, deps.clock.now_ms()
    spent, held = stored.spent_at(now_ms), deps.held.held(budget.id, now_ms)
    return BudgetOut(
        id=budget.id,
        scope=budget.scope,
        scope_id=budget.scope_id,
        organization_id=budget.org_id,
        amount_usd=format_pico(budget.amount_pico),
        window=budget.window,
        hard=budget.hard,
        window_start=iso_or_none(window_start(budget.window, now_ms)),
        resets_at=iso_or_none(window_end(budget.window, now_ms)),
        spent_usd=format_pico(spent),
        held_usd=format_pico(held),
        remaining_usd=format_pico(budget.amount_pico - spent - held),
        alerts=list(stored.alerts),
        alerted_percent=stored.alerted_at(now_ms),
        created_at=iso(budget.created_ms),
    )
