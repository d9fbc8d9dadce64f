"""SQL of endpoints, deployments and replicas. Every function works in the caller's transaction."""

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, exists, insert, select, update
from sqlalchemy.exc import IntegrityError

from catalog.store import find_model
from core.changes import record_change
from core.ids import new_id
from serving.model import (
    LIVE_REPLICA_STATES,
    Deployment,
    Endpoint,
    EndpointKind,
    EndpointLifeRow,
    EndpointState,
    Replica,
)
from serving.online.tables import online_deployments
from serving.serverless_deployments import names_on_model, pool_is_used
from serving.tables import deployments, endpoints, replicas

KEPT_REPLICAS = 20  # ended runs remembered per deployment; their logs go with them
_MEASURED_STARTS = 9  # the expected start time is the median of this many

# --- endpoints ------------------------------------------------------------------------------------


def insert_endpoint(connection: Connection, endpoint: Endpoint) -> None:
    """Add the endpoint; the database refuses a second living one of that name."""
    values = asdict(endpoint) | {"name_key": endpoint.name.lower(), "tags": json.dumps(endpoint.tags)}
    connection.execute(insert(endpoints).values(**values))
    record_change(connection, "endpoint", endpoint.id, endpoint.created_ms)


def find_endpoint(
    connection: Connection,
    *,
    endpoint_id: str | None = None,
    name: str | None = None,
    project_id: str | None = None,
    org_id: str | None = None,
    any_case: bool = False,
    kind: EndpointKind | None = None,
) -> Endpoint | None:
    """The living endpoint that fits everything given, None when there is none."""
    assert endpoint_id is not None or name is not None, "an id or a name"
    query = select(endpoints).where(endpoints.c.deleted_ms.is_(None), *_scope(project_id, org_id, kind))
    if endpoint_id is not None:
        query = query.where(endpoints.c.id == endpoint_id)
    if name is not None:
        query = query.where(endpoints.c.name_key == name.lower())
        if not any_case:
            query = query.where(endpoints.c.name == name)
    row = connection.execute(query).first()
    return None if row is None else _endpoint(row)


def list_endpoints(
    connection: Connection,
    *,
    project_id: str | None = None,
    org_id: str | None = None,
    model_id: str | None = None,
    kind: EndpointKind | None = None,
    limit: int | None = None,
    after: str = "",
) -> list[Endpoint]:
    """Living endpoints, oldest first (ids are ordered by time), those with an id greater than `after`."""
    query = (
        select(endpoints)
        .where(endpoints.c.deleted_ms.is_(None), endpoints.c.id > after, *_scope(project_id, org_id, kind))
        .order_by(endpoints.c.id)
    )
    if model_id is not None:
        query = query.where(endpoints.c.model_id == model_id)
    return [_endpoint(row) for row in connection.execute(query if limit is None else query.limit(limit))]


def mark_endpoint_deleted(connection: Connection, endpoint: Endpoint, now_ms: int) -> None:
    """End the endpoint's life; the row stays for its minutes and past usage."""
    connection.execute(
        update(endpoints)
        .where(endpoints.c.id == endpoint.id, endpoints.c.deleted_ms.is_(None))
        .values(state="Deleted", deleted_ms=now_ms)
    )
    record_change(connection, "endpoint", endpoint.id, now_ms)
    record_change(connection, "deployment", endpoint.deployment_id, now_ms)


def set_endpoint_state(connection: Connection, endpoint: Endpoint, state: EndpointState, now_ms: int) -> None:
    """Write another state of a living endpoint."""
    connection.execute(update(endpoints).where(endpoints.c.id == endpoint.id).values(state=state))
    record_change(connection, "endpoint", endpoint.id, now_ms)


def set_endpoint_options(
    connection: Connection, endpoint_id: str, given: Mapping[str, Any], now_ms: int
) -> None:
    """Write what is given of a living endpoint's `tags` and `content_safety`; what is not may change meanwhile."""
    values = dict(given)
    if "tags" in values:
        values["tags"] = json.dumps(values["tags"])
    connection.execute(update(endpoints).where(endpoints.c.id == endpoint_id).values(**values))
    record_change(connection, "endpoint", endpoint_id, now_ms)


def endpoint_lives(connection: Connection, *, alive_after_ms: int = 0) -> list[EndpointLifeRow]:
    """Every organization's endpoints that lived at or after `alive_after_ms`: what the minute sweep bills.

    Serverless ones: an online endpoint costs nothing by itself.
    """
    query = (
        select(endpoints)
        .where(endpoints.c.kind == "serverless")
        .where(endpoints.c.deleted_ms.is_(None) | (endpoints.c.deleted_ms >= alive_after_ms))
        .order_by(endpoints.c.id)
    )
    return [_life(row) for row in connection.execute(query)]


