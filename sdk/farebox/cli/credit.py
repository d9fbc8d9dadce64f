"""`farebox credit`, `credit-note`, `contract`, `billing-profile`."""

from typing import Any

import click

from farebox.cli.billing import suggesting_scope
from farebox.cli.framework import Group, State, parse_month, parse_time, pass_state
from farebox.cli.output import Column, print_data, print_done, print_list, print_object, print_table
from farebox.cli.problems import suggesting

_CREDIT_COLUMNS = [
    Column("id", "id"),
    Column("kind", "kind"),
    Column("state", "state"),
    Column("priority", "priority", True),
    Column("amount $", "amount_usd", True),
    Column("left $", "left_usd", True),
    Column("from", lambda row: (row["starts_at"] or "")[:16]),
    Column("until", lambda row: (row["expires_at"] or "")[:16]),
    Column("only", lambda row: ", ".join([*row["models"], *row["skus"]])),
    Column("note", "note"),
]
_NOTE_COLUMNS = [
    Column("number", "number"),
    Column("invoice", "invoice_id"),
    Column("amount $", "amount_usd", True),
    Column("as credit", "as_credit"),
    Column("reason", "reason"),
    Column("made", lambda row: row["created_at"][:10]),
]
_CONTRACT_COLUMNS = [
    Column("id", "id"),
    Column("organization", "organization_id"),
    Column("from", "starts"),
    Column("until", "ends"),
    Column("discount %", "discount_percent", True),
    Column("minimum $", "minimum_usd", True),
]


@click.group(cls=Group)
def credit() -> None:
    """Prepaid and promotional credit."""


@credit.command(
    "grant",
    examples=[
        "farebox credit grant --org acme --amount 50.00 --expires 2027-01-01",
        "farebox credit grant --org acme --amount 500 --prepaid --raise-budget",
        "farebox credit grant --org acme --amount 5 --model Qwen/Qwen3-0.6B --sku output",
    ],
)
@click.option("--org", "organization", required=True, metavar="ORG", help="The organization: name or id.")
@click.option("--amount", required=True, metavar="USD", help="US dollars, in whole cents.")
@click.option("--prepaid", is_flag=True, help="It was paid for; without: a promotional gift.")
@click.option(
    "--priority", type=click.IntRange(0, 100), metavar="N", help="Lower is spent first. Default: 50."
)
@click.option("--starts", callback=parse_time, metavar="TIME", help="Pays for usage from then on (UTC).")
@click.option("--expires", callback=parse_time, metavar="TIME", help="Pays for usage before (UTC).")
@click.option("--model", "models", multiple=True, metavar="ID", help="Only for this model; may be repeated.")
@click.option("--sku", "skus", multiple=True, metavar="SKU", help="Only for this SKU; may be repeated.")
@click.option("--note", metavar="TEXT", help="What it is for.")
@click.option(
    "--raise-budget", is_flag=True, help="Refuse calls when it is used up: raises the total budget."
)
@pass_state
def credit_grant(state: State, /, organization: str, amount: str, prepaid: bool, **options: Any) -> None:
    """Give an organization credit.

    Spent by priority, then what expires sooner, then promotional before prepaid, then the older.
    """
    with suggesting_scope(state, organization, None):
        made = state.client.credits.grant(
            organization,
            amount,
            kind="prepaid" if prepaid else "promotional",
            priority=options["priority"],
            starts_at=options["starts"],
            expires_at=options["expires"],
            models=list(options["models"]),
            skus=list(options["skus"]),
            note=options["note"],
            raise_budget=options["raise_budget"],
        )
    print_object(state, made)


