"""`farebox webhook`."""

from collections.abc import Sequence
from typing import Any

import click

from farebox.cli.framework import Group, State, note, parse_time, pass_state
from farebox.cli.organizations import organization_names
from farebox.cli.output import Column, print_data, print_done, print_list, print_object, print_rows
from farebox.cli.problems import suggesting

_SECRET = "Keep this secret now: it is stored encrypted and cannot be shown again."


@click.group(cls=Group)
def webhook() -> None:
    """Addresses that are told of events."""


@webhook.command(
    "create",
    examples=[
        "farebox webhook create https://example.com/hooks/farebox --org acme",
        "farebox webhook create https://example.com/money --event ai.farebox.invoice.finalized.v1",
    ],
)
@click.argument("address", metavar="URL")
@click.option(
    "--org", "organization", metavar="ORG", help="The organization: name or id. Default: the only one."
)
@click.option(
    "--event", "events", multiple=True, metavar="TYPE", help="A type to send; repeat it. Default: all."
)
@click.option("--description", default="", metavar="TEXT", help="What it is for.")
@pass_state
def webhook_create(
    state: State, address: str, organization: str | None, events: Sequence[str], description: str
) -> None:
    """Make a webhook. Its secret is shown this once."""
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        made = state.client.webhooks.create(
            address, organization=organization, events=events, description=description
        )
    print_object(state, made)
    note(_SECRET)


