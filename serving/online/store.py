"""SQL of online endpoints, their deployments and operations. Every function works in the caller's transaction.

Whoever changes a row tells the change feed in the same transaction: the gateway's routes and the runtime follow it.
"""

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from core.changes import record_change
from serving.online.model import OnlineDeployment, OnlineEndpoint, Operation, ProvisioningState
from serving.online.spec import DeploymentSpec, EndpointSpec
from serving.online.tables import online_deployments, online_endpoints, operations
from serving.tables import deployments, endpoints

KEPT_OPERATIONS = 1000  # ended ones remembered; the oldest go first
MAX_TEXT = 4000  # of a failure's message and an operation's phase

_LIVING = online_deployments.c.deleted_ms.is_(None)

# --- endpoints ------------------------------------------------------------------------------------


def insert_online_endpoint(connection: Connection, endpoint: OnlineEndpoint) -> None:
    """Add what the row in `endpoints` (inserted before) does not hold."""
    connection.execute(
        insert(online_endpoints).values(endpoint_id=endpoint.endpoint_id, **_endpoint_values(endpoint))
    )
    record_change(connection, "endpoint", endpoint.endpoint_id, endpoint.updated_ms)


def find_online_endpoint(connection: Connection, endpoint_id: str) -> OnlineEndpoint | None:
    """The online endpoint with that id, also of one that is gone; None when there never was one."""
    row = connection.execute(
        select(online_endpoints).where(online_endpoints.c.endpoint_id == endpoint_id)
    ).first()
    return None if row is None else _endpoint(row)


def list_online_endpoints(connection: Connection, ids: Collection[str]) -> dict[str, OnlineEndpoint]:
    """Those of `ids` that are online endpoints, by id."""
    found = connection.execute(select(online_endpoints).where(online_endpoints.c.endpoint_id.in_(ids)))
    return {row.endpoint_id: _endpoint(row) for row in found}


def update_online_endpoint(connection: Connection, endpoint: OnlineEndpoint) -> None:
    """Write the endpoint as it is now; its traffic too."""
    connection.execute(
        update(online_endpoints)
        .where(online_endpoints.c.endpoint_id == endpoint.endpoint_id)
        .values(**_endpoint_values(endpoint))
    )
    connection.execute(
        update(endpoints)
        .where(endpoints.c.id == endpoint.endpoint_id)
        .values(tags=json.dumps(endpoint.spec.tags))
    )
    record_change(connection, "endpoint", endpoint.endpoint_id, endpoint.updated_ms)


def mark_online_endpoint_deleted(connection: Connection, endpoint_id: str, now_ms: int) -> None:
    """End the life of the endpoint and of every deployment of it; no call reaches them from now on."""
    for deployment in list_online_deployments(connection, endpoint_id):
        mark_online_deployment_deleted(connection, deployment, now_ms)
    connection.execute(
        update(endpoints)
        .where(endpoints.c.id == endpoint_id, endpoints.c.deleted_ms.is_(None))
        .values(state="Deleted", deleted_ms=now_ms)
    )
    connection.execute(
        update(online_endpoints)
        .where(online_endpoints.c.endpoint_id == endpoint_id)
        .values(provisioning_state="Deleting", traffic="{}", mirror_traffic="{}", updated_ms=now_ms)
    )
    record_change(connection, "endpoint", endpoint_id, now_ms)


def lock_endpoint(connection: Connection, endpoint_id: str) -> None:
    """Let no other transaction change the endpoint or its deployments before this one ends."""
    query = select(endpoints.c.id).where(endpoints.c.id == endpoint_id).with_for_update()
    connection.execute(query).first()  # SQLite has one writer anyway


def count_endpoints(connection: Connection) -> int:
    """Living endpoints of every kind: they share one limit."""
    query = select(func.count()).select_from(endpoints).where(endpoints.c.deleted_ms.is_(None))
    return connection.execute(query).scalar_one()


# --- deployments ----------------------------------------------------------------------------------


def insert_online_deployment(connection: Connection, deployment: OnlineDeployment, model_id: str) -> None:
    """Add the deployment, also to `deployments`. `model_id` is the catalog model's, or "". The database refuses
    a second living one of that name on the endpoint."""
    connection.execute(
        insert(deployments).values(
            id=deployment.id,
            kind="online",
            model_id=model_id,
            created_ms=deployment.created_ms,
            deleted_ms=None,
        )
    )
    values = _deployment_values(deployment) | {
        "id": deployment.id,
        "endpoint_id": deployment.endpoint_id,
        "org_id": deployment.org_id,
        "project_id": deployment.project_id,
        "name": deployment.name,
        "name_key": deployment.name.lower(),
        "created_ms": deployment.created_ms,
    }
    connection.execute(insert(online_deployments).values(**values))
    _changed(connection, deployment, deployment.created_ms)


