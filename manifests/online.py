"""A deployment of an online endpoint as a KServe InferenceService in Knative mode. Pure.

Sources: KServe v1beta1 API (InferenceService, predictor), Knative Serving's autoscaling annotations. Splitting and
mirroring stay with the gateway, so there is one InferenceService for each deployment.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

from core.errors import Invalid
from serving.online.spec import DeploymentSpec, Probe, ResourceAmounts

TRITON_RUNTIME: Final = "kserve-tritonserver"  # the ClusterServingRuntime that KServe brings along
SCORER_PORT: Final = 5001
_MODELS: Final = "/mnt/models"  # where KServe's storage initializer puts a model
_NAME: Final = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_MAX_NAME: Final = 46  # with "-predictor" and a revision's number it must stay a DNS label
_SHORTEST_DEADLINE_S: Final = 600  # Knative's default for a revision's first start
_POD_RETENTION_MAX_S: Final = 3600


@dataclass(frozen=True, slots=True)
class Source:
    """What the pods run: a Triton repository at `storage_uri`, or else `image`, with a model mounted if there is one."""

    image: str = ""
    storage_uri: str = ""

    @property
    def triton(self) -> bool:
        return not self.image


def inference_service(endpoint: str, spec: DeploymentSpec, source: Source, namespace: str) -> dict[str, Any]:
    """The resource. Invalid names the field that does not fit into a cluster."""
    predictor = _scale(spec) | {
        "containerConcurrency": spec.request_settings.max_concurrent_requests_per_instance,
        "timeout": max(1, -(-spec.request_settings.request_timeout_ms // 1000)) + _start_s(spec),
    }
    if max(spec.resources.requests.gpus, spec.resources.limits.gpus):
        predictor["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    predictor |= _triton(spec, source) if source.triton else _container(spec, source)
    labels = {
        "networking.kserve.io/visibility": "cluster-local",
        "ai.farebox/endpoint": endpoint,
        "ai.farebox/deployment": spec.name,
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": _name(endpoint, spec.name),
            "namespace": _checked(namespace, "namespace", 63),
            "labels": labels,
            "annotations": _annotations(spec),
        },
        "spec": {"predictor": predictor},
    }


def _name(endpoint: str, deployment: str) -> str:
    return _checked(f"{endpoint}-{deployment}".lower(), "name", _MAX_NAME)


def _checked(name: str, param: str, most: int) -> str:
    if len(name) > most or not _NAME.fullmatch(name):
        raise Invalid(
            f"{param}: {name!r:.80} cannot be a name in a cluster: expected at most {most} lower-case letters, digits "
            "and '-', a letter first",
            param=param,
        )
    return name


def _annotations(spec: DeploymentSpec) -> dict[str, str]:
    made = {
        "serving.kserve.io/deploymentMode": "Knative",
        "serving.knative.dev/progress-deadline": f"{max(_SHORTEST_DEADLINE_S, _start_s(spec) + 60)}s",
        # The activator stays in the path: it holds calls, and spreads them over the pods.
        "autoscaling.knative.dev/target-burst-capacity": "-1",
    }
    if spec.scale.kind == "target_utilization":
        percent = str(spec.scale.target_utilization_percentage)
        made["autoscaling.knative.dev/target-utilization-percentage"] = percent
    if spec.scale.idle_to_zero_s:
        kept = min(spec.scale.idle_to_zero_s, _POD_RETENTION_MAX_S)
        made["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] = f"{kept}s"
    return made


def _scale(spec: DeploymentSpec) -> dict[str, Any]:
    scale = spec.scale
    fixed = scale.kind == "default"
    low = 0 if scale.idle_to_zero_s else (spec.instance_count if fixed else max(1, scale.min_instances))
    return {
        "minReplicas": low,
        "maxReplicas": spec.instance_count if fixed else scale.most,
        "scaleMetric": "concurrency",
        "scaleTarget": spec.request_settings.max_concurrent_requests_per_instance,
    }


def _start_s(spec: DeploymentSpec) -> int:
    """How long an instance may take to be ready: a first call waits for it within its own time."""
    probe = spec.readiness_probe
    return probe.initial_delay + probe.period * probe.failure_threshold


def _triton(spec: DeploymentSpec, source: Source) -> dict[str, Any]:
    model = {
        "runtime": TRITON_RUNTIME,
        "modelFormat": {"name": "triton", "version": "2"},
        "protocolVersion": "v2",
        "storageUri": source.storage_uri,
        "env": _env(spec.environment_variables),
        "resources": _resources(spec),
    }
    return {"model": {name: value for name, value in model.items() if value}}


def _container(spec: DeploymentSpec, source: Source) -> dict[str, Any]:
    port = spec.routes.scoring.port or SCORER_PORT
    variables = dict(spec.environment_variables)  # without PORT: Knative sets it, and takes none of that name
    if source.storage_uri:
        variables |= {"STORAGE_URI": source.storage_uri, "AZUREML_MODEL_DIR": _MODELS}
    container = {
        "name": "kserve-container",
        "image": source.image,
        "command": [part.replace("{port}", str(port)) for part in spec.command],
        "ports": [{"containerPort": port, "protocol": "TCP"}],
        "env": _env(variables),
        "resources": _resources(spec),
        "livenessProbe": _probe(spec.liveness_probe, spec.routes.liveness.port or port),
        "readinessProbe": _probe(spec.readiness_probe, spec.routes.readiness.port or port),
    }
    return {"containers": [{name: value for name, value in container.items() if value}]}


def _env(variables: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in sorted(variables.items())]


def _probe(probe: Probe, port: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": probe.path, "port": port},
        "initialDelaySeconds": probe.initial_delay,
        "periodSeconds": probe.period,
        "timeoutSeconds": probe.timeout,
        "successThreshold": probe.success_threshold,
        "failureThreshold": probe.failure_threshold,
    }


def _resources(spec: DeploymentSpec) -> dict[str, Any]:
    found = {
        "requests": _amounts(spec.resources.requests),
        "limits": _amounts(spec.resources.limits),
    }
    # Kubernetes takes GPUs as limits, and equal to requests.
    gpus = max(spec.resources.requests.gpus, spec.resources.limits.gpus)
    if gpus:
        for part in found.values():
            part["nvidia.com/gpu"] = str(gpus)
    return {name: part for name, part in found.items() if part}


def _amounts(each: ResourceAmounts) -> dict[str, str]:
    amounts = {}
    if each.cpu_milli:
        amounts["cpu"] = f"{each.cpu_milli}m"
    if each.memory_bytes:
        amounts["memory"] = str(each.memory_bytes)
    return amounts