@credit.command("list", examples=["farebox credit list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@pass_state
def credit_list(state: State, /, organization: str | None) -> None:
    """List credit, oldest first."""
    with suggesting_scope(state, organization, None):
        rows = state.client.credits.list(organization=organization)
    print_list(
        state,
        rows,
        _CREDIT_COLUMNS,
        empty="No credit. Give some: farebox credit grant --org ORG --amount USD",
    )


@credit.command("balance", examples=["farebox credit balance --org acme"])
@click.option("--org", "organization", metavar="ORG", help="The organization. Default: the only one.")
@pass_state
def credit_balance(state: State, /, organization: str | None) -> None:
    """Show what credit stands at, live.

    Spent: on invoices. Reserved: by usage that is not invoiced yet, as its invoice would be now.
    """
    with suggesting_scope(state, organization, None):
        found = state.client.credits.balance(organization)
    if print_data(state, found):
        return
    print_object(state, found, skip=["credits"])
    if found["credits"] and state.output_format() == "table":
        columns = [
            *_CREDIT_COLUMNS[:2],
            Column("spent $", "spent_usd", True),
            Column("reserved $", "reserved_usd", True),
            Column("available $", "available_usd", True),
            *_CREDIT_COLUMNS[7:],
        ]
        click.echo()
        cells = [[column.of(row) for column in columns] for row in found["credits"]]
        print_table([column.title for column in columns], cells, [column.number for column in columns])


@credit.command("void", examples=["farebox credit void credit_01jz0000000000000000000000 --yes"])
@click.argument("credit_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_state
def credit_void(state: State, /, credit_id: str, yes: bool) -> None:
    """Take back what is left of a credit."""
    if not yes and not click.confirm(f"Take back what is left of {credit_id}?", err=True):
        raise click.UsageError("not taken back, as you said")
    ids = suggesting(
        credit_id, lambda: [each["id"] for each in state.client.credits.list()], "farebox credit list"
    )
    with ids:
        gone = state.client.credits.void(credit_id)
    print_done(state, gone, f"Took back what was left of {credit_id}.")


@click.group("credit-note", cls=Group)
def credit_note() -> None:
    """Giving back something of an invoice."""


def _lines(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str | None]:
    lines: dict[str, str | None] = {}
    for text in values:
        number, _, amount = text.partition("=")
        if not number.isascii() or not number.isdigit():
            raise click.BadParameter(f"expected N or N=USD such as 3=1.50, got {text!r}", context, parameter)
        lines[number] = amount or None
    return lines


@credit_note.command(
    "create",
    examples=[
        "farebox credit-note create FB-2026-000001 --amount 12.50 --reason 'outage on 3 November'",
        "farebox credit-note create FB-2026-000001 --line 1 --line 3=0.75 --reason 'wrong model' --as-credit",
        "farebox credit-note create FB-2026-000001 --reason 'never used'",
    ],
)
@click.argument("name", metavar="INVOICE")
@click.option(
    "--amount", metavar="USD", help="How much. Without --amount and --line: all that is left of it."
)
@click.option(
    "--line",
    "lines",
    multiple=True,
    callback=_lines,
    metavar="N[=USD]",
    help="Of this line; may be repeated.",
)
@click.option("--reason", required=True, metavar="TEXT", help="Stands on the credit note.")
@click.option("--as-credit", is_flag=True, help="As credit for later invoices, not off what is due.")
@pass_state
def credit_note_create(
    state: State, /, name: str, amount: str | None, lines: dict[str, str | None], reason: str, as_credit: bool
) -> None:
    """Make a credit note: never more than the invoice.

    Off what is due; of a paid invoice it is money that you pay back.
    """
    if amount and lines:
        raise click.UsageError("give --amount or --line, not both")
    made = state.client.credit_notes.create(
        name, reason=reason, amount_usd=amount, lines=lines, as_credit=as_credit
    )
    print_object(state, made)


@credit_note.command("list", examples=["farebox credit-note list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@pass_state
def credit_note_list(state: State, /, organization: str | None) -> None:
    """List credit notes, newest first."""
    with suggesting_scope(state, organization, None):
        rows = state.client.credit_notes.list(organization=organization)
    print_list(state, rows, _NOTE_COLUMNS, empty="No credit notes.")


@credit_note.command("show", examples=["farebox credit-note show FB-CN-2026-000001"])
@click.argument("name", metavar="NOTE")
@pass_state
def credit_note_show(state: State, /, name: str) -> None:
    """Show a credit note. NOTE is its number or id."""
    print_object(state, state.client.credit_notes.get(name))


@click.group(cls=Group)
def contract() -> None:
    """Discounts and minimums by the month."""


@contract.command(
    "create",
    examples=[
        "farebox contract create --org acme --starts 2027-01 --discount 12.5",
        "farebox contract create --org acme --starts 2027-01 --ends 2028-01 --minimum 1000",
    ],
)
@click.option("--org", "organization", required=True, metavar="ORG", help="The organization: name or id.")
@click.option("--starts", required=True, callback=parse_month, metavar="YYYY-MM", help="The first month.")
@click.option("--ends", callback=parse_month, metavar="YYYY-MM", help="The month that it no longer holds in.")
@click.option("--discount", metavar="PERCENT", help="On all charges of a month.")
@click.option("--minimum", metavar="USD", help="The least that a month costs.")
@pass_state
def contract_create(
    state: State,
    /,
    organization: str,
    starts: str,
    ends: str | None,
    discount: str | None,
    minimum: str | None,
) -> None:
    """Make a contract, of months that are not over."""
    with suggesting_scope(state, organization, None):
        made = state.client.contracts.create(
            organization, starts, ends=ends, discount_percent=discount, minimum_usd=minimum
        )
    print_object(state, made)


@contract.command("list", examples=["farebox contract list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@pass_state
def contract_list(state: State, /, organization: str | None) -> None:
    """List contracts."""
    with suggesting_scope(state, organization, None):
        rows = state.client.contracts.list(organization=organization)
    print_list(state, rows, _CONTRACT_COLUMNS, empty="No contracts: list prices hold.")


@contract.command("end", examples=["farebox contract end contract_01jz0000000000000000000000 --ends 2027-06"])
@click.argument("contract_id", metavar="ID")
@click.option(
    "--ends",
    required=True,
    callback=parse_month,
    metavar="YYYY-MM",
    help="The month that it no longer holds in.",
)
@pass_state
def contract_end(state: State, /, contract_id: str, ends: str) -> None:
    """End a contract. That it never held: end it in its first month."""
    ids = suggesting(
        contract_id, lambda: [each["id"] for each in state.client.contracts.list()], "farebox contract list"
    )
    with ids:
        print_object(state, state.client.contracts.end(contract_id, ends))


@click.group("billing-profile", cls=Group)
def billing_profile() -> None:
    """How an organization is invoiced."""


@billing_profile.command("show", examples=["farebox billing-profile show acme"])
@click.argument("organization", metavar="ORG")
@pass_state
def billing_profile_show(state: State, /, organization: str) -> None:
    """Show what stands on an organization's invoices, and when they are made and due."""
    with suggesting_scope(state, organization, None):
        print_object(state, state.client.billing_profiles.get(organization))


@billing_profile.command(
    "set",
    examples=[
        "farebox billing-profile set acme --name 'Acme Ltd' --address '1 Long Road\\nTownsville' --tax-id GB123",
        "farebox billing-profile set acme --threshold 500 --due-days 14",
    ],
)
@click.argument("organization", metavar="ORG")
@click.option("--name", "legal_name", metavar="TEXT", help="The name on invoices.")
@click.option("--address", metavar="TEXT", help=r"Lines separated by \n.")
@click.option("--email", metavar="TEXT", help="Where invoices go.")
@click.option("--tax-id", metavar="TEXT", help="The customer's tax number.")
@click.option("--due-days", type=click.IntRange(0, 365), metavar="N", help="Days to pay. Default: 30.")
@click.option("--threshold", metavar="USD", help="An invoice within the month from this much on; 0: none.")
@click.option(
    "--provider",
    type=click.Choice(["none", "stripe_items", "stripe_meters"]),
    help="How invoices are handed to the payment provider.",
)
@pass_state
def billing_profile_set(state: State, /, organization: str, **options: Any) -> None:
    """Change how an organization is invoiced; what is not named stays."""
    threshold, provider = options.pop("threshold"), options.pop("provider")
    values = options | {"threshold_usd": threshold, "provider": "" if provider == "none" else provider}
    if all(value is None for value in values.values()):
        raise click.UsageError("name something to change, for example --due-days 14")
    if values["address"] is not None:
        values["address"] = values["address"].replace("\\n", "\n")
    with suggesting_scope(state, organization, None):
        print_object(state, state.client.billing_profiles.change(organization, **values))