def find_life(connection: Connection, endpoint_id: str) -> EndpointLifeRow | None:
    """When the endpoint with that id existed, also of one that is gone; None: it never did."""
    row = connection.execute(select(endpoints).where(endpoints.c.id == endpoint_id)).first()
    return None if row is None else _life(row)


def endpoint_names(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Names by id, also of endpoints that are gone."""
    query = select(endpoints.c.id, endpoints.c.name).where(endpoints.c.id.in_(ids))
    return {row.id: row.name for row in connection.execute(query)}


def model_in_use(connection: Connection, model_id: str) -> list[str]:
    """Names of the living endpoints on the model (of every organization: a model is removed for all).

    Of online endpoints those with a living deployment of it, as `endpoint/deployment`.
    """
    query = (
        select(endpoints.c.name)
        .where(endpoints.c.model_id == model_id, endpoints.c.deleted_ms.is_(None))
        .order_by(endpoints.c.id)
    )
    online = (
        select(endpoints.c.name, online_deployments.c.name.label("deployment"))
        .join(online_deployments, online_deployments.c.endpoint_id == endpoints.c.id)
        .join(deployments, deployments.c.id == online_deployments.c.id)
        .where(deployments.c.model_id == model_id, online_deployments.c.deleted_ms.is_(None))
        .order_by(endpoints.c.name, online_deployments.c.name)
    )
    named = [f"{row.name}/{row.deployment}" for row in connection.execute(online)]
    return [*connection.execute(query).scalars(), *names_on_model(connection, model_id), *named]


def _scope(
    project_id: str | None, org_id: str | None, kind: EndpointKind | None
) -> list[ColumnElement[bool]]:
    wanted = (
        (endpoints.c.project_id, project_id),
        (endpoints.c.org_id, org_id),
        (endpoints.c.kind, kind),
    )
    return [column == value for column, value in wanted if value is not None]


# --- deployments ----------------------------------------------------------------------------------


def pool_for(connection: Connection, model_id: str, now_ms: int) -> Deployment:
    """The model's shared pool, made with its first endpoint and kept."""
    found = find_pool(connection, model_id)
    if found is not None:
        return found
    made = Deployment(new_id("dep", now_ms), "pool", model_id, now_ms)
    try:
        with connection.begin_nested():
            connection.execute(insert(deployments).values(**asdict(made)))
    except IntegrityError:  # another transaction was faster (PostgreSQL; SQLite has one writer)
        found = find_pool(connection, model_id)
        assert found is not None, "the unique index was hit"
        return found
    record_change(connection, "deployment", made.id, now_ms)
    return made


def find_pool(connection: Connection, model_id: str) -> Deployment | None:
    """The model's shared pool, None before its first endpoint."""
    row = connection.execute(
        select(deployments).where(
            deployments.c.model_id == model_id,
            deployments.c.kind == "pool",
            deployments.c.deleted_ms.is_(None),
        )
    ).first()
    return None if row is None else _deployment(row)


def find_deployment(connection: Connection, deployment_id: str) -> Deployment | None:
    """The deployment with that id."""
    row = connection.execute(select(deployments).where(deployments.c.id == deployment_id)).first()
    return None if row is None else _deployment(row)


def list_deployments(connection: Connection) -> list[Deployment]:
    """Deployments of any kind that were not deleted, oldest first (operators' view)."""
    query = select(deployments).where(deployments.c.deleted_ms.is_(None)).order_by(deployments.c.id)
    return [_deployment(row) for row in connection.execute(query)]


def deployment_in_use(connection: Connection, deployment_id: str) -> bool:
    """True while a living endpoint stands before it, or it lives as an online endpoint's own."""
    query = select(exists().where(_used(deployment_id)) | exists().where(_lives_online(deployment_id)))
    return bool(connection.execute(query).scalar()) or pool_is_used(connection, deployment_id)


def unused_deployments(connection: Connection, ids: Iterable[str]) -> set[str]:
    """Those of `ids` that are not in use."""
    return {i for i in ids if not deployment_in_use(connection, i)}


def attached_servers(connection: Connection, limit: int = 1000) -> list[tuple[str, str]]:
    """Deployment and base URL of every attached server that a living endpoint stands before."""
    found = []
    for deployment in list_deployments(connection)[:limit]:
        model = find_model(connection, deployment.model_id)
        if model is None or not model.spec.external:
            continue
        if deployment_in_use(connection, deployment.id):
            found.append((deployment.id, model.spec.engine.url))
    return found


def _used(deployment_id: str) -> ColumnElement[bool]:
    return (endpoints.c.deployment_id == deployment_id) & endpoints.c.deleted_ms.is_(None)


def _lives_online(deployment_id: str) -> ColumnElement[bool]:
    return (online_deployments.c.id == deployment_id) & online_deployments.c.deleted_ms.is_(None)


# --- replicas -------------------------------------------------------------------------------------


def insert_replica(connection: Connection, replica: Replica, now_ms: int) -> list[str]:
    """Record a run before it begins; returns the ids of old runs of the deployment now forgotten."""
    connection.execute(insert(replicas).values(**asdict(replica)))
    record_change(connection, "deployment", replica.deployment_id, now_ms)
    old = (
        select(replicas.c.id)
        .where(
            replicas.c.deployment_id == replica.deployment_id,
            replicas.c.state.not_in(LIVE_REPLICA_STATES),
        )
        .order_by(replicas.c.started_ms.desc(), replicas.c.id.desc())
        .offset(KEPT_REPLICAS)
        .limit(1000)
    )
    forgotten = list(connection.execute(old).scalars())
    if forgotten:
        connection.execute(delete(replicas).where(replicas.c.id.in_(forgotten)))
    return forgotten


def save_replica(connection: Connection, replica: Replica, now_ms: int) -> None:
    """Write what is known of the run now."""
    values = asdict(replica)
    del values["id"]
    connection.execute(update(replicas).where(replicas.c.id == replica.id).values(**values))
    record_change(connection, "deployment", replica.deployment_id, now_ms)


def live_replicas(connection: Connection) -> list[Replica]:
    """Every run that has not ended as far as the table knows."""
    query = select(replicas).where(replicas.c.state.in_(LIVE_REPLICA_STATES)).order_by(replicas.c.id)
    return [_replica(row) for row in connection.execute(query)]


def known_replica_ids(connection: Connection, ids: Collection[str]) -> set[str]:
    """Those of `ids` that are runs of this installation."""
    return set(connection.execute(select(replicas.c.id).where(replicas.c.id.in_(ids))).scalars())


def list_replicas(connection: Connection, deployment_id: str, limit: int = KEPT_REPLICAS) -> list[Replica]:
    """The deployment's runs, newest first."""
    query = (
        select(replicas)
        .where(replicas.c.deployment_id == deployment_id)
        .order_by(replicas.c.started_ms.desc(), replicas.c.id.desc())
        .limit(limit)
    )
    return [_replica(row) for row in connection.execute(query)]


def ready_urls(connection: Connection, deployment_id: str) -> tuple[str, ...]:
    """Base URLs of the deployment's servers that are ready."""
    query = (
        select(replicas)
        .where(replicas.c.deployment_id == deployment_id, replicas.c.state == "ready")
        .order_by(replicas.c.id)
    )
    urls = [_replica(row).url for row in connection.execute(query)]
    return tuple(url for url in urls if url is not None)


def measured_starts(connection: Connection, deployment_id: str) -> list[int]:
    """How long the last starts took from the process's beginning to ready, in milliseconds, newest first."""
    query = (
        select(replicas.c.ready_ms - replicas.c.spawned_ms)
        .where(
            replicas.c.deployment_id == deployment_id,
            replicas.c.ready_ms.is_not(None),
            replicas.c.spawned_ms.is_not(None),
        )
        .order_by(replicas.c.started_ms.desc())
        .limit(_MEASURED_STARTS)
    )
    return [duration for duration in connection.execute(query).scalars() if duration >= 0]


# --- rows to values -------------------------------------------------------------------------------


def _endpoint(row: Row[Any]) -> Endpoint:
    return Endpoint(
        id=row.id,
        kind=row.kind,
        name=row.name,
        org_id=row.org_id,
        project_id=row.project_id,
        model_id=row.model_id,
        deployment_id=row.deployment_id,
        state=row.state,
        tags=json.loads(row.tags),
        created_ms=row.created_ms,
        deleted_ms=row.deleted_ms,
        content_safety=row.content_safety,
    )


def _life(row: Row[Any]) -> EndpointLifeRow:
    return EndpointLifeRow(
        row.id, row.org_id, row.project_id, row.model_id, row.created_ms, row.deleted_ms, row.name
    )


def _deployment(row: Row[Any]) -> Deployment:
    return Deployment(row.id, row.kind, row.model_id, row.created_ms, row.deleted_ms)


def _replica(row: Row[Any]) -> Replica:
    return Replica(**row._mapping)