def find_online_deployment(
    connection: Connection,
    *,
    deployment_id: str | None = None,
    endpoint_id: str | None = None,
    name: str | None = None,
) -> OnlineDeployment | None:
    """The living deployment with that id, or of that endpoint with that name."""
    assert deployment_id is not None or (endpoint_id is not None and name is not None), "an id, or both names"
    query = select(online_deployments).where(_LIVING)
    if deployment_id is not None:
        query = query.where(online_deployments.c.id == deployment_id)
    else:
        query = query.where(
            online_deployments.c.endpoint_id == endpoint_id, online_deployments.c.name == name
        )
    row = connection.execute(query).first()
    return None if row is None else _deployment(row)


def list_online_deployments(
    connection: Connection,
    endpoint_id: str | None = None,
    *,
    states: Collection[ProvisioningState] | None = None,
    limit: int = 1000,
) -> list[OnlineDeployment]:
    """Living deployments, oldest first: of one endpoint or of all, in those states or in any."""
    order = (online_deployments.c.created_ms, online_deployments.c.name)
    query = select(online_deployments).where(_LIVING).order_by(*order).limit(limit)
    if endpoint_id is not None:
        query = query.where(online_deployments.c.endpoint_id == endpoint_id)
    if states is not None:
        query = query.where(online_deployments.c.provisioning_state.in_(states))
    return [_deployment(row) for row in connection.execute(query)]


def read_spec(text: str) -> DeploymentSpec:
    """The specification in a row."""
    return DeploymentSpec.from_json(json.loads(text))


def update_online_deployment(
    connection: Connection, deployment: OnlineDeployment, model_id: str | None = None
) -> None:
    """Write the deployment as it is now; `model_id` where its catalog model changed."""
    connection.execute(
        update(online_deployments)
        .where(online_deployments.c.id == deployment.id)
        .values(**_deployment_values(deployment))
    )
    if model_id is not None:
        connection.execute(
            update(deployments).where(deployments.c.id == deployment.id).values(model_id=model_id)
        )
    _changed(connection, deployment, deployment.updated_ms)


def set_instance_count(connection: Connection, deployment_id: str, count: int, now_ms: int) -> None:
    """What autoscale wants now."""
    found = find_online_deployment(connection, deployment_id=deployment_id)
    if found is None or found.instance_count == count:
        return
    connection.execute(
        update(online_deployments)
        .where(online_deployments.c.id == deployment_id)
        .values(instance_count=count, updated_ms=now_ms)
    )
    _changed(connection, found, now_ms)


def mark_online_deployment_deleted(connection: Connection, deployment: OnlineDeployment, now_ms: int) -> None:
    """End its life: its processes are ended by the runtime, a change of it that is under way is cancelled."""
    connection.execute(
        update(online_deployments)
        .where(online_deployments.c.id == deployment.id, _LIVING)
        .values(provisioning_state="Deleting", updated_ms=now_ms, deleted_ms=now_ms)
    )
    connection.execute(update(deployments).where(deployments.c.id == deployment.id).values(deleted_ms=now_ms))
    end_operations(
        connection,
        deployment.id,
        ("OperationCanceled", f"the deployment {deployment.name!r} was deleted meanwhile"),
        now_ms,
    )
    _changed(connection, deployment, now_ms)


def deployment_counts(connection: Connection) -> tuple[int, int]:
    """Living deployments, and the instances that they want."""
    query = select(func.count(), func.coalesce(func.sum(online_deployments.c.instance_count), 0)).where(
        _LIVING
    )
    count, instances = connection.execute(query).one()
    return count, int(instances)


def finish_provisioning(
    connection: Connection,
    deployment_id: str,
    generation: int,
    failure: tuple[str, str] | None,
    now_ms: int,
) -> bool:
    """The runtime's word that a change is done: its replicas are ready, or `failure` (code, message) says why not.

    Ends the operation. False, and nothing is changed, when the deployment is gone, or is by now at another
    generation or not being changed at all. A deployment created or updated with all traffic gets it now.
    """
    found = find_online_deployment(connection, deployment_id=deployment_id)
    if found is None or found.generation != generation or not found.pending:
        return False
    code, message = failure or ("", "")
    connection.execute(
        update(online_deployments)
        .where(online_deployments.c.id == deployment_id)
        .values(
            provisioning_state="Failed" if failure else "Succeeded",
            failure_code=code,
            failure_message=message[:MAX_TEXT],
            updated_ms=now_ms,
        )
    )
    ended = end_operations(connection, deployment_id, failure, now_ms)
    if failure is None and any(each.detail.get("all_traffic") for each in ended):
        give_all_traffic(connection, found, now_ms)
    _changed(connection, found, now_ms)
    return True


def give_all_traffic(connection: Connection, deployment: OnlineDeployment, now_ms: int) -> None:
    """The endpoint's whole live traffic goes to the deployment, and no copies do."""
    endpoint = find_online_endpoint(connection, deployment.endpoint_id)
    assert endpoint is not None, "an endpoint's row is kept"
    mirror = {name: share for name, share in endpoint.spec.mirror_traffic.items() if name != deployment.name}
    connection.execute(
        update(online_endpoints)
        .where(online_endpoints.c.endpoint_id == deployment.endpoint_id)
        .values(
            traffic=json.dumps({deployment.name: 100}), mirror_traffic=json.dumps(mirror), updated_ms=now_ms
        )
    )


