"""The documents of online endpoints: the fields of Azure ML's YAML (CLI v2), typed, and a few of our own.

Unknown fields are refused with a suggestion. Fields that mean nothing on one machine are accepted, and reported in the
answer's `notes`.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from wire.suggestions import unknown_name

Switch = Literal["enabled", "disabled"]
AuthMode = Literal["key", "aml_token", "aad_token"]
Short = Annotated[str, Field(max_length=300)]
Path = Annotated[str, Field(max_length=4000)]
Prose = Annotated[str, Field(max_length=4000)]


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool) or len(str(value)) > 4000:
        raise PydanticCustomError("scalar", "expected a text, a number, or true or false")
    return value


Value = Annotated[Any, AfterValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Labels = Annotated[dict[str, Value], Field(max_length=50)]
Amount = Value
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Shares = Annotated[dict[str, Any], Field(max_length=50, examples=[{"blue": 90, "green": 10}])]
INLINE = "inline:"  # begins the tags of alternatives, which are no part of a field's name


class Document(BaseModel):
    """A part of a document. Unknown fields are refused; `"1"` is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True)
    _ignored: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _only_known_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        known = [field.alias or name for name, field in cls.model_fields.items()]
        for name in value:
            if name not in known:
                said = unknown_name(str(name), known)
                field = str(name)[:80].encode("utf-8", "backslashreplace").decode()
                raise PydanticCustomError("unknown_field", "{said}", {"said": said, "field": field})
        return value

    def given(self) -> dict[str, Any]:
        """What was given, as plain values; what is null was not."""
        return self.model_dump(exclude_none=True, by_alias=True)


def _alternative(value: Any) -> str:
    return f"{INLINE}text" if isinstance(value, str) else f"{INLINE}object"


_TEXT, _OBJECT = Tag(f"{INLINE}text"), Tag(f"{INLINE}object")
CondaFile = Annotated[
    Annotated[Path, _TEXT] | Annotated[dict[str, Any], _OBJECT], Discriminator(_alternative)
]
Command = Annotated[
    Annotated[Path, _TEXT] | Annotated[list[Path], Field(max_length=1000), _OBJECT],
    Discriminator(_alternative),
]


class _ReadOnly(Document):
    """What `show` adds: may come back with an update, and means nothing then."""

    schema_: Short | None = Field(default=None, alias="$schema")
    id: Short | None = None
    kind: Short | None = None
    provisioning_state: Short | None = None
    creation_context: dict[str, Any] | None = None


class Identity(Document):
    """Whose rights the processes have in Azure."""

    type: Literal["system_assigned", "user_assigned"]
    user_assigned_identities: list[dict[str, Any]] | None = Field(default=None, max_length=20)
    principal_id: Short | None = None
    tenant_id: Short | None = None


class OnlineEndpointDocument(_ReadOnly):
    """`managedOnlineEndpoint` and `kubernetesOnlineEndpoint`."""

    name: Short | None = Field(default=None, examples=["my-endpoint"])
    project: Short | None = Field(
        default=None, description="Id, name, or organization/name. Without it: the only project."
    )
    description: Prose | None = None
    tags: Labels | None = None
    properties: Labels | None = None
    type: Literal["managed", "kubernetes"] | None = None
    auth_mode: AuthMode | None = None
    compute: Short | None = None
    identity: Identity | None = None
    location: Short | None = None
    traffic: Shares | None = None
    mirror_traffic: Shares | None = Field(default=None, max_length=50)
    public_network_access: Switch | None = None
    scoring_uri: Path | None = None
    openapi_uri: Path | None = None
    swagger_uri: Path | None = None


class ModelDocument(Document):
    """A model of one's own; a file of it is a document for registering."""

    schema_: Short | None = Field(default=None, alias="$schema")
    name: Short | None = None
    version: Value | None = None
    path: Path | None = Field(default=None, description="An absolute path on the server's machine.")
    type: Literal["custom_model", "mlflow_model", "triton_model"] | None = None
    description: Prose | None = None
    tags: Labels | None = None
    properties: Labels | None = None
    flavors: dict[str, Any] | None = None
    stage: Short | None = None


class Route(Document):
    """Where a server answers."""

    port: int = Field(ge=0, le=65_535)
    path: Path = "/"


class InferenceConfig(Document):
    """The routes of a server of one's own."""

    liveness_route: Route
    readiness_route: Route
    scoring_route: Route


class EnvironmentDocument(Document):
    """What a script runs in; a file of it is a document for registering."""

    schema_: Short | None = Field(default=None, alias="$schema")
    name: Short | None = None
    version: Value | None = None
    conda_file: CondaFile | None = Field(default=None, description="An absolute path, or its content.")
    requirements_file: Path | None = None
    requirements: list[Short] | None = Field(default=None, max_length=1000)
    image: Path | None = None
    build: dict[str, Any] | None = None
    inference_config: InferenceConfig | None = None
    os_type: Short | None = None
    description: Prose | None = None
    tags: Labels | None = None
    properties: Labels | None = None


class CodeConfiguration(Document):
    """The script that answers calls; with a command, the folder that it is started in."""

    code: Path = Field(description="An absolute path on the server's machine.")
    scoring_script: Path | None = Field(default=None, examples=["score.py"])


class BaseEnvironment(Document):
    """A registered environment."""

    type: Literal["environment_asset"] | None = None
    resource_id: Short = Field(examples=["azureml:sklearn:1"])


class InferencingServer(Document):
    """What serves the model. Others than `azureml_online` are images of their own."""

    type: Literal["azureml_online", "azureml_batch", "triton", "custom"] | None = None
    code_configuration: CodeConfiguration | None = None


