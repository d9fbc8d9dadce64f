"""Online endpoints: a stable URL whose calls are split between deployments of one's own."""

from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import Query, Request, Response, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access import store as access_store
from core.clock import iso
from core.errors import Conflict, Invalid
from functions.console.addresses import base_address
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.endpoints import EndpointKeysOut
from functions.console.online_out import OnlineEndpointOut, endpoint_out
from functions.console.online_shapes import OnlineEndpointDocument, Shares
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, page
from serving.endpoints import get_endpoint
from serving.model import Endpoint
from serving.online import changes, store
from serving.online.assemble import endpoint_spec
from serving.online.merge import merge_patch
from serving.online.model import Operation
from serving.online.spec import EndpointSpec
from serving.store import list_endpoints

router = console_router("online endpoints")

TOKEN_LIFE_MS = 3600 * 1000
_REFRESH_MS = TOKEN_LIFE_MS * 9 // 10  # a caller that asks anew after this is never without one
ACCEPTED: Any = {202: {"description": "Begun; `operation-location` names the operation to follow."}}


class Traffic(Input):
    """A split that replaces the one in force; a field that is absent leaves its split as it is."""

    traffic: Shares | None = None
    mirror_traffic: Shares | None = None


class RegenerateKeyOf(Input):
    """Which key to renew."""

    key_type: Literal["primary", "secondary"] = "primary"


class TokenOut(BaseModel):
    """A token for calls, good for an hour."""

    accessToken: str = Field(examples=["fbx_ep_…"])  # noqa: N815  the name that scripts rely on
    expiryTimeUtc: str  # noqa: N815  the same
    refreshAfterTimeUtc: str  # noqa: N815  the same


@router.post(
    "/online-endpoints",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Create an online endpoint",
)
def create_online_endpoint(
    body: OnlineEndpointDocument, request: Request, response: Response, deps: Deps
) -> OnlineEndpointOut:
    """It has no deployment yet, so it answers 404 to calls."""
    document = body.given()
    project = document.pop("project", None)
    spec = _with_traffic(endpoint_spec(document), document)
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        if project is None:
            found = access_store.sole_project(connection, now_ms)
        else:
            found = access_store.find_project(connection, project)
        row, operation = changes.create_endpoint(connection, spec, found.org_id, found.id, now_ms)
        _keys_for(connection, row, spec.auth_mode, now_ms, deps)
        return answer(connection, row, request, response, deps, operation)


