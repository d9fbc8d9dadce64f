"""Deployments of online endpoints, and the operations that make and change them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated, Any, Literal

from fastapi import Query, Response, status
from fastapi.responses import PlainTextResponse
from sqlalchemy import Connection

from catalog.store import find_model, list_models
from core.errors import Invalid, NotFound
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.endpoints import MAX_LOG_LINES
from functions.console.online_endpoints import ACCEPTED
from functions.console.online_out import (
    OnlineDeploymentOut,
    OperationOut,
    online_deployment_out,
    operation_out,
)
from functions.console.online_shapes import OnlineDeploymentDocument
from functions.console.routing import console_router
from functions.console.shapes import Page
from serving.endpoints import get_endpoint
from serving.environments import VirtualEnvironments
from serving.model import Endpoint
from serving.online import assets, changes, copies, rules, store
from serving.online.assemble import Assembled, deployment_spec
from serving.online.launch import catalog_model
from serving.online.machine import capacity
from serving.online.merge import merge_patch
from serving.online.model import OnlineDeployment, Operation
from serving.online.spec import DeploymentSpec
from serving.replica_logs import ReplicaLog
from serving.store import live_replicas
from serving.subscriptions import check_subscribed

router = console_router("online deployments")

AllTraffic = Annotated[bool, Query(description="Once it is ready, the endpoint's whole traffic goes to it.")]
_Put = Callable[..., tuple[OnlineDeployment, Operation]]


@router.post(
    "/online-endpoints/{name}/deployments",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Create a deployment",
)
def create_online_deployment(
    name: str, body: OnlineDeploymentDocument, response: Response, deps: Deps, all_traffic: AllTraffic = False
) -> OnlineDeploymentOut:
    """Its code and model are copied now; its processes start then. It gets no traffic unless asked for."""
    document = _of_endpoint(body.given(), name)
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        _early_refusals(connection, row, document, deps)
        made = _assemble(connection, document)
        _check_offer(connection, made, row)
    return _put(changes.create_deployment, row, made, response, deps, all_traffic)


@router.get("/online-endpoints/{name}/deployments", summary="List the deployments of an online endpoint")
def list_online_deployments(name: str, deps: Deps) -> Page[OnlineDeploymentOut]:
    """Oldest first; there are 20 at most."""
    live = deps.runtime.status()
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        online = changes.online_endpoint(connection, row)
        found = store.list_online_deployments(connection, row.id)
        return Page(data=[online_deployment_out(connection, row, online, each, live) for each in found])


@router.get("/online-endpoints/{name}/deployments/{deployment}", summary="Show a deployment")
def get_online_deployment(name: str, deployment: str, deps: Deps) -> OnlineDeploymentOut:
    """As it was written, and as it is."""
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        return _shown(connection, row, changes.get_deployment(connection, row, deployment), deps)


@router.put(
    "/online-endpoints/{name}/deployments/{deployment}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Create or replace a deployment",
)
def put_online_deployment(
    name: str,
    deployment: str,
    body: OnlineDeploymentDocument,
    response: Response,
    deps: Deps,
    all_traffic: AllTraffic = False,
) -> OnlineDeploymentOut:
    """What is absent gets its default. Code and model are copied anew; the same content needs no new processes."""
    document = _of_endpoint(body.given(), name, deployment)
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        old = store.find_online_deployment(connection, endpoint_id=row.id, name=deployment)
        _early_refusals(connection, row, document, deps, is_new=old is None)
        made = _assemble(connection, document)
        _check_offer(connection, made, row)
    put = changes.create_deployment if old is None else changes.update_deployment
    return _put(put, row, made, response, deps, all_traffic)


@router.patch(
    "/online-endpoints/{name}/deployments/{deployment}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Change fields of a deployment",
)
def patch_online_deployment(
    name: str,
    deployment: str,
    body: OnlineDeploymentDocument,
    response: Response,
    deps: Deps,
    all_traffic: AllTraffic = False,
) -> OnlineDeploymentOut:
    """What is absent stays, also the copies of code and model: only what is named is copied anew."""
    patch = _of_endpoint(body.given(), name, deployment)
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        old = changes.get_deployment(connection, row, deployment)
        rules.check_idle(store.running_operations(connection, endpoint_id=row.id), deps.clock.now_ms())
        document = merge_patch(old.spec.document, patch)
        made = _assemble(connection, document, old.spec, frozenset(patch))
        _check_offer(connection, made, row)
    return _put(changes.update_deployment, row, made, response, deps, all_traffic)


@router.delete(
    "/online-endpoints/{name}/deployments/{deployment}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Delete a deployment",
)
def delete_online_deployment(
    name: str, deployment: str, response: Response, deps: Deps
) -> OnlineDeploymentOut:
    """409 while it has traffic. One that is being created is cancelled by it."""
    with deps.db.begin() as connection:
        row = get_endpoint(connection, name, kind="online")
        gone, operation = changes.delete_deployment(connection, row, deployment, deps.clock.now_ms())
        response.headers["operation-location"] = f"/api/operations/{operation.id}"
        return _shown(connection, row, gone, deps, operation)


@router.get(
    "/online-endpoints/{name}/deployments/{deployment}/logs",
    summary="Show the log of a deployment's newest instance",
    response_class=PlainTextResponse,
)
def get_online_logs(
    name: str,
    deployment: str,
    deps: Deps,
    lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 200,
    container: Annotated[
        Literal["inference-server", "storage-initializer"],
        Query(description="storage-initializer: what was prepared before the server began."),
    ] = "inference-server",
) -> PlainTextResponse:
    """The last lines, as text."""
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        found = changes.get_deployment(connection, row, deployment)
    if container == "storage-initializer":
        return PlainTextResponse(_prepared(found.spec, deps, lines))
    text = deps.runtime.tail_log(found.id, lines)
    if not text:
        text = f"{deployment} has written nothing yet (it is {found.provisioning_state}); try again later\n"
    return PlainTextResponse(text)


@router.get("/operations/{operation_id}", summary="Show an operation")
def get_operation(operation_id: str, deps: Deps) -> OperationOut:
    """Of those that ended, the last thousand are remembered."""
    with deps.db.read() as connection:
        found = store.find_operation(connection, operation_id)
    if found is None:
        raise NotFound(
            f"there is no operation {operation_id[:60]!r}, or it ended long ago", param="operation"
        )
    live = deps.runtime.status().get(found.target)
    if live is not None and live.phase:
        found = replace(found, phase=live.phase)  # fresher than the table
    return operation_out(found)


def _put(
    put: _Put,
    row: Endpoint,
    made: Assembled,
    response: Response,
    deps: ConsoleDependencies,
    all_traffic: bool,
) -> OnlineDeploymentOut:
    """Copy first, for that takes its time; then check and record in one transaction."""
    place = _place(deps)
    _forget_copies(place.home, deps)
    staged = copies.stage(
        place.home, made.code, made.model, max_model_bytes=place.max_model_bytes, keyring=deps.keyring
    )
    try:
        with deps.db.begin() as connection:
            row = get_endpoint(connection, row.name, kind="online")
            deployment, operation = put(
                connection, row, made, staged, place, deps.clock.now_ms(), all_traffic=all_traffic
            )
            response.headers["operation-location"] = f"/api/operations/{operation.id}"
            return _shown(connection, row, deployment, deps, operation)
    finally:
        if staged is not None:
            copies.discard(staged.folder)  # gone by now, unless the change was refused or needed no copies


def _forget_copies(home: FilePath, deps: ConsoleDependencies) -> None:
    """Copies of deployments that are gone, and whose processes are."""
    with deps.db.read() as connection:
        deployments = store.list_online_deployments(connection)
        used = {each.id for each in deployments}
        used |= {copies.owner(home, each.spec.model_path) for each in deployments}
        used |= {each.deployment_id for each in live_replicas(connection)}
        used |= assets.package_ids(connection)
    copies.sweep(home, used)


def _place(deps: ConsoleDependencies) -> changes.Place:
    settings = deps.settings
    return changes.Place(
        settings.home, capacity(settings.online_instances_max), settings.online_model_max_bytes
    )


def _assemble(
    connection: Connection,
    document: dict[str, Any],
    kept: DeploymentSpec | None = None,
    touched: frozenset[str] | None = None,
) -> Assembled:
    def asset(kind: str, name: str, version: str) -> dict[str, Any] | None:
        found = assets.find_asset(connection, kind, name, version)
        return None if found is None else {**found.document, "name": found.name, "version": found.version}

    made = deployment_spec(
        document, asset, lambda name: _catalog_id(connection, name), kept=kept, touched=touched
    )
    if made.spec.kind == "catalog":
        catalog_model(connection, made.spec)
    return made


def _check_offer(connection: Connection, made: Assembled, row: Endpoint) -> None:
    """Forbidden for somebody else's model whose terms the project has not accepted."""
    if made.spec.kind == "catalog":
        check_subscribed(connection, made.spec.model, row.project_id)