class ModelConfiguration(Document):
    """Models are copied into their packages."""

    mode: Literal["copy"] | None = None
    mount_path: Literal[None] = Field(default=None, description="Only what is downloaded later is mounted.")


class TargetEnvironment(Document):
    """The environment that the package becomes."""

    name: Short
    version: Value | None = None


class PackageDocument(Document):
    """`modelVersionPackage`."""

    schema_: Short | None = Field(default=None, alias="$schema")
    target_environment: Annotated[
        Annotated[Short, _TEXT] | Annotated[TargetEnvironment, _OBJECT], Discriminator(_alternative)
    ] = Field(examples=["churn-package"])
    base_environment_source: BaseEnvironment | None = None
    inferencing_server: InferencingServer | None = None
    model_configuration: ModelConfiguration | None = None
    environment_variables: dict[str, Value] | None = Field(default=None, max_length=200)
    description: Prose | None = None
    tags: Labels | None = None


class RequestSettingsDocument(Document):
    """Times in milliseconds."""

    request_timeout_ms: int | None = Field(default=None, ge=1, le=300_000)
    max_concurrent_requests_per_instance: int | None = Field(default=None, ge=1, le=10_000)
    max_queue_wait_ms: int | None = Field(default=None, ge=0, le=300_000)


class ProbeDocument(Document):
    """Times in seconds."""

    initial_delay: int | None = Field(default=None, ge=1, le=86_400)
    period: int | None = Field(default=None, ge=1, le=86_400)
    timeout: int | None = Field(default=None, ge=1, le=3600)
    success_threshold: int | None = Field(default=None, ge=1, le=1000)
    failure_threshold: int | None = Field(default=None, ge=1, le=10_000)


class LivenessDocument(ProbeDocument):
    """One success is enough to be alive."""

    success_threshold: Literal[1] | None = None


class Amounts(Document):
    """Of one instance."""

    cpu: Amount | None = Field(default=None, examples=["500m"])
    memory: Amount | None = Field(default=None, examples=["1Gi"])
    gpu: Amount | None = Field(default=None, alias="nvidia.com/gpu")


class ResourcesDocument(Document):
    """What an instance is sure to get, and what it must not exceed."""

    requests: Amounts | None = None
    limits: Amounts | None = None


class ScaleRuleDocument(Document):
    """When something is measured, more instances or fewer."""

    condition: Short = Field(examples=["CpuUtilizationPercentage > 70 avg 5m"])
    scale: Short = Field(examples=["out 1"], description="`out N`, `in N` or `to N`.")
    cooldown: Value | None = Field(default=None, description="Seconds or ISO 8601; 300 if left out.")


class ScaleScheduleDocument(Document):
    """Other bounds for some hours of some days."""

    name: Short | None = None
    days: list[Short] | None = Field(default=None, max_length=7, description="Left out: every day.")
    start: Short = Field(examples=["08:00"])
    end: Short = Field(examples=["20:00"], description="Not included; at most 24:00.")
    timezone: Short | None = Field(
        default=None, examples=["Europe/Berlin"], description="IANA name; UTC if left out."
    )
    min_instances: int = Field(ge=1, le=50)
    max_instances: int = Field(ge=1, le=50)


class ScaleDocument(Document):
    """How many instances."""

    type: Literal["default", "target_utilization", "rules"] | None = None
    default_instances: int | None = Field(default=None, ge=1, le=50)
    rules: list[ScaleRuleDocument] | None = Field(default=None, max_length=10)
    schedules: list[ScaleScheduleDocument] | None = Field(default=None, max_length=20)
    min_instances: int | None = Field(default=None, ge=0, le=50)
    max_instances: int | None = Field(default=None, ge=1, le=50)
    target_utilization_percentage: int | None = Field(default=None, ge=1, le=100)
    polling_interval: Value | None = None
    idle_to_zero_s: int | None = Field(default=None, ge=0, le=30 * 86_400)


Model = Annotated[Annotated[Path, _TEXT] | Annotated[ModelDocument, _OBJECT], Discriminator(_alternative)]
Environment = Annotated[
    Annotated[Short, _TEXT] | Annotated[EnvironmentDocument, _OBJECT], Discriminator(_alternative)
]


class OnlineDeploymentDocument(_ReadOnly):
    """`managedOnlineDeployment` and `kubernetesOnlineDeployment`."""

    name: Short | None = Field(default=None, examples=["blue"])
    endpoint_name: Short | None = None
    type: Literal["managed", "kubernetes"] | None = None
    description: Prose | None = None
    tags: Labels | None = None
    properties: Labels | None = None
    model: Model | None = None
    model_mount_path: Path | None = None
    code_configuration: CodeConfiguration | None = None
    command: Command | None = Field(
        default=None, description="A server of one's own; {port} in it becomes its port."
    )
    environment: Environment | None = None
    environment_variables: dict[str, Value] | None = Field(default=None, max_length=200)
    instance_type: Short | None = None
    instance_count: int | None = Field(default=None, ge=1, le=50)
    app_insights_enabled: bool | None = None
    scale_settings: ScaleDocument | None = None
    request_settings: RequestSettingsDocument | None = None
    liveness_probe: LivenessDocument | None = None
    readiness_probe: ProbeDocument | None = None
    resources: ResourcesDocument | None = None
    strategy: Literal["rolling", "recreate"] | None = None
    tier: Literal["dedicated", "low_priority"] | None = Field(
        default=None, description="low_priority: its instances yield their place to dedicated ones."
    )
    data_collector: dict[str, Any] | None = None
    egress_public_network_access: Switch | None = None
    scoring_uri: Path | None = None
