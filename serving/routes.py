"""From a name that a caller used to the servers behind it. The gateway imports this: nothing heavy here."""

from dataclasses import replace

from sqlalchemy import Connection

from catalog.model import ModelSpec
from catalog.price_book import tariffs
from catalog.store import find_model
from serving import store
from serving.model import Endpoint
from serving.online.routes import resolve_online
from serving.route import Route, Tariff
from serving.serverless_deployments import DEFAULT, list_serverless_deployments
from serving.subscriptions import MISSING, subscribed
from serving.traffic import PERCENT, Scoring, Split

_COPY_TIMEOUT_MS = 600_000  # of a mirrored call


def resolve(
    connection: Connection,
    name: str | None,
    *,
    project_id: str | None = None,
    endpoint_id: str | None = None,
    endpoint_name: str | None = None,
) -> Route | None:
    """The route for `name` (the body's `model`), None when this caller may call nothing by it.

    With `endpoint_id` (an endpoint key) or `endpoint_name` (an endpoint's URL) only that endpoint is reached,
    and it must be in `project_id` where that is given too. `name` may then be absent, or any name of the
    endpoint: its own, `endpoint/deployment`, the catalog id, or the name its server uses. Another name is refused,
    not ignored: the caller would get, and pay for, another model than the one asked for.

    Otherwise `name` is an endpoint's name, a catalog id or `endpoint/deployment` (name and id) within the project;
    of several endpoints on the model the oldest one that is Online answers.
    """
    if endpoint_id is not None or endpoint_name is not None:
        endpoint = store.find_endpoint(
            connection, endpoint_id=endpoint_id, name=endpoint_name, project_id=project_id
        )
        if endpoint is not None and endpoint.kind == "online":
            return _online(connection, endpoint, name or "", project_id)
        return None if endpoint is None else _serverless(connection, endpoint, name or "")
    assert project_id is not None, "a project, an endpoint id or an endpoint name"
    if not name:
        return None
    named = store.find_endpoint(connection, name=name, project_id=project_id)
    if named is not None:
        return (
            _serverless(connection, named, "")
            if named.kind != "online"
            else _online(connection, named, name, project_id)
        )
    on_model = store.list_endpoints(connection, project_id=project_id, model_id=name)
    online = next((e for e in on_model if e.state == "Online"), None)
    if online is not None:
        return _serverless(connection, online, "")
    endpoint_part, slash, _ = name.partition("/")
    if not slash:
        return None
    parent = store.find_endpoint(connection, name=endpoint_part, project_id=project_id)
    if parent is not None and parent.kind == "online":
        return _online(connection, parent, name, project_id)
    return None if parent is None else _serverless(connection, parent, name)


def _serverless(connection: Connection, endpoint: Endpoint, name: str) -> Route | None:
    """The endpoint by a name of its own ("": whichever), or a deployment of it by `endpoint/deployment`."""
    own = _route(connection, endpoint)
    if own is None:
        return None
    known = not name or name in _names(own)
    further = list_serverless_deployments(connection, endpoint.id)
    if not further:
        return own if known else None
    routes = {DEFAULT: replace(own, scoring=_as_deployment(DEFAULT))}
    for each in further:
        standing = replace(endpoint, model_id=each.model_id, deployment_id=each.deployment_id)
        route = _route(connection, standing)
        if route is not None:
            routes[each.name] = replace(route, scoring=_as_deployment(each.name))
    if not known:
        head, _, part = name.partition("/")
        return routes.get(part) if head == endpoint.name else None
    mirror = next(((each.name, each.mirror_percent) for each in further if each.mirror_percent), None)
    return replace(own, split=Split(routes, ((DEFAULT, PERCENT),), mirror))


def _as_deployment(name: str) -> Scoring:
    return Scoring(name, timeout_ms=_COPY_TIMEOUT_MS, serverless=True)


def _online(connection: Connection, endpoint: Endpoint, name: str, project_id: str | None) -> Route | None:
    if endpoint.state != "Online":
        return None
    return resolve_online(connection, endpoint, name, project_key=project_id is not None)


def _names(route: Route) -> tuple[str, ...]:
    """What the endpoint of a route may be called by with its own key, or below its own URL."""
    exact = f"{route.endpoint_name}/{route.deployment_id}"
    return (route.endpoint_name, route.model_id, route.served_model, exact)


def list_routes(
    connection: Connection, *, project_id: str | None = None, endpoint_id: str | None = None
) -> list[Route]:
    """What a project key or an endpoint key may call: one route per Online endpoint, oldest first."""
    assert project_id is not None or endpoint_id is not None, "a project or an endpoint id"
    if endpoint_id is not None:
        one = store.find_endpoint(connection, endpoint_id=endpoint_id, project_id=project_id)
        found = [] if one is None else [one]
    else:
        found = store.list_endpoints(connection, project_id=project_id)
    routes = (
        _serverless(connection, endpoint, "")
        if endpoint.kind != "online"
        else _online(connection, endpoint, endpoint.name, project_id)
        for endpoint in found
    )
    return [
        route
        for route in routes
        if route is not None and not route.suspended and (route.split is None or route.split.speaks_openai)
    ]


def _suspended(connection: Connection, endpoint: Endpoint, spec: ModelSpec) -> str:
    if endpoint.state == "Suspended":
        return "endpoint_suspended"
    return "" if subscribed(connection, spec, endpoint.project_id) else MISSING


def _route(connection: Connection, endpoint: Endpoint) -> Route | None:
    if endpoint.state not in ("Online", "Suspended"):
        return None
    model = find_model(connection, endpoint.model_id)
    if model is None:
        return None
    spec = model.spec
    if spec.adapter is None:
        engine = spec.engine
    elif (base := find_model(connection, spec.adapter.base)) is not None:
        engine = base.spec.engine
    else:
        return None
    return Route(
        endpoint_id=endpoint.id,
        endpoint_name=endpoint.name,
        created_ms=endpoint.created_ms,
        org_id=endpoint.org_id,
        project_id=endpoint.project_id,
        model_id=spec.id,
        task=spec.task,
        context_length=spec.context_length,
        deployment_id=endpoint.deployment_id,
        served_model=_served_model(spec),
        external=spec.external,
        # vLLM's own extension: every server that we start has it.
        continuous_usage=not spec.external or spec.engine.continuous_usage,
        upstream_key_env=spec.engine.api_key_env if spec.external else "",
        urls=spec.engine.servers if spec.external else store.ready_urls(connection, endpoint.deployment_id),
        tariffs=tuple(
            Tariff(p.starts_ms, p.unit_prices) for p in tariffs(connection, spec.id, endpoint.org_id)
        ),
        max_parallel=engine.parallel,
        screened=endpoint.content_safety,
        suspended=_suspended(connection, endpoint, spec),
    )


def _served_model(spec: ModelSpec) -> str:
    # A server that we start is told to use the catalog id (--served-model-name).
    return spec.served_model if spec.external else spec.id
