"""Create, update and delete online endpoints and their deployments, as one transaction each.

A change of a deployment that needs processes leaves its row Creating or Updating and an operation Running; the runtime
follows the rows and calls `store.finish_provisioning`. All else is done when the transaction is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from core.errors import NotFound
from core.ids import new_id
from serving import store as serving_store
from serving.endpoints import announce_state, name_in_use, refuse_name_in_use
from serving.model import Endpoint
from serving.online import copies, rules, store
from serving.online.assemble import Assembled
from serving.online.copies import Staged
from serving.online.model import OnlineDeployment, OnlineEndpoint, Operation, OperationKind
from serving.online.spec import DeploymentSpec, EndpointSpec, needs_new_processes, needs_scaling
from wire.suggestions import suggest

# --- endpoints ------------------------------------------------------------------------------------


def create_endpoint(
    connection: Connection, spec: EndpointSpec, org_id: str, project_id: str, now_ms: int
) -> tuple[Endpoint, Operation]:
    """A new endpoint without deployments. Conflict for a name in use, OutOfQuota beyond the limit, Invalid for
    traffic: there is nothing to give it to."""
    refuse_name_in_use(connection, spec.name, org_id)
    rules.check_endpoint_count(store.count_endpoints(connection))
    traffic, mirror = rules.check_traffic(spec.traffic, spec.mirror_traffic, (), spec.target)
    endpoint = Endpoint(
        id=new_id("ep", now_ms),
        kind="online",
        name=spec.name,
        org_id=org_id,
        project_id=project_id,
        model_id="",
        deployment_id="",
        state="Online",
        tags=spec.tags,
        created_ms=now_ms,
    )
    try:
        with connection.begin_nested():
            serving_store.insert_endpoint(connection, endpoint)
    except IntegrityError:  # another transaction was faster
        raise name_in_use(spec.name) from None
    spec = replace(spec, traffic=traffic, mirror_traffic=mirror)
    store.insert_online_endpoint(connection, OnlineEndpoint(endpoint.id, spec, "Succeeded", now_ms))
    announce_state(connection, endpoint, None, now_ms)
    return endpoint, _done(connection, "endpoint.create", endpoint.id, endpoint.id, now_ms)


def update_endpoint(
    connection: Connection,
    endpoint: Endpoint,
    spec: EndpointSpec,
    now_ms: int,
    *,
    traffic: Mapping[str, object] | None = None,
    mirror_traffic: Mapping[str, object] | None = None,
) -> Operation:
    """Put `spec` in place of what it was. A split that is None stays; else it is what counts from now on."""
    store.lock_endpoint(connection, endpoint.id)
    rules.check_idle(store.running_operations(connection, endpoint_id=endpoint.id), now_ms)
    old = online_endpoint(connection, endpoint)
    rules.check_endpoint_change(old.spec, spec)
    live, copied = rules.check_traffic(
        old.spec.traffic if traffic is None else traffic,
        old.spec.mirror_traffic if mirror_traffic is None else mirror_traffic,
        [each.name for each in store.list_online_deployments(connection, endpoint.id)],
        spec.target,
    )
    spec = replace(spec, traffic=live, mirror_traffic=copied)
    store.update_online_endpoint(connection, OnlineEndpoint(endpoint.id, spec, "Succeeded", now_ms))
    return _done(connection, "endpoint.update", endpoint.id, endpoint.id, now_ms)


def delete_endpoint(connection: Connection, endpoint: Endpoint, now_ms: int) -> Operation:
    """End the endpoint and all its deployments. The caller revokes its keys in the same transaction."""
    store.lock_endpoint(connection, endpoint.id)
    rules.check_idle(store.running_operations(connection, endpoint_id=endpoint.id), now_ms)
    store.mark_online_endpoint_deleted(connection, endpoint.id, now_ms)
    announce_state(connection, replace(endpoint, state="Deleted"), endpoint.state, now_ms)
    return _done(connection, "endpoint.delete", endpoint.id, endpoint.id, now_ms)


def online_endpoint(connection: Connection, endpoint: Endpoint) -> OnlineEndpoint:
    """What `endpoint` is beyond its row."""
    found = store.find_online_endpoint(connection, endpoint.id)
    assert found is not None, "it was made with the endpoint"
    return found


# --- deployments ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where deployments live, and what there is for them."""

    home: Path
    capacity: rules.Capacity
    max_model_bytes: int = copies.MAX_MODEL_BYTES


