"""Further deployments of serverless endpoints."""

from fastapi import Response, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access.principal import Principal
from catalog.store import get_model
from core.audit import record_audit
from core.clock import iso
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import Input, Page, Text
from serving import serverless_deployments as store
from serving.endpoints import check_name, get_endpoint
from serving.fine_tunes import pool_model
from serving.model import Endpoint
from serving.serverless_deployments import DEFAULT, MAX_MIRROR_PERCENT, ServerlessDeployment
from serving.store import pool_for
from serving.subscriptions import check_subscribed

router = console_router("serverless endpoints")


class ServerlessDeploymentDocument(Input):
    """What calls that name the deployment are answered by."""

    model: Text = Field(examples=["acme/large-chat"], description="A model of the catalog.")
    mirror_percent: int = Field(
        default=0,
        ge=0,
        le=MAX_MIRROR_PERCENT,
        description="Share of the calls to `default` that it gets copies of; of one deployment only.",
    )


class ServerlessDeploymentOut(BaseModel):
    """One deployment. `default` is the endpoint's own model, which answers what names no deployment."""

    name: str = Field(examples=["large"])
    model: str = Field(examples=["acme/large-chat"])
    mirror_percent: int
    is_default: bool
    created_at: str


@router.get(
    "/serverless-endpoints/{name}/deployments", summary="List the deployments of a serverless endpoint"
)
def list_deployments_of_serverless(name: str, deps: Deps) -> Page[ServerlessDeploymentOut]:
    """`default` first; there are 20 at most."""
    with deps.db.read() as connection:
        found = get_endpoint(connection, name)
        further = store.list_serverless_deployments(connection, found.id)
    first = ServerlessDeployment(DEFAULT, found.model_id, found.deployment_id, 0, found.created_ms)
    return Page(data=[_shown(each) for each in (first, *further)], next=None)


@router.put(
    "/serverless-endpoints/{name}/deployments/{deployment}",
    summary="Put a deployment behind a serverless endpoint",
    responses={201: {"model": ServerlessDeploymentOut, "description": "The deployment is new."}},
)
def put_deployment_of_serverless(
    name: str,
    deployment: str,
    body: ServerlessDeploymentDocument,
    caller: Caller,
    response: Response,
    deps: Deps,
) -> ServerlessDeploymentOut:
    """Reached by the header `azureml-model-deployment`, or as the model `endpoint/deployment`; priced as its model."""
    check_name(deployment, param="deployment")
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        if deployment.lower() == DEFAULT:
            store.delete_serverless_deployment(connection, found, DEFAULT, now_ms)  # says why not
        model = get_model(connection, body.model).spec
        check_subscribed(connection, model.id, found.project_id)
        pool = pool_for(connection, pool_model(connection, model).id, now_ms)
        made = ServerlessDeployment(deployment, model.id, pool.id, body.mirror_percent, now_ms)
        if store.put_serverless_deployment(connection, found, made):
            response.status_code = status.HTTP_201_CREATED
        _audit(connection, caller, found, made, "deployment.put", now_ms)
        shown = _shown(store.find_serverless_deployment(connection, found, deployment))
    deps.runtime.offer(pool.id)
    return shown


@router.delete(
    "/serverless-endpoints/{name}/deployments/{deployment}",
    summary="Delete a deployment of a serverless endpoint",
)
def delete_deployment_of_serverless(
    name: str, deployment: str, caller: Caller, deps: Deps
) -> ServerlessDeploymentOut:
    """Calls that name it are answered 404 from now on."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        gone = store.delete_serverless_deployment(connection, found, deployment, now_ms)
        _audit(connection, caller, found, gone, "deployment.delete", now_ms)
    return _shown(gone)


def _audit(
    connection: Connection,
    caller: Principal,
    endpoint: Endpoint,
    found: ServerlessDeployment,
    deed: str,
    now_ms: int,
) -> None:
    record_audit(
        connection,
        now_ms=now_ms,
        actor=caller.key_id,
        action=deed,
        object_id=endpoint.id,
        org_id=endpoint.org_id,
        detail={"name": found.name, "model": found.model_id, "mirror_percent": found.mirror_percent},
    )


def _shown(found: ServerlessDeployment) -> ServerlessDeploymentOut:
    return ServerlessDeploymentOut(
        name=found.name,
        model=found.model_id,
        mirror_percent=found.mirror_percent,
        is_default=found.name == DEFAULT,
        created_at=iso(found.created_ms),
    )