def _catalog_id(connection: Connection, name: str) -> str | None:
    """The id of a model of the catalog, by its id or by the part behind the slash, which Azure's registries use."""
    found = find_model(connection, name)
    if found is not None:
        return found.spec.id
    tails = [m.spec.id for m in list_models(connection, limit=5000) if m.spec.id.rpartition("/")[2] == name]
    return tails[0] if len(tails) == 1 else None


def _early_refusals(
    connection: Connection,
    row: Endpoint,
    document: dict[str, Any],
    deps: ConsoleDependencies,
    is_new: bool = True,
) -> None:
    """What would be refused anyway is refused before anything large is copied."""
    rules.check_idle(store.running_operations(connection, endpoint_id=row.id), deps.clock.now_ms())
    if is_new:
        spec = changes.online_endpoint(connection, row).spec
        names = [each.name for each in store.list_online_deployments(connection, row.id)]
        rules.check_deployment_name(document.get("name"), spec, names)


def _of_endpoint(document: dict[str, Any], endpoint: str, name: str | None = None) -> dict[str, Any]:
    """The document with the names that the path gives; Invalid when they differ."""
    for field, wanted in (("endpoint_name", endpoint), ("name", name)):
        if wanted is not None and document.setdefault(field, wanted) != wanted:
            raise Invalid(
                f"{field}: expected {wanted!r}, as in the address; a name cannot be changed", param=field
            )
    return document


