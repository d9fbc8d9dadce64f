"""The audit log: who decided what, when. Appended in the transaction of the deed itself; never edited.

For deeds of operators that change what somebody is billed, may do, or is told. Not for reads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import BigInteger, Column, Connection, Index, Table, Text, insert, select

from core.database import ROW_NUMBER, metadata

MAX_DETAIL = 4000  # characters

audit_log = Table(
    "audit_log",
    metadata,
    Column("row_id", ROW_NUMBER, primary_key=True, autoincrement=True),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", Text, nullable=False),  # id of the key, or the name of the part of the platform
    Column("action", Text, nullable=False),  # noun.verb, such as quarantine.drop
    Column("object", Text, nullable=False),  # id of what it was done to
    Column("org_id", Text, nullable=False),  # "": of no organization
    Column("detail", Text, nullable=False),  # JSON object
    Index("ix_audit_log_object", "object"),
    Index("ix_audit_log_org_id", "org_id"),
)


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One deed."""

    id: int
    at_ms: int
    actor: str
    action: str
    object: str
    org_id: str
    detail: dict[str, Any]


def record_audit(
    connection: Connection,
    *,
    now_ms: int,
    actor: str,
    action: str,
    object_id: str,
    org_id: str = "",
    detail: Mapping[str, object] | None = None,
) -> None:
    """Append a line. `detail` must hold neither secrets nor anybody's prompts."""
    text = msgspec.json.encode(dict(detail or {})).decode()
    if len(text) > MAX_DETAIL:
        text = msgspec.json.encode({"cut": text[: MAX_DETAIL // 2]}).decode()
    connection.execute(
        insert(audit_log).values(
            at_ms=now_ms, actor=actor, action=action, object=object_id, org_id=org_id, detail=text
        )
    )


def list_audit(
    connection: Connection,
    *,
    limit: int,
    before: int | None = None,
    org_id: str | None = None,
    action: str | None = None,
    object_id: str | None = None,
) -> list[AuditLine]:
    """The newest first: of one organization, or of all (for the operator). `action` may be its first part."""
    table = audit_log
    query = select(table).order_by(table.c.row_id.desc()).limit(limit)
    if before is not None:
        query = query.where(table.c.row_id < before)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    if action is not None:
        query = query.where(
            (table.c.action == action) | table.c.action.startswith(f"{action}.", autoescape=True)
        )
    if object_id is not None:
        query = query.where(table.c.object == object_id)
    return [
        AuditLine(r.row_id, r.at_ms, r.actor, r.action, r.object, r.org_id, msgspec.json.decode(r.detail))
        for r in connection.execute(query)
    ]
