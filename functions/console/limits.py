"""Rate limits of keys, projects, organizations and endpoints."""

from typing import Annotated, Literal

from fastapi import Path
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access import store
from access.admission.model import MAX_LIMIT, SERVERLESS_DEFAULT, Limits, ScopeKind
from access.admission.store import StoredLimits, find_limits, put_limits, remove_limits
from core.errors import Invalid, NotFound
from functions.console.dependencies import Deps
from functions.console.routing import console_router
from functions.console.shapes import Input
from serving.store import find_endpoint

router = console_router("limits and budgets")

_NO_LIMITS = Limits()

Scope = Annotated[ScopeKind, Path(description="key, project, organization or endpoint")]
ScopeId = Annotated[
    str,
    Path(max_length=200, description="Its id; for all but a key its name does too (organization/project)."),
]


class NewLimits(Input):
    """Limits in the place of those that were. null, or left out: no such limit (an endpoint: its default)."""

    requests_per_minute: int | None = Field(default=None, ge=1, le=MAX_LIMIT, examples=[600])
    requests_per_day: int | None = Field(default=None, ge=1, le=MAX_LIMIT, examples=[None])
    tokens_per_minute: int | None = Field(default=None, ge=1, le=MAX_LIMIT, examples=[100_000])
    parallel_requests: int | None = Field(default=None, ge=1, le=MAX_LIMIT, examples=[32])
    on_outage: Literal["closed", "open"] | None = Field(
        default=None,
        description="Of an organization: refuse calls (closed) or serve them while limits cannot be checked",
    )


class LimitsOut(BaseModel):
    """The limits in force for one scope; null: no limit."""

    scope: ScopeKind
    id: str = Field(examples=["key_01kafn3m8hzq4v6p9x2c7d5b1w"])
    organization_id: str
    requests_per_minute: int | None
    requests_per_day: int | None
    tokens_per_minute: int | None
    parallel_requests: int | None
    on_outage: Literal["closed", "open"] | None = Field(description="Of an organization.")
    source: Literal["default", "set"]


@router.get("/limits/{scope}/{scope_id:path}", summary="Show limits")
def get_limits(scope: Scope, scope_id: ScopeId, deps: Deps) -> LimitsOut:
    """The limits in force: those that were set, else the defaults."""
    with deps.db.read() as connection:
        found, org_id = resolve_scope(connection, scope, scope_id)
        return _shown(scope, found, org_id, find_limits(connection, found))


@router.put("/limits/{scope}/{scope_id:path}", summary="Set limits")
def set_limits(scope: Scope, scope_id: ScopeId, body: NewLimits, deps: Deps) -> LimitsOut:
    """In force at every gateway within a second. Calls in flight are not cut."""
    if body.on_outage is not None and scope != "organization":
        raise Invalid("on_outage: only an organization chooses this", param="on_outage")
    with deps.db.begin() as connection:
        found, org_id = resolve_scope(connection, scope, scope_id)
        stored = StoredLimits(
            scope, found, org_id, _given(scope, body), body.on_outage == "open", deps.clock.now_ms()
        )
        put_limits(connection, stored)
    return _shown(scope, found, org_id, stored)


@router.delete("/limits/{scope}/{scope_id:path}", summary="Remove limits")
def delete_limits(scope: Scope, scope_id: ScopeId, deps: Deps) -> LimitsOut:
    """Back to the defaults, which are the answer."""
    with deps.db.begin() as connection:
        found, org_id = resolve_scope(connection, scope, scope_id)
        remove_limits(connection, found, deps.clock.now_ms())
    return _shown(scope, found, org_id, None)


def resolve_scope(connection: Connection, scope: ScopeKind, name: str) -> tuple[str, str]:
    """The id of the scope that `name` means, and of its organization; NotFound names the field."""
    if scope == "organization":
        organization = store.find_organization(connection, name)
        return organization.id, organization.id
    if scope == "project":
        project = store.find_project(connection, name)
        return project.id, project.org_id
    if scope == "key":
        key = store.get_key(connection, name)
        if key is None or key.kind == "admin":
            raise NotFound(f"key: there is no API key {name!r}; give the key's id (key_…)", param="key")
        return key.id, key.org_id
    endpoint = find_endpoint(connection, name=name) or find_endpoint(connection, endpoint_id=name)
    if endpoint is None:
        raise NotFound(f"endpoint: there is no endpoint {name!r}", param="endpoint")
    return endpoint.id, endpoint.org_id


def _given(scope: ScopeKind, body: NewLimits) -> Limits:
    default = SERVERLESS_DEFAULT if scope == "endpoint" else _NO_LIMITS
    names = ("requests_per_minute", "requests_per_day", "tokens_per_minute", "parallel_requests")
    return Limits(
        **{name: getattr(body if name in body.model_fields_set else default, name) for name in names}
    )


def _shown(scope: ScopeKind, scope_id: str, org_id: str, stored: StoredLimits | None) -> LimitsOut:
    default = SERVERLESS_DEFAULT if scope == "endpoint" else _NO_LIMITS
    limits = stored.limits if stored else default
    is_open = stored is not None and stored.open_on_outage
    return LimitsOut(
        scope=scope,
        id=scope_id,
        organization_id=org_id,
        requests_per_minute=limits.requests_per_minute,
        requests_per_day=limits.requests_per_day,
        tokens_per_minute=limits.tokens_per_minute,
        parallel_requests=limits.parallel_requests,
        on_outage=("open" if is_open else "closed") if scope == "organization" else None,
        source="set" if stored else "default",
    )
