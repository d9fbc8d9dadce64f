"""Routes: what the gateway must know to send a call to a model server."""

from dataclasses import dataclass
from typing import Literal

EngineKind = Literal["vllm", "vllm-cpu", "external"]
ReplicaState = Literal["starting", "ready", "stopping", "stopped", "failed"]
DeploymentState = Literal["stopped", "starting", "ready", "idle", "failed"]
EndpointState = Literal["Creating", "Online", "Suspended", "Deleting"]


@dataclass(frozen=True, slots=True)
class Route:
    """One callable name, resolved. `urls` are base URLs of servers ready now (may be empty: wake one first)."""

    endpoint_id: str
    endpoint_name: str
    org_id: str
    project_id: str
    model_id: str
    task: str
    context_length: int
    deployment_id: str
    served_model: str  # the name the server knows the model by
    external: bool  # a server that is attached, not started by us: always thought to be up
    continuous_usage: bool  # the server understands vLLM's stream_options.continuous_usage_stats
    upstream_key_env: str  # name of the environment variable with the attached server's API key, or ""
    urls: tuple[str, ...]
