"""Registered models and environments: documents with a name and a version that deployments refer to."""

import json
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, select
from sqlalchemy.exc import IntegrityError

from core.errors import Conflict, Invalid, NotFound
from core.ids import new_id
from serving.online.model import Asset
from serving.online.tables import assets

AssetKind = Literal["model", "environment"]
MAX_VERSIONS = 10_000  # of one kind, all names together


def put_asset(
    connection: Connection, kind: AssetKind, name: str, version: str, document: dict[str, Any], now_ms: int
) -> Asset:
    """Register the document. Without a version it gets the next number. The same document again changes nothing;
    another one under a version that exists is a Conflict: deployments rely on it."""
    existing = _versions(connection, kind, name)
    if not version:
        version = str(1 + max((int(each.version) for each in existing if _numbered(each.version)), default=0))
    found = next((each for each in existing if each.version == version), None)
    if found is not None:
        if found.document == document:
            return found
        raise Conflict(
            f"version: {kind} {name!r} has a version {version!r} with other content; choose another version, or none",
            code="version_in_use",
            param="version",
        )
    if len(list_assets(connection, kind, limit=MAX_VERSIONS)) >= MAX_VERSIONS:
        raise Invalid(
            f"name: at most {MAX_VERSIONS} versions of {kind}s are kept; delete some first", param="name"
        )
    made = Asset(new_id("asset", now_ms), kind, name, version, document, now_ms)
    try:
        with connection.begin_nested():
            connection.execute(
                insert(assets).values(
                    id=made.id,
                    kind=kind,
                    name=name,
                    version=version,
                    document=json.dumps(document),
                    created_ms=now_ms,
                )
            )
    except IntegrityError:  # another transaction was faster
        raise Conflict(
            f"version: {version!r} was registered just now by somebody else", param="version"
        ) from None
    return made


def find_asset(connection: Connection, kind: str, name: str, version: str = "") -> Asset | None:
    """That version, or the one registered last; None when there is none."""
    found = _versions(connection, kind, name)
    if not version:
        return found[-1] if found else None
    return next((each for each in found if each.version == version), None)


def list_assets(
    connection: Connection, kind: AssetKind, *, name: str | None = None, limit: int = 200, after: str = ""
) -> list[Asset]:
    """In order of registration."""
    query = (
        select(assets).where(assets.c.kind == kind, assets.c.id > after).order_by(assets.c.id).limit(limit)
    )
    if name is not None:
        query = query.where(assets.c.name == name)
    return [_asset(row) for row in connection.execute(query)]


def package_ids(connection: Connection) -> set[str]:
    """Of the packages that are registered."""
    query = select(assets.c.document).where(
        assets.c.kind == "environment", assets.c.document.like('%"package": {%')
    )
    found = (json.loads(row.document).get("package") for row in connection.execute(query))
    return {each["id"] for each in found if each is not None}


def delete_asset(connection: Connection, kind: AssetKind, name: str, version: str) -> Asset:
    """Forget that version. Deployments that were made of it go on: they have their own copies."""
    found = find_asset(connection, kind, name, version)
    if found is None:
        raise NotFound(f"there is no {kind} {name[:60]!r} in version {version[:60]!r}", param="name")
    connection.execute(delete(assets).where(assets.c.id == found.id))
    return found


def _versions(connection: Connection, kind: str, name: str) -> list[Asset]:
    query = select(assets).where(assets.c.kind == kind, assets.c.name == name)
    found = [_asset(row) for row in connection.execute(query)]
    return sorted(found, key=lambda a: (a.created_ms, int(a.version) if _numbered(a.version) else 0))


def _numbered(version: str) -> bool:
    return version.isascii() and version.isdigit() and len(version) < 10


def _asset(row: Row[Any]) -> Asset:
    return Asset(row.id, row.kind, row.name, row.version, json.loads(row.document), row.created_ms)
