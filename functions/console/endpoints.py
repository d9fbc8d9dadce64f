"""Serverless endpoints: a stable URL with two keys in front of a catalog model."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from fastapi import Query, Request, status
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access import store as access_store
from access.principal import Principal
from catalog.model import ModelSpec
from catalog.store import find_model
from core.audit import record_audit
from core.clock import iso
from functions.console.addresses import base_address, openai_base_url, scoring_uri
from functions.console.dependencies import Caller, ConsoleDependencies, Deps
from functions.console.deployments import DeploymentOut, deployment_of
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, page
from serving.endpoints import (
    create_serverless,
    delete_endpoint,
    get_endpoint,
    reinstate_endpoint,
    suspend_endpoint,
    update_serverless,
)
from serving.model import Endpoint, LiveStatus
from serving.store import list_endpoints
from serving.subscriptions import check_subscribed, subscribed

router = console_router("serverless endpoints")

MAX_LOG_LINES = 5000

ContentSafety = Literal["enabled", "disabled"]


class NewEndpoint(Input):
    """An endpoint to create."""

    name: Text = Field(
        examples=["my-chat"], description="3 to 32 letters, digits and single dashes, a letter first; unique."
    )
    model: Text = Field(examples=["acme/mock-chat"], description="A model of the catalog.")
    project: Text | None = Field(
        default=None, description="Id, name, or organization/name. Without it: the only project."
    )
    tags: dict[str, str] | None = Field(default=None, examples=[{"team": "search"}])
    content_safety: ContentSafety = Field(
        default="enabled", description="Calls are checked, where the server has a content check."
    )


class EndpointChange(Input):
    """What of an endpoint is to be changed; what is left out stays."""

    tags: dict[str, str] | None = Field(default=None, examples=[{"team": "search"}])
    content_safety: ContentSafety | None = Field(
        default=None, description="Calls are checked, where the server has a content check."
    )


class RegenerateKey(Input):
    """Which key to renew."""

    key_type: Literal["primary", "secondary"]


class EndpointKeysOut(BaseModel):
    """Both keys of an endpoint; either opens it, and nothing else."""

    primaryKey: str = Field(examples=["fbx_ep_…"])  # noqa: N815  the name that scripts rely on
    secondaryKey: str = Field(examples=["fbx_ep_…"])  # noqa: N815  the same


class EndpointOut(BaseModel):
    """A serverless endpoint."""

    id: str
    name: str = Field(examples=["my-chat"])
    state: str = Field(
        examples=["Online"],
        description="Online, Suspended, or Unhealthy without the subscription that its model needs.",
    )
    model: str = Field(examples=["acme/mock-chat"])
    project_id: str
    organization_id: str
    scoring_uri: str = Field(examples=["http://127.0.0.1:8080/endpoints/my-chat/v1/chat/completions"])
    openai_base_url: str = Field(examples=["http://127.0.0.1:8080/endpoints/my-chat/v1"])
    created_at: str
    tags: dict[str, str]
    content_safety: Literal["enabled", "disabled", "not configured"] = Field(
        description="Not configured: it is wanted, and the server has no content check (`content_safety_url`)."
    )
    deployment: DeploymentOut


@router.post(
    "/serverless-endpoints", status_code=status.HTTP_201_CREATED, summary="Create a serverless endpoint"
)
def create_endpoint(body: NewEndpoint, request: Request, deps: Deps) -> EndpointOut:
    """It can be called at once; the model server starts with the first call."""
    now_ms = deps.clock.now_ms()
    live = deps.runtime.status()
    with deps.db.begin() as connection:
        if body.project is None:
            project = access_store.sole_project(connection, now_ms)
        else:
            project = access_store.find_project(connection, body.project)
        check_subscribed(connection, body.model, project.id)
        made = create_serverless(
            connection,
            name=body.name,
            model_id=body.model,
            org_id=project.org_id,
            project_id=project.id,
            now_ms=now_ms,
            tags=body.tags,
            content_safety=body.content_safety == "enabled",
        )
        access_store.issue_endpoint_keys(
            connection, made.id, made.org_id, made.project_id, now_ms, deps.sealer
        )
        shown = _endpoint(connection, made, live, request, deps)
    deps.runtime.offer(made.deployment_id)
    return shown


@router.get("/serverless-endpoints", summary="List serverless endpoints")
def list_serverless_endpoints(
    request: Request,
    deps: Deps,
    project: Annotated[
        str | None, Query(max_length=200, description="Id, name, or organization/name.")
    ] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[EndpointOut]:
    """Living ones, in order of creation."""
    live = deps.runtime.status()
    with deps.db.read() as connection:
        project_id = None if project is None else access_store.find_project(connection, project).id
        found = list_endpoints(
            connection, project_id=project_id, kind="serverless", limit=limit + 1, after=after
        )
        return page(
            found, limit, lambda each: _endpoint(connection, each, live, request, deps), lambda each: each.id
        )


@router.get("/serverless-endpoints/{name}", summary="Show a serverless endpoint")
def get_serverless_endpoint(name: str, request: Request, deps: Deps) -> EndpointOut:
    """With the state of its model server."""
    live = deps.runtime.status()
    with deps.db.read() as connection:
        found = get_endpoint(connection, name)
        return _endpoint(connection, found, live, request, deps)


@router.patch("/serverless-endpoints/{name}", summary="Change a serverless endpoint")
def update_serverless_endpoint(
    name: str, body: EndpointChange, caller: Caller, request: Request, deps: Deps
) -> EndpointOut:
    """Its tags, and whether its calls are checked; holds for calls from the next second on."""
    now_ms, live = deps.clock.now_ms(), deps.runtime.status()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        safe = None if body.content_safety is None else body.content_safety == "enabled"
        changed = update_serverless(connection, found, now_ms, tags=body.tags, content_safety=safe)
        if changed.content_safety != found.content_safety:
            record_audit(
                connection,
                now_ms=now_ms,
                actor=caller.key_id,
                action="endpoint.content_safety",
                object_id=found.id,
                org_id=found.org_id,
                detail={"name": found.name, "content_safety": body.content_safety or ""},
            )
        return _endpoint(connection, changed, live, request, deps)


@router.delete("/serverless-endpoints/{name}", summary="Delete a serverless endpoint")
def delete_serverless_endpoint(name: str, request: Request, deps: Deps) -> EndpointOut:
    """Its keys stop working; the minute under way is the last that is billed."""
    now_ms = deps.clock.now_ms()
    live = deps.runtime.status()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        shown = _endpoint(connection, found, live, request, deps)
        delete_endpoint(connection, found, now_ms)
        access_store.revoke_endpoint_keys(connection, found.id, now_ms)
    return shown.model_copy(update={"state": "Deleted"})


@router.post("/serverless-endpoints/{name}/suspend", summary="Suspend a serverless endpoint")
def suspend_serverless_endpoint(name: str, caller: Caller, request: Request, deps: Deps) -> EndpointOut:
    """Calls get 403 with code `endpoint_suspended` until it is reinstated; its minutes go on being billed."""
    return _change_state(name, suspend_endpoint, "endpoint.suspend", caller, request, deps)


@router.post("/serverless-endpoints/{name}/reinstate", summary="Reinstate a serverless endpoint")
def reinstate_serverless_endpoint(name: str, caller: Caller, request: Request, deps: Deps) -> EndpointOut:
    """It can be called again, with the same keys."""
    return _change_state(name, reinstate_endpoint, "endpoint.reinstate", caller, request, deps)


@router.post("/serverless-endpoints/{name}/list-keys", summary="Show the keys of a serverless endpoint")
def list_endpoint_keys(name: str, deps: Deps) -> EndpointKeysOut:
    """Both keys, in clear."""
    with deps.db.read() as connection:
        found = get_endpoint(connection, name)
        return EndpointKeysOut(**access_store.endpoint_keys(connection, found.id, deps.sealer))


@router.post("/serverless-endpoints/{name}/regenerate-keys", summary="Renew a key of a serverless endpoint")
def regenerate_endpoint_key(name: str, body: RegenerateKey, deps: Deps) -> EndpointKeysOut:
    """The old one stops working at once; the other key goes on working."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        keys = access_store.regenerate_endpoint_key(connection, found.id, body.key_type, now_ms, deps.sealer)
    return EndpointKeysOut(**keys)