def get_deployment(connection: Connection, endpoint: Endpoint, name: str) -> OnlineDeployment:
    """The living deployment of that name; NotFound suggests a close one."""
    found = store.find_online_deployment(connection, endpoint_id=endpoint.id, name=name)
    if found is not None:
        return found
    names = [each.name for each in store.list_online_deployments(connection, endpoint.id)]
    close = suggest(name, names)
    hint = f"; did you mean {close!r}?" if close else f"; it has {', '.join(names) or 'none yet'}"
    raise NotFound(
        f"the endpoint {endpoint.name!r} has no deployment {name[:60]!r}{hint}",
        code="deployment_not_found",
        param="deployment",
    )


def create_deployment(
    connection: Connection,
    endpoint: Endpoint,
    made: Assembled,
    staged: Staged | None,
    place: Place,
    now_ms: int,
    *,
    all_traffic: bool = False,
) -> tuple[OnlineDeployment, Operation]:
    """A new deployment, Creating; with `all_traffic` the endpoint's whole traffic goes to it once it is ready."""
    store.lock_endpoint(connection, endpoint.id)
    rules.check_idle(store.running_operations(connection, endpoint_id=endpoint.id), now_ms)
    parent = online_endpoint(connection, endpoint)
    siblings = store.list_online_deployments(connection, endpoint.id)
    rules.check_deployment_name(made.spec.name, parent.spec, [each.name for each in siblings])
    rules.check_deployment_count(len(siblings), store.deployment_counts(connection)[0])
    rules.check_room(made.spec, store.list_online_deployments(connection), place.capacity)
    deployment_id = new_id("dep", now_ms)
    deployment = OnlineDeployment(
        id=deployment_id,
        endpoint_id=endpoint.id,
        org_id=endpoint.org_id,
        project_id=endpoint.project_id,
        name=made.spec.name,
        spec=_placed(made.spec, staged, place.home, deployment_id, 1),
        provisioning_state="Creating",
        failure_code="",
        failure_message="",
        generation=1,
        instance_count=_first_count(made.spec),
        created_ms=now_ms,
        updated_ms=now_ms,
    )
    store.insert_online_deployment(connection, deployment, made.model_id)
    operation = _running(connection, "deployment.create", deployment, now_ms, all_traffic)
    return deployment, operation


def update_deployment(
    connection: Connection,
    endpoint: Endpoint,
    made: Assembled,
    staged: Staged | None,
    place: Place,
    now_ms: int,
    *,
    all_traffic: bool = False,
) -> tuple[OnlineDeployment, Operation]:
    """Put the new specification in place of what it was; Updating where processes have to follow."""
    store.lock_endpoint(connection, endpoint.id)
    rules.check_idle(store.running_operations(connection, endpoint_id=endpoint.id), now_ms)
    old = get_deployment(connection, endpoint, made.spec.name)
    rules.check_deployment_change(old.spec, made.spec)
    others = [each for each in store.list_online_deployments(connection) if each.id != old.id]
    rules.check_room(made.spec, others, place.capacity)
    spec, unchanged = _same_copies(old.spec, made.spec, staged)
    restart = needs_new_processes(old.spec, spec) or old.provisioning_state == "Failed"
    generation = old.generation + 1 if restart else old.generation
    if not restart:  # another package with the same content: the instances run from where they are
        spec = replace(spec, code_path=old.spec.code_path, model_path=old.spec.model_path)
    if staged is not None and not unchanged:
        _forget_older(place.home, old)
        spec = _placed(spec, staged, place.home, old.id, generation)
    scale = needs_scaling(old.spec, spec)
    new = replace(
        old,
        spec=spec,
        provisioning_state="Updating" if restart or scale else old.provisioning_state,
        failure_code="" if restart or scale else old.failure_code,
        failure_message="" if restart or scale else old.failure_message,
        generation=generation,
        instance_count=_first_count(spec) if scale else old.instance_count,
        updated_ms=now_ms,
    )
    store.update_online_deployment(connection, new, made.model_id)
    operation = _running(connection, "deployment.update", new, now_ms, all_traffic)
    if not new.pending:
        store.end_operations(connection, new.id, None, now_ms)
        if all_traffic:
            store.give_all_traffic(connection, new, now_ms)
        operation = replace(operation, state="Succeeded", ended_ms=now_ms)
    return new, operation


