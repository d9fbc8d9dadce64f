"""Further deployments of a serverless endpoint: other models, reached by name, and at most one that gets copies.

The endpoint's own model is the deployment `default`: every call that names none goes there.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, delete, exists, insert, select, update

from core.changes import record_change
from core.errors import Conflict, Invalid, NotFound
from serving.model import Endpoint
from serving.tables import endpoints, serverless_deployments

DEFAULT = "default"
MAX_DEPLOYMENTS = 20  # of one endpoint, the default one among them (R2.2)
MAX_MIRROR_PERCENT = 50  # R4.5

_table = serverless_deployments


@dataclass(frozen=True, slots=True)
class ServerlessDeployment:
    """One of them; `deployment_id` is that of the model's pool."""

    name: str
    model_id: str
    deployment_id: str
    mirror_percent: int
    created_ms: int


def list_serverless_deployments(connection: Connection, endpoint_id: str) -> list[ServerlessDeployment]:
    """By name, without `default`."""
    query = select(_table).where(_table.c.endpoint_id == endpoint_id).order_by(_table.c.name)
    return [
        ServerlessDeployment(row.name, row.model_id, row.deployment_id, row.mirror_percent, row.created_ms)
        for row in connection.execute(query)
    ]


def put_serverless_deployment(
    connection: Connection, endpoint: Endpoint, wanted: ServerlessDeployment
) -> bool:
    """Add or replace it; whether it is new. Its name and share were checked by themselves.

    Conflict: there are too many, or another one gets copies already.
    """
    # One change of an endpoint at a time (PostgreSQL; SQLite has one writer): the rules are about all of them.
    connection.execute(select(endpoints.c.id).where(endpoints.c.id == endpoint.id).with_for_update())
    others = [
        each for each in list_serverless_deployments(connection, endpoint.id) if each.name != wanted.name
    ]
    if len(others) + 2 > MAX_DEPLOYMENTS:
        raise Conflict(
            f"deployment: an endpoint has {MAX_DEPLOYMENTS} deployments at most; delete one first",
            code="too_many_deployments",
            param="deployment",
        )
    copied = next((each.name for each in others if each.mirror_percent), "")
    if wanted.mirror_percent and copied:
        raise Conflict(
            f"mirror_percent: {copied!r} gets copies already, and one deployment may; set it to 0 there first",
            code="mirror_in_use",
            param="mirror_percent",
        )
    values = {field: getattr(wanted, field) for field in ServerlessDeployment.__slots__}
    here = (_table.c.endpoint_id == endpoint.id) & (_table.c.name == wanted.name)
    kept = {name: value for name, value in values.items() if name not in ("name", "created_ms")}
    is_new = connection.execute(update(_table).where(here).values(kept)).rowcount == 0
    if is_new:
        connection.execute(insert(_table).values(values | {"endpoint_id": endpoint.id}))
    _tell(connection, endpoint, wanted.deployment_id, wanted.created_ms)
    return is_new


def delete_serverless_deployment(
    connection: Connection, endpoint: Endpoint, name: str, now_ms: int
) -> ServerlessDeployment:
    """Remove it. NotFound; Invalid for `default`."""
    if name == DEFAULT:
        raise Invalid(
            "deployment: the default deployment is the endpoint itself: delete that instead",
            param="deployment",
        )
    found = find_serverless_deployment(connection, endpoint, name)
    connection.execute(delete(_table).where(_table.c.endpoint_id == endpoint.id, _table.c.name == name))
    _tell(connection, endpoint, found.deployment_id, now_ms)
    return found


def find_serverless_deployment(connection: Connection, endpoint: Endpoint, name: str) -> ServerlessDeployment:
    """NotFound when the endpoint has none of that name."""
    for each in list_serverless_deployments(connection, endpoint.id):
        if each.name == name:
            return each
    raise NotFound(
        f"deployment: {endpoint.name!r} has no deployment {name[:60]!r}",
        code="deployment_not_found",
        param="deployment",
    )


def pool_is_used(connection: Connection, deployment_id: str) -> bool:
    """Whether a living endpoint reaches the pool by a further deployment."""
    query = _of_living().where(_table.c.deployment_id == deployment_id)
    return bool(connection.execute(select(exists(query))).scalar())


def names_on_model(connection: Connection, model_id: str) -> list[str]:
    """`endpoint/deployment` of each living one on the model."""
    query = _of_living().where(_table.c.model_id == model_id).order_by(endpoints.c.name, _table.c.name)
    return [f"{row.endpoint}/{row.name}" for row in connection.execute(query)]


def _of_living() -> Select[Any]:
    joined = _table.join(endpoints, endpoints.c.id == _table.c.endpoint_id)
    columns = (endpoints.c.name.label("endpoint"), _table.c.name)
    return select(*columns).select_from(joined).where(endpoints.c.deleted_ms.is_(None))


def _tell(connection: Connection, endpoint: Endpoint, deployment_id: str, now_ms: int) -> None:
    record_change(connection, "endpoint", endpoint.id, now_ms)
    record_change(connection, "deployment", deployment_id, now_ms)
