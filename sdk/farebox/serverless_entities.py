"""Serverless endpoints and subscriptions with Azure ML's classes and verbs; `farebox.Client` has our own.

What Azure does in the background is done here when the call returns, so these pollers have ended already.
"""

import builtins
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from farebox.entities import Part
from farebox.errors import FareboxAPIError, FareboxConfigError
from farebox.online_resources import EndpointAuthKeys
from farebox.polling import LROPoller
from farebox.registry import catalog_id
from farebox.resources import ServerlessEndpoints
from farebox.subscription_resources import MarketplaceSubscriptions
from farebox.transport import Transport

T = TypeVar("T")


@dataclass(kw_only=True)
class ServerlessEndpoint(Part):
    """A catalog model at an address of its own. The last fields are the server's."""

    _renamed: ClassVar[dict[str, str]] = {"model_id": "model", "provisioning_state": "state"}
    name: str | None = None
    model_id: str | None = None  # the catalog's id, or azureml://registries/R/models/ID
    project: str | None = None
    tags: dict[str, str] | None = None
    content_safety: str | None = None  # enabled | disabled
    auth_mode: str = "key"
    id: str | None = None
    scoring_uri: str | None = None
    openai_base_url: str | None = None
    provisioning_state: str | None = None


@dataclass(kw_only=True)
class MarketplaceSubscription(Part):
    """Terms of somebody else's offer that a project accepted. The last fields are the server's."""

    _renamed: ClassVar[dict[str, str]] = {"model_id": "model"}
    name: str | None = None
    model_id: str | None = None
    project: str | None = None
    id: str | None = None
    offer: str | None = None
    terms_url: str | None = None


class ServerlessEndpointOperations:
    """`MLClient.serverless_endpoints`."""

    def __init__(self, transport: Transport, endpoints: ServerlessEndpoints) -> None:
        self._transport, self._endpoints = transport, endpoints

    def begin_create_or_update(self, endpoint: ServerlessEndpoint) -> LROPoller[ServerlessEndpoint]:
        """Make it, or change the tags and the content check of one that is there; its model cannot be changed."""
        name, model = _given(endpoint.name, "name"), catalog_id(_given(endpoint.model_id, "model_id"))
        safety: Any = endpoint.content_safety
        if not self._exists(name, model):
            self._endpoints.create(
                name, model=model, project=endpoint.project, tags=endpoint.tags, content_safety=safety
            )
        elif endpoint.tags is not None or safety is not None:
            self._endpoints.update(name, tags=endpoint.tags, content_safety=safety)
        return _ended(self._transport, lambda: self.get(name))

    def get(self, name: str) -> ServerlessEndpoint:
        return ServerlessEndpoint.from_dict(dict(self._endpoints.get(name)))

    def list(self) -> list[ServerlessEndpoint]:
        return [ServerlessEndpoint.from_dict(dict(each)) for each in self._endpoints.list()]

    def begin_delete(self, name: str) -> LROPoller[None]:
        self._endpoints.delete(name)
        return _ended(self._transport, lambda: None)

    def get_keys(self, name: str) -> EndpointAuthKeys:
        return _keys(dict(self._endpoints.get_keys(name)))

    def begin_regenerate_keys(self, name: str, *, key_type: str = "primary") -> LROPoller[EndpointAuthKeys]:
        wanted: Any = key_type.lower()
        keys = _keys(dict(self._endpoints.regenerate_keys(name, key_type=wanted)))
        return _ended(self._transport, lambda: keys)

    def _exists(self, name: str, model: str) -> bool:
        try:
            known = self._endpoints.get(name)
        except FareboxAPIError as error:
            if error.status == 404:
                return False
            raise
        if known["model"] != model:
            raise FareboxConfigError(
                f"model_id: {name!r} has the model {known['model']!r}, which cannot be changed; make another endpoint"
            )
        return True


class MarketplaceSubscriptionOperations:
    """`MLClient.marketplace_subscriptions`."""

    def __init__(self, transport: Transport, subscriptions: MarketplaceSubscriptions) -> None:
        self._transport, self._subscriptions = transport, subscriptions

    def begin_create_or_update(
        self, subscription: MarketplaceSubscription
    ) -> LROPoller[MarketplaceSubscription]:
        """Accept the terms."""
        name = _given(subscription.name, "name")
        model = catalog_id(_given(subscription.model_id, "model_id"))
        self._subscriptions.create(name, model=model, project=subscription.project)
        return _ended(self._transport, lambda: self.get(name))

    def get(self, name: str) -> MarketplaceSubscription:
        return MarketplaceSubscription.from_dict(dict(self._subscriptions.get(name)))

    def list(self) -> builtins.list[MarketplaceSubscription]:
        return [MarketplaceSubscription.from_dict(dict(each)) for each in self._subscriptions.list()]

    def begin_delete(self, name: str) -> LROPoller[None]:
        self._subscriptions.delete(name)
        return _ended(self._transport, lambda: None)


def _ended(transport: Transport, fetch: Callable[[], T]) -> LROPoller[T]:
    return LROPoller(transport, {"operation": {"id": "", "state": "Succeeded"}}, fetch)


def _keys(answer: dict[str, Any]) -> EndpointAuthKeys:
    return EndpointAuthKeys(answer["primaryKey"], answer["secondaryKey"])


def _given(value: str | None, field: str) -> str:
    if not value:
        raise FareboxConfigError(f"{field}: the field is missing")
    return value
