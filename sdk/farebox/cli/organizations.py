"""`farebox org`, `project`, `key`."""

import click

from farebox.cli.framework import Group, State, note, parse_duration, pass_state
from farebox.cli.output import Column, print_list, print_object
from farebox.cli.problems import suggesting


@click.group(cls=Group)
def org() -> None:
    """Organizations: who is billed."""


@org.command("create", examples=["farebox org create acme", "farebox org create acme -o json"])
@click.argument("name")
@pass_state
def org_create(state: State, name: str) -> None:
    """Make an organization."""
    print_object(state, state.client.organizations.create(name))


@org.command("list", examples=["farebox org list"])
@pass_state
def org_list(state: State) -> None:
    """List the organizations."""
    columns = [Column("name", "name"), Column("id", "id"), Column("created", "created_at")]
    empty = "No organizations yet. Make one: farebox org create NAME"
    print_list(state, state.client.organizations.list(), columns, empty=empty)


@click.group(cls=Group)
def project() -> None:
    """Projects: keys and endpoints belong to one."""


@project.command("create", examples=["farebox project create web --org acme"])
@click.argument("name")
@click.option("--org", "organization", required=True, metavar="ORG", help="The organization: name or id.")
@pass_state
def project_create(state: State, name: str, organization: str) -> None:
    """Make a project."""
    client = state.client
    with suggesting(
        organization, lambda: organization_names(state), "farebox org list", param="organization"
    ):
        print_object(state, client.projects.create(name, organization=organization))


@project.command("list", examples=["farebox project list", "farebox project list --org acme"])
@click.option("--org", "organization", metavar="ORG", help="Only this organization's projects.")
@pass_state
def project_list(state: State, organization: str | None) -> None:
    """List the projects."""
    columns = [
        Column("name", "name"),
        Column("organization", "organization"),
        Column("id", "id"),
        Column("created", "created_at"),
    ]
    empty = "No projects yet. Make one: farebox project create NAME --org ORG"
    print_list(state, state.client.projects.list(organization=organization), columns, empty=empty)


@click.group(cls=Group)
def key() -> None:
    """API keys of a project, for calling its endpoints."""


@key.command(
    "create",
    examples=[
        "farebox key create --project web --name laptop",
        "farebox key create --project acme/web --name ci --expires-in 30d -o json",
        "farebox key create --admin --name maria",
    ],
)
@click.option("--project", metavar="P", help="The project: name, organization/name or id.")
@click.option("--admin", is_flag=True, help="An admin key, for another person who manages.")
@click.option("--name", required=True, metavar="N", help="What the key is for.")
@click.option(
    "--expires-in", callback=parse_duration, metavar="TIME", help="For example 30d, 12h, 45m. Default: never."
)
@pass_state
def key_create(state: State, project: str | None, admin: bool, name: str, expires_in: int | None) -> None:
    """Make a key. It is shown this once."""
    if admin == bool(project):
        raise click.UsageError("give either --project or --admin")
    with suggesting(project, lambda: project_names(state), "farebox project list", param="project"):
        created = state.client.keys.create(project=project, name=name, expires_in_s=expires_in, admin=admin)
    print_object(state, created)
    note("Keep this key now: it is stored hashed and cannot be shown again.")


@key.command("list", examples=["farebox key list", "farebox key list --project web"])
@click.option("--project", metavar="P", help="Only this project's keys.")
@pass_state
def key_list(state: State, project: str | None) -> None:
    """List the keys, without the keys themselves."""
    columns = [
        Column("name", "name"),
        Column("id", "id"),
        Column("key", "hint"),
        Column("project", lambda row: row.get("project_id") or "(admin)"),
        Column("created", "created_at"),
        Column("expires", lambda row: row.get("expires_at") or "never"),
        Column("status", "status"),
    ]
    with suggesting(project, lambda: project_names(state), "farebox project list", param="project"):
        rows = state.client.keys.list(project=project)
    print_list(state, rows, columns, empty="No keys yet. Make one: farebox key create --project P --name N")


@key.command("revoke", examples=["farebox key revoke key_01jz0000000000000000000000"])
@click.argument("key_id", metavar="ID")
@pass_state
def key_revoke(state: State, key_id: str) -> None:
    """Refuse calls with this key from now on. There is no way back."""
    client = state.client
    with suggesting(key_id, lambda: [each["id"] for each in client.keys.list()], "farebox key list"):
        answer = client.keys.revoke(key_id)
    print_object(state, answer)


def project_names(state: State) -> list[str]:
    """Names by which a project can be meant."""
    rows = state.client.projects.list()
    return [row["name"] for row in rows] + [f"{row['organization']}/{row['name']}" for row in rows]


def organization_names(state: State) -> list[str]:
    """Names of the organizations."""
    return [each["name"] for each in state.client.organizations.list()]