def delete_deployment(
    connection: Connection, endpoint: Endpoint, name: str, now_ms: int
) -> tuple[OnlineDeployment, Operation]:
    """End the deployment; one that is being created or updated is cancelled by it. Conflict while it has traffic."""
    store.lock_endpoint(connection, endpoint.id)
    deployment = get_deployment(connection, endpoint, name)
    running = store.running_operations(connection, endpoint_id=endpoint.id)
    rules.check_idle([each for each in running if each.target != deployment.id], now_ms)
    spec = online_endpoint(connection, endpoint).spec
    rules.check_may_delete(name, spec.traffic, spec.mirror_traffic)
    store.mark_online_deployment_deleted(connection, deployment, now_ms)
    gone = replace(deployment, provisioning_state="Deleting", deleted_ms=now_ms, updated_ms=now_ms)
    return gone, _done(connection, "deployment.delete", deployment.id, endpoint.id, now_ms)


def _placed(
    spec: DeploymentSpec, staged: Staged | None, home: Path, deployment_id: str, generation: int
) -> DeploymentSpec:
    """The specification with its copies in their final place."""
    if staged is None:
        return spec
    final = copies.settle(staged.folder, home, deployment_id, generation)
    changes: dict[str, Any] = {}
    if staged.code_digest:
        changes |= {"code_path": str(final / "code"), "code_digest": staged.code_digest}
    if staged.model_digest:
        changes |= {
            "model_path": str(final / "model" / staged.model_entry),
            "model_digest": staged.model_digest,
        }
    return replace(spec, **changes)


def _same_copies(
    old: DeploymentSpec, new: DeploymentSpec, staged: Staged | None
) -> tuple[DeploymentSpec, bool]:
    """The new specification with digests; and true, with the old paths, when every copy is what there was."""
    if staged is None:
        return new, True
    new = replace(
        new,
        code_digest=staged.code_digest or new.code_digest,
        model_digest=staged.model_digest or new.model_digest,
    )
    if (new.code_digest, new.model_digest) != (old.code_digest, old.model_digest):
        return new, False
    return replace(new, code_path=old.code_path, model_path=old.model_path), True


def _forget_older(home: Path, deployment: OnlineDeployment) -> None:
    """Remove copies that the deployment no longer runs from; its present ones serve until the change is done."""
    if deployment.provisioning_state != "Succeeded":
        return
    used = (deployment.spec.code_path, deployment.spec.model_path)
    for folder in copies.folders_of(home, deployment.id):
        if not any(path.startswith(f"{folder}/") for path in used):
            copies.discard(folder)


def _first_count(spec: DeploymentSpec) -> int:
    return spec.instance_count if spec.scale.kind == "default" else spec.scale.first


# --- operations -----------------------------------------------------------------------------------


def _running(
    connection: Connection,
    kind: OperationKind,
    deployment: OnlineDeployment,
    now_ms: int,
    all_traffic: bool,
) -> Operation:
    operation = Operation(
        id=new_id("op", now_ms),
        kind=kind,
        target=deployment.id,
        endpoint_id=deployment.endpoint_id,
        state="Running",
        phase="waiting for the runtime",
        started_ms=now_ms,
        detail={"all_traffic": True} if all_traffic else {},
    )
    store.insert_operation(connection, operation)
    return operation


def _done(
    connection: Connection, kind: OperationKind, target: str, endpoint_id: str, now_ms: int
) -> Operation:
    operation = Operation(new_id("op", now_ms), kind, target, endpoint_id, "Succeeded", "", now_ms, now_ms)
    store.insert_operation(connection, operation)
    return operation
