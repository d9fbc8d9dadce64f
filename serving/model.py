"""Endpoints, deployments and replicas."""

from dataclasses import dataclass, field
from typing import Literal

EngineKind = Literal["vllm", "vllm-cpu", "external"]
EndpointKind = Literal["serverless", "online"]
# pool: replicas of one model, shared by every serverless endpoint on it; online: one endpoint's own
DeploymentKind = Literal["pool", "online"]
ReplicaState = Literal["starting", "ready", "stopping", "stopped", "failed"]
DeploymentState = Literal["stopped", "starting", "ready", "idle", "failed"]
EndpointState = Literal["Creating", "Online", "Suspended", "Deleting", "Deleted"]
WakeState = Literal["starting", "ready", "failed"]

LIVE_REPLICA_STATES: tuple[ReplicaState, ...] = ("starting", "ready", "stopping")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A stable URL with keys in front of a deployment."""

    id: str
    kind: EndpointKind
    name: str
    org_id: str
    project_id: str
    model_id: str  # "" of an online endpoint: its deployments are in `online_deployments`
    deployment_id: str  # the same
    state: EndpointState
    tags: dict[str, str] = field(hash=False)
    created_ms: int
    deleted_ms: int | None = None
    content_safety: bool = True  # of a serverless one: calls are checked where a content check is configured


@dataclass(frozen=True, slots=True)
class EndpointLifeRow:
    """When an endpoint existed, for the minute sweep. The fields are those of metering's EndpointLife."""

    endpoint_id: str
    org_id: str
    project_id: str
    model_id: str
    created_ms: int
    deleted_ms: int | None
    name: str


@dataclass(frozen=True, slots=True)
class Deployment:
    """The resources that serve one model. It has no state of its own: see `DeploymentView`."""

    id: str
    kind: DeploymentKind
    model_id: str
    created_ms: int
    deleted_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Replica:
    """One run of one model server, from the decision to start it to its end. None: that time has not come."""

    id: str
    deployment_id: str
    state: ReplicaState
    phase: str  # what it is doing, for people: "building the sample model", "starting", ""
    started_ms: int  # the start was decided
    spawned_ms: int | None = None  # the process began (after whatever had to be built first)
    ready_ms: int | None = None
    stopped_ms: int | None = None
    reason: str = ""  # why it ended
    pid: int | None = None  # leader of its own session and process group
    process_mark: str = ""  # tells this process from a later one with the same pid
    port: int | None = None
    spec_hash: str = ""  # what it was started with; another hash now means it must not be adopted

    @property
    def url(self) -> str | None:
        """Base URL on this machine, None before it has a port."""
        return None if self.port is None else f"http://127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class WakeStatus:
    """What a caller who needs a server is told."""

    state: WakeState
    url: str | None
    reason: str  # of a failure, else what it is doing
    started_ms: int  # the instant at which the start (or the failed attempt) began
    expected_ready_ms: int  # the instant at which it will probably be ready; once ready: when it became so
    retry_after_s: int  # a sensible Retry-After; 0 when ready


@dataclass(frozen=True, slots=True)
class LiveStatus:
    """What the runtime knows of a deployment beyond the table: kept in memory, fresh."""

    deployment_id: str
    state: DeploymentState
    in_flight: int
    last_call_ms: int | None  # the newest call it was told of
    stops_ms: int | None  # when it will be stopped if nobody calls
    retry_ms: int | None  # after a failure: before this instant no new attempt is made
    phase: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """A deployment as people see it: state, replicas (newest first), the reason of the last failure."""

    id: str
    kind: DeploymentKind
    model_id: str
    state: DeploymentState
    external: bool
    created_ms: int
    replicas: tuple[Replica, ...]
    last_failure: str
    last_failure_ms: int | None
    live: LiveStatus | None = None
