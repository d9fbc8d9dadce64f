"""The payment provider for the operator: what the key may do, what waits, what was told; and its webhook."""

from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from billing.payments import heard, outbox, store
from billing.payments.model import Heard, ProviderError, Refused, Task
from core.audit import record_audit
from core.clock import iso
from core.errors import BadRequest, Conflict, TooLarge, Unavailable
from functions.console.dependencies import Caller, ConsoleDependencies, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, iso_or_none, page

router = console_router("stripe")
MAX_WEBHOOK_BYTES = 256 * 1024
_MAX_TROUBLED = 50
_MAX_READ = 1000
_NO_KEY = "no Stripe key: set FAREBOX_STRIPE_API_KEY for the platform and start it again"

Mode = Literal["none", "test", "live"]


class PermissionOut(BaseModel):
    """What the key may do with one kind of object."""

    resource: str = Field(examples=["invoices"])
    access: Literal["read", "write"]
    allowed: bool
    needed_for: str
    detail: str | None = Field(description="Stripe's words, where it may not.")


class CheckOut(BaseModel):
    """What was found out without changing anything at Stripe."""

    mode: Mode = Field(description="none: no key is set.")
    webhook_secret: bool = Field(description="Whether FAREBOX_STRIPE_WEBHOOK_SECRET is set.")
    reachable: bool
    problem: str | None
    permissions: list[PermissionOut]


class TaskCount(BaseModel):
    """How many tasks of a kind are in a state."""

    kind: str
    state: str
    count: int


class TroubledOut(BaseModel):
    """A task that failed for good, or waits after an error."""

    id: str
    organization_id: str | None
    state: Literal["waiting", "done", "failed"]
    attempts: int
    created_at: str
    next_at: str
    error: str


class StatusOut(BaseModel):
    """The outbox, and what Stripe has."""

    mode: Mode
    tasks: list[TaskCount]
    oldest_waiting_at: str | None
    troubled: list[TroubledOut]
    invoices: dict[str, int] = Field(description="Invoices that Stripe has, by its word for their state.")


class SyncIn(Input):
    """What to do again."""

    retry_failed: bool = Field(default=False, description="Also what Stripe refused for good.")


class SyncOut(BaseModel):
    """What will be done within seconds."""

    retried: int = Field(description="Tasks that waited, or failed, and are due now.")
    invoices_to_read: int = Field(
        description="Invoices that are not settled at Stripe and are asked for again."
    )


class StripeEventOut(BaseModel):
    """An event that Stripe delivered to the webhook, with a signature that was right."""

    id: str
    type: str
    object_id: str
    organization_id: str | None
    created_at: str
    received_at: str
    deliveries: int
    processed_at: str | None
    outcome: str | None


@router.get("/stripe/check", summary="Check the Stripe key")
def check(deps: Deps) -> CheckOut:
    """Resource by resource, with lists of one object and changes that cannot succeed."""
    secret = bool(deps.settings.stripe_webhook_secret)
    if deps.payments is None:
        return CheckOut(mode="none", webhook_secret=secret, reachable=False, problem=_NO_KEY, permissions=[])
    problem, found = None, []
    try:
        found = [
            PermissionOut(
                resource=each.resource,
                access=each.access,
                allowed=each.allowed,
                needed_for=each.needed_for,
                detail=each.detail or None,
            )
            for each in deps.payments.provider.permissions()
        ]
    except ProviderError as error:
        problem = error.message
    return CheckOut(
        mode=_mode(deps), webhook_secret=secret, reachable=not problem, problem=problem, permissions=found
    )


@router.get("/stripe/status", summary="Show what waits for Stripe")
def status(deps: Deps) -> StatusOut:
    """Counts, the oldest that waits, and the first fifty with an error."""
    with deps.db.read() as connection:
        return StatusOut(
            mode=_mode(deps),
            tasks=[
                TaskCount(kind=kind, state=state, count=count)
                for (kind, state), count in sorted(outbox.counts(connection).items())
            ],
            oldest_waiting_at=iso_or_none(outbox.oldest_waiting_ms(connection)),
            troubled=[_troubled(each) for each in outbox.troubled(connection, _MAX_TROUBLED)],
            invoices=store.amounts_by_status(connection),
        )


@router.post("/stripe/sync", summary="Try now what waits for Stripe")
def sync(body: SyncIn, caller: Caller, deps: Deps) -> SyncOut:
    """And read back invoices that are not settled there, should a webhook have been missed."""
    if deps.payments is None:
        raise Conflict(_NO_KEY, code="no_stripe_key")
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        retried = outbox.retry_now(connection, now_ms, failed_too=body.retry_failed)
        open_there = store.unsettled(connection, _MAX_READ)
        for _, provider_id in open_there:
            asked = Heard(f"sync/{provider_id}/{now_ms}", heard.SYNC, provider_id, now_ms)
            heard.keep(connection, asked, now_ms)
        record_audit(
            connection,
            now_ms=now_ms,
            actor=caller.key_id,
            action="stripe.sync",
            object_id="stripe",
            detail={"retried": retried, "retry_failed": body.retry_failed},
        )
    return SyncOut(retried=retried, invoices_to_read=len(open_there))


@router.get("/stripe/events", summary="List what Stripe told")
def events(deps: Deps, limit: Limit = 50, after: After = "") -> Page[StripeEventOut]:
    """The newest first, with what became of them."""
    with deps.db.read() as connection:
        found = store.list_events(connection, limit + 1, after)
    return page(found, limit, _event, lambda each: each.id)


def install_webhook(app: FastAPI, deps: ConsoleDependencies) -> None:
    """The one route that Stripe calls: no key of ours, a signature instead."""

    async def webhook(request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_WEBHOOK_BYTES:
            raise TooLarge(f"the body is larger than the {MAX_WEBHOOK_BYTES} bytes of an event")
        new = await run_in_threadpool(_receive, deps, body, request.headers.get("stripe-signature", ""))
        return JSONResponse({"received": True, "new": new})

    app.add_route("/api/stripe/webhook", webhook, methods=["POST"], include_in_schema=False)


def _receive(deps: ConsoleDependencies, body: bytes, signature: str) -> bool:
    if deps.payments is None or not deps.settings.stripe_webhook_secret:
        raise Unavailable(
            "webhooks of Stripe are not set up: FAREBOX_STRIPE_API_KEY and FAREBOX_STRIPE_WEBHOOK_SECRET",
            code="stripe_not_set_up",
        )
    try:
        told = deps.payments.provider.hear(body, signature)
    except Refused as refused:
        raise BadRequest(f"not accepted: {refused.message}", code="webhook_refused") from None
    with deps.db.begin() as connection:
        return heard.keep(connection, told, deps.clock.now_ms())


def _mode(deps: ConsoleDependencies) -> Mode:
    if deps.payments is None:
        return "none"
    return "live" if deps.payments.provider.live else "test"


def _troubled(task: Task) -> TroubledOut:
    return TroubledOut(
        id=task.id,
        organization_id=task.org_id or None,
        state=task.state,
        attempts=task.attempts,
        created_at=iso(task.created_ms),
        next_at=iso(task.next_ms),
        error=task.last_error,
    )


def _event(event: store.StoredEvent) -> StripeEventOut:
    return StripeEventOut(
        id=event.id,
        type=event.type,
        object_id=event.object_id,
        organization_id=event.org_id or None,
        created_at=iso(event.created_ms),
        received_at=iso(event.received_ms),
        deliveries=event.deliveries,
        processed_at=iso_or_none(event.processed_ms),
        outcome=event.outcome or None,
    )
