"""Customers' webhooks: where events are sent, what became of each, and sending again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import Query, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from core.audit import record_audit
from core.clock import iso
from core.errors import Invalid, NotFound
from functions.console.dependencies import Caller, ConsoleDependencies, Deps
from functions.console.routing import console_router
from functions.console.scope import read_scope
from functions.console.shapes import After, Input, Limit, Page, Text, instant, iso_or_none, page
from webhooks.address import check_url
from webhooks.model import MAX_DESCRIPTION, Delivery, Webhook, check_types
from webhooks.outbox import (
    Attempt,
    enqueue_test,
    find_delivery,
    list_attempts,
    list_deliveries,
    replay_message,
    replay_since,
)
from webhooks.sign import new_secret
from webhooks.store import (
    add_webhook,
    delete_webhook,
    get_webhook,
    list_webhooks,
    new_webhook_id,
    save_webhook,
)

router = console_router("webhooks")

_OLD_SECRET_MS = 86_400_000

Url = Annotated[str, Field(max_length=2000, examples=["https://example.com/hooks/farebox"])]
Events = Annotated[list[Text], Field(max_length=50, examples=[["ai.farebox.invoice.finalized.v1"]])]
Description = Annotated[str, Field(max_length=MAX_DESCRIPTION)]
Named = Annotated[str | None, Query(max_length=200, description="Its id or name.")]


class NewWebhook(Input):
    """A webhook to create."""

    organization: Text | None = Field(default=None, description="Its id or name. Without it: the only one.")
    url: Url
    events: Events = Field(default=[], description="Types to send; empty: all.")
    description: Description = ""


class WebhookChange(Input):
    """What is to change."""

    url: Url | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: bool | None = Field(default=None, description="true also after Farebox disabled it.")


class Replay(Input):
    """What is to be sent again: one message, or all since a time that this webhook did not get."""

    message: Text | None = Field(default=None, examples=["msg_01kafn3m8hzq4v6p9x2c7d5b1w"])
    since: Text | None = Field(default=None, examples=["2026-11-23T12:00:00Z"])


class WebhookOut(BaseModel):
    """Where an organization's events are sent."""

    id: str
    organization_id: str
    url: str
    description: str
    events: list[str] = Field(description="Empty: all types.")
    enabled: bool
    disabled_reason: str | None = Field(description="Why Farebox disabled it.")
    last_success_at: str | None
    created_at: str


class CreatedWebhookOut(WebhookOut):
    """The only answer that holds the secret."""

    secret: str = Field(examples=["whsec_…"])


class DeliveryOut(BaseModel):
    """One message for one webhook."""

    message: str = Field(description="The event's id, and the header webhook-id.")
    type: str
    subject: str
    occurred_at: str
    state: Literal["pending", "delivered", "failed"]
    attempts: int
    next_at: str | None
    last_status: int | None
    last_error: str | None
    delivered_at: str | None


class AttemptOut(BaseModel):
    """One POST. status null: there was no answer."""

    at: str
    duration_ms: int
    status: int | None
    error: str | None


class DeliveryDetailOut(DeliveryOut):
    """With its attempts, the newest first."""

    log: list[AttemptOut]


class ReplayOut(BaseModel):
    """How many messages are sent again."""

    replayed: int


@router.post("/webhooks", status_code=status.HTTP_201_CREATED, summary="Create a webhook")
def create(body: NewWebhook, caller: Caller, deps: Deps) -> CreatedWebhookOut:
    """The secret is in this answer and nowhere else. Verify with any Standard Webhooks library."""
    now_ms = deps.clock.now_ms()
    url, types = _checked_url(body.url, deps), check_types(body.events)
    webhook_id, secret = new_webhook_id(now_ms), new_secret()
    with deps.db.begin() as connection:
        org_id = read_scope(connection, caller, body.organization).organization.id
        made = Webhook(
            id=webhook_id,
            org_id=org_id,
            url=url,
            description=body.description,
            event_types=types,
            enabled=True,
            disabled_reason="",
            secret_sealed=deps.sealer.seal(secret, webhook_id),
            previous_sealed="",
            previous_until_ms=0,
            last_success_ms=0,
            created_ms=now_ms,
        )
        add_webhook(connection, made)
        _audit(connection, caller.key_id, "webhook.create", made, now_ms)
    return CreatedWebhookOut(**_shown(made).model_dump(), secret=secret)


@router.get("/webhooks", summary="List webhooks")
def list_all(
    caller: Caller, deps: Deps, organization: Named = None, limit: Limit = 50, after: After = ""
) -> Page[WebhookOut]:
    """In order of creation, one organization's or all."""
    with deps.db.read() as connection:
        org_id = (
            None if organization is None else read_scope(connection, caller, organization).organization.id
        )
        found = list_webhooks(connection, org_id=org_id, limit=limit + 1, after=after)
    return page(found, limit, _shown, lambda each: each.id)


@router.get("/webhooks/{webhook_id}", summary="Show a webhook")
def get(webhook_id: str, deps: Deps) -> WebhookOut:
    """Without its secret."""
    with deps.db.read() as connection:
        return _shown(get_webhook(connection, webhook_id))


