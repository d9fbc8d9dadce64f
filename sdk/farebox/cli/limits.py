"""`farebox limit`, `budget`."""

from collections.abc import Callable, Mapping
from typing import Any, cast

import click

from farebox.cli.framework import Group, State, pass_state
from farebox.cli.organizations import organization_names, project_names
from farebox.cli.output import Column, print_done, print_list, print_object
from farebox.cli.problems import suggesting
from farebox.types import BudgetWindow, LimitScope

_NONE = "none"
_NAMES = ("requests_per_minute", "requests_per_day", "tokens_per_minute", "parallel_requests")
_Command = Callable[..., Any]


def _limit(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    """A whole number from 1 on, or `none`."""
    text = None if value is None else value.strip().lower()
    if text is None or text == _NONE:
        return text
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise click.BadParameter(
            f"expected a whole number from 1 on, or none, got {value!r}", context, parameter
        )
    return int(text)


_ALERTS_HELP = "Per cent at which webhooks are told, such as 50,80,100; none for none."


def _alerts(context: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """`50,80,100` as numbers; `none` is no alerts."""
    if value is None or value.strip().lower() == _NONE:
        return None if value is None else []
    parts = [part.strip().removesuffix("%").strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"expected per cent such as 50,80,100, got {value!r}", context, parameter)
    return [int(part) for part in parts]


def _scope_options(*scopes: str) -> Callable[[_Command], _Command]:
    helps = {
        "key": ("--key", "KEY_ID", "The key's id (key_…)."),
        "project": ("--project", "P", "The project: name, organization/name or id."),
        "organization": ("--org", "ORG", "The organization: name or id."),
        "endpoint": ("--endpoint", "NAME", "The endpoint: name or id."),
    }

    def decorate(command: _Command) -> _Command:
        for scope in reversed(scopes):
            flag, metavar, text = helps[scope]
            command = click.option(flag, scope, metavar=metavar, help=text)(command)
        return command

    return decorate


def _only(named: Mapping[str, str | None]) -> tuple[str, str]:
    given = [(scope, name) for scope, name in named.items() if name]
    if len(given) != 1:
        flags = ", ".join("--org" if scope == "organization" else f"--{scope}" for scope in named)
        raise click.UsageError(f"give exactly one of {flags}")
    return given[0]


def _suggesting(state: State, scope: str, name: str) -> Any:
    """Close names for a wrong one, as far as they can be listed."""
    known: dict[str, tuple[Callable[[], list[str]], str]] = {
        "key": (lambda: [each["id"] for each in state.client.keys.list()], "farebox key list"),
        "project": (lambda: project_names(state), "farebox project list"),
        "organization": (lambda: organization_names(state), "farebox org list"),
        "endpoint": (
            lambda: [each["name"] for each in state.client.serverless_endpoints.list()],
            "farebox serverless-endpoint list",
        ),
    }
    names, command = known[scope]
    return suggesting(name, names, command, param=scope)


@click.group(cls=Group)
def limit() -> None:
    """Rate limits of keys, projects and endpoints."""


@limit.command(
    "set",
    examples=[
        "farebox limit set --key key_01jz0000000000000000000000 --rpm 60 --parallel 4",
        "farebox limit set --endpoint my-chat --tpm 500000 --rpm none",
        "farebox limit set --org acme --rpd 100000",
    ],
)
@_scope_options("key", "project", "organization", "endpoint")
@click.option(
    "--rpm", "requests_per_minute", callback=_limit, metavar="N", help="Requests per minute, or none."
)
@click.option(
    "--rpd", "requests_per_day", callback=_limit, metavar="N", help="Requests per UTC day, or none."
)
@click.option("--tpm", "tokens_per_minute", callback=_limit, metavar="N", help="Tokens per minute, or none.")
@click.option(
    "--parallel",
    "parallel_requests",
    callback=_limit,
    metavar="N",
    help="Requests at the same time, or none.",
)
@click.option(
    "--on-outage",
    type=click.Choice(["closed", "open"]),
    help="Of an organization: refuse or serve calls while limits cannot be checked.",
)
@pass_state
def limit_set(state: State, /, on_outage: str | None, **options: Any) -> None:
    """Set limits; those that are not named stay as they are."""
    limits = {name: options.pop(name) for name in _NAMES}
    given = {name: value for name, value in limits.items() if value is not None}
    if not given and on_outage is None:
        raise click.UsageError("name a limit: --rpm, --rpd, --tpm, --parallel or --on-outage")
    scope, name = _only(options)
    kind = cast(LimitScope, scope)
    with _suggesting(state, scope, name):
        now: Mapping[str, Any] = state.client.limits.get(kind, name)
        wanted = {each: now[each] for each in _NAMES} | {
            each: None if value == _NONE else value for each, value in given.items()
        }
        if on_outage or now.get("on_outage"):
            wanted["on_outage"] = on_outage or now["on_outage"]
        print_object(state, state.client.limits.set(kind, name, **wanted))


@limit.command("show", examples=["farebox limit show --endpoint my-chat", "farebox limit show --org acme"])
@_scope_options("key", "project", "organization", "endpoint")
@pass_state
def limit_show(state: State, /, **options: Any) -> None:
    """Show the limits in force. An empty one is no limit."""
    scope, name = _only(options)
    with _suggesting(state, scope, name):
        print_object(state, state.client.limits.get(cast(LimitScope, scope), name))


@limit.command("remove", examples=["farebox limit remove --key key_01jz0000000000000000000000"])
@_scope_options("key", "project", "organization", "endpoint")
@pass_state
def limit_remove(state: State, /, **options: Any) -> None:
    """Go back to the default limits."""
    scope, name = _only(options)
    with _suggesting(state, scope, name):
        print_object(state, state.client.limits.remove(cast(LimitScope, scope), name))


@click.group(cls=Group)
def budget() -> None:
    """Budgets of a key, project or organization."""


@budget.command(
    "create",
    examples=[
        "farebox budget create --org acme --amount 25.00 --window month",
        "farebox budget create --key key_01jz0000000000000000000000 --amount 1.50 --window day --soft",
        "farebox budget create --org acme --amount 100 --window total       # prepaid credit",
    ],
)
@_scope_options("key", "project", "organization")
@click.option("--amount", required=True, metavar="USD", help="US dollars, for example 25.00.")
@click.option(
    "--window",
    required=True,
    type=click.Choice(["day", "month", "total"]),
    help="UTC calendar day or month; total: once, as prepaid credit.",
)
@click.option("--soft", is_flag=True, help="Count only; refuse no calls.")
@click.option("--alerts", callback=_alerts, metavar="LIST", help=_ALERTS_HELP + " Default: 50,80,100.")
@pass_state
def budget_create(
    state: State, /, amount: str, window: str, soft: bool, alerts: list[int] | None, **options: Any
) -> None:
    """Make a budget. A hard one (the default) refuses calls when it is used up."""
    scope, name = _only(options)
    with _suggesting(state, scope, name):
        made = state.client.budgets.create(
            amount_usd=amount,
            window=cast(BudgetWindow, window),
            hard=not soft,
            alerts=alerts,
            **{scope: name},
        )
    print_object(state, made)


@budget.command("list", examples=["farebox budget list", "farebox budget list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@pass_state
def budget_list(state: State, /, organization: str | None) -> None:
    """List budgets with what is spent, held and left."""
    columns = [
        Column("id", "id"),
        Column("scope", "scope"),
        Column("of", "scope_id"),
        Column("window", "window"),
        Column("hard", "hard"),
        Column("amount", "amount_usd", number=True),
        Column("spent", "spent_usd", number=True),
        Column("held", "held_usd", number=True),
        Column("left", "remaining_usd", number=True),
        Column("alerts at %", "alerts"),
        Column("told", lambda row: row.get("alerted_percent") or ""),
    ]
    empty = "No budgets yet. Make one: farebox budget create --org ORG --amount USD --window month"
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        rows = state.client.budgets.list(organization=organization)
    print_list(state, rows, columns, empty=empty)


@budget.command("show", examples=["farebox budget show budget_01jz0000000000000000000000"])
@click.argument("budget_id", metavar="ID")
@pass_state
def budget_show(state: State, /, budget_id: str) -> None:
    """Show a budget as it stands now."""
    with suggesting(budget_id, lambda: _budget_ids(state), "farebox budget list"):
        print_object(state, state.client.budgets.get(budget_id))


@budget.command(
    "change",
    examples=[
        "farebox budget change budget_01jz0000000000000000000000 --amount 50.00",
        "farebox budget change budget_01jz0000000000000000000000 --soft",
    ],
)
@click.argument("budget_id", metavar="ID")
@click.option("--amount", metavar="USD", help="US dollars; what is spent stays spent.")
@click.option("--hard/--soft", "hard", default=None, help="Refuse calls when it is used up, or only count.")
@click.option("--alerts", callback=_alerts, metavar="LIST", help=_ALERTS_HELP)
@pass_state
def budget_change(
    state: State, /, budget_id: str, amount: str | None, hard: bool | None, alerts: list[int] | None
) -> None:
    """Change a budget's amount, kind or alerts. A larger amount of a total budget is a top-up."""
    if amount is None and hard is None and alerts is None:
        raise click.UsageError("name a change: --amount, --hard, --soft or --alerts")
    with suggesting(budget_id, lambda: _budget_ids(state), "farebox budget list"):
        print_object(
            state, state.client.budgets.change(budget_id, amount_usd=amount, hard=hard, alerts=alerts)
        )


@budget.command("delete", examples=["farebox budget delete budget_01jz0000000000000000000000"])
@click.argument("budget_id", metavar="ID")
@pass_state
def budget_delete(state: State, /, budget_id: str) -> None:
    """Hold no calls to it any more. What was spent stays on the ledger."""
    with suggesting(budget_id, lambda: _budget_ids(state), "farebox budget list"):
        gone = state.client.budgets.delete(budget_id)
    print_done(state, gone, f"Deleted {budget_id}.")


def _budget_ids(state: State) -> list[str]:
    return [each["id"] for each in state.client.budgets.list()]
