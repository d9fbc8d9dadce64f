"""`farebox reconcile`, `farebox alarms`."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from farebox.cli.billing import check_range
from farebox.cli.framework import EXIT_REFUSED, Command, Group, State, note, parse_time, pass_state
from farebox.cli.organizations import organization_names
from farebox.cli.output import Column, clean, print_data, print_list, print_rows
from farebox.cli.problems import suggesting

_RECORDS = ("engine", "events", "ledger", "invoice", "provider")
_IDS_SHOWN = 5


@click.command(
    cls=Command,
    examples=[
        "farebox reconcile",
        "farebox reconcile --org acme --from 2026-01-31 --to 2026-02-01",
        "farebox reconcile --from 2026-01-31T12:00:00Z --verbose",
        "farebox reconcile -o json",
    ],
)
@click.option("--org", "organization", metavar="ORG", help="Only this organization's endpoints: name or id.")
@click.option(
    "--from",
    "start",
    callback=parse_time,
    metavar="TIME",
    help="First hour, UTC. Default: a day before --to.",
)
@click.option(
    "--to", "end", callback=parse_time, metavar="TIME", help="Time it ends before, UTC. Default: now."
)
@click.option("--verbose", is_flag=True, help="Every hour and every difference, with ids.")
@pass_state
@click.pass_context
def reconcile(
    context: click.Context,
    state: State,
    organization: str | None,
    start: str | None,
    end: str | None,
    verbose: bool,
) -> None:
    """Prove that all that was produced is billed.

    Compares engines, usage, ledger, invoices and payment provider by hour and endpoint. Exits 1 when a
    difference is not explained.
    """
    check_range(start, end)
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        answer = state.client.reconciliation.get(organization=organization, start=start, end=end)
    if not print_data(state, answer):
        _print(state, answer, verbose)
    if answer["unexplained"]:
        context.exit(EXIT_REFUSED)


def _print(state: State, answer: Mapping[str, Any], verbose: bool) -> None:
    hours = answer["data"]
    quiet = [] if verbose or state.output_format() == "tsv" else [hour for hour in hours if _is_quiet(hour)]
    shown = [hour for hour in hours if hour not in quiet]
    rows = [row for hour in shown for row in _rows(hour)]
    print_rows(state, rows, _columns(), empty="Nothing happened in that time.")
    if state.output_format() == "tsv":
        return
    for hour in shown:
        _print_differences(hour, verbose)
    for check in answer["invoices"]:
        for found in check["differences"]:
            click.echo(f"\n! invoice {check['number'] or check['id']}: {clean(found['detail'])}")
            click.echo(f"    {found['quantity']:+} {found['sku'] or ''}".rstrip())
    if quiet:
        note(f"{len(quiet)} hours of endpoints without calls are equal (--verbose shows them).")
    if answer["truncated"]:
        note("There is more; choose a shorter time, or one organization.")
    click.echo(f"\n{_conclusion(answer)}")


def _columns() -> list[Column]:
    return [
        Column("hour", "hour"),
        Column("endpoint", "name"),
        Column("sku", "sku"),
        *(Column(record, record, True) for record in _RECORDS),
        Column("verdict", "verdict"),
    ]


def _rows(hour: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """A line for each SKU; the verdict of a line is that of its SKU."""
    shared = {"hour": hour["hour"][:16].replace("T", " "), "name": hour["name"] or hour["id"]}
    rows = [
        shared | {"sku": sku} | figures | {"verdict": _verdict(hour, sku)}
        for sku, figures in hour["figures"].items()
    ]
    general = [found for found in hour["differences"] if not found["sku"]]
    if general or not rows:
        rows.append(shared | {"sku": "", "verdict": _words(general) or "equal"})
    return rows


def _verdict(hour: Mapping[str, Any], sku: str) -> str:
    words = _words([found for found in hour["differences"] if found["sku"] == sku])
    if hour["no_counters"] and sku in ("input", "cached_input", "output"):
        words = "; ".join(filter(None, (words, "no counters")))
    return words or "equal"


def _words(found: Sequence[Mapping[str, Any]]) -> str:
    wrong = list(dict.fromkeys(each["kind"] for each in found if not each["explained"]))
    right = list(dict.fromkeys(each["kind"] for each in found if each["explained"]))
    said = [f"UNEXPLAINED: {', '.join(wrong)}"] if wrong else []
    return "; ".join(said + ([f"explained: {', '.join(right)}"] if right else []))


def _is_quiet(hour: Mapping[str, Any]) -> bool:
    return hour["verdict"] == "equal" and set(hour["figures"]) <= {"endpoint_minute"}


def _print_differences(hour: Mapping[str, Any], verbose: bool) -> None:
    found = [each for each in hour["differences"] if verbose or not each["explained"]]
    if not found and not (verbose and hour["no_counters"]):
        return
    click.echo(f"\n{hour['hour'][:16].replace('T', ' ')}  {clean(hour['name'] or hour['id'])}")
    if verbose and hour["no_counters"]:
        click.echo(f"    engine: {clean(hour['no_counters'])}")
    for each in found:
        mark = "  " if each["explained"] else "! "
        what = f"{each['quantity']:+} {each['sku']}" if each["sku"] else f"{each['count']}"
        click.echo(f"  {mark}{each['kind']}: {what}: {clean(each['detail'])}")
        ids = each["ids"] if verbose else each["ids"][:_IDS_SHOWN]
        if ids:
            more = "" if len(ids) == len(each["ids"]) else " …"
            click.echo(f"      {clean(', '.join(ids))}{more}")


def _conclusion(answer: Mapping[str, Any]) -> str:
    period = f"{answer['start'][:16].replace('T', ' ')} to {answer['end'][:16].replace('T', ' ')} UTC"
    if answer["unexplained"]:
        return f"{period}: {answer['unexplained']} differences are NOT explained."
    return f"{period}: all records agree" + (
        "." if answer["verdict"] == "equal" else "; every difference is explained."
    )


@click.group(cls=Group)
def alarms() -> None:
    """What an operator must look at."""


@alarms.command(
    "list",
    examples=["farebox alarms list", "farebox alarms list --kind reconciliation --limit 10 -o json"],
)
@click.option("--kind", metavar="KIND", help="Only these, e.g. reconciliation, sequence_gap, unpriced.")
@click.option(
    "--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many, newest first."
)
@pass_state
def alarms_list(state: State, kind: str | None, limit: int) -> None:
    """List alarms, newest first."""
    columns = [
        Column("at", "at"),
        Column("kind", "kind"),
        Column("source", "source"),
        Column("detail", "detail"),
    ]
    print_list(state, state.client.alarms.list(kind=kind, limit=limit), columns, empty="No alarms.")
