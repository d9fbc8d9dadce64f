"""`farebox online-endpoint`."""

from collections.abc import Sequence
from typing import Any

import click

from farebox.cli.documents import (
    file_option,
    local_option,
    located,
    name_option,
    no_wait_option,
    parse_shares,
    read_document,
    refuse_local,
    required,
    say_notes,
    set_option,
    wait_for,
    yes_option,
)
from farebox.cli.endpoints import confirm
from farebox.cli.framework import Group, State, note, pass_state
from farebox.cli.output import Column, print_done, print_list, print_object, write_text
from farebox.documents import set_fields

_TRAFFIC_HELP = 'The live split, e.g. "blue=90 green=10"; who is not named gets nothing.'
_MIRROR_HELP = 'Copies of calls for one deployment, e.g. "green=10"; "green=0" ends it.'


@click.group("online-endpoint", cls=Group)
def online_endpoint() -> None:
    """Online endpoints: a URL, and traffic shares."""


@online_endpoint.command(
    "create",
    examples=[
        "farebox online-endpoint create --name my-endpoint",
        "farebox online-endpoint create -f endpoint.yml --set tags.team=search",
    ],
)
@name_option("endpoint")
@file_option
@set_option
@click.option("--auth-mode", type=click.Choice(["key", "aml_token", "aad_token"]), help="Default: key.")
@click.option(
    "--project", metavar="P", help="The project: name, organization/name or id. Default: the only one."
)
@local_option
@no_wait_option
@pass_state
def create(
    state: State,
    name: str | None,
    path: str | None,
    settings: Sequence[str],
    auth_mode: str | None,
    project: str | None,
    local: bool,
    no_wait: bool,
) -> None:
    """Make an endpoint. It has no deployment yet: farebox online-deployment create."""
    document = read_document(path, settings, name=name, auth_mode=auth_mode, project=project)
    refuse_local(
        local, traffic=document.value.get("traffic"), mirror_traffic=document.value.get("mirror_traffic")
    )
    required(document, "name", "--name")
    with located(document):
        answer = state.client.online_endpoints.create(document.value)
    say_notes(answer)
    _finish(state, answer, no_wait)


@online_endpoint.command(
    "update",
    examples=[
        'farebox online-endpoint update --name my-endpoint --traffic "blue=90 green=10"',
        'farebox online-endpoint update --name my-endpoint --mirror-traffic "green=10"',
        "farebox online-endpoint update --name my-endpoint --set tags.team=search",
        "farebox online-endpoint update -f endpoint.yml",
    ],
)
@name_option("endpoint")
@file_option
@set_option
@click.option("--traffic", metavar="SHARES", help=_TRAFFIC_HELP)
@click.option("--mirror-traffic", metavar="SHARES", help=_MIRROR_HELP)
@local_option
@no_wait_option
@pass_state
def update(
    state: State,
    name: str | None,
    path: str | None,
    settings: Sequence[str],
    traffic: str | None,
    mirror_traffic: str | None,
    local: bool,
    no_wait: bool,
) -> None:
    """Change an endpoint: with -f all of it, else only what is given. Traffic moves at once."""
    refuse_local(local, traffic=traffic, mirror_traffic=mirror_traffic)
    live, copies = parse_shares(traffic, "--traffic"), parse_shares(mirror_traffic, "--mirror-traffic")
    document = read_document(path, () if path is None else settings, name=name)
    known = required(document, "name", "--name")
    endpoints = state.client.online_endpoints
    with located(document):
        if path is not None:
            splits = {"traffic": live, "mirror_traffic": copies}
            document.value |= {split: shares for split, shares in splits.items() if shares is not None}
            answer = endpoints.put(known, document.value)
        elif settings:
            answer = endpoints.patch(known, _patch(state, known, settings, live, copies))
        elif live is not None or copies is not None:
            answer = endpoints.put_traffic(known, live, copies)
        else:
            raise click.UsageError("nothing to change: give --traffic, --mirror-traffic, --set or -f")
    if path is not None:
        say_notes(answer)
    _finish(state, answer, no_wait)


def _patch(
    state: State,
    name: str,
    settings: Sequence[str],
    live: dict[str, int] | None,
    copies: dict[str, int] | None,
) -> dict[str, Any]:
    """The fields to change. One share of a split changes that share only."""
    splits = [
        split for split in ("traffic", "mirror_traffic") if any(s.startswith(f"{split}.") for s in settings)
    ]
    fields: dict[str, Any] = {}
    if splits:
        now = state.client.online_endpoints.read(name)
        fields = {split: dict(now[split]) for split in splits}
    set_fields(fields, settings)
    given = {"traffic": live, "mirror_traffic": copies}
    return fields | {split: shares for split, shares in given.items() if shares is not None}


