"""`farebox marketplace-subscription`."""

import click

from farebox.cli.endpoints import confirm
from farebox.cli.files import read_mapping
from farebox.cli.framework import Group, State, pass_state
from farebox.cli.models import model_ids
from farebox.cli.organizations import project_names
from farebox.cli.output import Column, print_done, print_list, print_object
from farebox.cli.problems import suggesting
from farebox.registry import catalog_id

_FIELDS = ("name", "model_id", "project")


@click.group("marketplace-subscription", cls=Group)
def marketplace_subscription() -> None:
    """Accepted terms of others' models."""


@marketplace_subscription.command(
    "create",
    examples=[
        "farebox marketplace-subscription create large-chat --model acme/large-chat --project web",
        "farebox marketplace-subscription create -f subscription.yaml --yes",
    ],
)
@click.argument("name", required=False)
@click.option("--model", "model_id", metavar="ID", help="The model's catalog id.")
@click.option(
    "--project", metavar="P", help="For whom: name, organization/name or id. Default: the only one."
)
@click.option(
    "-f", "--file", "path", metavar="FILE", help="A YAML file, Azure ML's too; options win over it."
)
@click.option("-y", "--yes", is_flag=True, help="Accept the terms without being asked.")
@pass_state
def subscription_create(
    state: State, /, name: str | None, model_id: str | None, project: str | None, path: str | None, yes: bool
) -> None:
    """Accept the terms of a model's offer for a project. They are good for every model of the same offer."""
    wanted = _from_file(path) if path else {}
    name, project = name or wanted.get("name"), project or wanted.get("project")
    model_id = catalog_id(model_id or wanted.get("model_id") or "")
    if not name or not model_id:
        raise click.UsageError(
            "a name and a model are needed: farebox marketplace-subscription create NAME --model ID"
        )
    with (
        suggesting(model_id, lambda: model_ids(state), "farebox model list", param="model"),
        suggesting(project, lambda: project_names(state), "farebox project list", param="project"),
    ):
        if not yes:
            terms = state.client.models.get(model_id).get("marketplace", {}).get("terms_url")
            if terms:
                confirm(f"Accept the terms of {model_id}, {terms}?")
        made = state.client.marketplace_subscriptions.create(name, model=model_id, project=project)
    print_object(state, made)


def _from_file(path: str) -> dict[str, str]:
    fields = {name: value for name, value in read_mapping(path).items() if name != "$schema"}
    for name, value in fields.items():
        if name not in _FIELDS:
            raise click.UsageError(f"-f {path}: unknown field {name!r}; known fields: {', '.join(_FIELDS)}")
        if not isinstance(value, str):
            raise click.UsageError(f"-f {path}: {name}: expected a text, got {value!r}; put it in quotes")
    return fields


@marketplace_subscription.command("list", examples=["farebox marketplace-subscription list --project web"])
@click.option("--project", metavar="P", help="Only this project's.")
@pass_state
def subscription_list(state: State, /, project: str | None) -> None:
    """List the subscriptions."""
    columns = (
        Column("name", "name"),
        Column("model", "model"),
        Column("offer", "offer"),
        Column("terms", "terms_url"),
        Column("accepted", "created_at"),
    )
    with suggesting(project, lambda: project_names(state), "farebox project list", param="project"):
        rows = state.client.marketplace_subscriptions.list(project=project)
    print_list(state, rows, columns, empty="No terms were accepted.")


@marketplace_subscription.command("show", examples=["farebox marketplace-subscription show large-chat"])
@click.argument("name")
@pass_state
def subscription_show(state: State, /, name: str) -> None:
    """Show one: whose terms, who accepted them, and the endpoints that need it."""
    print_object(state, state.client.marketplace_subscriptions.get(name))


@marketplace_subscription.command(
    "delete", examples=["farebox marketplace-subscription delete large-chat --yes"]
)
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_state
def subscription_delete(state: State, /, name: str, yes: bool) -> None:
    """Withdraw: the endpoints that need it answer no more calls, but cost their fee until they are deleted."""
    if not yes:
        found = state.client.marketplace_subscriptions.get(name)
        count = len(found["endpoints"])
        confirm(
            f"Delete subscription {name}? {count} endpoint{'s' * (count != 1)} will answer no more calls."
        )
    answer = state.client.marketplace_subscriptions.delete(name)
    print_done(state, answer, f"Deleted {name}.")
