"""`farebox online-deployment`."""

import sys
from collections.abc import Sequence
from typing import Any

import click

from farebox.cli.documents import (
    file_option,
    local_option,
    located,
    name_option,
    no_wait_option,
    read_document,
    refuse_local,
    required,
    say_notes,
    set_option,
    wait_for,
    yes_option,
)
from farebox.cli.endpoints import confirm, follow_log
from farebox.cli.framework import Group, State, is_terminal, note, pass_state
from farebox.cli.output import Column, print_data, print_done, print_list, print_object, write_text
from farebox.scripts import check_script

_FOLLOW_LINES = 1000

_endpoint_option = name_option("endpoint", "-e", "--endpoint-name", "endpoint_name")
_skip_option = click.option(
    "--skip-script-validation",
    is_flag=True,
    help="Do not look for init() and run() in the scoring script first.",
)


@click.group("online-deployment", cls=Group)
def online_deployment() -> None:
    """Deployments of online endpoints."""


@online_deployment.command(
    "create",
    examples=[
        "farebox online-deployment create -f blue.yml --all-traffic",
        "farebox online-deployment create --name green --endpoint-name my-endpoint -f green.yml --set instance_count=2",
    ],
)
@name_option("deployment")
@_endpoint_option
@file_option
@set_option
@click.option(
    "--all-traffic", is_flag=True, help="Once it is ready, the endpoint's whole traffic goes to it."
)
@click.option(
    "--with-package",
    is_flag=True,
    help="Freeze model, code and environment into a package first, and deploy that.",
)
@_skip_option
@local_option
@no_wait_option
@pass_state
def create(
    state: State,
    name: str | None,
    endpoint_name: str | None,
    path: str | None,
    settings: Sequence[str],
    all_traffic: bool,
    with_package: bool,
    skip_script_validation: bool,
    local: bool,
    no_wait: bool,
) -> None:
    """Make a deployment and wait until it is ready. It gets no traffic unless asked for."""
    refuse_local(local, all_traffic=all_traffic)
    document = read_document(path, settings, name=name, endpoint_name=endpoint_name)
    required(document, "name", "--name")
    endpoint = required(document, "endpoint_name", "--endpoint-name")
    if not skip_script_validation:
        check_script(document.value)
    with located(document):
        value = _packaged(state, document.value) if with_package else document.value
        answer = state.client.online_deployments.create(endpoint, value, all_traffic=all_traffic)
    _finish(state, answer, no_wait)


def _packaged(state: State, document: dict[str, Any]) -> dict[str, Any]:
    """The deployment of a package that is made of it now."""
    model, environment = document.get("model"), document.get("environment")
    if not isinstance(model, str) or not model.startswith("azureml:"):
        raise click.UsageError("--with-package: model: expected a registered one, azureml:NAME:VERSION")
    if environment is not None and not isinstance(environment, str):
        raise click.UsageError("--with-package: environment: expected a registered one, azureml:NAME:VERSION")
    reference = model.removeprefix("azureml:").replace("@", ":")
    name, _, version = reference.partition(":")
    package: dict[str, Any] = {
        "target_environment": f"{document['endpoint_name']}-{document['name']}-package"
    }
    if environment is not None:
        package["base_environment_source"] = {"resource_id": environment}
    if document.get("code_configuration"):
        package["inferencing_server"] = {"code_configuration": document["code_configuration"]}
    made = state.client.registered_models.make_package(name, version or "latest", package)
    note(f"Packaged as {made['id']}")
    left = {key: value for key, value in document.items() if key not in ("model", "code_configuration")}
    return left | {"environment": made["id"]}


@online_deployment.command(
    "update",
    examples=[
        "farebox online-deployment update -f blue.yml",
        "farebox online-deployment update --name blue --endpoint-name my-endpoint --set instance_count=3",
    ],
)
@name_option("deployment")
@_endpoint_option
@file_option
@set_option
@_skip_option
@local_option
@no_wait_option
@pass_state
def update(
    state: State,
    name: str | None,
    endpoint_name: str | None,
    path: str | None,
    settings: Sequence[str],
    skip_script_validation: bool,
    local: bool,
    no_wait: bool,
) -> None:
    """Change a deployment: with -f all of it, else only the fields of --set. Calls go on meanwhile."""
    document = read_document(path, settings, name=name, endpoint_name=endpoint_name)
    known = required(document, "name", "--name")
    endpoint = required(document, "endpoint_name", "--endpoint-name")
    if path is None and not settings:
        raise click.UsageError("nothing to change: give -f or --set")
    if not skip_script_validation:
        check_script(document.value)
    deployments = state.client.online_deployments
    with located(document):
        deployments.read(endpoint, known)  # or -f would make a new one of a name with a slip
        if path is None:
            answer = deployments.patch(endpoint, known, document.value)
        else:
            answer = deployments.put(endpoint, known, document.value)
    _finish(state, answer, no_wait, said_before=path is None)


