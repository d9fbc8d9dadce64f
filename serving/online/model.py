"""Rows of online endpoints: what was asked for, and how far it has come."""

from dataclasses import dataclass, field
from typing import Any, Literal

from serving.online.spec import DeploymentSpec, EndpointSpec

ProvisioningState = Literal["Creating", "Updating", "Succeeded", "Failed", "Deleting"]
OperationState = Literal["Running", "Succeeded", "Failed"]
OperationKind = Literal[
    "endpoint.create",
    "endpoint.update",
    "endpoint.delete",
    "deployment.create",
    "deployment.update",
    "deployment.delete",
]

# The codes that users of Azure ML know, as far as they can happen here (R2.11).
FailureCode = Literal[
    "ImageBuildFailure",
    "OutOfQuota",
    "BadArgument",
    "ResourceNotReady",
    "ResourceNotFound",
    "OperationCanceled",
    "InternalServerError",
    "UserScriptInitFailed",
    "UserScriptImportError",
    "UserScriptFunctionNotFound",
]


@dataclass(frozen=True, slots=True)
class OnlineEndpoint:
    """An online endpoint beyond its row in `endpoints`. `spec.traffic` and `spec.mirror_traffic` are those in force."""

    endpoint_id: str
    spec: EndpointSpec
    provisioning_state: ProvisioningState
    updated_ms: int


@dataclass(frozen=True, slots=True)
class OnlineDeployment:
    """A deployment of an online endpoint.

    `generation` grows with each change that needs new processes. `instance_count` is how many are wanted now, which
    autoscale may have changed since `spec.instance_count`.
    """

    id: str
    endpoint_id: str
    org_id: str
    project_id: str
    name: str
    spec: DeploymentSpec
    provisioning_state: ProvisioningState
    failure_code: str
    failure_message: str
    generation: int
    instance_count: int
    created_ms: int
    updated_ms: int
    deleted_ms: int | None = None

    @property
    def pending(self) -> bool:
        """True while a change of it is under way."""
        return self.provisioning_state in ("Creating", "Updating")


@dataclass(frozen=True, slots=True)
class Operation:
    """A change that takes time. `target` is the id of the endpoint or deployment; `detail` what is to follow it."""

    id: str
    kind: OperationKind
    target: str
    endpoint_id: str
    state: OperationState
    phase: str
    started_ms: int
    ended_ms: int | None = None
    error: dict[str, Any] | None = field(default=None, hash=False)  # {"code", "message"}
    detail: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Asset:
    """A registered model or environment in one version."""

    id: str
    kind: str
    name: str
    version: str
    document: dict[str, Any] = field(hash=False)
    created_ms: int


@dataclass(frozen=True, slots=True)
class DeploymentFigures:
    """What a deployment's instances use now, in percent on average (R7.1); None: not measured, or there is none."""

    endpoint_id: str
    deployment: str
    instances: dict[str, int]  # by state
    cpu_percent: float | None
    memory_percent: float | None
    disk_percent: float | None = None  # of the disk that the home is on
    gpu_percent: float | None = None
    gpu_memory_percent: float | None = None
    gpu_energy_j: float | None = None  # joules, since somebody first looked
