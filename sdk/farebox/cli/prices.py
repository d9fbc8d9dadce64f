"""`farebox price`."""

import json
from collections.abc import Mapping
from typing import Any

import click

from farebox.cli.files import read_mapping
from farebox.cli.framework import Group, State, note, parse_month, pass_state
from farebox.cli.models import model_ids
from farebox.cli.organizations import organization_names
from farebox.cli.output import Column, print_data, print_list, print_object, print_rows, show
from farebox.cli.problems import suggesting

_PRICE = "SKU=USD"


@click.group(cls=Group)
def price() -> None:
    """Prices: propose, try out, approve."""


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    prices: dict[str, str] = {}
    for text in values:
        sku, separator, usd = text.partition("=")
        if not separator or not sku.strip() or not usd.strip():
            raise click.BadParameter(
                f"expected {_PRICE} such as input=0.15, got {text!r}", context, parameter
            )
        prices[sku.strip()] = usd.strip()
    return prices


def _change_options(command: Any) -> Any:
    for decorate in reversed(
        (
            click.option("--model", metavar="ID", help="The model."),
            click.option("--org", "organization", metavar="ORG", help="Only for this organization."),
            click.option(
                "--set",
                "prices",
                multiple=True,
                callback=_pairs,
                metavar=_PRICE,
                help="A price in US dollars per million tokens, second or minute; may be repeated.",
            ),
            click.option(
                "--batch-discount",
                "batch_discount_percent",
                type=click.IntRange(0, 100),
                metavar="PERCENT",
                help="Batch calls cost so much less than others.",
            ),
            click.option("--starts", metavar="TIME", help="A full minute, UTC. Default: the next one."),
            click.option("--ended", is_flag=True, help="The organization pays everybody's prices again."),
            click.option("--note", metavar="TEXT", help="Why."),
            click.option(
                "-f", "--file", "path", metavar="FILE", help="YAML or JSON with tiers and included amounts."
            ),
        )
    ):
        command = decorate(command)
    return command


def _document(path: str | None, **options: Any) -> dict[str, Any]:
    document: dict[str, Any] = dict(read_mapping(path)) if path else {}
    for name, value in options.items():
        if value or (value == 0 and value is not False):
            document[name] = {**document.get(name, {}), **value} if name == "prices" else value
    if not document.get("model"):
        raise click.UsageError("name the model: --model ID, or a file with `model:`")
    return document


@price.command(
    "propose",
    examples=[
        "farebox price propose --model acme/mock-chat --set input=0.12 --set output=0.50",
        "farebox price propose --model acme/mock-chat --org acme --set output=0.40 --starts 2027-01-01T00:00:00Z",
        "farebox price propose -f tiers.yaml --note 'volume offer'",
    ],
)
@_change_options
@pass_state
def price_propose(
    state: State,
    model: str | None,
    organization: str | None,
    prices: dict[str, str],
    batch_discount_percent: int | None,
    starts: str | None,
    ended: bool,
    note: str | None,
    path: str | None,
) -> None:
    """Put a change of prices up for approval.

    What is not named stays as it is. Another admin key approves it; past usage is never priced anew.
    """
    document = _document(
        path,
        model=model,
        organization=organization,
        prices=prices,
        batch_discount_percent=batch_discount_percent,
        starts_at=starts,
        ended=ended,
        note=note,
    )
    with _suggesting(state, document):
        print_object(state, state.client.prices.propose(document))


_COLUMNS = [
    Column("id", "id"),
    Column("state", "state"),
    Column("model", "model"),
    Column("for", lambda row: row.get("organization") or "everybody"),
    Column("starts", lambda row: row.get("starts_at") or "when approved"),
    Column("prices", lambda row: _short(row.get("prices"))),
    Column("note", "note"),
]


def _short(prices: object) -> str:
    if not isinstance(prices, Mapping):
        return ""
    return " ".join(f"{sku}={usd}" for sku, usd in prices.items())


@price.command("list", examples=["farebox price list", "farebox price list --state proposed"])
@click.option("--state", "wanted", type=click.Choice(["proposed", "approved", "rejected", "withdrawn"]))
@pass_state
def price_list(state: State, wanted: str | None) -> None:
    """List proposals. The versions in force: farebox model prices."""
    print_list(state, state.client.prices.list(state=wanted), _COLUMNS, empty="No proposals.")


