"""What was asked for: an online endpoint and its deployments, as values that JSON can hold.

Names are those of Azure ML's YAML (CLI v2) where it has one. A path is absolute and on this machine: the copy that
the deployment runs, not the user's own folder.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Self

import msgspec

from serving.online.collecting import script_collections
from serving.online.scaling import ScaleRule, ScaleSchedule

SpecKind = Literal["script", "mlflow", "command", "catalog"]
AuthMode = Literal["key", "aml_token", "aad_token"]
Switch = Literal["enabled", "disabled"]
Target = Literal["managed", "kubernetes"]
Tier = Literal["dedicated", "low_priority"]  # the second yields its place to the first
Strategy = Literal["rolling", "recreate"]

DEFAULT_SCORING_PORT = 5001
INSTANCE_TYPE = "local"  # what a deployment that names no size runs on


class _Json:
    """Plain JSON and back. A field that a later version adds is ignored by an earlier one."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON's own types."""
        made = msgspec.to_builtins(self)
        assert isinstance(made, dict)
        return made

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """The value that `to_json` gave; msgspec.ValidationError for anything else."""
        return msgspec.convert(value, cls)


@dataclass(frozen=True, slots=True)
class RequestSettings(_Json):
    """How long a call may take and how many may wait. Times in milliseconds."""

    request_timeout_ms: int = 5_000
    max_concurrent_requests_per_instance: int = 1
    max_queue_wait_ms: int = 500


@dataclass(frozen=True, slots=True)
class Probe(_Json):
    """When an instance counts as alive or ready. Times in seconds."""

    initial_delay: int = 10
    period: int = 10
    timeout: int = 2
    success_threshold: int = 1
    failure_threshold: int = 30
    path: str = "/"


@dataclass(frozen=True, slots=True)
class InferenceRoute(_Json):
    """Where a server answers. Port 0: the one that it was given (`$PORT`)."""

    path: str = "/"
    port: int = 0


@dataclass(frozen=True, slots=True)
class InferenceRoutes(_Json):
    """The three routes of a server of the user's own (`inference_config`)."""

    scoring: InferenceRoute = InferenceRoute("/score")
    liveness: InferenceRoute = InferenceRoute("/")
    readiness: InferenceRoute = InferenceRoute("/")


@dataclass(frozen=True, slots=True)
class ResourceAmounts(_Json):
    """Of one instance. CPU in thousandths of a core, memory in bytes, GPUs; 0: not said."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0


@dataclass(frozen=True, slots=True)
class Resources(_Json):
    """What an instance is sure to get, and what it must not exceed."""

    requests: ResourceAmounts = ResourceAmounts()
    limits: ResourceAmounts = ResourceAmounts()


@dataclass(frozen=True, slots=True)
class ScaleSettings(_Json):
    """How many instances. `default`: `instance_count` of them, unless idle for `idle_to_zero_s` (0: never zero)."""

    kind: Literal["default", "target_utilization", "rules"] = "default"
    min_instances: int = 1
    max_instances: int = 1
    target_utilization_percentage: int = 70
    polling_interval_s: int = 1
    idle_to_zero_s: int = 0
    default_instances: int = 0  # at first; 0: min_instances
    rules: tuple[ScaleRule, ...] = ()
    schedules: tuple[ScaleSchedule, ...] = ()  # the first that holds replaces the two bounds

    @property
    def first(self) -> int:
        """How many there are at first."""
        return max(1, self.default_instances or self.min_instances)

    @property
    def most(self) -> int:
        """How many there may be at any time."""
        return max(self.max_instances, *(each.max_instances for each in self.schedules), 1)


@dataclass(frozen=True, slots=True)
class DeploymentSpec(_Json):
    """One deployment of an online endpoint.

    `kind` follows from what was given: a scoring script, else an MLflow model, else the user's own server, else a
    model of the catalog. `model` is that one's id, else the reference as it was written. `model_path` is "" when there is
    no local model.
    `command` is the user's own HTTP server: `{port}` in it becomes the instance's port, as `$PORT` in its environment.
    `document` is what was sent, with the user's own paths; the `…_digest` tell a changed copy.
    """

    name: str
    kind: SpecKind
    target: Target = "managed"
    model: str = ""
    model_path: str = ""
    model_name: str = ""
    model_version: str = ""
    model_digest: str = ""
    model_mount_path: str = ""
    code_path: str = ""
    code_digest: str = ""
    scoring_script: str = ""  # relative to `code_path`
    command: tuple[str, ...] = ()
    environment: dict[str, Any] | None = field(
        default=None, hash=False
    )  # inline, as parsed; conda_file's content
    environment_variables: dict[str, str] = field(default_factory=dict, hash=False)
    instance_type: str = INSTANCE_TYPE
    instance_count: int = 1
    request_settings: RequestSettings = RequestSettings()
    liveness_probe: Probe = Probe()
    readiness_probe: Probe = Probe()
    routes: InferenceRoutes = InferenceRoutes()
    resources: Resources = Resources()
    scale: ScaleSettings = ScaleSettings()
    strategy: Strategy = "rolling"
    tier: Tier = "dedicated"
    app_insights_enabled: bool = False
    data_collector: dict[str, Any] | None = field(default=None, hash=False)
    egress_public_network_access: Switch = "enabled"
    tags: dict[str, str] = field(default_factory=dict, hash=False)
    description: str = ""
    document: dict[str, Any] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()  # fields that were accepted and have no effect here, each with the reason

    @property
    def low_priority(self) -> bool:
        """Whether its instances have to go when others need the room."""
        return self.tier == "low_priority"

    @property
    def model_dir(self) -> str:
        """What a script knows as AZUREML_MODEL_DIR: the folder that the model's folder or file is in; "" for none."""
        return self.model_path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class EndpointSpec(_Json):
    """An online endpoint. Shares are percent by the deployment's name; a name that is absent has 0."""

    name: str
    description: str = ""
    target: Target = "managed"
    auth_mode: AuthMode = "key"
    traffic: dict[str, int] = field(default_factory=dict, hash=False)
    mirror_traffic: dict[str, int] = field(default_factory=dict, hash=False)
    public_network_access: Switch = "enabled"
    identity: dict[str, Any] | None = field(default=None, hash=False)
    compute: str = ""
    tags: dict[str, str] = field(default_factory=dict, hash=False)
    properties: dict[str, str] = field(default_factory=dict, hash=False)
    document: dict[str, Any] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()


# A change of one of these needs new processes; any other is taken up by those that run.
_PROCESS_FIELDS = (
    "kind",
    "model",
    "model_digest",
    "model_mount_path",
    "code_digest",
    "scoring_script",
    "command",
    "environment",
    "environment_variables",
    "routes",
    "resources",
    "egress_public_network_access",
    "tier",
)


def needs_new_processes(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """True when what runs for `old` cannot go on to serve `new`."""
    if any(getattr(old, name) != getattr(new, name) for name in _PROCESS_FIELDS):
        return True
    return script_collections(old.data_collector) != script_collections(new.data_collector)


def needs_scaling(old: DeploymentSpec, new: DeploymentSpec) -> bool:
    """True when the number of instances may have to change."""
    return (old.instance_count, old.scale) != (new.instance_count, new.scale)
