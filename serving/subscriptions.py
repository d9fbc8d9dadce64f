"""Subscriptions of projects to offers of others: who accepted whose terms (R5.4).

A model of the catalog with `marketplace` is such an offer. One living subscription per project and offer is good for all
models of the offer; without it no serverless endpoint is made on them, and those that are there answer no call.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update
from sqlalchemy.exc import IntegrityError

from catalog.model import ModelSpec
from catalog.store import find_model, get_model
from core.changes import record_change
from core.errors import Conflict, Forbidden, Invalid, NotFound
from core.ids import new_id
from serving import store
from serving.endpoints import announce_state
from serving.online.store import list_online_deployments
from serving.serverless_deployments import list_serverless_deployments
from serving.tables import subscriptions

MISSING = "subscription_missing"


@dataclass(frozen=True, slots=True)
class Subscription:
    """One of a project."""

    id: str
    name: str
    org_id: str
    project_id: str
    model_id: str
    offer: str
    terms_url: str
    accepted_by: str
    created_ms: int


def subscribed(connection: Connection, spec: ModelSpec, project_id: str) -> bool:
    """Whether the project may use the model: it is nobody else's offer, or the terms are accepted."""
    return spec.marketplace is None or _find(connection, project_id, spec.marketplace.offer) is not None


def check_subscribed(connection: Connection, model_id: str, project_id: str) -> None:
    """Forbidden unless the project may use the model."""
    spec = get_model(connection, model_id).spec
    if subscribed(connection, spec, project_id):
        return
    assert spec.marketplace is not None, "else it is subscribed"
    raise Forbidden(
        f"model: {spec.id} is offered by {spec.publisher or spec.marketplace.publisher or 'others'} under terms of "
        f"their own, {spec.marketplace.terms_url}. Accept them for the project first: farebox "
        f"marketplace-subscription create NAME --model {spec.id}",
        code="subscription_required",
        param="model",
    )


def subscribe(
    connection: Connection,
    name: str,
    model_id: str,
    org_id: str,
    project_id: str,
    accepted_by: str,
    now_ms: int,
) -> Subscription:
    """Accept the terms of the model's offer for the project, under a name that was checked.

    NotFound, Invalid, Conflict name the field.
    """
    spec = get_model(connection, model_id).spec
    if spec.marketplace is None:
        raise Invalid(f"model: {spec.id} is no offer of others and needs no subscription", param="model")
    made = Subscription(
        new_id("msub", now_ms),
        name,
        org_id,
        project_id,
        spec.id,
        spec.marketplace.offer,
        spec.marketplace.terms_url,
        accepted_by,
        now_ms,
    )
    values = {field: getattr(made, field) for field in Subscription.__slots__}
    try:
        with connection.begin_nested():
            connection.execute(insert(subscriptions).values(values))
    except IntegrityError:
        other = _find(connection, project_id, made.offer)
        if other is not None:
            raise Conflict(
                f"model: the project is subscribed to this offer already, as {other.name!r}",
                code="already_subscribed",
                param="model",
            ) from None
        raise Conflict(
            f"name: a subscription named {name!r} exists", code="name_in_use", param="name"
        ) from None
    _tell(connection, made, now_ms)
    return made


def get_subscription(connection: Connection, name: str) -> Subscription:
    """The living one of that name, else NotFound."""
    row = connection.execute(_living().where(subscriptions.c.name == name)).one_or_none()
    if row is None:
        raise NotFound(f"there is no subscription {name[:60]!r}", code="subscription_not_found", param="name")
    return _made(row)


def list_subscriptions(
    connection: Connection, project_id: str | None = None, *, limit: int, after: str = ""
) -> list[Subscription]:
    """Living ones in order of creation."""
    query = _living().where(subscriptions.c.id > after).order_by(subscriptions.c.id).limit(limit)
    if project_id is not None:
        query = query.where(subscriptions.c.project_id == project_id)
    return [_made(row) for row in connection.execute(query)]


def unsubscribe(connection: Connection, subscription: Subscription, now_ms: int) -> None:
    """End it: endpoints of the project on the offer's models answer no more calls."""
    connection.execute(
        update(subscriptions).where(subscriptions.c.id == subscription.id).values(deleted_ms=now_ms)
    )
    _tell(connection, subscription, now_ms)


def dependents(connection: Connection, subscription: Subscription) -> list[str]:
    """What of the project needs it: names of serverless endpoints, and of further deployments and those of online
    endpoints as `endpoint/deployment`."""
    named: list[tuple[str, str]] = []  # and the model's id
    for each in store.list_endpoints(connection, project_id=subscription.project_id):
        if each.kind == "serverless":
            named.append((each.name, each.model_id))
            further = list_serverless_deployments(connection, each.id)
            named += [(f"{each.name}/{one.name}", one.model_id) for one in further]
        else:
            online = list_online_deployments(connection, each.id)
            named += [
                (f"{each.name}/{one.name}", one.spec.model) for one in online if one.spec.kind == "catalog"
            ]
    offers = {model_id: _offer_of(connection, model_id) for _, model_id in named}
    return [name for name, model_id in named if offers[model_id] == subscription.offer]


def _offer_of(connection: Connection, model_id: str) -> str:
    model = find_model(connection, model_id)
    return "" if model is None or model.spec.marketplace is None else model.spec.marketplace.offer


def _tell(connection: Connection, subscription: Subscription, now_ms: int) -> None:
    """Gateways resolve the project's endpoints anew, and webhooks hear of those that can or can no more be called."""
    living = _find(connection, subscription.project_id, subscription.offer) is not None
    states = ("Unhealthy", "Online") if living else ("Online", "Unhealthy")
    for endpoint in store.list_endpoints(connection, project_id=subscription.project_id):
        record_change(connection, "endpoint", endpoint.id, now_ms)
        needs = (
            endpoint.kind == "serverless" and _offer_of(connection, endpoint.model_id) == subscription.offer
        )
        if needs and endpoint.state == "Online":
            announce_state(connection, endpoint, states[0], now_ms, states[1])


def _find(connection: Connection, project_id: str, offer: str) -> Subscription | None:
    query = _living().where(subscriptions.c.project_id == project_id, subscriptions.c.offer == offer)
    row = connection.execute(query).one_or_none()
    return None if row is None else _made(row)


def _living() -> Select[Any]:
    columns = [subscriptions.c[field] for field in Subscription.__slots__]
    return select(*columns).where(subscriptions.c.deleted_ms.is_(None))


def _made(row: Row[Any]) -> Subscription:
    return Subscription(**row._mapping)