@price.command("show", examples=["farebox price show proposal_01jz0000000000000000000000"])
@click.argument("proposal_id", metavar="ID")
@pass_state
def price_show(state: State, proposal_id: str) -> None:
    """Show one proposal."""
    with _known(state, proposal_id):
        print_object(state, state.client.prices.get(proposal_id))


@price.command(
    "approve",
    examples=["farebox price approve proposal_01jz0000000000000000000000 --note 'agreed in the call'"],
)
@click.argument("proposal_id", metavar="ID")
@click.option("--note", metavar="TEXT", help="Why.")
@pass_state
def price_approve(state: State, proposal_id: str, note: str | None) -> None:
    """Make it a version of the price book. Not with the key that proposed it."""
    with _known(state, proposal_id):
        print_object(state, state.client.prices.approve(proposal_id, note=note))


@price.command("reject", examples=["farebox price reject proposal_01jz0000000000000000000000"])
@click.argument("proposal_id", metavar="ID")
@click.option("--note", metavar="TEXT", help="Why.")
@pass_state
def price_reject(state: State, proposal_id: str, note: str | None) -> None:
    """Turn a proposal down, or withdraw one of your own."""
    with _known(state, proposal_id):
        print_object(state, state.client.prices.reject(proposal_id, note=note))


@price.command(
    "dry-run",
    examples=[
        "farebox price dry-run proposal_01jz0000000000000000000000 --period 2026-11",
        "farebox price dry-run --model acme/mock-chat --set output=0.50 --only acme",
    ],
)
@click.argument("proposal_id", metavar="[ID]", required=False)
@_change_options
@click.option(
    "--period", callback=parse_month, metavar="YYYY-MM", help="The month. Default: the current one."
)
@click.option("--only", metavar="ORG", help="Only this organization's month.")
@pass_state
def price_dry_run(
    state: State,
    proposal_id: str | None,
    model: str | None,
    organization: str | None,
    prices: dict[str, str],
    batch_discount_percent: int | None,
    starts: str | None,
    ended: bool,
    note: str | None,
    path: str | None,
    period: str | None,
    only: str | None,
) -> None:
    """Show what a month would have cost at other prices. Nothing is changed."""
    if proposal_id:
        with _known(state, proposal_id):
            answer = state.client.prices.dry_run(proposal_id, period=period, organization=only)
    else:
        document = _document(
            path,
            model=model,
            organization=organization,
            prices=prices,
            batch_discount_percent=batch_discount_percent,
            starts_at=starts,
            note=note,
        )
        with _suggesting(state, document):
            answer = state.client.prices.try_out(document, period=period, only=only)
    if not print_data(state, answer):
        _print_dry_run(state, answer)


def _print_dry_run(state: State, answer: Mapping[str, Any]) -> None:
    rows = answer["organizations"]
    columns = [
        Column("organization", "organization"),
        Column("is $", "before_usd", True),
        Column("would be $", "after_usd", True),
        Column("difference $", "difference_usd", True),
    ]
    print_rows(state, rows, columns, empty="Nobody was charged for the model in that month.")
    for row in rows:
        for sku in row["unpriced"]:
            note(f"{row['organization']} used {sku}, which the new prices do not name: it would be held.")
    note(
        f"{answer['model']}, {answer['period_start']} to {answer['period_end']}: {answer['difference_usd']} USD"
    )


@price.command("own", examples=["farebox price own acme"])
@click.argument("organization", metavar="ORG")
@pass_state
def price_own(state: State, organization: str) -> None:
    """List the versions that an organization has of its own."""
    columns = [
        Column("version", "id"),
        Column("model", "model"),
        Column("starts", "starts_at"),
        Column(
            "prices", lambda row: "(everybody's again)" if row.get("ended") else _short(row.get("prices"))
        ),
        Column("terms", lambda row: show(json.dumps(row["terms"]) if row.get("terms") else "")),
    ]
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        rows = state.client.prices.own(organization)
    print_list(state, rows, columns, empty="It has no prices of its own.")


def _known(state: State, proposal_id: str) -> Any:
    return suggesting(
        proposal_id,
        lambda: [each["id"] for each in state.client.prices.list()],
        "farebox price list",
        param="proposal_id",
    )


def _suggesting(state: State, document: Mapping[str, Any]) -> Any:
    if document.get("organization"):
        return suggesting(
            str(document["organization"]),
            lambda: organization_names(state),
            "farebox org list",
            param="organization",
        )
    return suggesting(str(document["model"]), lambda: model_ids(state), "farebox model list", param="model")
