"""Deployments and their replicas: what serves the models, since when, and why it last failed."""

from collections.abc import Mapping

from pydantic import BaseModel, Field
from sqlalchemy import Connection

from core.clock import iso
from functions.console.dependencies import Deps
from functions.console.routing import console_router
from functions.console.shapes import Page, iso_or_none
from serving.model import DeploymentState, DeploymentView, LiveStatus, Replica, ReplicaState
from serving.view import view_deployment, view_deployments

router = console_router("deployments")


class ReplicaOut(BaseModel):
    """One run of one model server."""

    id: str
    state: ReplicaState
    phase: str | None = Field(description="What it is doing while it starts.")
    url: str | None = Field(examples=["http://127.0.0.1:41233"])
    pid: int | None
    started_at: str
    ready_at: str | None
    stopped_at: str | None
    reason: str | None = Field(description="Why it ended.")


class FailureOut(BaseModel):
    """The last failure."""

    at: str | None
    reason: str


class DeploymentOut(BaseModel):
    """The resources that serve one model, shared by its serverless endpoints."""

    id: str
    model: str
    state: DeploymentState
    external: bool = Field(description="A server that is attached, not started by Farebox.")
    phase: str | None
    in_flight: int | None
    last_call_at: str | None
    stops_at: str | None = Field(description="When it will be stopped if nobody calls.")
    retry_at: str | None = Field(description="After a failure: no new attempt before.")
    created_at: str
    replicas: list[ReplicaOut] = Field(description="Newest first.")
    last_failure: FailureOut | None


@router.get("/deployments", summary="List deployments")
def list_deployments(deps: Deps) -> Page[DeploymentOut]:
    """All of them, oldest first: there is one for each model that an endpoint was made for."""
    live = deps.runtime.status()
    with deps.db.read() as connection:
        views = view_deployments(connection, live)
    return Page(data=[_deployment(view) for view in views])


def deployment_of(
    connection: Connection, deployment_id: str, live: Mapping[str, LiveStatus]
) -> DeploymentOut:
    """The deployment behind an endpoint."""
    return _deployment(view_deployment(connection, deployment_id, live))


def _deployment(view: DeploymentView) -> DeploymentOut:
    live, failed = view.live, view.last_failure
    return DeploymentOut(
        id=view.id,
        model=view.model_id,
        state=view.state,
        external=view.external,
        phase=(live.phase or None) if live else None,
        in_flight=live.in_flight if live else None,
        last_call_at=iso_or_none(live.last_call_ms) if live else None,
        stops_at=iso_or_none(live.stops_ms) if live else None,
        retry_at=iso_or_none(live.retry_ms) if live else None,
        created_at=iso(view.created_ms),
        replicas=[_replica(each) for each in view.replicas],
        last_failure=FailureOut(at=iso_or_none(view.last_failure_ms), reason=failed) if failed else None,
    )


def _replica(replica: Replica) -> ReplicaOut:
    return ReplicaOut(
        id=replica.id,
        state=replica.state,
        phase=replica.phase or None,
        url=replica.url,
        pid=replica.pid,
        started_at=iso(replica.started_ms),
        ready_at=iso_or_none(replica.ready_ms),
        stopped_at=iso_or_none(replica.stopped_ms),
        reason=replica.reason or None,
    )
