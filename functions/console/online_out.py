"""How online endpoints, their deployments and operations are shown."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import Connection

from core.clock import iso
from functions.console.deployments import DeploymentOut, deployment_of
from functions.console.shapes import iso_or_none
from serving.model import Endpoint, LiveStatus
from serving.online.model import OnlineDeployment, OnlineEndpoint, Operation
from serving.online.scale_document import rule_document, schedule_document
from serving.online.spec import Probe


class ErrorOut(BaseModel):
    """Why an operation failed."""

    code: str = Field(examples=["UserScriptInitFailed"])
    message: str


class OperationOut(BaseModel):
    """A change that takes time."""

    id: str
    kind: str = Field(examples=["deployment.create"])
    state: str = Field(description="Running, Succeeded or Failed.")
    phase: str = Field(description="What it is doing, for people.")
    target: str = Field(description="The id of the endpoint or deployment.")
    error: ErrorOut | None
    started_at: str
    ended_at: str | None
    url: str = Field(examples=["/api/operations/op_01kafn3m8hzq4v6p9x2c7d5b1w"])


class OnlineEndpointOut(BaseModel):
    """An online endpoint. Every deployment has an entry in both splits, 0 for none."""

    id: str
    name: str
    type: str = Field(description="managed or kubernetes.")
    kind: str = "online"
    description: str
    auth_mode: str
    traffic: dict[str, int]
    mirror_traffic: dict[str, int]
    public_network_access: str
    identity: dict[str, Any] | None
    compute: str | None
    tags: dict[str, str]
    properties: dict[str, str]
    provisioning_state: str
    scoring_uri: str = Field(examples=["http://127.0.0.1:8080/endpoints/my-endpoint/score"])
    openapi_uri: str = Field(examples=["http://127.0.0.1:8080/endpoints/my-endpoint/swagger.json"])
    openai_base_url: str = Field(description="For deployments of a catalog model.")
    project_id: str
    organization_id: str
    created_at: str
    updated_at: str
    notes: list[str] = Field(description="Fields that were accepted and have no effect here.")
    operation: OperationOut | None = Field(
        description="The change that made this answer; null when only read."
    )


class OnlineDeploymentOut(BaseModel):
    """A deployment of an online endpoint, as it was written and as it is."""

    id: str
    name: str
    endpoint_name: str
    type: str
    kind: str = Field(description="script, mlflow, command or catalog.")
    description: str
    tags: dict[str, str]
    model: Any
    code_configuration: dict[str, Any] | None
    command: list[str] | None
    environment: dict[str, Any] | None
    environment_variables: dict[str, str]
    instance_type: str
    instance_count: int = Field(description="How many are wanted now.")
    app_insights_enabled: bool
    scale_settings: dict[str, Any]
    request_settings: dict[str, int]
    liveness_probe: dict[str, int]
    readiness_probe: dict[str, int]
    resources: dict[str, Any] | None
    strategy: str
    tier: str
    data_collector: dict[str, Any] | None
    egress_public_network_access: str
    provisioning_state: str
    failure: ErrorOut | None
    generation: int = Field(description="Grows with each change that needs new processes.")
    traffic: int = Field(description="Percent of the endpoint's calls.")
    mirror_traffic: int = Field(description="Percent of the calls that it gets copies of.")
    created_at: str
    updated_at: str
    runtime: DeploymentOut
    notes: list[str] = Field(description="Fields that were accepted and have no effect here.")
    operation: OperationOut | None


def operation_out(operation: Operation) -> OperationOut:
    """An operation as it is answered."""
    return OperationOut(
        id=operation.id,
        kind=operation.kind,
        state=operation.state,
        phase=operation.phase if operation.state == "Running" else "",
        target=operation.target,
        error=None if operation.error is None else ErrorOut(**operation.error),
        started_at=iso(operation.started_ms),
        ended_at=iso_or_none(operation.ended_ms),
        url=f"/api/operations/{operation.id}",
    )


def endpoint_out(
    row: Endpoint,
    online: OnlineEndpoint,
    deployments: list[str],
    base: str,
    operation: Operation | None = None,
) -> OnlineEndpointOut:
    """An endpoint as it is answered; `deployments` are the names of its living ones."""
    spec = online.spec
    return OnlineEndpointOut(
        id=row.id,
        name=row.name,
        type=spec.target,
        description=spec.description,
        auth_mode=spec.auth_mode,
        traffic={name: spec.traffic.get(name, 0) for name in deployments},
        mirror_traffic={name: spec.mirror_traffic.get(name, 0) for name in deployments},
        public_network_access=spec.public_network_access,
        identity=spec.identity,
        compute=spec.compute or None,
        tags=spec.tags,
        properties=spec.properties,
        provisioning_state=online.provisioning_state,
        scoring_uri=f"{base}/endpoints/{row.name}/score",
        openapi_uri=f"{base}/endpoints/{row.name}/swagger.json",
        openai_base_url=f"{base}/endpoints/{row.name}/v1",
        project_id=row.project_id,
        organization_id=row.org_id,
        created_at=iso(row.created_ms),
        updated_at=iso(online.updated_ms),
        notes=list(spec.notes),
        operation=None if operation is None else operation_out(operation),
    )


def online_deployment_out(
    connection: Connection,
    row: Endpoint,
    online: OnlineEndpoint,
    found: OnlineDeployment,
    live: Mapping[str, LiveStatus],
    operation: Operation | None = None,
) -> OnlineDeploymentOut:
    """A deployment as it is answered: first the fields of its document, then what became of it."""
    spec, failure = found.spec, None
    if found.failure_code:
        failure = ErrorOut(code=found.failure_code, message=found.failure_message)
    return OnlineDeploymentOut(
        id=found.id,
        name=found.name,
        endpoint_name=row.name,
        type=spec.target,
        kind=spec.kind,
        description=spec.description,
        tags=spec.tags,
        model=spec.document.get("model"),
        code_configuration=spec.document.get("code_configuration"),
        command=list(spec.command) or None,
        environment=spec.environment,
        environment_variables=spec.environment_variables,
        instance_type=spec.instance_type,
        instance_count=found.instance_count,
        app_insights_enabled=spec.app_insights_enabled,
        scale_settings=_scale(found),
        request_settings=spec.request_settings.to_json(),
        liveness_probe=_probe(spec.liveness_probe),
        readiness_probe=_probe(spec.readiness_probe),
        resources=spec.document.get("resources"),
        strategy=spec.strategy,
        tier=spec.tier,
        data_collector=spec.data_collector,
        egress_public_network_access=spec.egress_public_network_access,
        provisioning_state=found.provisioning_state,
        failure=failure,
        generation=found.generation,
        traffic=online.spec.traffic.get(found.name, 0),
        mirror_traffic=online.spec.mirror_traffic.get(found.name, 0),
        created_at=iso(found.created_ms),
        updated_at=iso(found.updated_ms),
        runtime=deployment_of(connection, found.id, live),
        notes=list(spec.notes),
        operation=None if operation is None else operation_out(operation),
    )


def _scale(found: OnlineDeployment) -> dict[str, Any]:
    scale = found.spec.scale.to_json()
    kind = scale.pop("kind")
    interval = scale.pop("polling_interval_s")
    if kind == "default":
        return {"type": kind, "idle_to_zero_s": scale["idle_to_zero_s"]}
    scale["rules"] = [rule_document(each) for each in found.spec.scale.rules]
    scale["schedules"] = [schedule_document(each) for each in found.spec.scale.schedules]
    return {"type": kind, **scale, "polling_interval": interval}


def _probe(probe: Probe) -> dict[str, int]:
    made = probe.to_json()
    del made["path"]
    return made
