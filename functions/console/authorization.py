"""Who may call which route: the whole table. A route that is not in it is refused to everybody.

A test compares it with the routes that the app has. What a project's or an endpoint's key may see *within* a
route (its own rows only) is decided by that route.
"""

from collections.abc import Mapping
from typing import Final

from access.model import KeyKind
from access.principal import Principal
from core.errors import Forbidden

ADMIN: Final[frozenset[KeyKind]] = frozenset({"admin"})
PROJECT: Final[frozenset[KeyKind]] = frozenset({"admin", "project"})
ANY_KEY: Final[frozenset[KeyKind]] = frozenset({"admin", "project", "endpoint"})

# Without a key: what describes the API, none of what is in it.
# And what Stripe calls: it signs what it says instead.
PUBLIC: Final = frozenset(
    {("GET", "/api/openapi.json"), ("GET", "/api/docs"), ("POST", "/api/stripe/webhook")}
)

ROUTES: Final[Mapping[tuple[str, str], frozenset[KeyKind]]] = {
    ("POST", "/api/organizations"): ADMIN,
    ("GET", "/api/organizations"): ADMIN,
    ("POST", "/api/projects"): ADMIN,
    ("GET", "/api/projects"): ADMIN,
    ("POST", "/api/keys"): ADMIN,
    ("GET", "/api/keys"): ADMIN,
    ("DELETE", "/api/keys/{key_id}"): ADMIN,
    ("POST", "/api/models"): ADMIN,
    ("GET", "/api/models"): PROJECT,
    ("GET", "/api/models/{model_id:path}"): PROJECT,
    ("DELETE", "/api/models/{model_id:path}"): ADMIN,
    ("GET", "/api/model-prices/{model_id:path}"): PROJECT,
    ("POST", "/api/price-proposals"): ADMIN,
    ("GET", "/api/price-proposals"): ADMIN,
    ("GET", "/api/price-proposals/{proposal_id}"): ADMIN,
    ("POST", "/api/price-proposals/{proposal_id}/approve"): ADMIN,
    ("POST", "/api/price-proposals/{proposal_id}/reject"): ADMIN,
    ("POST", "/api/price-proposals/{proposal_id}/dry-run"): ADMIN,
    ("POST", "/api/price-dry-runs"): ADMIN,
    ("GET", "/api/organizations/{organization}/prices"): ADMIN,
    ("GET", "/api/instance-prices"): ADMIN,
    ("PUT", "/api/instance-prices/{instance_type}"): ADMIN,
    ("POST", "/api/serverless-endpoints"): ADMIN,
    ("GET", "/api/serverless-endpoints"): ADMIN,
    ("GET", "/api/serverless-endpoints/{name}"): ADMIN,
    ("PATCH", "/api/serverless-endpoints/{name}"): ADMIN,
    ("DELETE", "/api/serverless-endpoints/{name}"): ADMIN,
    ("POST", "/api/serverless-endpoints/{name}/suspend"): ADMIN,
    ("POST", "/api/serverless-endpoints/{name}/reinstate"): ADMIN,
    ("POST", "/api/serverless-endpoints/{name}/list-keys"): ADMIN,
    ("POST", "/api/serverless-endpoints/{name}/regenerate-keys"): ADMIN,
    ("GET", "/api/serverless-endpoints/{name}/logs"): ADMIN,
    ("GET", "/api/serverless-endpoints/{name}/deployments"): ADMIN,
    ("PUT", "/api/serverless-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("DELETE", "/api/serverless-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("POST", "/api/marketplace-subscriptions"): ADMIN,
    ("GET", "/api/marketplace-subscriptions"): ADMIN,
    ("GET", "/api/marketplace-subscriptions/{name}"): ADMIN,
    ("DELETE", "/api/marketplace-subscriptions/{name}"): ADMIN,
    ("POST", "/api/online-endpoints"): ADMIN,
    ("GET", "/api/online-endpoints"): ADMIN,
    ("GET", "/api/online-endpoints/{name}"): ADMIN,
    ("PUT", "/api/online-endpoints/{name}"): ADMIN,
    ("PATCH", "/api/online-endpoints/{name}"): ADMIN,
    ("DELETE", "/api/online-endpoints/{name}"): ADMIN,
    ("PUT", "/api/online-endpoints/{name}/traffic"): ADMIN,
    ("POST", "/api/online-endpoints/{name}/list-keys"): ADMIN,
    ("POST", "/api/online-endpoints/{name}/regenerate-keys"): ADMIN,
    ("POST", "/api/online-endpoints/{name}/token"): ADMIN,
    ("GET", "/api/online-endpoints/{name}/deployments"): ADMIN,
    ("POST", "/api/online-endpoints/{name}/deployments"): ADMIN,
    ("GET", "/api/online-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("PUT", "/api/online-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("PATCH", "/api/online-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("DELETE", "/api/online-endpoints/{name}/deployments/{deployment}"): ADMIN,
    ("GET", "/api/online-endpoints/{name}/deployments/{deployment}/logs"): ADMIN,
    ("GET", "/api/operations/{operation_id}"): ADMIN,
    ("POST", "/api/registered-models"): ADMIN,
    ("GET", "/api/registered-models"): ADMIN,
    ("GET", "/api/registered-models/{name}/versions/{version}"): ADMIN,
    ("DELETE", "/api/registered-models/{name}/versions/{version}"): ADMIN,
    ("POST", "/api/registered-models/{name}/versions/{version}/package"): ADMIN,
    ("GET", "/api/registered-models/{name}/versions/{version}/content"): ADMIN,
    ("GET", "/api/environments/{name}/versions/{version}/package"): ADMIN,
    ("POST", "/api/render/online-deployment"): ADMIN,
    ("POST", "/api/environments"): ADMIN,
    ("GET", "/api/environments"): ADMIN,
    ("GET", "/api/environments/{name}/versions/{version}"): ADMIN,
    ("DELETE", "/api/environments/{name}/versions/{version}"): ADMIN,
    ("GET", "/api/deployments"): ADMIN,
    ("GET", "/api/reconciliation"): ADMIN,
    ("GET", "/api/alarms"): ADMIN,
    ("GET", "/api/usage"): PROJECT,
    ("GET", "/v1/organization/usage/{kind}"): PROJECT,
    ("GET", "/v1/organization/costs"): PROJECT,
    ("GET", "/api/receipts"): PROJECT,
    ("GET", "/api/receipts/{request_id}"): ANY_KEY,
    ("GET", "/api/invoices/preview"): ADMIN,
    ("POST", "/api/invoices"): ADMIN,
    ("GET", "/api/invoices"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}"): ADMIN,
    ("POST", "/api/invoices/{invoice_id}/finalize"): ADMIN,
    ("POST", "/api/invoices/{invoice_id}/void"): ADMIN,
    ("POST", "/api/invoices/{invoice_id}/pay"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}/lines"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}/lines/{line}/minutes"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}/events"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}/verification"): ADMIN,
    ("GET", "/api/invoices/{invoice_id}/document"): ADMIN,
    ("GET", "/api/invoice-previews/document"): ADMIN,
    ("GET", "/api/exports/focus"): ADMIN,
    ("POST", "/api/credits"): ADMIN,
    ("GET", "/api/credits"): ADMIN,
    ("GET", "/api/credits/balance"): ADMIN,
    ("DELETE", "/api/credits/{credit_id}"): ADMIN,
    ("POST", "/api/credit-notes"): ADMIN,
    ("GET", "/api/credit-notes"): ADMIN,
    ("GET", "/api/credit-notes/{note_id}"): ADMIN,
    ("POST", "/api/contracts"): ADMIN,
    ("GET", "/api/contracts"): ADMIN,
    ("POST", "/api/contracts/{contract_id}/end"): ADMIN,
    ("GET", "/api/billing-profiles/{organization}"): ADMIN,
    ("PATCH", "/api/billing-profiles/{organization}"): ADMIN,
    ("GET", "/api/limits/{scope}/{scope_id:path}"): ADMIN,
    ("PUT", "/api/limits/{scope}/{scope_id:path}"): ADMIN,
    ("DELETE", "/api/limits/{scope}/{scope_id:path}"): ADMIN,
    ("POST", "/api/budgets"): ADMIN,
    ("GET", "/api/budgets"): ADMIN,
    ("GET", "/api/budgets/{budget_id}"): ADMIN,
    ("PATCH", "/api/budgets/{budget_id}"): ADMIN,
    ("DELETE", "/api/budgets/{budget_id}"): ADMIN,
    ("POST", "/api/events"): PROJECT,
    ("GET", "/api/events/schemas"): ANY_KEY,
    ("GET", "/api/events/schemas/{event_type}"): ANY_KEY,
    ("GET", "/api/quarantine"): ADMIN,
    ("GET", "/api/quarantine/{entry_id}"): ADMIN,
    ("POST", "/api/quarantine/{entry_id}/replay"): ADMIN,
    ("POST", "/api/quarantine/{entry_id}/drop"): ADMIN,
    ("GET", "/api/audit"): ADMIN,
    ("GET", "/api/customer-key"): ADMIN,
    ("POST", "/api/customer-key/rotate"): ADMIN,
    ("GET", "/api/stripe/check"): ADMIN,
    ("GET", "/api/stripe/status"): ADMIN,
    ("POST", "/api/stripe/sync"): ADMIN,
    ("GET", "/api/stripe/events"): ADMIN,
    ("POST", "/api/webhooks"): ADMIN,
    ("GET", "/api/webhooks"): ADMIN,
    ("GET", "/api/webhooks/{webhook_id}"): ADMIN,
    ("PATCH", "/api/webhooks/{webhook_id}"): ADMIN,
    ("DELETE", "/api/webhooks/{webhook_id}"): ADMIN,
    ("POST", "/api/webhooks/{webhook_id}/rotate-secret"): ADMIN,
    ("POST", "/api/webhooks/{webhook_id}/test"): ADMIN,
    ("POST", "/api/webhooks/{webhook_id}/replay"): ADMIN,
    ("GET", "/api/webhooks/{webhook_id}/deliveries"): ADMIN,
    ("GET", "/api/webhooks/{webhook_id}/deliveries/{message_id}"): ADMIN,
}

_HELD: Final[Mapping[KeyKind, str]] = {
    "admin": "an admin key",
    "project": "a project's key",
    "endpoint": "an endpoint's key",
}


def check_allowed(principal: Principal, method: str, route: str) -> None:
    """Forbidden unless the table lets this kind of key call the route."""
    allowed = ROUTES.get((method, route), frozenset())
    if principal.kind not in allowed:
        raise Forbidden(
            f"{_HELD[principal.kind]} may not call {method} {route}; "
            "use the admin key (the file admin.key in the Farebox home)"
        )
