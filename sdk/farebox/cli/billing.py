"""`farebox usage`, `receipt`, `receipts`, `invoice`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from farebox.cli.files import write_bytes
from farebox.cli.framework import Command, Group, State, note, parse_month, parse_time, pass_state
from farebox.cli.organizations import organization_names, project_names
from farebox.cli.output import Column, print_data, print_list, print_object, print_rows, print_table, show
from farebox.cli.problems import suggesting

GROUPINGS = ("day", "model", "endpoint", "key", "sku", "project")


def _parse_groupings(context: click.Context, parameter: click.Parameter, text: str | None) -> str | None:
    if text is None:
        return None
    names = [each.strip() for each in text.split(",") if each.strip()]
    for name in names:
        if name not in GROUPINGS:
            from farebox.cli.problems import close_names

            close = close_names(name, GROUPINGS)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise click.BadParameter(
                f"expected {', '.join(GROUPINGS)}; got {name!r}{hint}", context, parameter
            )
    return ",".join(dict.fromkeys(names)) or None


def check_range(start: str | None, end: str | None) -> None:
    if start and end and start >= end:
        raise click.UsageError(f"--from {start} is not before --to {end} (which is not included)")


@click.command(
    cls=Command,
    examples=[
        "farebox usage --org acme",
        "farebox usage --org acme --from 2026-01-01 --to 2026-02-01 --by day,model",
        "farebox usage --project acme/web --by key -o tsv",
    ],
)
@click.option("--org", "organization", metavar="ORG", help="The organization: name or id.")
@click.option("--project", metavar="P", help="Only this project.")
@click.option("--from", "start", callback=parse_time, metavar="TIME", help="First day (or time), UTC.")
@click.option("--to", "end", callback=parse_time, metavar="TIME", help="Day (or time) it ends before, UTC.")
@click.option(
    "--by",
    "group_by",
    callback=_parse_groupings,
    metavar="LIST",
    help="Of: day,model,endpoint,key,sku,project.",
)
@pass_state
def usage(
    state: State,
    organization: str | None,
    project: str | None,
    start: str | None,
    end: str | None,
    group_by: str | None,
) -> None:
    """Show what was used: tokens, endpoint minutes."""
    check_range(start, end)
    with suggesting_scope(state, organization, project):
        answer = state.client.usage.list(
            organization=organization, project=project, start=start, end=end, group_by=group_by
        )
    if not print_data(state, answer):
        rows: Sequence[Mapping[str, Any]] = answer["data"]
        print_rows(state, rows, columns_of(rows), empty="No usage in that time.")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """A column for each member that some row has: the members depend on the grouping, which comes first."""
    told = ((name, value) for row in rows for name, value in row.items())
    # Most have no batch calls, and three columns of zeros are in the way.
    names = dict.fromkeys(
        name for name, value in told if value or (value == 0 and not name.startswith("batch_"))
    )
    last = ("requests", "errors")
    ordered = [name for name in names if name not in last] + [name for name in last if name in names]
    return [Column(name, name, number=_all_numbers(rows, name)) for name in ordered]


def _all_numbers(rows: Sequence[Mapping[str, Any]], name: str) -> bool:
    texts = [show(row.get(name)) for row in rows]
    return all(re.fullmatch(r"(-?[0-9]+(\.[0-9]+)?)?", text) for text in texts) and any(texts)


@click.command(cls=Command, examples=["farebox receipt req_01jz0000000000000000000000"])
@click.argument("request_id")
@pass_state
def receipt(state: State, request_id: str) -> None:
    """Show what one call used and cost. REQUEST_ID is the answer's x-request-id header."""
    print_object(state, state.client.receipts.get(request_id))