@router.get(
    "/serverless-endpoints/{name}/logs",
    summary="Show the log of a serverless endpoint's model server",
    response_class=PlainTextResponse,
)
def get_logs(
    name: str, deps: Deps, lines: Annotated[int, Query(ge=1, le=MAX_LOG_LINES)] = 200
) -> PlainTextResponse:
    """The last lines, as text."""
    with deps.db.read() as connection:
        found = get_endpoint(connection, name)
        model = find_model(connection, found.model_id, include_removed=True)
    if model is not None and model.spec.external:
        return PlainTextResponse(
            f"{found.model_id} runs on an attached server, {model.spec.engine.url}: look for its log there\n"
        )
    return PlainTextResponse(deps.runtime.tail_log(found.deployment_id, lines))


def _change_state(
    name: str,
    change: Callable[[Connection, Endpoint, int], Endpoint],
    deed: str,
    caller: Principal,
    request: Request,
    deps: ConsoleDependencies,
) -> EndpointOut:
    now_ms, live = deps.clock.now_ms(), deps.runtime.status()
    with deps.db.begin() as connection:
        found = get_endpoint(connection, name)
        changed = change(connection, found, now_ms)
        if changed.state != found.state:
            record_audit(
                connection,
                now_ms=now_ms,
                actor=caller.key_id,
                action=deed,
                object_id=found.id,
                org_id=found.org_id,
                detail={"name": found.name},
            )
        return _endpoint(connection, changed, live, request, deps)


def _state(connection: Connection, found: Endpoint, spec: ModelSpec) -> str:
    if found.state == "Online" and not subscribed(connection, spec, found.project_id):
        return "Unhealthy"
    return found.state


def _content_safety(
    found: Endpoint, deps: ConsoleDependencies
) -> Literal["enabled", "disabled", "not configured"]:
    if not found.content_safety:
        return "disabled"
    return "enabled" if deps.settings.content_safety_url else "not configured"


def _endpoint(
    connection: Connection,
    found: Endpoint,
    live: Mapping[str, LiveStatus],
    request: Request,
    deps: ConsoleDependencies,
) -> EndpointOut:
    base = base_address(request, deps.settings)
    model = find_model(connection, found.model_id, include_removed=True)
    assert model is not None, "an endpoint's model is kept, even when it was removed from the catalog"
    return EndpointOut(
        id=found.id,
        name=found.name,
        state=_state(connection, found, model.spec),
        model=found.model_id,
        project_id=found.project_id,
        organization_id=found.org_id,
        scoring_uri=scoring_uri(base, found.name, model.spec.task),
        openai_base_url=openai_base_url(base, found.name),
        created_at=iso(found.created_ms),
        tags=found.tags,
        content_safety=_content_safety(found, deps),
        deployment=deployment_of(connection, found.deployment_id, live),
    )
