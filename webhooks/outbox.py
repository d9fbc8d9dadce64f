"""SQL of messages: written with the deed they tell of, claimed and settled by the sender."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, Select, delete, exists, insert, or_, select, update

from core.errors import NotFound
from core.ids import new_id
from webhooks.model import EVENTS, TEST, Delivery, Webhook, WebhookTest
from webhooks.store import get_webhook, list_webhooks
from webhooks.tables import webhook_attempts, webhook_deliveries, webhook_messages, webhooks

SCHEDULE_S = (0, 5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Waits before each attempt, as Standard Webhooks proposes: three days and a bit in all."""

CLAIM_MS = 60_000  # longer than an attempt can take
MAX_REPLAY = 10_000
_ENDPOINTS = 1000
_DAY_MS = 86_400_000
LOG_KEPT_MS = 30 * _DAY_MS
MESSAGES_KEPT_MS = 90 * _DAY_MS
_FORGET_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this sender may attempt now."""

    message_id: str
    webhook: Webhook
    event_type: str
    subject: str
    occurred_ms: int
    data: str
    attempts: int
    claim_ms: int  # its `next_ms` while it is claimed


@dataclass(frozen=True, slots=True)
class Attempt:
    """One POST. status 0: there was no answer."""

    at_ms: int
    duration_ms: int
    status: int
    error: str
    retry_after_s: int = 0

    @property
    def accepted(self) -> bool:
        return 200 <= self.status <= 299


def enqueue_event(
    conn: Connection, org_id: str, event_type: str, subject: str, data: Mapping[str, Any], now_ms: int
) -> str:
    """Tell an organization's webhooks; returns the message's id. In the transaction of what it tells of.

    `data` has exactly the members of the type's struct in `webhooks.model`.
    """
    checked = msgspec.convert(dict(data), EVENTS[event_type], strict=True)
    message_id = _add_message(conn, org_id, event_type, subject, checked, now_ms)
    wanting = [
        each for each in list_webhooks(conn, org_id=org_id, limit=_ENDPOINTS) if each.wants(event_type)
    ]
    _add_deliveries(conn, message_id, org_id, [each.id for each in wanting], now_ms)
    return message_id


def enqueue_test(conn: Connection, webhook: Webhook, now_ms: int) -> str:
    """A test message for this endpoint alone, whatever it wants."""
    data = WebhookTest(webhook.id)
    message_id = _add_message(conn, webhook.org_id, TEST, webhook.id, data, now_ms)
    _add_deliveries(conn, message_id, webhook.org_id, [webhook.id], now_ms)
    return message_id


def _add_message(
    conn: Connection, org_id: str, event_type: str, subject: str, data: msgspec.Struct, now_ms: int
) -> str:
    message_id = new_id("msg", now_ms)
    conn.execute(
        insert(webhook_messages).values(
            id=message_id,
            org_id=org_id,
            type=event_type,
            subject=subject,
            occurred_ms=now_ms,
            data=msgspec.json.encode(data).decode(),
        )
    )
    return message_id


def _add_deliveries(
    conn: Connection, message_id: str, org_id: str, webhook_ids: Sequence[str], now_ms: int
) -> None:
    rows = [_new_delivery(message_id, webhook_id, org_id, now_ms) for webhook_id in webhook_ids]
    if rows:
        conn.execute(insert(webhook_deliveries), rows)


def _new_delivery(message_id: str, webhook_id: str, org_id: str, now_ms: int) -> dict[str, object]:
    return {
        "message_id": message_id,
        "webhook_id": webhook_id,
        "org_id": org_id,
        "state": "pending",
        "attempts": 0,
        "next_ms": now_ms,
        "last_status": 0,
        "last_error": "",
        "delivered_ms": 0,
    }


# --- sending --------------------------------------------------------------------------------------


def any_due(conn: Connection, now_ms: int, full: Collection[str] = ()) -> bool:
    """Whether `claim` would find something."""
    return conn.execute(_due(now_ms, full).limit(1)).first() is not None


def claim(
    conn: Connection, now_ms: int, limit: int, per_webhook: int, under_way: Mapping[str, int] | None = None
) -> list[Claimed]:
    """Deliveries that are due, at most `limit`, and `per_webhook` with those under way.

    Nobody else attempts them before the claim ends.
    """
    claimed: list[Claimed] = []
    until = now_ms + CLAIM_MS
    busy = dict(under_way or {})
    full = [webhook_id for webhook_id, count in busy.items() if count >= per_webhook]
    query = _due(now_ms, full).limit(limit * per_webhook)
    for row in conn.execute(query.with_for_update(skip_locked=True, of=webhook_deliveries)).all():
        if len(claimed) >= limit or busy.get(row.webhook_id, 0) >= per_webhook:
            continue
        busy[row.webhook_id] = busy.get(row.webhook_id, 0) + 1
        conn.execute(_delivery(row.message_id, row.webhook_id).values(next_ms=until))
        hook = get_webhook(conn, row.webhook_id)
        claimed.append(
            Claimed(
                row.message_id,
                hook,
                row.type,
                row.subject,
                row.occurred_ms,
                row.data,
                row.attempts,
                until,
            )
        )
    return claimed


def settle(conn: Connection, done: Claimed, attempt: Attempt, wait_ms: int, now_ms: int) -> bool:
    """Log an attempt and decide what follows; `wait_ms` until the next. True: it was the last, and failed."""
    conn.execute(
        insert(webhook_attempts).values(
            message_id=done.message_id,
            webhook_id=done.webhook.id,
            org_id=done.webhook.org_id,
            at_ms=attempt.at_ms,
            duration_ms=attempt.duration_ms,
            status=attempt.status,
            error=attempt.error,
        )
    )
    attempts = done.attempts + 1
    exhausted = not attempt.accepted and (attempts >= len(SCHEDULE_S) or attempt.status == 410)
    values: dict[str, object] = {
        "attempts": attempts,
        "last_status": attempt.status,
        "last_error": attempt.error,
        "state": "delivered" if attempt.accepted else "failed" if exhausted else "pending",
        "next_ms": now_ms + wait_ms,
    }
    if attempt.accepted:
        values["delivered_ms"] = now_ms
        hook = webhooks.c
        conn.execute(
            update(webhooks)
            .where(hook.id == done.webhook.id, hook.last_success_ms < attempt.at_ms)
            .values(last_success_ms=attempt.at_ms)
        )
    # Replayed or deleted meanwhile: then somebody else has decided.
    ours = _delivery(done.message_id, done.webhook.id).where(webhook_deliveries.c.next_ms == done.claim_ms)
    return conn.execute(ours.values(values)).rowcount == 1 and exhausted


def disable(conn: Connection, webhook_id: str, reason: str) -> None:
    """Send there no more, until somebody enables it again."""
    conn.execute(
        update(webhooks).where(webhooks.c.id == webhook_id).values(enabled=False, disabled_reason=reason)
    )


def forget_old(conn: Connection, now_ms: int) -> int:
    """Delete what is older than it is kept, a bounded number; returns how many messages."""
    log = webhook_attempts
    old = select(log.c.row_id).where(log.c.at_ms < now_ms - LOG_KEPT_MS).limit(_FORGET_AT_ONCE)
    conn.execute(delete(log).where(log.c.row_id.in_(list(conn.execute(old).scalars()))))
    messages, deliveries = webhook_messages, webhook_deliveries
    query = select(messages.c.id).where(messages.c.occurred_ms < now_ms - MESSAGES_KEPT_MS)
    gone = list(conn.execute(query.limit(_FORGET_AT_ONCE)).scalars())
    conn.execute(delete(deliveries).where(deliveries.c.message_id.in_(gone)))
    conn.execute(delete(messages).where(messages.c.id.in_(gone)))
    return len(gone)


def _due(now_ms: int, full: Collection[str]) -> Select[Any]:
    deliveries, messages = webhook_deliveries, webhook_messages
    query = (
        select(deliveries, messages.c.type, messages.c.subject, messages.c.occurred_ms, messages.c.data)
        .join(messages, messages.c.id == deliveries.c.message_id)
        .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
        .where(deliveries.c.state == "pending", deliveries.c.next_ms <= now_ms, webhooks.c.enabled)
        .order_by(deliveries.c.next_ms, deliveries.c.message_id)
    )
    return query.where(deliveries.c.webhook_id.not_in(sorted(full))) if full else query


def _delivery(message_id: str, webhook_id: str) -> Any:
    table = webhook_deliveries
    return update(table).where(table.c.message_id == message_id, table.c.webhook_id == webhook_id)


# --- looking and replaying ------------------------------------------------------------------------


def list_deliveries(
    conn: Connection, webhook_id: str, *, state: str | None = None, limit: int, before: str = ""
) -> list[Delivery]:
    """Of one endpoint, the newest message first."""
    deliveries = webhook_deliveries
    query = _deliveries_of(webhook_id).order_by(deliveries.c.message_id.desc()).limit(limit)
    if state is not None:
        query = query.where(deliveries.c.state == state)
    if before:
        query = query.where(deliveries.c.message_id < before)
    return [_shown(row) for row in conn.execute(query)]


def find_delivery(conn: Connection, webhook_id: str, message_id: str) -> Delivery | None:
    """One message at one endpoint; None: it was never meant for it."""
    query = _deliveries_of(webhook_id).where(webhook_deliveries.c.message_id == message_id)
    row = conn.execute(query).first()
    return None if row is None else _shown(row)


def _deliveries_of(webhook_id: str) -> Select[Any]:
    deliveries, messages = webhook_deliveries, webhook_messages
    return (
        select(deliveries, messages.c.type, messages.c.subject, messages.c.occurred_ms)
        .join(messages, messages.c.id == deliveries.c.message_id)
        .where(deliveries.c.webhook_id == webhook_id)
    )


def list_attempts(conn: Connection, webhook_id: str, message_id: str, limit: int = 100) -> list[Attempt]:
    """The log of one message at one endpoint, the newest first."""
    table = webhook_attempts
    query = (
        select(table)
        .where(table.c.message_id == message_id, table.c.webhook_id == webhook_id)
        .order_by(table.c.row_id.desc())
        .limit(limit)
    )
    return [Attempt(r.at_ms, r.duration_ms, r.status, r.error) for r in conn.execute(query)]


def replay_message(conn: Connection, webhook: Webhook, message_id: str, now_ms: int) -> None:
    """Send a message again, whatever became of it; NotFound when the organization has no such one."""
    table = webhook_messages
    query = select(table.c.id).where(table.c.id == message_id, table.c.org_id == webhook.org_id)
    if conn.execute(query).first() is None:
        raise NotFound(f"there is no message {message_id[:80]!r} of this organization", param="message")
    _again(conn, webhook, [message_id], now_ms)


def replay_since(conn: Connection, webhook: Webhook, since_ms: int, now_ms: int) -> int:
    """Send again what this endpoint wants, from `since_ms` on, and did not get; returns how many messages."""
    messages, deliveries = webhook_messages, webhook_deliveries
    got = exists().where(
        deliveries.c.message_id == messages.c.id,
        deliveries.c.webhook_id == webhook.id,
        or_(deliveries.c.state == "delivered", deliveries.c.state == "pending"),
    )
    query = select(messages.c.id).where(
        messages.c.org_id == webhook.org_id, messages.c.occurred_ms >= since_ms, messages.c.type != TEST, ~got
    )
    if webhook.event_types:
        query = query.where(messages.c.type.in_(webhook.event_types))
    ids = list(conn.execute(query.order_by(messages.c.id).limit(MAX_REPLAY)).scalars())
    _again(conn, webhook, ids, now_ms)
    return len(ids)


def _again(conn: Connection, webhook: Webhook, message_ids: Sequence[str], now_ms: int) -> None:
    for message_id in message_ids:
        fresh = _new_delivery(message_id, webhook.id, webhook.org_id, now_ms)
        if not conn.execute(_delivery(message_id, webhook.id).values(fresh)).rowcount:
            conn.execute(insert(webhook_deliveries).values(fresh))


def _shown(row: Row[Any]) -> Delivery:
    return Delivery(
        message_id=row.message_id,
        webhook_id=row.webhook_id,
        org_id=row.org_id,
        event_type=row.type,
        subject=row.subject,
        occurred_ms=row.occurred_ms,
        state=row.state,
        attempts=row.attempts,
        next_ms=row.next_ms,
        last_status=row.last_status,
        last_error=row.last_error,
        delivered_ms=row.delivered_ms,
    )
