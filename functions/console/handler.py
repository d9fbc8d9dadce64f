"""The console as an application: every route of the management API, its errors and its description."""

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

from functions.api_page import install_api_page
from functions.console import (
    audit,
    budgets,
    contracts,
    credit,
    customer_key,
    deployments,
    endpoints,
    events,
    instance_prices,
    invoice_actions,
    invoice_documents,
    invoices,
    keys,
    limits,
    models,
    online_assets,
    online_deployments,
    online_endpoints,
    openai_usage,
    organizations,
    packages,
    prices,
    quarantine,
    reconciliation,
    rendering,
    serverless_deployments,
    stripe,
    subscriptions,
    usage,
    webhooks,
)
from functions.console.dependencies import ConsoleDependencies
from functions.console.middleware import MAX_BODY_BYTES, Edge
from functions.console.problems import install_problems
from functions.console.shapes import Problem

_DESCRIPTION = """\
Everything but the model calls themselves (those are OpenAI's API, under `/v1` and `/endpoints/{name}/v1`).

Send `Authorization: Bearer KEY` with the admin key (the file `admin.key` in the Farebox home). A project's
key may read the models and its own usage and receipts, an endpoint's key its own receipts.

Amounts of money are exact decimals as texts, times are ISO 8601 in UTC. Lists come as
`{"data": […], "next": …}`: give `next` as `after` for the next page. Unknown fields are refused. Refusals are
problem documents (RFC 9457), and every answer carries `x-request-id`.
"""
_REFUSALS = {
    400: "The body is not JSON (or YAML, for a model).",
    401: "No key, or one that is unknown, expired or revoked.",
    403: "This kind of key may not do that.",
    404: "Nothing by that name.",
    409: "A name in use, or something in use.",
    413: "The body is too large.",
    422: "A field is wrong; `param` names it.",
}


def create_console(deps: ConsoleDependencies) -> FastAPI:
    """The management API on these dependencies."""
    app = FastAPI(
        title="Farebox management API",
        version="1",
        description=_DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,  # the usual page is made by scripts from the internet
        redoc_url=None,
        redirect_slashes=False,
        # Only for the description: routes check the key themselves, before the body is read.
        dependencies=[Depends(HTTPBearer(auto_error=False))],
        responses={status: {"model": Problem, "description": why} for status, why in _REFUSALS.items()},
    )
    app.state.dependencies = deps
    groups = (
        organizations,
        keys,
        models,
        prices,
        instance_prices,
        endpoints,
        online_endpoints,
        online_deployments,
        online_assets,
        packages,
        rendering,
        deployments,
        usage,
        openai_usage,
        invoices,
        invoice_actions,
        invoice_documents,
        credit,
        contracts,
        limits,
        budgets,
        events,
        quarantine,
        audit,
        reconciliation,
        webhooks,
        stripe,
        subscriptions,
        serverless_deployments,
        customer_key,
    )
    for group in groups:
        app.include_router(group.router)
    app.state.routes = [route for group in groups for route in group.router.routes]
    install_api_page(app, "/api/docs")
    stripe.install_webhook(app, deps)
    install_problems(app)
    app.add_middleware(Edge, max_body_bytes=min(deps.settings.max_body_bytes, MAX_BODY_BYTES))
    return app
