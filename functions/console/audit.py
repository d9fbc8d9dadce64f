"""The audit log: who decided what, when."""

from typing import Annotated, Any

from fastapi import Query
from pydantic import BaseModel, Field

from access.store import find_organization
from core.audit import AuditLine, list_audit
from core.clock import iso
from functions.console.dependencies import Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Limit, Page, page

router = console_router("audit")


class AuditLineOut(BaseModel):
    """One deed."""

    id: str
    at: str
    actor: str = Field(description="The id of the key that did it, or a part of the platform.")
    action: str = Field(examples=["quarantine.drop"])
    object: str
    organization_id: str | None
    detail: dict[str, Any]


@router.get("/audit", summary="List the audit log")
def list_lines(
    deps: Deps,
    organization: Annotated[str | None, Query(max_length=200, description="Its id or name.")] = None,
    action: Annotated[
        str | None,
        Query(max_length=100, description="Whole (quarantine.drop) or its first part (quarantine)."),
    ] = None,
    object_id: Annotated[str | None, Query(alias="object", max_length=200)] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[AuditLineOut]:
    """The newest first."""
    before = int(after) if after.isascii() and after.isdigit() and len(after) < 18 else None
    with deps.db.read() as connection:
        org_id = None if organization is None else find_organization(connection, organization).id
        found = list_audit(
            connection,
            limit=limit + 1,
            before=before,
            org_id=org_id,
            action=action,
            object_id=object_id,
        )
    return page(found, limit, _line, lambda line: str(line.id))


def _line(line: AuditLine) -> AuditLineOut:
    return AuditLineOut(
        id=str(line.id),
        at=iso(line.at_ms),
        actor=line.actor,
        action=line.action,
        object=line.object,
        organization_id=line.org_id or None,
        detail=line.detail,
    )