def _changed(connection: Connection, deployment: OnlineDeployment, now_ms: int) -> None:
    record_change(connection, "deployment", deployment.id, now_ms)
    record_change(connection, "endpoint", deployment.endpoint_id, now_ms)


# --- operations -----------------------------------------------------------------------------------


def insert_operation(connection: Connection, operation: Operation) -> None:
    """Record the operation, and forget the oldest ended ones beyond `KEPT_OPERATIONS`."""
    connection.execute(
        insert(operations).values(
            id=operation.id,
            kind=operation.kind,
            target=operation.target,
            endpoint_id=operation.endpoint_id,
            state=operation.state,
            error=None if operation.error is None else json.dumps(operation.error),
            detail=json.dumps(operation.detail),
            phase=operation.phase[:MAX_TEXT],
            started_ms=operation.started_ms,
            ended_ms=operation.ended_ms,
        )
    )
    old = (
        select(operations.c.id)
        .where(operations.c.ended_ms.is_not(None))
        .order_by(operations.c.ended_ms.desc(), operations.c.id.desc())
        .offset(KEPT_OPERATIONS)
        .limit(100)
    )
    forgotten = list(connection.execute(old).scalars())
    if forgotten:
        connection.execute(delete(operations).where(operations.c.id.in_(forgotten)))


def find_operation(connection: Connection, operation_id: str) -> Operation | None:
    """The operation with that id; None when there is none, or it ended long ago."""
    row = connection.execute(select(operations).where(operations.c.id == operation_id)).first()
    return None if row is None else _operation(row)


def running_operations(
    connection: Connection, *, endpoint_id: str | None = None, target: str | None = None
) -> list[Operation]:
    """Operations under way, oldest first: on an endpoint and its deployments, or on one target."""
    query = select(operations).where(operations.c.state == "Running").order_by(operations.c.id).limit(1000)
    wanted: list[tuple[ColumnElement[str], str | None]] = [
        (operations.c.endpoint_id, endpoint_id),
        (operations.c.target, target),
    ]
    for column, value in wanted:
        if value is not None:
            query = query.where(column == value)
    return [_operation(row) for row in connection.execute(query)]


def set_phase(connection: Connection, target: str, phase: str) -> None:
    """What the operation on `target` is doing now, for people who wait for it."""
    connection.execute(
        update(operations)
        .where(operations.c.target == target, operations.c.state == "Running")
        .values(phase=phase[:MAX_TEXT])
    )


def end_operations(
    connection: Connection, target: str, failure: tuple[str, str] | None, now_ms: int
) -> list[Operation]:
    """End what is under way on `target`; returns it as it was."""
    running = running_operations(connection, target=target)
    error = None if failure is None else {"code": failure[0], "message": failure[1][:MAX_TEXT]}
    connection.execute(
        update(operations)
        .where(operations.c.id.in_([each.id for each in running]))
        .values(
            state="Failed" if failure else "Succeeded",
            error=None if error is None else json.dumps(error),
            ended_ms=now_ms,
        )
    )
    return running


# --- rows to values -------------------------------------------------------------------------------


def _endpoint_values(endpoint: OnlineEndpoint) -> dict[str, Any]:
    spec = endpoint.spec.to_json()
    return {
        "traffic": json.dumps(spec.pop("traffic")),
        "mirror_traffic": json.dumps(spec.pop("mirror_traffic")),
        "spec": json.dumps(spec),
        "provisioning_state": endpoint.provisioning_state,
        "updated_ms": endpoint.updated_ms,
    }


def _endpoint(row: Row[Any]) -> OnlineEndpoint:
    spec = json.loads(row.spec) | {
        "traffic": json.loads(row.traffic),
        "mirror_traffic": json.loads(row.mirror_traffic),
    }
    return OnlineEndpoint(
        row.endpoint_id, EndpointSpec.from_json(spec), row.provisioning_state, row.updated_ms
    )


def _deployment_values(deployment: OnlineDeployment) -> dict[str, Any]:
    return {
        "spec": json.dumps(deployment.spec.to_json()),
        "provisioning_state": deployment.provisioning_state,
        "failure_code": deployment.failure_code,
        "failure_message": deployment.failure_message[:MAX_TEXT],
        "generation": deployment.generation,
        "instance_count": deployment.instance_count,
        "updated_ms": deployment.updated_ms,
        "deleted_ms": deployment.deleted_ms,
    }


def _deployment(row: Row[Any]) -> OnlineDeployment:
    values = dict(row._mapping)
    del values["name_key"]
    values["spec"] = read_spec(row.spec)
    return OnlineDeployment(**values)


def _operation(row: Row[Any]) -> Operation:
    values = dict(row._mapping)
    values["error"] = None if row.error is None else json.loads(row.error)
    values["detail"] = json.loads(row.detail)
    return Operation(**values)
