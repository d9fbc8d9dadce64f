"""A client with the shape of Azure ML's: `begin_create_or_update`, pollers, entities."""

from types import TracebackType
from typing import Any, Self

from farebox.client import Client
from farebox.entities import Environment, Model, OnlineDeployment, OnlineEndpoint
from farebox.errors import FareboxConfigError
from farebox.polling import LROPoller
from farebox.serverless_entities import (
    MarketplaceSubscription,
    MarketplaceSubscriptionOperations,
    ServerlessEndpoint,
    ServerlessEndpointOperations,
)


class MLClient:
    """A Farebox server, for programs that were written for `azure.ai.ml.MLClient`.

    The address and the key are found as `farebox.Client` finds them, or given by name. Azure's four arguments are taken,
    so that only the import changes; they have no meaning here. `client` is the whole management API.
    """

    def __init__(
        self,
        credential: object = None,
        subscription_id: str | None = None,
        resource_group_name: str | None = None,
        workspace_name: str | None = None,
        *,
        url: str | None = None,
        api_key: str | None = None,
        client: Client | None = None,
    ) -> None:
        if isinstance(credential, str):
            raise FareboxConfigError("give the address as url=… and the key as api_key=…")
        self.client = client or Client(url, api_key)
        self.online_endpoints = self.client.online_endpoints
        self.online_deployments = self.client.online_deployments
        transport = self.client._transport
        self.serverless_endpoints = ServerlessEndpointOperations(transport, self.client.serverless_endpoints)
        self.marketplace_subscriptions = MarketplaceSubscriptionOperations(
            transport, self.client.marketplace_subscriptions
        )
        self.models = self.client.registered_models
        self.environments = self.client.environments

    def begin_create_or_update(
        self, entity: OnlineEndpoint | OnlineDeployment | ServerlessEndpoint | MarketplaceSubscription
    ) -> LROPoller[Any]:
        """For endpoints, deployments and subscriptions."""
        if isinstance(entity, OnlineEndpoint):
            return self.online_endpoints.begin_create_or_update(entity)
        if isinstance(entity, OnlineDeployment):
            return self.online_deployments.begin_create_or_update(entity)
        if isinstance(entity, ServerlessEndpoint):
            return self.serverless_endpoints.begin_create_or_update(entity)
        if isinstance(entity, MarketplaceSubscription):
            return self.marketplace_subscriptions.begin_create_or_update(entity)
        raise FareboxConfigError(
            f"expected an endpoint, deployment or subscription, got {type(entity).__name__}"
        )

    def create_or_update(self, entity: Model | Environment) -> Model | Environment:
        """For models and environments."""
        if isinstance(entity, Model):
            return self.models.create_or_update(entity)
        if isinstance(entity, Environment):
            return self.environments.create_or_update(entity)
        raise FareboxConfigError(f"expected a model or an environment, got {type(entity).__name__}")

    def close(self) -> None:
        """Closes the connections."""
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
