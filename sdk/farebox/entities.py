"""What online endpoints are made of, as classes with Azure ML's names (`azure.ai.ml.entities`).

Paths are relative to the working directory, those of a file to the file. `load_online_endpoint` and its like read the
YAML of Azure ML's command line.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, cast

from farebox.documents import absolute_paths, load
from farebox.errors import FareboxConfigError


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return value.to_dict()
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(kw_only=True)
class Part:
    """A part of a document. What is None is left out."""

    _renamed: ClassVar[dict[str, str]] = {}
    _read_only: ClassVar[frozenset[str]] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are sent."""
        found = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None and each.name not in self._read_only:
                found[self._renamed.get(each.name, each.name)] = _plain(value)
        return found

    @classmethod
    def from_dict(cls, answer: dict[str, Any]) -> Self:
        """The fields of an answer that this class has."""
        names = {cls._renamed.get(each.name, each.name): each.name for each in fields(cls)}
        return cls(**{names[key]: value for key, value in answer.items() if key in names})


@dataclass(kw_only=True)
class CodeConfiguration(Part):
    """The folder and the script in it that answers calls."""

    code: str | Path | None = None
    scoring_script: str | Path | None = None


@dataclass(kw_only=True)
class OnlineRequestSettings(Part):
    """Times in milliseconds."""

    request_timeout_ms: int | None = None
    max_concurrent_requests_per_instance: int | None = None
    max_queue_wait_ms: int | None = None


@dataclass(kw_only=True)
class ProbeSettings(Part):
    """Times in seconds."""

    initial_delay: int | None = None
    period: int | None = None
    timeout: int | None = None
    success_threshold: int | None = None
    failure_threshold: int | None = None


@dataclass(kw_only=True)
class ResourceSettings(Part):
    """Of one instance, as Kubernetes writes it: cpu "500m", memory "1Gi", gpu "1"."""

    _renamed: ClassVar[dict[str, str]] = {"gpu": "nvidia.com/gpu"}
    cpu: str | None = None
    memory: str | None = None
    gpu: str | None = None


@dataclass(kw_only=True)
class ResourceRequirementsSettings(Part):
    """What an instance is sure to get, and what it must not exceed."""

    requests: ResourceSettings | None = None
    limits: ResourceSettings | None = None


@dataclass(kw_only=True)
class DefaultScaleSettings(Part):
    """`instance_count` instances; none when idle for `idle_to_zero_s` seconds, if that is given."""

    type: str = "default"
    idle_to_zero_s: int | None = None


@dataclass(kw_only=True)
class TargetUtilizationScaleSettings(Part):
    """As many instances as the load asks for."""

    type: str = "target_utilization"
    min_instances: int | None = None
    max_instances: int | None = None
    target_utilization_percentage: int | None = None
    polling_interval: int | None = None
    idle_to_zero_s: int | None = None


@dataclass(kw_only=True)
class RulesScaleSettings(Part):
    """As many instances as rules and schedules say: see docs/online.md."""

    type: str = "rules"
    min_instances: int | None = None
    max_instances: int | None = None
    default_instances: int | None = None
    rules: list[dict[str, Any]] | None = None
    schedules: list[dict[str, Any]] | None = None
    idle_to_zero_s: int | None = None


ScaleSettings = DefaultScaleSettings | TargetUtilizationScaleSettings | RulesScaleSettings


@dataclass(kw_only=True)
class Model(Part):
    """A model: a folder or file of this machine, or one that is registered."""

    _read_only = frozenset({"id"})
    name: str | None = None
    version: str | None = None
    path: str | Path | None = None
    type: str | None = None
    description: str | None = None
    tags: dict[str, str] | None = None
    id: str | None = None  # azureml:NAME:VERSION, of one that is registered


@dataclass(kw_only=True)
class BaseEnvironment(Part):
    """A registered environment: azureml:NAME:VERSION."""

    type: str = "environment_asset"
    resource_id: str | None = None


@dataclass(kw_only=True)
class AzureMLOnlineInferencingServer(Part):
    """Farebox' own scorer; MLflow models need no code."""

    type: str = "azureml_online"
    code_configuration: CodeConfiguration | None = None


@dataclass(kw_only=True)
class ModelConfiguration(Part):
    """How the model gets into the package."""

    mode: str = "copy"


@dataclass(kw_only=True)
class ModelPackage(Part):
    """A registered model with its code and environment, to be frozen as the environment `target_environment`."""

    target_environment: str | dict[str, str] | None = None
    base_environment_source: BaseEnvironment | None = None
    inferencing_server: AzureMLOnlineInferencingServer | None = None
    model_configuration: ModelConfiguration | None = None
    environment_variables: dict[str, str] | None = None
    description: str | None = None
    tags: dict[str, str] | None = None


@dataclass(kw_only=True)
class Environment(Part):
    """What a script runs in. `conda_file` is a path, or what is in one."""

    _read_only = frozenset({"id"})
    name: str | None = None
    version: str | None = None
    conda_file: str | Path | dict[str, Any] | None = None
    requirements_file: str | Path | None = None
    requirements: list[str] | None = None
    image: str | None = None
    build: dict[str, Any] | None = None
    inference_config: dict[str, Any] | None = None
    description: str | None = None
    tags: dict[str, str] | None = None
    id: str | None = None


