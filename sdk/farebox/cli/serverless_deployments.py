"""`farebox serverless-deployment`."""

import click

from farebox.cli.endpoints import confirm
from farebox.cli.framework import Group, State, pass_state
from farebox.cli.models import model_ids
from farebox.cli.output import Column, print_done, print_list, print_object
from farebox.cli.problems import suggesting
from farebox.registry import catalog_id

_ENDPOINT = click.option("--endpoint-name", required=True, metavar="NAME", help="The serverless endpoint.")


@click.group("serverless-deployment", cls=Group)
def serverless_deployment() -> None:
    """Further models of a serverless endpoint."""


@serverless_deployment.command(
    "put",
    examples=[
        "farebox serverless-deployment put large --endpoint-name my-chat --model acme/large-chat",
        "farebox serverless-deployment put next --endpoint-name my-chat --model acme/next --mirror-percent 10",
    ],
)
@click.argument("name")
@_ENDPOINT
@click.option("--model", "model_id", required=True, metavar="ID", help="The model's catalog id.")
@click.option(
    "--mirror-percent", type=int, default=0, help="Share of the calls that it gets copies of, to 50."
)
@pass_state
def deployment_put(
    state: State, /, name: str, endpoint_name: str, model_id: str, mirror_percent: int
) -> None:
    """Add a deployment, or replace one. Calls name it in the header azureml-model-deployment, or as ENDPOINT/NAME.

    Copies are answered to nobody, and paid for as calls are.
    """
    model_id = catalog_id(model_id)
    with suggesting(model_id, lambda: model_ids(state), "farebox model list", param="model"):
        made = state.client.serverless_deployments.put(
            endpoint_name, name, model=model_id, mirror_percent=mirror_percent
        )
    print_object(state, made)


@serverless_deployment.command(
    "list", examples=["farebox serverless-deployment list --endpoint-name my-chat"]
)
@_ENDPOINT
@pass_state
def deployment_list(state: State, /, endpoint_name: str) -> None:
    """List an endpoint's deployments: `default` is its own model."""
    columns = (Column("name", "name"), Column("model", "model"), Column("copies %", "mirror_percent"))
    print_list(state, state.client.serverless_deployments.list(endpoint_name), columns, empty="None.")


@serverless_deployment.command(
    "delete", examples=["farebox serverless-deployment delete large --endpoint-name my-chat --yes"]
)
@click.argument("name")
@_ENDPOINT
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@pass_state
def deployment_delete(state: State, /, name: str, endpoint_name: str, yes: bool) -> None:
    """Delete a deployment: calls that name it are answered 404."""
    if not yes:
        confirm(f"Delete deployment {name} of {endpoint_name}? Calls that name it will be answered 404.")
    answer = state.client.serverless_deployments.delete(endpoint_name, name)
    print_done(state, answer, f"Deleted {name}.")
