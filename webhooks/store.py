"""SQL of webhook endpoints. Every function works in the caller's transaction."""

import json
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from core.errors import Conflict, NotFound
from core.ids import new_id
from webhooks.model import MAX_ENDPOINTS, Webhook
from webhooks.tables import webhook_attempts, webhook_deliveries, webhooks

_COLUMNS = [webhooks.c[field.name] for field in fields(Webhook)]


def new_webhook_id(now_ms: int) -> str:
    """An id, for a secret must be sealed with it before there is a row."""
    return new_id("wh", now_ms)


def add_webhook(conn: Connection, webhook: Webhook) -> None:
    """A new endpoint; Conflict when the organization has very many."""
    query = select(func.count()).select_from(webhooks).where(webhooks.c.org_id == webhook.org_id)
    if conn.execute(query).scalar_one() >= MAX_ENDPOINTS:
        raise Conflict(f"an organization has at most {MAX_ENDPOINTS} webhooks", code="too_many")
    conn.execute(insert(webhooks).values(_row(webhook)))


def save_webhook(conn: Connection, webhook: Webhook) -> None:
    """What the endpoint is from now on."""
    values = _row(webhook)
    del values["id"]
    conn.execute(update(webhooks).where(webhooks.c.id == webhook.id).values(values))


def get_webhook(conn: Connection, webhook_id: str, *, lock: bool = False) -> Webhook:
    """The endpoint with that id; NotFound when there is none."""
    query = select(*_COLUMNS).where(webhooks.c.id == webhook_id)
    row = conn.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"there is no webhook {webhook_id[:80]!r}; see `farebox webhook list`", param="id")
    return _webhook(row)


def list_webhooks(
    conn: Connection, *, org_id: str | None = None, limit: int = 50, after: str = ""
) -> list[Webhook]:
    """In order of creation: one organization's, or all (for the operator)."""
    query = select(*_COLUMNS).where(webhooks.c.id > after).order_by(webhooks.c.id).limit(limit)
    if org_id is not None:
        query = query.where(webhooks.c.org_id == org_id)
    return [_webhook(row) for row in conn.execute(query)]


def delete_webhook(conn: Connection, webhook_id: str) -> Webhook:
    """Nothing is sent there any more; its log goes with it."""
    found = get_webhook(conn, webhook_id, lock=True)
    for table in (webhook_attempts, webhook_deliveries):
        conn.execute(delete(table).where(table.c.webhook_id == webhook_id))
    conn.execute(delete(webhooks).where(webhooks.c.id == webhook_id))
    return found


def _row(webhook: Webhook) -> dict[str, Any]:
    values: dict[str, Any] = {field.name: getattr(webhook, field.name) for field in fields(Webhook)}
    return values | {"event_types": json.dumps(webhook.event_types)}


def _webhook(row: Row[Any]) -> Webhook:
    values = dict(row._mapping)
    return Webhook(
        **values | {"event_types": tuple(json.loads(row.event_types)), "enabled": bool(row.enabled)}
    )