@click.command(
    cls=Command,
    examples=["farebox receipts --org acme --limit 20", "farebox receipts --from 2026-01-31 -o json"],
)
@click.option("--org", "organization", metavar="ORG", help="The organization: name or id.")
@click.option("--project", metavar="P", help="Only this project.")
@click.option("--from", "start", callback=parse_time, metavar="TIME", help="First day (or time), UTC.")
@click.option("--to", "end", callback=parse_time, metavar="TIME", help="Day (or time) it ends before, UTC.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="The page after this one: the `next` of the page before.")
@pass_state
def receipts(
    state: State,
    organization: str | None,
    project: str | None,
    start: str | None,
    end: str | None,
    limit: int,
    after: str | None,
) -> None:
    """List the receipts of calls.

    Newest first, one page at a time.
    """
    check_range(start, end)
    with suggesting_scope(state, organization, project):
        page = state.client.receipts.list(
            organization=organization, project=project, start=start, end=end, limit=limit, after=after
        )
    columns = [
        Column("time", "time"),
        Column("request", "request_id"),
        Column("model", "model"),
        Column("status", "status"),
        Column("input", "usage.input", True),
        Column("cached", "usage.cached_input", True),
        Column("output", "usage.output", True),
        Column("cost $", "cost_usd", True),
    ]
    if print_data(state, page):
        return
    print_list(state, page["data"], columns, empty="No calls in that time.")
    if page.get("next"):
        note(f"More: add --after {page['next']}")


@click.group(cls=Group)
def invoice() -> None:
    """Invoices."""


@invoice.command(
    "preview",
    examples=[
        "farebox invoice preview --org acme",
        "farebox invoice preview --org acme --period 2026-01 -o json",
        "farebox invoice preview --org acme -f preview.pdf",
    ],
)
@click.option(
    "--org", "organization", metavar="ORG", help="The organization: name or id. Default: the only one."
)
@click.option(
    "--period", callback=parse_month, metavar="YYYY-MM", help="The month. Default: the current one (UTC)."
)
@click.option("-f", "--file", "path", metavar="FILE", help="As a document: .pdf or .html, with a watermark.")
@pass_state
def invoice_preview(state: State, organization: str | None, period: str | None, path: str | None) -> None:
    """Show the invoice as it would be now, exact to the last digit."""
    with suggesting_scope(state, organization, None):
        if path is not None:
            kind = "html" if path.endswith((".html", ".htm")) else "pdf"
            write_bytes(path, state.client.invoices.preview_document(organization, period=period, kind=kind))
            return
        preview = state.client.invoices.preview(organization, period=period)
    if print_data(state, preview):
        return
    columns = [
        Column("sku", lambda row: row.get("sku") or row.get("kind")),
        Column("of", lambda row: row.get("model") or row.get("endpoint") or row.get("text")),
        Column("quantity", "quantity", True),
        Column("unit price $", "unit_price_usd", True),
        Column("$/M", "price_per_million_usd", True),
        Column("amount $", "amount_usd", True),
        Column("rounded $", "rounded_usd", True),
    ]
    if state.output_format() == "tsv":
        print_rows(state, preview["lines"], columns)
        return
    _print_invoice(preview, columns)
    for held in preview.get("held") or []:
        note(f"Not in the total: {held['quantity']} {held['sku']} of {held['model']}: {held['reason']}")


def _print_invoice(preview: Any, columns: Sequence[Column]) -> None:
    click.echo(f"Invoice preview for {preview['organization']}")
    click.echo(f"{preview['period_start']} to {preview['period_end']}, as of {preview['as_of']}\n")
    cells = [[column.of(line) for column in columns] for line in preview["lines"]]
    cells.append(["total", "", "", "", "", str(preview["total_exact_usd"]), str(preview["total_usd"])])
    print_table(
        [column.title for column in columns], cells, [column.number for column in columns], footer_rows=1
    )
    click.echo(f"\nTo pay: {preview['total_usd']} {str(preview.get('currency', 'usd')).upper()}")


@contextmanager
def suggesting_scope(state: State, organization: str | None, project: str | None) -> Iterator[None]:
    """Close names for a wrong organization or project."""
    with (
        suggesting(organization, lambda: organization_names(state), "farebox org list", param="organization"),
        suggesting(project, lambda: project_names(state), "farebox project list", param="project"),
    ):
        yield
