"""`farebox stripe`."""

import click

from farebox.cli.framework import EXIT_REFUSED, Group, State, note, pass_state
from farebox.cli.output import Column, print_data, print_list, print_object, print_rows


@click.group(cls=Group)
def stripe() -> None:
    """Collecting invoices through Stripe."""


@stripe.command("check", examples=["farebox stripe check", "farebox stripe check -o json"])
@pass_state
@click.pass_context
def stripe_check(context: click.Context, state: State) -> None:
    """Show what the configured key may do. Nothing is changed at Stripe.

    Exits 1 when there is no key, when Stripe cannot be reached, or when something is not allowed.
    """
    found = state.client.stripe.check()
    if not print_data(state, found):
        columns = [
            Column("resource", "resource"),
            Column("access", "access"),
            Column("allowed", "allowed"),
            Column("needed for", "needed_for"),
            Column("why not", "detail"),
        ]
        print_rows(state, found["permissions"], columns, empty=found["problem"] or "Nothing was asked.")
        secret = "set" if found["webhook_secret"] else "missing: webhooks are refused"
        note(f"Key: {found['mode']}. Webhook secret: {secret}.")
    if not found["reachable"] or not all(each["allowed"] for each in found["permissions"]):
        context.exit(EXIT_REFUSED)


@stripe.command("status", examples=["farebox stripe status", "farebox stripe status -o json | jq .troubled"])
@pass_state
def stripe_status(state: State) -> None:
    """Show what waits for Stripe, and what had errors."""
    found = state.client.stripe.status()
    if print_data(state, found):
        return
    columns = [Column("task", "kind"), Column("state", "state"), Column("count", "count", True)]
    print_rows(state, found["tasks"], columns, empty="Stripe was never asked for anything.")
    if found["troubled"] and state.output_format() != "tsv":
        click.echo()
        troubles = [
            Column("task", "id"),
            Column("state", "state"),
            Column("tries", "attempts", True),
            Column("next try", "next_at"),
            Column("error", "error"),
        ]
        print_rows(state, found["troubled"], troubles)
    at_stripe = ", ".join(f"{count} {status}" for status, count in sorted(found["invoices"].items()))
    note(f"Key: {found['mode']}. Invoices at Stripe: {at_stripe or 'none'}.")


@stripe.command("sync", examples=["farebox stripe sync", "farebox stripe sync --retry-failed"])
@click.option("--retry-failed", is_flag=True, help="Also what Stripe refused for good.")
@pass_state
def stripe_sync(state: State, retry_failed: bool) -> None:
    """Try now what waits, and read back invoices that are not settled."""
    print_object(state, state.client.stripe.sync(retry_failed=retry_failed))


@stripe.command("webhooks", examples=["farebox stripe webhooks", "farebox stripe webhooks --limit 20 -o tsv"])
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="How many.")
@pass_state
def stripe_webhooks(state: State, limit: int) -> None:
    """List what Stripe told, the newest first, and what became of it."""
    columns = [
        Column("received", "received_at"),
        Column("type", "type"),
        Column("object", "object_id"),
        Column("deliveries", "deliveries", True),
        Column("processed", "processed_at"),
        Column("outcome", "outcome"),
        Column("id", "id"),
    ]
    print_list(state, state.client.stripe.events(limit=limit), columns, empty="Stripe told nothing yet.")