@router.get("/online-endpoints", summary="List online endpoints")
def list_online_endpoints(
    request: Request,
    deps: Deps,
    project: Annotated[
        str | None, Query(max_length=200, description="Id, name, or organization/name.")
    ] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[OnlineEndpointOut]:
    """Living ones, in order of creation."""
    base = base_address(request, deps.settings)
    with deps.db.read() as connection:
        project_id = None if project is None else access_store.find_project(connection, project).id
        found = list_endpoints(connection, project_id=project_id, kind="online", limit=limit + 1, after=after)
        return page(found, limit, lambda row: _shown(connection, row, base), lambda row: row.id)


@router.get("/online-endpoints/{name}", summary="Show an online endpoint")
def get_online_endpoint(name: str, request: Request, deps: Deps) -> OnlineEndpointOut:
    """With the split in force."""
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        return _shown(connection, row, base_address(request, deps.settings))


@router.put(
    "/online-endpoints/{name}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Replace an online endpoint",
)
def replace_online_endpoint(
    name: str, body: OnlineEndpointDocument, request: Request, response: Response, deps: Deps
) -> OnlineEndpointOut:
    """What is absent gets its default; but a split that is absent stays."""
    document = _named(body.given(), name)
    return _update(name, document, request, response, deps)


@router.patch(
    "/online-endpoints/{name}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Change fields of an online endpoint",
)
def patch_online_endpoint(
    name: str, body: OnlineEndpointDocument, request: Request, response: Response, deps: Deps
) -> OnlineEndpointOut:
    """What is absent stays (RFC 7396, but for null: give the default instead)."""
    patch = _named(body.given(), name)
    with deps.db.read() as connection:
        row = get_endpoint(connection, name, kind="online")
        document = changes.online_endpoint(connection, row).spec.document
    merged = merge_patch(document, patch)
    for split in ("traffic", "mirror_traffic"):
        merged.pop(split, None)
        if split in patch:
            merged[split] = patch[split]
    return _update(name, merged, request, response, deps)


@router.put(
    "/online-endpoints/{name}/traffic",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Split the traffic of an online endpoint",
)
def put_traffic(
    name: str, body: Traffic, request: Request, response: Response, deps: Deps
) -> OnlineEndpointOut:
    """Live shares sum to 100 or 0. A deployment that is not named gets none. Calls under way are not disturbed."""
    if body.traffic is None and body.mirror_traffic is None:
        raise Invalid(
            'traffic: give traffic, mirror_traffic or both, e.g. {"traffic": {"blue": 100}}', param="traffic"
        )
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        row = get_endpoint(connection, name, kind="online")
        spec = changes.online_endpoint(connection, row).spec
        operation = changes.update_endpoint(
            connection, row, spec, now_ms, traffic=body.traffic, mirror_traffic=body.mirror_traffic
        )
        return answer(connection, row, request, response, deps, operation)


@router.delete(
    "/online-endpoints/{name}",
    status_code=status.HTTP_202_ACCEPTED,
    responses=ACCEPTED,
    summary="Delete an online endpoint",
)
def delete_online_endpoint(name: str, request: Request, response: Response, deps: Deps) -> OnlineEndpointOut:
    """With all its deployments; its keys stop working at once."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        row = get_endpoint(connection, name, kind="online")
        operation = changes.delete_endpoint(connection, row, now_ms)
        access_store.revoke_endpoint_keys(connection, row.id, now_ms)
        return answer(connection, row, request, response, deps, operation)


@router.post("/online-endpoints/{name}/list-keys", summary="Show the keys of an online endpoint")
def list_online_endpoint_keys(name: str, deps: Deps) -> EndpointKeysOut:
    """Both keys, in clear."""
    with deps.db.read() as connection:
        row = _in_mode(connection, name, "key", "ask for a token instead")
        return EndpointKeysOut(**access_store.endpoint_keys(connection, row.id, deps.sealer))


@router.post("/online-endpoints/{name}/regenerate-keys", summary="Renew a key of an online endpoint")
def regenerate_online_endpoint_key(name: str, body: RegenerateKeyOf, deps: Deps) -> EndpointKeysOut:
    """The old one stops working at once; the other key goes on working."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        row = _in_mode(connection, name, "key", "there is no key to renew")
        keys = access_store.regenerate_endpoint_key(connection, row.id, body.key_type, now_ms, deps.sealer)
    return EndpointKeysOut(**keys)


@router.post("/online-endpoints/{name}/token", summary="Get a token for calls to an online endpoint")
def get_token(name: str, deps: Deps) -> TokenOut:
    """A new one each time, good for an hour. It opens this endpoint's calls and nothing of the management."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        row = _in_mode(connection, name, "aml_token", "show its keys, or ask the identity provider")
        text = access_store.issue_endpoint_token(
            connection, row.id, row.org_id, row.project_id, now_ms, TOKEN_LIFE_MS
        )
    return TokenOut(
        accessToken=text,
        expiryTimeUtc=iso(now_ms + TOKEN_LIFE_MS),
        refreshAfterTimeUtc=iso(now_ms + _REFRESH_MS),
    )


def answer(
    connection: Connection,
    row: Endpoint,
    request: Request,
    response: Response,
    deps: ConsoleDependencies,
    operation: Operation,
) -> OnlineEndpointOut:
    """The endpoint and where its operation is followed."""
    response.headers["operation-location"] = f"/api/operations/{operation.id}"
    return _shown(connection, row, base_address(request, deps.settings), operation)


def _update(
    name: str, document: dict[str, Any], request: Request, response: Response, deps: ConsoleDependencies
) -> OnlineEndpointOut:
    document.pop("project", None)
    spec = endpoint_spec(document)
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        row = get_endpoint(connection, name, kind="online")
        before = changes.online_endpoint(connection, row).spec.auth_mode
        operation = changes.update_endpoint(
            connection,
            row,
            spec,
            now_ms,
            traffic=document.get("traffic"),
            mirror_traffic=document.get("mirror_traffic"),
        )
        if spec.auth_mode != before:
            _keys_for(connection, row, spec.auth_mode, now_ms, deps)
        return answer(connection, row, request, response, deps, operation)


def _shown(
    connection: Connection, row: Endpoint, base: str, operation: Operation | None = None
) -> OnlineEndpointOut:
    names = [each.name for each in store.list_online_deployments(connection, row.id)]
    return endpoint_out(row, changes.online_endpoint(connection, row), names, base, operation)


def _with_traffic(spec: EndpointSpec, document: dict[str, Any]) -> EndpointSpec:
    traffic, mirror = document.get("traffic") or {}, document.get("mirror_traffic") or {}
    return replace(spec, traffic=traffic, mirror_traffic=mirror)


def _named(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The document with its name, which the path gives; Invalid when the two differ."""
    if document.setdefault("name", name) != name:
        raise Invalid(f"name: expected {name!r}, as in the address; a name cannot be changed", param="name")
    return document


def _keys_for(
    connection: Connection, row: Endpoint, auth_mode: str, now_ms: int, deps: ConsoleDependencies
) -> None:
    """Keys and tokens are those of the mode in force: of another mode none opens anything."""
    if auth_mode == "aad_token" and deps.tokens is None:
        raise Invalid(
            "auth_mode: aad_token needs an identity provider, and none is configured; set FAREBOX_OIDC_ISSUER and "
            "FAREBOX_OIDC_AUDIENCE (docs/authentication.md), or use key or aml_token",
            param="auth_mode",
        )
    access_store.revoke_endpoint_keys(connection, row.id, now_ms)
    if auth_mode == "key":
        access_store.issue_endpoint_keys(connection, row.id, row.org_id, row.project_id, now_ms, deps.sealer)


def _in_mode(connection: Connection, name: str, mode: str, instead: str) -> Endpoint:
    row = get_endpoint(connection, name, kind="online")
    actual = changes.online_endpoint(connection, row).spec.auth_mode
    if actual != mode:
        raise Conflict(
            f"the endpoint {name!r} has auth_mode {actual}, not {mode}; {instead}",
            code="other_auth_mode",
            param="auth_mode",
        )
    return row
