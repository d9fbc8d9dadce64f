"""Subscriptions of projects to offers of others."""

from typing import Annotated

from fastapi import Query, status
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from access import store as access_store
from access.principal import Principal
from core.audit import record_audit
from core.clock import iso
from functions.console.dependencies import Caller, Deps
from functions.console.routing import console_router
from functions.console.shapes import After, Input, Limit, Page, Text, page
from serving import subscriptions
from serving.endpoints import check_name
from serving.subscriptions import Subscription

router = console_router("marketplace subscriptions")


class NewSubscription(Input):
    """Whose terms are accepted, for which project."""

    name: Text = Field(examples=["large-chat"], description="As endpoints' names; unique.")
    model: Text = Field(
        examples=["acme/large-chat"], description="A model of the catalog with `marketplace`."
    )
    project: Text | None = Field(
        default=None, description="Id, name, or organization/name. Without it: the only project."
    )


class SubscriptionOut(BaseModel):
    """Accepted terms. They are good for every model of the offer."""

    id: str
    name: str = Field(examples=["large-chat"])
    model: str = Field(examples=["acme/large-chat"])
    offer: str = Field(examples=["large-chat-offer"])
    terms_url: str = Field(description="As they were accepted.")
    accepted_by: str = Field(description="Id of the key.")
    project_id: str
    organization_id: str
    created_at: str
    endpoints: list[str] = Field(
        description="What of the project needs it: serverless endpoints, and deployments as `endpoint/deployment`."
    )


@router.post(
    "/marketplace-subscriptions", status_code=status.HTTP_201_CREATED, summary="Subscribe to an offer"
)
def create_subscription(body: NewSubscription, caller: Caller, deps: Deps) -> SubscriptionOut:
    """Accepts the terms of the model's offer for the project; 409 where that has been done."""
    check_name(body.name)
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        if body.project is None:
            project = access_store.sole_project(connection, now_ms)
        else:
            project = access_store.find_project(connection, body.project)
        made = subscriptions.subscribe(
            connection, body.name, body.model, project.org_id, project.id, caller.key_id, now_ms
        )
        _audit(connection, caller, made, "subscription.accept", now_ms)
        return _shown(connection, made)


@router.get("/marketplace-subscriptions", summary="List subscriptions")
def list_marketplace_subscriptions(
    deps: Deps,
    project: Annotated[
        str | None, Query(max_length=200, description="Id, name, or organization/name.")
    ] = None,
    limit: Limit = 50,
    after: After = "",
) -> Page[SubscriptionOut]:
    """Those in force, in order of creation."""
    with deps.db.read() as connection:
        project_id = None if project is None else access_store.find_project(connection, project).id
        found = subscriptions.list_subscriptions(connection, project_id, limit=limit + 1, after=after)
        return page(found, limit, lambda each: _shown(connection, each), lambda each: each.id)


@router.get("/marketplace-subscriptions/{name}", summary="Show a subscription")
def get_marketplace_subscription(name: str, deps: Deps) -> SubscriptionOut:
    """With the endpoints that need it."""
    with deps.db.read() as connection:
        return _shown(connection, subscriptions.get_subscription(connection, name))


@router.delete("/marketplace-subscriptions/{name}", summary="Delete a subscription")
def delete_marketplace_subscription(name: str, caller: Caller, deps: Deps) -> SubscriptionOut:
    """The endpoints that need it refuse calls from now on (403, `subscription_missing`); their minutes go on."""
    now_ms = deps.clock.now_ms()
    with deps.db.begin() as connection:
        found = subscriptions.get_subscription(connection, name)
        shown = _shown(connection, found)
        subscriptions.unsubscribe(connection, found, now_ms)
        _audit(connection, caller, found, "subscription.delete", now_ms)
    return shown


def _audit(connection: Connection, caller: Principal, found: Subscription, deed: str, now_ms: int) -> None:
    record_audit(
        connection,
        now_ms=now_ms,
        actor=caller.key_id,
        action=deed,
        object_id=found.id,
        org_id=found.org_id,
        detail={"name": found.name, "offer": found.offer, "terms_url": found.terms_url},
    )


def _shown(connection: Connection, found: Subscription) -> SubscriptionOut:
    return SubscriptionOut(
        id=found.id,
        name=found.name,
        model=found.model_id,
        offer=found.offer,
        terms_url=found.terms_url,
        accepted_by=found.accepted_by,
        project_id=found.project_id,
        organization_id=found.org_id,
        created_at=iso(found.created_ms),
        endpoints=subscriptions.dependents(connection, found),
    )