@webhook.command("list", examples=["farebox webhook list", "farebox webhook list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's.")
@pass_state
def webhook_list(state: State, organization: str | None) -> None:
    """List the webhooks."""
    columns = [
        Column("id", "id"),
        Column("url", "url"),
        Column("events", lambda row: row.get("events") or "all"),
        Column("enabled", "enabled"),
        Column("last success", "last_success_at"),
        Column("disabled because", "disabled_reason"),
    ]
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        rows = state.client.webhooks.list(organization=organization)
    print_list(state, rows, columns, empty="No webhooks yet. Make one: farebox webhook create URL --org ORG")


@webhook.command("show", examples=["farebox webhook show wh_01jz0000000000000000000000"])
@click.argument("webhook_id", metavar="ID")
@pass_state
def webhook_show(state: State, webhook_id: str) -> None:
    """Show a webhook, without its secret."""
    with _suggesting(state, webhook_id):
        print_object(state, state.client.webhooks.get(webhook_id))


@webhook.command(
    "change",
    examples=[
        "farebox webhook change wh_01jz0000000000000000000000 --address https://example.com/new",
        "farebox webhook change wh_01jz0000000000000000000000 --enable",
    ],
)
@click.argument("webhook_id", metavar="ID")
@click.option("--address", metavar="URL", help="Another address.")
@click.option(
    "--event", "events", multiple=True, metavar="TYPE", help="Only these types from now on; repeat it."
)
@click.option("--all-events", is_flag=True, help="All types from now on.")
@click.option("--description", metavar="TEXT", help="What it is for.")
@click.option("--enable/--disable", "enabled", default=None, help="Send there, or not for a while.")
@pass_state
def webhook_change(
    state: State,
    webhook_id: str,
    address: str | None,
    events: Sequence[str],
    all_events: bool,
    description: str | None,
    enabled: bool | None,
) -> None:
    """Change a webhook; what is not named stays."""
    if events and all_events:
        raise click.UsageError("give either --event or --all-events")
    if address is None and description is None and enabled is None and not events and not all_events:
        raise click.UsageError(
            "name a change: --address, --event, --all-events, --description, --enable, --disable"
        )
    wanted = [] if all_events else events or None
    with _suggesting(state, webhook_id):
        changed = state.client.webhooks.change(
            webhook_id, url=address, events=wanted, description=description, enabled=enabled
        )
    print_object(state, changed)


@webhook.command("delete", examples=["farebox webhook delete wh_01jz0000000000000000000000"])
@click.argument("webhook_id", metavar="ID")
@pass_state
def webhook_delete(state: State, webhook_id: str) -> None:
    """Send nothing there any more."""
    with _suggesting(state, webhook_id):
        gone = state.client.webhooks.delete(webhook_id)
    print_done(state, gone, f"Deleted {webhook_id}.")


@webhook.command("rotate-secret", examples=["farebox webhook rotate-secret wh_01jz0000000000000000000000"])
@click.argument("webhook_id", metavar="ID")
@pass_state
def webhook_rotate_secret(state: State, webhook_id: str) -> None:
    """Make a new secret. The old one signs too for a day."""
    with _suggesting(state, webhook_id):
        changed = state.client.webhooks.rotate_secret(webhook_id)
    print_object(state, changed)
    note(_SECRET)


@webhook.command("test", examples=["farebox webhook test wh_01jz0000000000000000000000"])
@click.argument("webhook_id", metavar="ID")
@pass_state
def webhook_test(state: State, webhook_id: str) -> None:
    """Send a test message."""
    with _suggesting(state, webhook_id):
        sent = state.client.webhooks.test(webhook_id)
    print_object(state, sent)
    note(f"What became of it: farebox webhook delivery {webhook_id} {sent['message']}")


@webhook.command(
    "deliveries",
    examples=[
        "farebox webhook deliveries wh_01jz0000000000000000000000",
        "farebox webhook deliveries wh_01jz0000000000000000000000 --state failed -o json",
    ],
)
@click.argument("webhook_id", metavar="ID")
@click.option("--state", "wanted", type=click.Choice(["pending", "delivered", "failed"]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="The page after this one: the `next` of the page before.")
@pass_state
def webhook_deliveries(
    state: State, webhook_id: str, wanted: str | None, limit: int, after: str | None
) -> None:
    """List what was sent, the newest first, one page at a time."""
    with _suggesting(state, webhook_id):
        page = state.client.webhooks.deliveries(webhook_id, state=wanted, limit=limit, after=after)
    if print_data(state, page):
        return
    columns = [
        Column("message", "message"),
        Column("type", "type"),
        Column("occurred", "occurred_at"),
        Column("state", "state"),
        Column("attempts", "attempts", number=True),
        Column("status", "last_status"),
        Column("error", "last_error"),
        Column("next", "next_at"),
    ]
    print_rows(state, page["data"], columns, empty="Nothing was sent yet.")
    if page.get("next"):
        note(f"More: add --after {page['next']}")


@webhook.command(
    "delivery",
    examples=["farebox webhook delivery wh_01jz0000000000000000000000 msg_01jz0000000000000000000000"],
)
@click.argument("webhook_id", metavar="ID")
@click.argument("message_id", metavar="MESSAGE")
@pass_state
def webhook_delivery(state: State, webhook_id: str, message_id: str) -> None:
    """Show one message with the log of its attempts."""
    print_object(state, state.client.webhooks.delivery(webhook_id, message_id))


@webhook.command(
    "replay",
    examples=[
        "farebox webhook replay wh_01jz0000000000000000000000 --message msg_01jz0000000000000000000000",
        "farebox webhook replay wh_01jz0000000000000000000000 --since 2026-01-31T12:00:00Z",
    ],
)
@click.argument("webhook_id", metavar="ID")
@click.option("--message", metavar="ID", help="This one, whatever became of it.")
@click.option(
    "--since", callback=parse_time, metavar="TIME", help="All from this time (UTC) on that did not arrive."
)
@pass_state
def webhook_replay(state: State, webhook_id: str, message: str | None, since: str | None) -> None:
    """Send again."""
    if (message is None) == (since is None):
        raise click.UsageError("give either --message or --since")
    with _suggesting(state, webhook_id):
        count = state.client.webhooks.replay(webhook_id, message=message, since=since)
    print_done(state, {"replayed": count}, f"{count} to be sent again.")


def _suggesting(state: State, webhook_id: str) -> Any:
    names = lambda: [each["id"] for each in state.client.webhooks.list()]  # noqa: E731  # short, and used once
    return suggesting(webhook_id, names, "farebox webhook list")
