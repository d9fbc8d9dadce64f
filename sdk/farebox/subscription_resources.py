"""Subscriptions of projects to offers of others."""

from typing import TypedDict, cast

from farebox.resource import Resource, given
from farebox.transport import path_of


class MarketplaceSubscription(TypedDict):
    """Terms of somebody else's offer that a project accepted; `endpoints` are those that need it."""

    id: str
    name: str
    model: str
    offer: str
    terms_url: str
    accepted_by: str
    project_id: str
    organization_id: str
    created_at: str
    endpoints: list[str]


_Subscriptions = list[MarketplaceSubscription]  # inside a class with a method `list`, that name is the method
_PATH = "/api/marketplace-subscriptions"


class MarketplaceSubscriptions(Resource):
    """Whose terms a project accepted. Models with `marketplace` cannot be deployed without."""

    def create(self, name: str, *, model: str, project: str | None = None) -> MarketplaceSubscription:
        """Accepts the terms. Without `project`: for the only one there is."""
        body = given(name=name, model=model, project=project)
        return cast(MarketplaceSubscription, self._transport.json("POST", _PATH, json=body))

    def list(self, *, project: str | None = None) -> _Subscriptions:
        return self._all(_PATH, project=project)

    def get(self, name: str) -> MarketplaceSubscription:
        return cast(MarketplaceSubscription, self._transport.json("GET", _PATH + path_of(name)))

    def delete(self, name: str) -> MarketplaceSubscription:
        """The endpoints that need it answer no more calls."""
        return cast(MarketplaceSubscription, self._transport.json("DELETE", _PATH + path_of(name)))