def _described(spec: DeploymentSpec, deps: ConsoleDependencies) -> FilePath:
    """A folder with what describes the MLflow model."""
    return FilePath(spec.model_path) if deps.opened is None else deps.opened.describe(spec.model_path)


def _prepared(spec: DeploymentSpec, deps: ConsoleDependencies, lines: int) -> str:
    """What was copied, and how the environment was built."""
    found = [
        f"{what}: {path}" for what, path in (("code", spec.code_path), ("model", spec.model_path)) if path
    ]
    if spec.kind in ("script", "mlflow"):
        model = _described(spec, deps) if spec.kind == "mlflow" else None
        python = VirtualEnvironments(deps.settings).python(spec.environment, model)
        environment = python.parent.parent
        log = ReplicaLog(environment.parent, environment.name).tail(lines)
        found += ["environment:", *log] if log else ["environment: it is not being built yet"]
    return "".join(f"{line}\n" for line in found[-lines:]) or "nothing had to be prepared\n"


def _shown(
    connection: Connection,
    row: Endpoint,
    deployment: OnlineDeployment,
    deps: ConsoleDependencies,
    operation: Operation | None = None,
) -> OnlineDeploymentOut:
    online = changes.online_endpoint(connection, row)
    return online_deployment_out(connection, row, online, deployment, deps.runtime.status(), operation)
