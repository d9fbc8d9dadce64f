"""The Python client: every management call of a Farebox server, typed."""

from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from farebox.chat import Chat
from farebox.config import resolve
from farebox.customer_key_resource import CustomerKey
from farebox.errors import FareboxAPIError
from farebox.event_resources import AuditLog, Events, Quarantine, Webhooks
from farebox.invoice_resources import (
    BillingProfiles,
    Contracts,
    CreditNotes,
    Credits,
    Exports,
    Invoices,
)
from farebox.online_resources import Environments, OnlineDeployments, OnlineEndpoints, RegisteredModels
from farebox.price_resources import InstancePrices, Prices
from farebox.resources import (
    Alarms,
    Budgets,
    Deployments,
    Keys,
    LimitsOf,
    Models,
    Organizations,
    Projects,
    Receipts,
    ReconciliationOf,
    ServerlessEndpoints,
    Usage,
)
from farebox.serverless_deployments import ServerlessDeployments
from farebox.stripe_resources import StripeOf
from farebox.subscription_resources import MarketplaceSubscriptions
from farebox.transport import Transport, not_farebox
from farebox.types import Deployment, Status

if TYPE_CHECKING:
    import httpx


class Client:
    """A Farebox server.

    `url` and `api_key` default to FAREBOX_URL (else http://127.0.0.1:8080) and FAREBOX_API_KEY (else, for a
    server on this machine, the admin key in FAREBOX_HOME). Raises FareboxAPIError when the server refuses,
    FareboxConnectionError when it cannot be reached. Threads may share one client; close it, or use `with`.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        *,
        http_transport: "httpx.BaseTransport | None" = None,
    ) -> None:
        self.connection = resolve(url, api_key)
        self._transport = Transport(self.connection, timeout, http_transport)
        self.organizations = Organizations(self._transport)
        self.projects = Projects(self._transport)
        self.keys = Keys(self._transport)
        self.models = Models(self._transport)
        self.serverless_endpoints = ServerlessEndpoints(self._transport)
        self.online_endpoints = OnlineEndpoints(self._transport)
        self.online_deployments = OnlineDeployments(self._transport)
        self.registered_models = RegisteredModels(self._transport)
        self.environments = Environments(self._transport)
        self.deployments = Deployments(self._transport)
        self.usage = Usage(self._transport)
        self.receipts = Receipts(self._transport)
        self.invoices = Invoices(self._transport)
        self.reconciliation = ReconciliationOf(self._transport)
        self.alarms = Alarms(self._transport)
        self.credits = Credits(self._transport)
        self.credit_notes = CreditNotes(self._transport)
        self.contracts = Contracts(self._transport)
        self.billing_profiles = BillingProfiles(self._transport)
        self.exports = Exports(self._transport)
        self.limits = LimitsOf(self._transport)
        self.budgets = Budgets(self._transport)
        self.prices = Prices(self._transport)
        self.serverless_deployments = ServerlessDeployments(self._transport)
        self.marketplace_subscriptions = MarketplaceSubscriptions(self._transport)
        self.instance_prices = InstancePrices(self._transport)
        self.events = Events(self._transport)
        self.quarantine = Quarantine(self._transport)
        self.audit = AuditLog(self._transport)
        self.webhooks = Webhooks(self._transport)
        self.customer_key = CustomerKey(self._transport)
        self.stripe = StripeOf(self._transport)
        self.chat = Chat(self._transport)

    def status(self) -> Status:
        """Whether the server is up and ready, its versions and, if the key may see them, its deployments."""
        health = self._transport.send("GET", "/healthz", check=False)
        ready = self._transport.send("GET", "/readyz", check=False)
        about = _json_of(health)
        if not isinstance(about, dict):
            raise not_farebox(health)
        problems = _json_of(ready)
        return {
            "url": self.connection.url,
            "healthy": health.is_success,
            "ready": ready.is_success,
            "problems": problems.get("problems") or [] if isinstance(problems, dict) else [],
            "version": about.get("version"),
            "api_version": self._api_version(),
            "deployments": self._deployments_if_allowed(),
        }

    def _api_version(self) -> str | None:
        document = _json_of(self._transport.send("GET", "/api/openapi.json", check=False))
        info = document.get("info") if isinstance(document, dict) else None
        return info.get("version") if isinstance(info, dict) else None

    def _deployments_if_allowed(self) -> list[Deployment] | None:
        try:
            return self.deployments.list()
        except FareboxAPIError as error:
            if error.status not in (401, 403, 502, 503, 504):
                raise
            return None

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json_of(response: "httpx.Response") -> Any:
    try:
        return response.json()
    except ValueError:
        return None
