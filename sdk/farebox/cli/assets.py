"""`farebox environment`, and registered models for `farebox model`."""

from collections.abc import Mapping, Sequence
from typing import Any

import click

from farebox.cli.documents import file_option, located, name_option, read_document, required, set_option
from farebox.cli.files import write_stream
from farebox.cli.framework import Group, State, pass_state
from farebox.cli.models import model
from farebox.cli.output import Column, print_done, print_list, print_object

_version_option = click.option("-v", "--version", metavar="V", help="Its version. Default: the next number.")
_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("version", "version"),
    Column("registered", "created_at"),
)


@model.command(
    "create",
    examples=[
        "farebox model create -f model.yml",
        "farebox model create --name churn --path ./model --type mlflow_model",
    ],
)
@name_option("model")
@_version_option
@file_option
@set_option
@click.option("--path", "folder", metavar="PATH", help="Its folder or file.")
@click.option(
    "--type", "kind", type=click.Choice(["custom_model", "mlflow_model", "triton_model"]), help="What it is."
)
@pass_state
def model_create(
    state: State,
    name: str | None,
    version: str | None,
    path: str | None,
    settings: Sequence[str],
    folder: str | None,
    kind: str | None,
) -> None:
    """Register a local model, so that deployments of online endpoints can name it: azureml:NAME:VERSION.

    The catalog (farebox model add) is for models that are served by the token.
    """
    document = read_document(path, settings, name=name, version=version, path=folder, type=kind)
    required(document, "name", "--name")
    with located(document):
        print_object(state, state.client.registered_models.register(document.value))


@model.command(
    "package",
    examples=[
        "farebox model package --name churn --version 3 -f package.yml",
        "farebox model package --name churn --version 3 -f package.yml --archive churn.tar",
        "docker build -t churn - < churn.tar",
    ],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The registered model's name.")
@click.option("-v", "--version", required=True, metavar="V", help="Its version; latest is the last one.")
@file_option
@set_option
@click.option(
    "--archive",
    "archive",
    metavar="FILE",
    help="Write there what docker build takes, as a tar archive; - is stdout.",
)
@pass_state
def model_package(
    state: State, name: str, version: str, path: str | None, settings: Sequence[str], archive: str | None
) -> None:
    """Freeze a registered model with its code and environment.

    It becomes an environment: a deployment that names it needs neither model nor code. --archive also makes an image's
    build context of it.
    """
    document = read_document(path, settings)
    if not document.value.get("target_environment"):
        raise click.UsageError("target_environment: the field is missing; give it in -f or with --set")
    with located(document):
        made = state.client.registered_models.make_package(name, version, document.value)
    if archive is not None:
        pieces = state.client.environments.download_package(made["name"], made["version"])
        write_stream(archive, pieces, "--archive")
    if archive != "-":
        print_object(state, made)


@model.command(
    "download",
    examples=[
        "farebox model download --name churn --version 3",
        "farebox model download -n churn -v 3 -p ./models",
    ],
)
@click.option("-n", "--name", required=True, metavar="NAME", help="The registered model's name.")
@click.option("-v", "--version", required=True, metavar="V", help="Its version; latest is the last one.")
@click.option("-p", "--download-path", default=".", show_default=True, metavar="FOLDER", help="Where to.")
@pass_state
def model_download(state: State, name: str, version: str, download_path: str) -> None:
    """Copy a registered model from the server's machine, into a folder of its name."""
    folder = state.client.registered_models.download(name, version, download_path)
    print_done(
        state, {"name": name, "version": version, "path": str(folder)}, f"Downloaded {name} to {folder}."
    )


@model.command("registered", examples=["farebox model registered", "farebox model registered --name churn"])
@click.option("-n", "--name", metavar="NAME", help="Only versions of this model.")
@pass_state
def model_registered(state: State, name: str | None) -> None:
    """List the registered models."""
    empty = "No registered models yet. Register one: farebox model create --name NAME --path PATH"
    print_list(state, state.client.registered_models.rows(name), _COLUMNS, empty=empty)


@click.group(cls=Group)
def environment() -> None:
    """Environments: what scoring scripts run in."""


@environment.command("create", examples=["farebox environment create -f environment.yml"])
@name_option("environment")
@_version_option
@file_option
@set_option
@click.option("--conda-file", metavar="FILE", help="Its conda file.")
@pass_state
def environment_create(
    state: State,
    name: str | None,
    version: str | None,
    path: str | None,
    settings: Sequence[str],
    conda_file: str | None,
) -> None:
    """Register an environment, so that deployments can name it: azureml:NAME:VERSION."""
    document = read_document(path, settings, name=name, version=version, conda_file=conda_file)
    required(document, "name", "--name")
    with located(document):
        print_object(state, state.client.environments.register(document.value))


@environment.command("list", examples=["farebox environment list"])
@click.option("-n", "--name", metavar="NAME", help="Only versions of this environment.")
@pass_state
def environment_list(state: State, name: str | None) -> None:
    """List the environments."""
    empty = "No environments yet. Register one: farebox environment create -f FILE"
    print_list(state, state.client.environments.rows(name), _COLUMNS, empty=empty)


@environment.command("show", examples=["farebox environment show --name sklearn"])
@click.option("-n", "--name", required=True, metavar="NAME", help="The environment's name.")
@click.option("-v", "--version", default="latest", show_default=True, metavar="V", help="Its version.")
@pass_state
def environment_show(state: State, name: str, version: str) -> None:
    """Show an environment."""
    print_object(state, state.client.environments.read(name, version))


@environment.command("delete", examples=["farebox environment delete --name sklearn --version 1"])
@click.option("-n", "--name", required=True, metavar="NAME", help="The environment's name.")
@click.option("-v", "--version", required=True, metavar="V", help="Its version.")
@pass_state
def environment_delete(state: State, name: str, version: str) -> None:
    """Forget a version of an environment. Deployments that use it go on."""
    answer: Mapping[str, Any] = state.client.environments.delete(name, version)
    print_done(state, answer, f"Deleted {name}, version {version}.")
