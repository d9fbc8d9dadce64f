"""`farebox event`, `quarantine`, `audit`."""

import json
from typing import Any

import click

from farebox.cli.files import read_file
from farebox.cli.framework import EXIT_REFUSED, Group, State, note, pass_state
from farebox.cli.organizations import organization_names
from farebox.cli.output import Column, print_data, print_list, print_object, print_rows
from farebox.cli.problems import suggesting

_COUNTS = ("new", "duplicate", "quarantined", "refused")


@click.group(cls=Group)
def event() -> None:
    """Events of other meters, as CloudEvents."""


@event.command(
    "send",
    examples=[
        "farebox event send -f usage.json",
        "my-meter | farebox event send -f -        # one JSON event per line works too",
    ],
)
@click.option(
    "-f",
    "--file",
    "path",
    required=True,
    metavar="FILE",
    help="One event, a JSON array, or an event per line; - for stdin.",
)
@pass_state
@click.pass_context
def event_send(context: click.Context, state: State, path: str) -> None:
    """Send events. Sending them again changes nothing.

    Exits 1 when one went to quarantine or was refused.
    """
    total: dict[str, Any] = dict.fromkeys(_COUNTS, 0) | {"data": []}
    for answer in state.client.events.send_all(_events_in(path)):
        first = len(total["data"])
        total["data"] += [{**each, "index": each["index"] + first} for each in answer["data"]]
        for name in _COUNTS:
            total[name] += answer[name]  # type: ignore[literal-required]  # four names of that type
    if not print_data(state, total):
        columns = [
            Column("event", "id"),
            Column("status", "status"),
            Column("field", "param"),
            Column("reason", "reason"),
            Column("quarantine", "quarantine_id"),
        ]
        print_rows(state, total["data"], columns, empty="No events in that file.")
        note(", ".join(f"{total[name]} {name}" for name in _COUNTS))
    if total["quarantined"] or total["refused"]:
        context.exit(EXIT_REFUSED)


@event.command("types", examples=["farebox event types"])
@pass_state
def event_types(state: State) -> None:
    """List the types of events: those that are taken in, and those that go to webhooks."""
    columns = [Column("type", "type"), Column("direction", "direction"), Column("what", "description")]
    print_list(state, state.client.events.types(), columns, empty="None.")


@event.command("schema", examples=["farebox event schema ai.farebox.usage.v1 -o json > usage.schema.json"])
@click.argument("event_type", metavar="TYPE")
@pass_state
def event_schema(state: State, event_type: str) -> None:
    """Show the JSON Schema of an event type."""
    with suggesting(
        event_type, lambda: [each["type"] for each in state.client.events.types()], "farebox event types"
    ):
        print_object(state, state.client.events.schema(event_type))


@click.group(cls=Group)
def quarantine() -> None:
    """Events that could not be taken in."""


@quarantine.command("list", examples=["farebox quarantine list", "farebox quarantine list --state all"])
@click.option(
    "--state",
    "wanted",
    type=click.Choice(["open", "replayed", "dropped", "all"]),
    default="open",
    show_default=True,
    help="Waiting for a decision, or decided.",
)
@click.option("--limit", type=click.IntRange(1, 10_000), default=200, show_default=True, help="How many.")
@pass_state
def quarantine_list(state: State, wanted: str, limit: int) -> None:
    """List what is in quarantine, the newest first."""
    columns = [
        Column("id", "id"),
        Column("received", "received_at"),
        Column("kind", "kind"),
        Column("source", "source"),
        Column("event", "event_id"),
        Column("state", "state"),
        Column("reason", "reason"),
    ]
    rows = state.client.quarantine.list(state=wanted, limit=limit)
    print_list(state, rows, columns, empty="Nothing is in quarantine.")


