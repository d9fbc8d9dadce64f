"""From an online endpoint to its deployments' servers. The gateway imports this: nothing heavy here."""

from sqlalchemy import Connection

from catalog.model import ModelSpec
from catalog.price_book import tariffs
from catalog.store import find_model
from core.errors import Invalid
from serving import store as servers
from serving.model import Endpoint
from serving.online import store
from serving.online.collecting import Collecting, collecting
from serving.online.model import OnlineDeployment
from serving.online.spec import DeploymentSpec
from serving.route import Route, Tariff
from serving.subscriptions import MISSING, subscribed
from serving.traffic import Scoring, Split

SCRIPT_MODEL = (
    "online:"  # begins what stands for a model's id where a script or a server of the user's own serves
)
_CATALOG_EACH = 256  # calls at once where a vLLM deployment does not say: it batches them itself


def resolve_online(
    connection: Connection, endpoint: Endpoint, name: str, *, project_key: bool
) -> Route | None:
    """The endpoint with its split, or one deployment of it (`endpoint/deployment`). None: it serves no `name`.

    One that takes tokens of an identity provider takes no project's key: roles would be worth nothing.
    """
    online = store.find_online_endpoint(connection, endpoint.id)
    if online is None or (project_key and online.spec.auth_mode == "aad_token"):
        return None
    private = online.spec.public_network_access == "disabled"
    living = store.list_online_deployments(connection, endpoint.id)
    routes = {each.name: _route(connection, endpoint, each, private) for each in living}
    head, slash, part = name.partition("/")
    if slash and head == endpoint.name and part in routes:
        return routes[part]
    known = {endpoint.name, *(route.model_id for route in routes.values())}
    if name and name not in known:
        return None
    spec = online.spec
    split = Split(routes, tuple(spec.traffic.items()), next(iter(spec.mirror_traffic.items()), None))
    return Route(
        endpoint_id=endpoint.id,
        endpoint_name=endpoint.name,
        created_ms=endpoint.created_ms,
        org_id=endpoint.org_id,
        project_id=endpoint.project_id,
        model_id=endpoint.name,
        task="online",
        context_length=0,
        deployment_id="",
        served_model="",
        external=False,
        continuous_usage=False,
        upstream_key_env="",
        urls=(),
        split=split,
        private=private,
    )


def _route(connection: Connection, endpoint: Endpoint, deployment: OnlineDeployment, private: bool) -> Route:
    spec = deployment.spec
    model = find_model(connection, spec.model) if spec.kind == "catalog" else None
    found = None if model is None else model.spec
    model_id = found.id if found is not None else f"{SCRIPT_MODEL}{endpoint.name}/{deployment.name}"
    prices = tariffs(connection, model_id, endpoint.org_id) if found is not None else ()
    scoring = _scoring(deployment, found)
    return Route(
        endpoint_id=endpoint.id,
        endpoint_name=endpoint.name,
        created_ms=endpoint.created_ms,
        org_id=endpoint.org_id,
        project_id=endpoint.project_id,
        model_id=model_id,
        task="scoring" if found is None else found.task,
        context_length=0 if found is None else found.context_length,
        deployment_id=deployment.id,
        served_model=model_id,
        external=False,
        continuous_usage=found is not None,
        upstream_key_env="",
        urls=servers.ready_urls(connection, deployment.id),
        tariffs=tuple(Tariff(price.starts_ms, price.unit_prices) for price in prices),
        max_parallel=scoring.each,
        scoring=scoring,
        private=private,
        suspended="" if found is None or subscribed(connection, found, endpoint.project_id) else MISSING,
    )


def _scoring(deployment: OnlineDeployment, model: ModelSpec | None) -> Scoring:
    spec, settings = deployment.spec, deployment.spec.request_settings
    each = settings.max_concurrent_requests_per_instance
    if model is not None and each == type(settings)().max_concurrent_requests_per_instance:
        each = model.engine.parallel or _CATALOG_EACH
    return Scoring(
        deployment=deployment.name,
        path=_path(spec),
        collecting=_collecting(spec),
        logged=spec.app_insights_enabled,
        any_path=spec.kind == "command",
        timeout_ms=settings.request_timeout_ms,
        each=each,
        instances=max(1, deployment.instance_count, spec.scale.most if spec.scale.kind != "default" else 1),
    )


def _collecting(spec: DeploymentSpec) -> Collecting | None:
    """What was stored before the document was checked as it is now must not make the deployment unreachable."""
    try:
        return collecting(spec.data_collector)[0]
    except Invalid:
        return None


def _path(spec: DeploymentSpec) -> str:
    return spec.routes.scoring.path if spec.kind == "command" else "/score"
