"""`farebox invoice`: list, show, lines, document, verify, and what an operator does with an invoice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from farebox.cli.billing import invoice, suggesting_scope
from farebox.cli.files import write_bytes
from farebox.cli.framework import EXIT_REFUSED, Group, State, note, parse_month, pass_state
from farebox.cli.output import Column, print_data, print_list, print_object, print_rows, print_table
from farebox.cli.problems import suggesting

_STATES = ("draft", "finalized", "paid", "void")
_INVOICE_COLUMNS = [
    Column("number", lambda row: row["number"] or row["id"]),
    Column("organization", lambda row: (row.get("customer") or {}).get("name") or row["organization_id"]),
    Column("state", "state"),
    Column("from", lambda row: row["period_start"][:10]),
    Column("to", lambda row: row["period_end"][:10]),
    Column("total $", "total_usd", True),
    Column("credit $", "credit_usd", True),
    Column("open $", "open_usd", True),
    Column("due", lambda row: (row["due_at"] or "")[:10]),
]
_LINE_COLUMNS = [
    Column("line", "line", True),
    Column("what", lambda row: row["sku"] or row["kind"]),
    Column("of", lambda row: row["endpoint"] or row["model"] or row["text"]),
    Column("quantity", "quantity", True),
    Column("unit price $", "unit_price_usd", True),
    Column("$/M", "price_per_million_usd", True),
    Column("amount $", "amount_usd", True),
    Column("rounded $", "rounded_usd", True),
]
_MINUTE_COLUMNS = [
    Column("minute", "minute"),
    Column("happened", "service_minute"),
    Column("kind", "kind"),
    Column("key", "key_id"),
    Column("endpoint", "endpoint_id"),
    Column("quantity", "quantity", True),
    Column("amount $", "amount_usd", True),
    Column("id", "id"),
]
_EVENT_COLUMNS = [
    Column("time", "time"),
    Column("status", "status"),
    Column("quantity", "quantity", True),
    Column("receipt", "request_id"),
    Column("event", "id"),
]


def _numbers(state: State) -> list[str]:
    return [each["number"] or each["id"] for each in state.client.invoices.list()]


def _suggesting(state: State, name: str) -> Any:
    return suggesting(name, lambda: _numbers(state), "farebox invoice list", param="invoice")


@invoice.command(
    "list", examples=["farebox invoice list --org acme", "farebox invoice list --state finalized"]
)
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@click.option("--state", "state_", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--period", callback=parse_month, metavar="YYYY-MM", help="Only of this month.")
@pass_state
def invoice_list(state: State, /, organization: str | None, state_: str | None, period: str | None) -> None:
    """List invoices, newest first."""
    with suggesting_scope(state, organization, None):
        rows = state.client.invoices.list(organization=organization, state=state_, period=period)
    empty = (
        "No invoices yet: a month's are made when it is over. farebox invoice preview shows the current one."
    )
    print_list(state, rows, _INVOICE_COLUMNS, empty=empty)


@invoice.command("show", examples=["farebox invoice show FB-2026-000001"])
@click.argument("name", metavar="INVOICE")
@pass_state
def invoice_show(state: State, /, name: str) -> None:
    """Show an invoice with its lines. INVOICE is its number or id."""
    with _suggesting(state, name):
        head = state.client.invoices.get(name)
        lines = state.client.invoices.lines(name)
    if state.output_format() != "table":
        print_object(state, {**head, "lines": lines})
        return
    print_object(state, head)
    click.echo()
    print_rows(state, lines, _LINE_COLUMNS, empty="It has no lines.")


@invoice.command(
    "lines",
    examples=[
        "farebox invoice lines FB-2026-000001",
        "farebox invoice lines FB-2026-000001 --line 3",
        "farebox invoice lines FB-2026-000001 --line 3 --minute usage/20261123T1201Z/4f1d…",
    ],
)
@click.argument("name", metavar="INVOICE")
@click.option("--line", type=click.IntRange(1), metavar="N", help="The minutes behind this line.")
@click.option("--minute", metavar="ID", help="With --line: the events behind this one of its minutes.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="The page after this one: `next` of the page before.")
@pass_state
def invoice_lines(
    state: State, /, name: str, line: int | None, minute: str | None, limit: int, after: str | None
) -> None:
    """Show lines, the minutes behind one, the events behind a minute.

    The sums are exact at each step. A call's receipt: farebox receipt REQUEST_ID.
    """
    if minute and line is None:
        raise click.UsageError("--minute needs --line, which says what to count of it")
    with _suggesting(state, name):
        if line is None:
            print_list(state, state.client.invoices.lines(name), _LINE_COLUMNS, empty="It has no lines.")
            return
        if minute is None:
            minutes = state.client.invoices.minutes(name, line, limit=limit, after=after)
            total = f"Line {line}: {minutes['line_quantity']} in all, {minutes['line_amount_usd']} USD."
            _page(state, minutes, _MINUTE_COLUMNS, total)
            return
        rows = state.client.invoices.lines(name)
        sku = next((row["sku"] for row in rows if row["line"] == line), None)
        if sku is None:
            raise click.UsageError(f"--line {line}: no line of charges; see farebox invoice lines {name}")
        events = state.client.invoices.events(name, minute, sku, limit=limit, after=after)
    _page(state, events, _EVENT_COLUMNS, f"The minute: {events['minute_quantity']} in all.")


def _page(state: State, page: Any, columns: Sequence[Column], total: str) -> None:
    if print_data(state, page):
        return
    print_rows(state, page["data"], columns, empty="Nothing more.")
    if state.output_format() == "table":
        note(total)
    if page.get("next"):
        note(f"More: add --after {page['next']}")


@invoice.command(
    "create",
    examples=[
        "farebox invoice create --org acme --period 2026-11",
        "farebox invoice create --org acme --period 2026-11 --draft",
    ],
)
@click.option("--org", "organization", required=True, metavar="ORG", help="The organization: name or id.")
@click.option(
    "--period", required=True, callback=parse_month, metavar="YYYY-MM", help="A month that is over."
)
@click.option("--draft", is_flag=True, help="Leave it a draft; finalize it when you have looked at it.")
@pass_state
def invoice_create(state: State, /, organization: str, period: str, draft: bool) -> None:
    """Make the invoice of a month, after a void one for example.

    Of what is charged and no invoice covers; months are invoiced by themselves when they have closed.
    """
    with suggesting_scope(state, organization, None):
        made = state.client.invoices.create(organization, period, draft=draft)
    print_list(state, made, _INVOICE_COLUMNS, empty="")


@invoice.command("finalize", examples=["farebox invoice finalize inv_01jz0000000000000000000000"])
@click.argument("name", metavar="INVOICE")
@pass_state
def invoice_finalize(state: State, /, name: str) -> None:
    """Make a draft final: numbered, on the ledger, immutable."""
    with _suggesting(state, name):
        print_object(state, state.client.invoices.finalize(name))


@invoice.command(
    "pay",
    examples=[
        "farebox invoice pay FB-2026-000001 --reference 'bank 4711'",
        "farebox invoice pay FB-2026-000001 --reference 4711 --amount 120.50",
    ],
)
@click.argument("name", metavar="INVOICE")
@click.option("--reference", required=True, metavar="TEXT", help="What says that it was paid.")
@click.option("--amount", metavar="USD", help="To be sure: refused unless it is what is due.")
@pass_state
def invoice_pay(state: State, /, name: str, reference: str, amount: str | None) -> None:
    """Record that an invoice was paid, whole."""
    with _suggesting(state, name):
        print_object(state, state.client.invoices.pay(name, reference=reference, amount_usd=amount))


@invoice.command("void", examples=["farebox invoice void FB-2026-000001 --yes"])
@click.argument("name", metavar="INVOICE")
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_state
def invoice_void(state: State, /, name: str, yes: bool) -> None:
    """Take an invoice back.

    It is reversed on the ledger and its credit is given back. The charges stay owed: make the invoice again with
    `farebox invoice create`, or give something back with `farebox credit-note create` instead.
    """
    if not yes and not click.confirm(f"Void invoice {name}?", err=True):
        raise click.UsageError("not void, as you said")
    with _suggesting(state, name):
        gone = state.client.invoices.void(name)
    print_object(state, gone)
    again = f"--org {gone['organization_id']} --period {gone['period_start'][:7]}"
    note(f"Its charges are owed still. Invoice them again: farebox invoice create {again}")


@invoice.command(
    "document",
    examples=[
        "farebox invoice document FB-2026-000001 -f invoice.pdf",
        "farebox invoice document FB-2026-000001 --format html > invoice.html",
    ],
)
@click.argument("name", metavar="INVOICE")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["pdf", "html", "csv", "json"]),
    help="Default: the file's ending, or pdf.",
)
@click.option("-f", "--file", "path", metavar="FILE", help="Where to; default: stdout.")
@pass_state
def invoice_document(state: State, /, name: str, kind: str | None, path: str | None) -> None:
    """Save an invoice as PDF, HTML, CSV or JSON."""
    ending = Path(path).suffix.lstrip(".").lower() if path else ""
    chosen = kind or (ending if ending in ("pdf", "html", "csv", "json") else "pdf")
    with _suggesting(state, name):
        content = state.client.invoices.document(name, chosen)
    write_bytes(path, content)


@invoice.command("verify", examples=["farebox invoice verify FB-2026-000001"])
@click.argument("name", metavar="INVOICE")
@pass_state
@click.pass_context
def invoice_verify(context: click.Context, state: State, /, name: str) -> None:
    """Prove an invoice from raw events.

    Adds up every usage event of its period again, rates them, and compares that with ledger and lines; checks the
    invoice's digest and the ledger's hash chain. Exits 1 when anything differs, and says what.
    """
    with _suggesting(state, name):
        report = state.client.invoices.verify(name)
    if not print_data(state, report):
        if state.output_format() == "table":
            counted = {key: value for key, value in report.items() if key != "differences"}
            print_object(state, counted)
            if report["differences"]:
                click.echo()
                print_table(["difference"], [[text] for text in report["differences"]], [False])
        else:
            print_object(state, report)
    if not report["proved"]:
        note(f"NOT proved: {len(report['differences'])} differences.")
        context.exit(EXIT_REFUSED)


@click.group(cls=Group)
def export() -> None:
    """Billing data in the formats of others."""


@export.command("focus", examples=["farebox export focus --org acme --period 2026-11 -f focus-2026-11.csv"])
@click.option("--org", "organization", required=True, metavar="ORG", help="The organization: name or id.")
@click.option(
    "--period", required=True, callback=parse_month, metavar="YYYY-MM", help="A month that is invoiced."
)
@click.option("-f", "--file", "path", metavar="FILE", help="Where to; default: stdout.")
@pass_state
def export_focus(state: State, /, organization: str, period: str, path: str | None) -> None:
    """Save a month as FOCUS (FinOps) CSV.

    The sum of BilledCost by InvoiceId is what each invoice asks for; that is checked before anything is written.
    """
    with suggesting_scope(state, organization, None):
        content = state.client.exports.focus(organization, period)
    write_bytes(path, content)