@dataclass(kw_only=True)
class OnlineEndpoint(Part):
    """A stable URL whose calls are split between deployments. The last fields are the server's."""

    _read_only = frozenset(
        {"id", "scoring_uri", "openapi_uri", "openai_base_url", "provisioning_state", "notes"}
    )
    _type: ClassVar[str] = "managed"
    name: str | None = None
    project: str | None = None
    description: str | None = None
    tags: dict[str, str] | None = None
    properties: dict[str, str] | None = None
    auth_mode: str | None = None
    traffic: dict[str, int] | None = None
    mirror_traffic: dict[str, int] | None = None
    public_network_access: str | None = None
    identity: dict[str, Any] | None = None
    id: str | None = None
    scoring_uri: str | None = None
    openapi_uri: str | None = None
    openai_base_url: str | None = None
    provisioning_state: str | None = None
    notes: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are sent, without shares of 0."""
        found = super().to_dict() | {"type": self._type}
        for split in ("traffic", "mirror_traffic"):
            if split in found:
                found[split] = {name: share for name, share in found[split].items() if share != 0}
        return found


@dataclass(kw_only=True)
class ManagedOnlineEndpoint(OnlineEndpoint):
    """An endpoint whose deployments' instances are made for it."""


@dataclass(kw_only=True)
class KubernetesOnlineEndpoint(OnlineEndpoint):
    """An endpoint on a cluster; on one machine its deployments are processes all the same."""

    _type = "kubernetes"
    compute: str | None = None


@dataclass(kw_only=True)
class OnlineDeployment(Part):
    """What answers calls of an endpoint. The last fields are the server's."""

    _read_only = frozenset({"id", "kind", "provisioning_state", "failure", "generation", "notes", "runtime"})
    _type: ClassVar[str] = "managed"
    name: str | None = None
    endpoint_name: str | None = None
    description: str | None = None
    tags: dict[str, str] | None = None
    model: Model | str | dict[str, Any] | None = None
    model_mount_path: str | None = None
    code_configuration: CodeConfiguration | dict[str, Any] | None = None
    command: str | list[str] | None = None
    environment: Environment | str | dict[str, Any] | None = None
    environment_variables: dict[str, str] | None = None
    instance_type: str | None = None
    instance_count: int | None = None
    app_insights_enabled: bool | None = None
    scale_settings: ScaleSettings | dict[str, Any] | None = None
    request_settings: OnlineRequestSettings | dict[str, Any] | None = None
    liveness_probe: ProbeSettings | dict[str, Any] | None = None
    readiness_probe: ProbeSettings | dict[str, Any] | None = None
    resources: ResourceRequirementsSettings | dict[str, Any] | None = None
    strategy: str | None = None
    data_collector: dict[str, Any] | None = None
    egress_public_network_access: str | None = None
    tier: str | None = None  # dedicated | low_priority
    id: str | None = None
    kind: str | None = None
    provisioning_state: str | None = None
    failure: dict[str, str] | None = None
    generation: int | None = None
    runtime: dict[str, Any] | None = field(default=None, repr=False)
    notes: list[str] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are sent, with absolute paths."""
        found = super().to_dict() | {"type": self._type}
        for name in ("model", "environment"):
            entity = getattr(self, name)
            if isinstance(entity, Model | Environment) and entity.id:
                found[name] = entity.id  # a registered one
        absolute_paths(found)
        return found


@dataclass(kw_only=True)
class ManagedOnlineDeployment(OnlineDeployment):
    """A deployment whose instances are made for it."""


@dataclass(kw_only=True)
class KubernetesOnlineDeployment(OnlineDeployment):
    """A deployment on a cluster; on one machine its instances are processes all the same."""

    _type = "kubernetes"


def endpoint_of(answer: dict[str, Any]) -> OnlineEndpoint:
    """The endpoint in an answer."""
    kind = KubernetesOnlineEndpoint if answer.get("type") == "kubernetes" else ManagedOnlineEndpoint
    return kind.from_dict(answer)


def deployment_of(answer: dict[str, Any]) -> OnlineDeployment:
    """The deployment in an answer."""
    kind = KubernetesOnlineDeployment if answer.get("type") == "kubernetes" else ManagedOnlineDeployment
    return kind.from_dict(answer)


def load_online_endpoint(source: str | Path) -> OnlineEndpoint:
    """The endpoint in a YAML file."""
    value = _loaded(source)
    is_kubernetes = value.get("compute") or value.get("type") == "kubernetes"
    kind = KubernetesOnlineEndpoint if is_kubernetes else ManagedOnlineEndpoint
    return cast(OnlineEndpoint, _made(kind, value, source))


def load_online_deployment(source: str | Path) -> OnlineDeployment:
    """The deployment in a YAML file."""
    value = _loaded(source)
    kind = KubernetesOnlineDeployment if value.get("type") == "kubernetes" else ManagedOnlineDeployment
    return cast(OnlineDeployment, _made(kind, value, source))


def load_model(source: str | Path) -> Model:
    """The model in a YAML file."""
    return cast(Model, _made(Model, _loaded(source), source))


def load_environment(source: str | Path) -> Environment:
    """The environment in a YAML file."""
    return cast(Environment, _made(Environment, _loaded(source), source))


def _loaded(source: str | Path) -> dict[str, Any]:
    value = load(source).value
    value.pop("$schema", None)
    return value


def _made(kind: type[Part], value: dict[str, Any], source: str | Path) -> Part:
    known = {kind._renamed.get(each.name, each.name) for each in fields(kind)} | {"type"}
    unknown = [name for name in value if name not in known]
    if unknown:
        from difflib import get_close_matches

        close = get_close_matches(unknown[0], sorted(known), n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"expected some of: {', '.join(sorted(known))}"
        raise FareboxConfigError(f"{source}: unknown field {unknown[0]!r}, {hint}")
    return kind.from_dict(value)