@quarantine.command(
    "show",
    examples=["farebox quarantine show 17", "farebox quarantine show 17 -o json | jq .event > fix.json"],
)
@click.argument("entry_id", metavar="ID")
@pass_state
def quarantine_show(state: State, entry_id: str) -> None:
    """Show an event in quarantine, with the reason and what was sent."""
    print_object(state, state.client.quarantine.get(entry_id), skip=["event"])


@quarantine.command("fix", examples=["farebox quarantine fix 17 -f fix.json --note 'model was renamed'"])
@click.argument("entry_id", metavar="ID")
@click.option(
    "-f", "--file", "path", required=True, metavar="FILE", help="The mended event as JSON; - for stdin."
)
@click.option("--note", "why", default="", metavar="TEXT", help="Why, for the audit log.")
@pass_state
def quarantine_fix(state: State, entry_id: str, path: str, why: str) -> None:
    """Take in a mended event in place of the one in quarantine."""
    events = _events_in(path)
    if len(events) != 1:
        raise click.UsageError(f"-f {path}: expected one event, got {len(events)}")
    print_object(state, state.client.quarantine.replay(entry_id, event=events[0], note=why))


@quarantine.command("replay", examples=["farebox quarantine replay 17"])
@click.argument("entry_id", metavar="ID")
@click.option("--note", "why", default="", metavar="TEXT", help="Why, for the audit log.")
@pass_state
def quarantine_replay(state: State, entry_id: str, why: str) -> None:
    """Take in an event as it is, after what was missing (a model, a project) is there."""
    print_object(state, state.client.quarantine.replay(entry_id, note=why))


@quarantine.command("drop", examples=["farebox quarantine drop 17 --note 'a test of the new meter'"])
@click.argument("entry_id", metavar="ID")
@click.option("--note", "why", default="", metavar="TEXT", help="Why, for the audit log.")
@pass_state
def quarantine_drop(state: State, entry_id: str, why: str) -> None:
    """Decide that an event is never billed. It stays on record."""
    print_object(state, state.client.quarantine.drop(entry_id, note=why))


@click.group(cls=Group)
def audit() -> None:
    """Who decided what, when."""


@audit.command(
    "list", examples=["farebox audit list", "farebox audit list --action quarantine --limit 20 -o json"]
)
@click.option("--org", "organization", metavar="ORG", help="Only of this organization: name or id.")
@click.option("--action", metavar="NAME", help="Such as quarantine.drop, or its first part.")
@click.option("--object", "object_id", metavar="ID", help="Only what was done to this.")
@click.option("--limit", type=click.IntRange(1, 200), default=50, show_default=True, help="How many.")
@click.option("--after", metavar="CURSOR", help="The page after this one: the `next` of the page before.")
@pass_state
def audit_list(
    state: State,
    organization: str | None,
    action: str | None,
    object_id: str | None,
    limit: int,
    after: str | None,
) -> None:
    """List the audit log, the newest first, one page at a time."""
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        page = state.client.audit.list(
            organization=organization, action=action, object_id=object_id, limit=limit, after=after
        )
    if print_data(state, page):
        return
    columns = [
        Column("at", "at"),
        Column("actor", "actor"),
        Column("action", "action"),
        Column("object", "object"),
        Column("detail", "detail"),
    ]
    print_rows(state, page["data"], columns, empty="Nothing yet.")
    if page.get("next"):
        note(f"More: add --after {page['next']}")


def _events_in(path: str) -> list[dict[str, Any]]:
    """The events of a file: one object, an array, or an object per line."""
    content = read_file(path).decode("utf-8", "replace")
    try:
        value = json.loads(content)
        found = value if isinstance(value, list) else [value]
    except ValueError:
        found = [
            _line(path, number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()
        ]
    for number, each in enumerate(found, 1):
        if not isinstance(each, dict):
            raise click.UsageError(f"-f {path}: event {number} is no JSON object")
    return found


def _line(path: str, number: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise click.UsageError(f"-f {path}, line {number}: not JSON: {error}") from None