@router.patch("/webhooks/{webhook_id}", summary="Change a webhook")
def change(webhook_id: str, body: WebhookChange, caller: Caller, deps: Deps) -> WebhookOut:
    """What is not given stays. Enabled again, it gets what still waits; replay what it missed."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = get_webhook(connection, webhook_id, lock=True)
        enabled = found.enabled if body.enabled is None else body.enabled
        changed = replace(
            found,
            url=found.url if body.url is None else _checked_url(body.url, deps),
            event_types=found.event_types if body.events is None else check_types(body.events),
            description=found.description if body.description is None else body.description,
            enabled=enabled,
            disabled_reason="" if enabled else found.disabled_reason,
        )
        save_webhook(connection, changed)
        _audit(connection, caller.key_id, "webhook.change", changed, now_ms)
    return _shown(changed)


@router.delete("/webhooks/{webhook_id}", summary="Delete a webhook")
def delete(webhook_id: str, caller: Caller, deps: Deps) -> WebhookOut:
    """Nothing is sent there any more, and its log is gone."""
    with deps.db.begin() as connection:
        gone = delete_webhook(connection, webhook_id)
        _audit(connection, caller.key_id, "webhook.delete", gone, deps.clock.now_ms())
    return _shown(gone)


@router.post("/webhooks/{webhook_id}/rotate-secret", summary="Renew the secret of a webhook")
def rotate_secret(webhook_id: str, caller: Caller, deps: Deps) -> CreatedWebhookOut:
    """For a day both secrets sign, so that the receiver can change over in peace."""
    now_ms, secret = deps.clock.now_ms(), new_secret()
    with deps.db.begin() as connection:
        found = get_webhook(connection, webhook_id, lock=True)
        changed = replace(
            found,
            secret_sealed=deps.sealer.seal(secret, found.id),
            previous_sealed=found.secret_sealed,
            previous_until_ms=now_ms + _OLD_SECRET_MS,
        )
        save_webhook(connection, changed)
        _audit(connection, caller.key_id, "webhook.rotate_secret", changed, now_ms)
    return CreatedWebhookOut(**_shown(changed).model_dump(), secret=secret)


@router.post(
    "/webhooks/{webhook_id}/test", status_code=status.HTTP_201_CREATED, summary="Send a test message"
)
def send_test(webhook_id: str, deps: Deps) -> DeliveryOut:
    """Sent within a second or two; look at its delivery to see what became of it."""
    with deps.db.begin() as connection:
        found = get_webhook(connection, webhook_id)
        if not found.enabled:
            raise Invalid("the webhook is disabled; enable it first", param="enabled")
        message_id = enqueue_test(connection, found, deps.clock.now_ms())
        return _delivery(_found(find_delivery(connection, webhook_id, message_id), message_id))


@router.post("/webhooks/{webhook_id}/replay", summary="Send messages again")
def replay(webhook_id: str, body: Replay, caller: Caller, deps: Deps) -> ReplayOut:
    """One message whatever became of it, or all since a time that were not delivered: at most 10,000 at once."""
    if (body.message is None) == (body.since is None):
        raise Invalid("message: give either a message or since", param="message")
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = get_webhook(connection, webhook_id, lock=True)
        if body.message is not None:
            replay_message(connection, found, body.message, now_ms)
            count = 1
        else:
            count = replay_since(connection, found, instant(body.since or "", "since"), now_ms)
        _audit(connection, caller.key_id, "webhook.replay", found, now_ms)
    return ReplayOut(replayed=count)


@router.get("/webhooks/{webhook_id}/deliveries", summary="List what was sent to a webhook")
def deliveries(
    webhook_id: str,
    deps: Deps,
    state: Annotated[Literal["pending", "delivered", "failed"] | None, Query()] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[DeliveryOut]:
    """The newest first."""
    with deps.db.read() as connection:
        get_webhook(connection, webhook_id)
        found = list_deliveries(connection, webhook_id, state=state, limit=limit + 1, before=after)
    return page(found, limit, _delivery, lambda each: each.message_id)


@router.get("/webhooks/{webhook_id}/deliveries/{message_id}", summary="Show a delivery")
def delivery(webhook_id: str, message_id: str, deps: Deps) -> DeliveryDetailOut:
    """With the log of its attempts, which is kept for 30 days."""
    with deps.db.read() as connection:
        found = _found(find_delivery(connection, webhook_id, message_id), message_id)
        log = list_attempts(connection, webhook_id, message_id)
    return DeliveryDetailOut(**_delivery(found).model_dump(), log=_log(log))


def _checked_url(url: str, deps: ConsoleDependencies) -> str:
    return check_url(url, allow_private=deps.settings.webhook_allow_private > 0)


def _found(found: Delivery | None, message_id: str) -> Delivery:
    if found is None:
        raise NotFound(f"there is no delivery of message {message_id[:80]!r}", param="message")
    return found


def _audit(connection: Connection, actor: str, action: str, webhook: Webhook, now_ms: int) -> None:
    record_audit(
        connection,
        now_ms=now_ms,
        actor=actor,
        action=action,
        object_id=webhook.id,
        org_id=webhook.org_id,
        detail={"url": webhook.url, "events": webhook.event_types, "enabled": webhook.enabled},
    )


def _shown(webhook: Webhook) -> WebhookOut:
    return WebhookOut(
        id=webhook.id,
        organization_id=webhook.org_id,
        url=webhook.url,
        description=webhook.description,
        events=list(webhook.event_types),
        enabled=webhook.enabled,
        disabled_reason=webhook.disabled_reason or None,
        last_success_at=iso_or_none(webhook.last_success_ms),
        created_at=iso(webhook.created_ms),
    )


def _delivery(found: Delivery) -> DeliveryOut:
    return DeliveryOut(
        message=found.message_id,
        type=found.event_type,
        subject=found.subject,
        occurred_at=iso(found.occurred_ms),
        state=found.state,
        attempts=found.attempts,
        next_at=iso(found.next_ms) if found.state == "pending" else None,
        last_status=found.last_status or None,
        last_error=found.last_error or None,
        delivered_at=iso_or_none(found.delivered_ms),
    )


def _log(attempts: Sequence[Attempt]) -> list[AttemptOut]:
    return [
        AttemptOut(at=iso(a.at_ms), duration_ms=a.duration_ms, status=a.status or None, error=a.error or None)
        for a in attempts
    ]