@online_deployment.command(
    "render",
    examples=[
        "farebox online-deployment render -f triton.yml --storage-uri pvc://models/triton | kubectl apply -f -",
        "farebox online-deployment render -f blue.yml --image churn:3 --namespace models",
    ],
)
@name_option("deployment")
@_endpoint_option
@file_option
@set_option
@click.option("--storage-uri", metavar="URI", help="Where pods find the model: pvc://…, s3://…, hf://…")
@click.option("--image", metavar="IMAGE", help="What pods run. Default: environment.image in the file.")
@click.option("--namespace", default="default", show_default=True, metavar="NS", help="The namespace.")
@pass_state
def render(
    state: State,
    name: str | None,
    endpoint_name: str | None,
    path: str | None,
    settings: Sequence[str],
    storage_uri: str | None,
    image: str | None,
    namespace: str,
) -> None:
    """Write a deployment out for a cluster, as a KServe InferenceService in YAML. Nothing is made.

    For Triton repositories, servers that come as an image, and images of packages (farebox model package).
    """
    document = read_document(path, settings, name=name, endpoint_name=endpoint_name)
    required(document, "name", "--name")
    required(document, "endpoint_name", "--endpoint-name")
    with located(document):
        made = state.client.online_deployments.render(
            document.value, storage_uri=storage_uri, image=image, namespace=namespace
        )
    say_notes(made)
    if state.query is not None or state.output_format(text_by_default=True) in ("json", "yaml"):
        print_data(state, {"apiVersion": "v1", "kind": "List", "items": made["manifests"]})
    else:
        import yaml

        write_text(yaml.safe_dump_all(made["manifests"], sort_keys=False, allow_unicode=True))


@online_deployment.command(
    "show", examples=["farebox online-deployment show --name blue --endpoint-name my-endpoint"]
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The deployment's name.")
@click.option("-e", "--endpoint-name", required=True, metavar="NAME", help="The endpoint's name.")
@local_option
@pass_state
def show(state: State, name: str, endpoint_name: str, local: bool) -> None:
    """Show a deployment: as it was written, and as it is."""
    print_object(state, state.client.online_deployments.read(endpoint_name, name))


@online_deployment.command("list", examples=["farebox online-deployment list --endpoint-name my-endpoint"])
@click.option("-e", "--endpoint-name", required=True, metavar="NAME", help="The endpoint's name.")
@local_option
@pass_state
def list_(state: State, endpoint_name: str, local: bool) -> None:
    """List the deployments of an endpoint."""
    columns = [
        Column("name", "name"),
        Column("kind", "kind"),
        Column("provisioning", "provisioning_state"),
        Column("state", "runtime.state"),
        Column("instances", "instance_count", number=True),
        Column("traffic %", "traffic", number=True),
        Column("mirrored %", "mirror_traffic", number=True),
        Column("updated", "updated_at"),
        Column("failure", lambda row: (row.get("failure") or {}).get("code")),
    ]
    empty = "No deployments yet. Make one: farebox online-deployment create -f FILE"
    rows = state.client.online_deployments.rows(endpoint_name)
    print_list(state, rows, columns, empty=empty)


@online_deployment.command(
    "delete", examples=["farebox online-deployment delete --name blue --endpoint-name my-endpoint --yes"]
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The deployment's name.")
@click.option("-e", "--endpoint-name", required=True, metavar="NAME", help="The endpoint's name.")
@yes_option
@local_option
@no_wait_option
@pass_state
def delete(state: State, name: str, endpoint_name: str, yes: bool, local: bool, no_wait: bool) -> None:
    """Delete a deployment. Refused while it has traffic."""
    deployments = state.client.online_deployments
    if not yes:
        deployments.read(endpoint_name, name)  # a wrong name is said before the question
        confirm(f"Delete deployment {name} of {endpoint_name}?")
    answer = deployments.delete(endpoint_name, name)
    print_done(state, answer, f"Deleted {name}.")


@online_deployment.command(
    "get-logs",
    examples=[
        "farebox online-deployment get-logs --name blue --endpoint-name my-endpoint --lines 50",
        "farebox online-deployment get-logs --name blue --endpoint-name my-endpoint --follow",
    ],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The deployment's name.")
@click.option("-e", "--endpoint-name", required=True, metavar="NAME", help="The endpoint's name.")
@click.option(
    "-l",
    "--lines",
    type=click.IntRange(1, 5000),
    default=200,
    show_default=True,
    help="How many, from the end.",
)
@click.option(
    "-c",
    "--container",
    type=click.Choice(["inference-server", "storage-initializer"]),
    default="inference-server",
    show_default=True,
    help="storage-initializer: what was copied before the server began.",
)
@click.option("--follow", is_flag=True, help="Go on printing new lines until Ctrl-C.")
@local_option
@pass_state
def get_logs(
    state: State, name: str, endpoint_name: str, lines: int, container: str, follow: bool, local: bool
) -> None:
    """Print the log of a deployment's newest instance."""
    kind = state.output_format(text_by_default=True)
    if follow and kind:
        raise click.UsageError("--follow prints text: leave out -o")
    window = max(lines, _FOLLOW_LINES) if follow else lines

    def read() -> str:
        logs = state.client.online_deployments.get_logs
        return logs(name, endpoint_name, window, container_type=container)

    found = read().splitlines()
    shown = found[-lines:]
    if not (kind and print_data(state, {"name": name, "lines": shown})):
        write_text("".join(f"{line}\n" for line in shown))
    if follow:
        follow_log(read, found)


def _finish(state: State, answer: dict[str, Any], no_wait: bool, *, said_before: bool = False) -> None:
    if not said_before:
        say_notes(answer)
    name, endpoint = answer["name"], answer["endpoint_name"]
    deployments = state.client.online_deployments
    if not no_wait:
        logs = f"farebox online-deployment get-logs --name {name} --endpoint-name {endpoint}"
        wait_for(state, deployments.poller(answer, endpoint, name), name, next_step=logs)
        answer = deployments.read(endpoint, name)
    print_object(state, answer)
    if not no_wait and is_terminal(sys.stderr) and not answer["traffic"]:
        note(
            f'It has no traffic yet: farebox online-endpoint update --name {endpoint} --traffic "{name}=100"'
        )
