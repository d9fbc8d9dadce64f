"""API keys of projects and of admins: shown once when made, then known by their hint."""

from typing import Annotated, Literal

from fastapi import Query, status
from pydantic import BaseModel, Field

from access import store
from access.model import ApiKey
from core.clock import iso
from core.errors import Conflict, Invalid
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, instant, iso_or_none, page

router = console_router("keys")

_MAX_LIFE_S = 100 * 366 * 86_400


class NewKey(Input):
    """A key to create. Without an expiry it is good until it is revoked."""

    project: Text | None = Field(
        default=None, examples=["acme/website"], description="Id, name, or organization/name."
    )
    admin: bool = Field(default=False, description="An admin key instead, for another person who manages.")
    name: Text = Field(examples=["ci"], description="1 to 64 printable characters; need not be unique.")
    expires_at: Text | None = Field(default=None, examples=["2027-01-01T00:00:00Z"])
    expires_in_s: int | None = Field(default=None, ge=1, le=_MAX_LIFE_S, examples=[86_400])


class KeyOut(BaseModel):
    """What is known of a key: never the key itself."""

    id: str = Field(examples=["key_01kafn3m8hzq4v6p9x2c7d5b1w"])
    name: str = Field(examples=["ci"])
    hint: str = Field(examples=["fbx_sk_…a1B2"])
    kind: Literal["project", "admin"]
    project_id: str | None
    organization_id: str | None
    status: Literal["ok", "expired", "revoked"]
    created_at: str
    expires_at: str | None
    revoked_at: str | None


class CreatedKeyOut(KeyOut):
    """The only answer that ever holds the key."""

    key: str = Field(examples=["fbx_sk_…"])


@router.post("/keys", status_code=status.HTTP_201_CREATED, summary="Create an API key")
def create_key(body: NewKey, deps: Deps) -> CreatedKeyOut:
    """The key is in this answer and nowhere else."""
    now_ms = deps.clock.now_ms()
    expires_ms = _expiry(body, now_ms)
    with deps.db.begin() as connection:
        if body.admin:
            if body.project is not None:
                raise Invalid("project: an admin key has none", param="project")
            key, text = store.create_admin_key(connection, body.name, now_ms, expires_ms=expires_ms)
        elif body.project is None:
            raise Invalid("project: the field is missing", param="project")
        else:
            project = store.find_project(connection, body.project)
            key, text = store.create_key(connection, project, body.name, now_ms, expires_ms=expires_ms)
    return CreatedKeyOut(**_key(key, now_ms).model_dump(), key=text)


@router.get("/keys", summary="List API keys")
def list_keys(
    deps: Deps,
    project: Annotated[
        str | None, Query(max_length=200, description="Id, name, or organization/name.")
    ] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[KeyOut]:
    """In order of creation, also expired and revoked ones."""
    with deps.db.read() as connection:
        project_id = None if project is None else store.find_project(connection, project).id
        found = store.list_keys(connection, project_id=project_id, limit=limit + 1, after=after)
    now_ms = deps.clock.now_ms()
    return page(found, limit, lambda key: _key(key, now_ms), lambda key: key.id)


@router.delete("/keys/{key_id}", summary="Revoke an API key")
def revoke_key(key_id: str, caller: Caller, deps: Deps) -> KeyOut:
    """From now on calls with it are refused. A second time changes nothing. No key revokes itself."""
    if key_id == caller.key_id:
        raise Conflict("id: a key cannot revoke itself; use another admin key", param="id")
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        return _key(store.revoke_key(connection, key_id, now_ms), now_ms)


def _expiry(body: NewKey, now_ms: int) -> int:
    if body.expires_at is not None and body.expires_in_s is not None:
        raise Invalid("expires_in_s: give expires_at or expires_in_s, not both", param="expires_in_s")
    if body.expires_in_s is not None:
        return now_ms + body.expires_in_s * 1000
    if body.expires_at is None:
        return 0
    expires_ms = instant(body.expires_at, "expires_at")
    if expires_ms <= now_ms:
        raise Invalid(f"expires_at: expected a time in the future, got {body.expires_at}", param="expires_at")
    return expires_ms


def _key(key: ApiKey, now_ms: int) -> KeyOut:
    status_now = key.status(now_ms)
    assert status_now != "unknown", "it was just read"
    return KeyOut(
        id=key.id,
        name=key.name,
        hint=key.hint,
        kind="admin" if key.kind == "admin" else "project",
        project_id=key.project_id or None,
        organization_id=key.org_id or None,
        status=status_now,
        created_at=iso(key.created_ms),
        expires_at=iso_or_none(key.expires_ms),
        revoked_at=iso_or_none(key.revoked_ms),
    )