@online_endpoint.command(
    "show", examples=["farebox online-endpoint show --name my-endpoint --query scoring_uri"]
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The endpoint's name.")
@local_option
@pass_state
def show(state: State, name: str, local: bool) -> None:
    """Show an endpoint: its addresses, its split, its state."""
    print_object(state, state.client.online_endpoints.read(name))


@online_endpoint.command(
    "list", examples=["farebox online-endpoint list", "farebox online-endpoint list -o json"]
)
@click.option("--project", metavar="P", help="Only this project's endpoints.")
@local_option
@pass_state
def list_(state: State, project: str | None, local: bool) -> None:
    """List the endpoints."""
    columns = [
        Column("name", "name"),
        Column("state", "provisioning_state"),
        Column("authentication", "auth_mode"),
        Column("traffic", "traffic"),
        Column("mirrored", "mirror_traffic"),
        Column("created", "created_at"),
        Column("scoring URI", "scoring_uri"),
    ]
    empty = "No endpoints yet. Make one: farebox online-endpoint create --name NAME"
    print_list(state, state.client.online_endpoints.rows(project=project), columns, empty=empty)


@online_endpoint.command("delete", examples=["farebox online-endpoint delete --name my-endpoint --yes"])
@click.option("-n", "--name", required=True, metavar="NAME", help="The endpoint's name.")
@yes_option
@local_option
@no_wait_option
@pass_state
def delete(state: State, name: str, yes: bool, local: bool, no_wait: bool) -> None:
    """Delete an endpoint with all its deployments: its URL and keys stop working."""
    endpoints = state.client.online_endpoints
    if not yes:
        endpoints.read(name)  # a wrong name is said before the question
        confirm(f"Delete endpoint {name} and its deployments? Its URL and keys stop working at once.")
    answer = endpoints.delete(name)
    print_done(state, answer, f"Deleted {name}.")


@online_endpoint.command(
    "invoke",
    examples=[
        "farebox online-endpoint invoke --name my-endpoint --request-file request.json",
        "farebox online-endpoint invoke --name my-endpoint --deployment-name green --request-file request.json",
    ],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The endpoint's name.")
@click.option("-d", "--deployment-name", metavar="NAME", help="That deployment, whatever the split is.")
@click.option("-r", "--request-file", metavar="FILE", help="What to send. Default: an empty body.")
@click.option(
    "--path",
    metavar="PATH",
    default="/score",
    show_default=True,
    help="Below the endpoint, as /v1/chat/completions.",
)
@local_option
@pass_state
def invoke(
    state: State, name: str, deployment_name: str | None, request_file: str | None, path: str, local: bool
) -> None:
    """Call an endpoint, and print what it answers."""
    text = state.client.online_endpoints.invoke(
        name, request_file=request_file, deployment_name=deployment_name, path=path
    )
    write_text(text if text.endswith("\n") or not text else f"{text}\n")


@online_endpoint.command(
    "get-credentials",
    examples=[
        "farebox online-endpoint get-credentials --name my-endpoint",
        "farebox online-endpoint get-credentials --name my-endpoint --query primaryKey -o tsv",
    ],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The endpoint's name.")
@pass_state
def get_credentials(state: State, name: str) -> None:
    """Show the endpoint's two keys, or make a token, as its auth_mode is."""
    print_object(state, state.client.online_endpoints.credentials(name))
    note("This opens the endpoint: keep it secret.")


@online_endpoint.command(
    "regenerate-keys",
    examples=["farebox online-endpoint regenerate-keys --name my-endpoint --key-type secondary"],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The endpoint's name.")
@click.option("--key-type", type=click.Choice(["primary", "secondary"]), default="primary", show_default=True)
@no_wait_option
@pass_state
def regenerate_keys(state: State, name: str, key_type: str, no_wait: bool) -> None:
    """Replace one of the two keys. The old one stops working at once; the other one stays valid."""
    print_object(state, state.client.online_endpoints.regenerate(name, key_type))
    note(f"The old {key_type} key no longer works. These keys open the endpoint: keep them secret.")


def _finish(state: State, answer: dict[str, Any], no_wait: bool) -> None:
    name = answer["name"]
    if not no_wait:
        endpoints = state.client.online_endpoints
        wait_for(state, endpoints.poller(answer, name), name)
        answer = endpoints.read(name)
    print_object(state, answer)
