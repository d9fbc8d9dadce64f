"""Deployments as people see them: the table's runs, with what the runtime knows better laid over."""

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection

from catalog.store import find_model
from core.errors import NotFound
from serving import store
from serving.model import Deployment, DeploymentState, DeploymentView, LiveStatus, Replica

_FROM_REPLICA: dict[str, DeploymentState] = {
    "starting": "starting",
    "ready": "ready",
    "stopping": "idle",
    "stopped": "stopped",
    "failed": "failed",
}


def view_deployment(
    connection: Connection, deployment_id: str, live: Mapping[str, LiveStatus]
) -> DeploymentView:
    """One deployment; `live` is what `LocalRuntime.status()` gives. NotFound when there is none."""
    deployment = store.find_deployment(connection, deployment_id)
    if deployment is None:
        raise NotFound(f"there is no deployment {deployment_id!r}", param="deployment")
    return _view(connection, deployment, live.get(deployment_id))


def view_deployments(connection: Connection, live: Mapping[str, LiveStatus]) -> list[DeploymentView]:
    """Every deployment, oldest first."""
    return [_view(connection, each, live.get(each.id)) for each in store.list_deployments(connection)]


def _view(connection: Connection, deployment: Deployment, live: LiveStatus | None) -> DeploymentView:
    replicas = tuple(store.list_replicas(connection, deployment.id))
    if live is not None and live.phase and replicas and replicas[0].state == "starting":
        replicas = (replace(replicas[0], phase=live.phase), *replicas[1:])  # the table hears of few phases
    model = find_model(connection, deployment.model_id, include_removed=True)
    external = model is not None and model.spec.external
    failed = next((replica for replica in replicas if replica.state == "failed"), None)
    return DeploymentView(
        id=deployment.id,
        kind=deployment.kind,
        model_id=deployment.model_id,
        state=_state(replicas, external, live),
        external=external,
        created_ms=deployment.created_ms,
        replicas=replicas,
        last_failure=failed.reason if failed else "",
        last_failure_ms=failed.stopped_ms if failed else None,
        live=live,
    )


def _state(replicas: tuple[Replica, ...], external: bool, live: LiveStatus | None) -> DeploymentState:
    if external:
        return "ready"  # not ours to start or stop; always thought to be up
    if live is not None:
        return live.state
    return _FROM_REPLICA[replicas[0].state] if replicas else "stopped"
