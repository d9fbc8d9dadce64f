"""From a document (Azure ML's YAML fields, already of the right types) to a specification.

What follows from other fields is decided here: the kind of deployment, which model is meant, what has no effect on
one machine.
"""

import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from access.sealed_files import is_stored
from core.errors import Invalid
from serving.endpoints import check_name, check_tags
from serving.online import quantities
from serving.online.collecting import collecting
from serving.online.environment_document import environment_fields
from serving.online.packages import Package, package_of
from serving.online.references import Reference, name_and_version, parse_reference
from serving.online.scale_document import scale_settings
from serving.online.spec import (
    INSTANCE_TYPE,
    DeploymentSpec,
    EndpointSpec,
    InferenceRoute,
    InferenceRoutes,
    Probe,
    RequestSettings,
    ResourceAmounts,
    Resources,
    SpecKind,
    Target,
)

MAX_VARIABLES = 200
_READ_ONLY = (
    "id",
    "kind",
    "scoring_uri",
    "openapi_uri",
    "swagger_uri",
    "provisioning_state",
    "creation_context",
)
Document = Mapping[str, Any]

# Kind (`model`, `environment`), name, version ("" for the latest) to a registered document; None: there is none.
FindAsset = Callable[[str, str, str], "dict[str, Any] | None"]
# A name to the id of the catalog's model, None when the catalog has none of that name.
FindModel = Callable[[str], "str | None"]


@dataclass(slots=True)
class Assembled:
    """A specification whose copies are still to be made. Paths are the user's; None: keep the copy that there is."""

    spec: DeploymentSpec
    model_id: str = ""
    code: str | None = None
    model: str | None = None
    notes: list[str] = field(default_factory=list)


# --- endpoints ------------------------------------------------------------------------------------


def endpoint_spec(document: Document) -> EndpointSpec:
    """The endpoint; its traffic is not checked here, for that needs its deployments."""
    notes = _notes(document, ("location", "identity", *_READ_ONLY))
    target = _target(document)
    auth_mode = document.get("auth_mode", "key")
    if target == "kubernetes":
        notes.append("compute: the deployments run on this machine")
        if auth_mode == "aad_token":
            raise Invalid("auth_mode: endpoints on Kubernetes take key or aml_token", param="auth_mode")
    _check_identity(document.get("identity"))
    return EndpointSpec(
        name=check_name(document.get("name")),
        description=document.get("description") or "",
        target=target,
        auth_mode=auth_mode,
        public_network_access=document.get("public_network_access", "enabled"),
        identity=document.get("identity"),
        compute=document.get("compute") or "",
        tags=check_tags(_texts(document.get("tags"))),
        properties=check_tags(_texts(document.get("properties")), "properties"),
        document=dict(document),
        notes=tuple(notes),
    )


def _check_identity(identity: Document | None) -> None:
    if identity and identity.get("type") == "user_assigned" and not identity.get("user_assigned_identities"):
        raise Invalid(
            "identity.user_assigned_identities: the field is missing; type user_assigned needs it",
            param="identity.user_assigned_identities",
        )


def _target(document: Document) -> Target:
    kubernetes = (
        document.get("type") == "kubernetes"
        or bool(document.get("compute"))
        or "kubernetes" in str(document.get("$schema", "")).lower()
    )
    return "kubernetes" if kubernetes else "managed"


# --- deployments ----------------------------------------------------------------------------------


def deployment_spec(
    document: Document,
    find_asset: FindAsset,
    find_model: FindModel,
    *,
    kept: DeploymentSpec | None = None,
    touched: frozenset[str] | None = None,
) -> Assembled:
    """The deployment that `document` describes.

    With `kept`, the deployment as it was, the copies of code and model stay unless `touched` names their field.
    """
    made = Assembled(DeploymentSpec(name=check_name(document.get("name")), kind="script"))
    made.notes = _notes(document, (*_READ_ONLY, "properties"))
    environment = _environment(document, find_asset, made.notes)
    package = package_of(environment)
    if package is not None:
        source = _packaged(document, package)
    else:
        model = _model(document, find_asset, find_model)
        reuse = kept if touched is not None else None
        source = _source(document, model, environment, made, reuse, touched or frozenset())
    made.model_id = source.model if source.kind == "catalog" else ""
    target = _target(document)
    made.spec = DeploymentSpec(
        name=made.spec.name,
        target=target,
        **asdict(source),
        model_mount_path=document.get("model_mount_path") or "",
        command=_command(document.get("command")),
        environment=environment,
        environment_variables=(package.environment_variables if package else {})
        | variables_of(document.get("environment_variables")),
        instance_type=document.get("instance_type") or INSTANCE_TYPE,
        instance_count=document.get("instance_count", 1),
        request_settings=RequestSettings(**(document.get("request_settings") or {})),
        liveness_probe=_probe(document, "liveness_probe", environment),
        readiness_probe=_probe(document, "readiness_probe", environment),
        routes=_routes(environment),
        resources=_resources(document.get("resources") or {}),
        scale=scale_settings(document.get("scale_settings") or {}),
        strategy=document.get("strategy", "rolling"),
        tier=document.get("tier", "dedicated"),
        app_insights_enabled=bool(document.get("app_insights_enabled")),
        data_collector=document.get("data_collector"),
        egress_public_network_access=document.get("egress_public_network_access", "enabled"),
        tags=check_tags(_texts(document.get("tags"))),
        description=document.get("description") or "",
        document=_frozen(document, environment),
    )
    _check_timeout(made.spec)
    _note_local(document, made)
    return made


@dataclass(frozen=True, slots=True)
class _Source:
    """What a deployment runs, and where it comes from; fields as in `DeploymentSpec`."""

    kind: SpecKind
    model: str = ""
    model_name: str = ""
    model_version: str = ""
    model_path: str = ""
    model_digest: str = ""
    code_path: str = ""
    code_digest: str = ""
    scoring_script: str = ""


def _source(
    document: Document,
    model: Reference,
    environment: Document | None,
    made: Assembled,
    kept: DeploymentSpec | None,
    touched: frozenset[str],
) -> _Source:
    """As the document's own fields say; `made` learns what is to be copied. What is not `touched` stays with `kept`."""
    keep_code = kept is not None and "code_configuration" not in touched
    keep_model = kept is not None and "model" not in touched
    code = document.get("code_configuration") or {}
    made.code = None if keep_code or not code else code.get("code")
    made.model = None if keep_model else (model.path or None)
    folder = (kept.model_path if kept and keep_model else model.path) if model.path else ""
    kind = _kind(document, model, environment, folder)
    if code and kind != "command":
        check_script(code, kept.code_path if kept and keep_code else str(code.get("code")))
    return _Source(
        kind=kind,
        model=model.catalog_id if kind == "catalog" else model.written,
        model_name=model.name,
        model_version=model.version,
        model_path=kept.model_path if kept and keep_model and model.path else "",
        model_digest=kept.model_digest if kept and keep_model and model.path else "",
        code_path=kept.code_path if kept and keep_code and code else "",
        code_digest=kept.code_digest if kept and keep_code and code else "",
        scoring_script=code.get("scoring_script") or "",
    )


def _packaged(document: Document, package: Package) -> _Source:
    """A package has its model and code: they are run from where it is."""
    for name in ("model", "code_configuration", "command"):
        if document.get(name):
            raise Invalid(
                f"{name}: the environment is a package, which brings its own; leave {name} out", param=name
            )
    return _Source(
        kind=package.kind,
        model=f"azureml:{package.model_name}:{package.model_version}",
        model_name=package.model_name,
        model_version=package.model_version,
        model_path=package.model_path,
        model_digest=package.model_digest,
        code_path=package.code_path,
        code_digest=package.code_digest,
        scoring_script=package.scoring_script,
    )


def _frozen(document: Document, environment: Document | None) -> dict[str, Any]:
    """The document with what its files said: a later change of one field must not pick up other edits."""
    stored = dict(document)
    if environment is not None:
        stored["environment"] = dict(environment)
    return stored


def _model(document: Document, find_asset: FindAsset, find_model: FindModel) -> Reference:
    given = document.get("model")
    reference = parse_reference(given, find_asset, find_model)
    if reference.type == "triton_model":
        raise Invalid(
            "model.type: a Triton repository needs Triton's own server, which comes as a container image, and so a "
            "cluster: `farebox online-deployment render` writes out what one needs; on one machine give a script, an "
            "MLflow model or a command",
            param="model.type",
        )
    return reference


def _kind(document: Document, model: Reference, environment: Document | None, folder: str) -> SpecKind:
    is_mlflow = bool(folder) and is_stored(Path(folder) / "MLmodel")
    inference = bool(environment and environment.get("inference_config"))
    if document.get("command"):
        return "command"
    if inference:
        raise Invalid(
            "environment.inference_config: a server of one's own that comes as an image needs a cluster; on one "
            'machine say how to start it, e.g. command: "python server.py --port {port}"',
            param="command",
        )
    if document.get("code_configuration"):
        if is_mlflow and not environment:
            raise Invalid(
                "environment: the field is missing; a script for an MLflow model needs one",
                param="environment",
            )
        return "script"
    if is_mlflow:
        return "mlflow"
    if model.catalog_id:
        return "catalog"
    if model.path:
        expected = (
            "an MLmodel file in it"
            if model.type != "mlflow_model"
            else "the MLmodel file that type mlflow_model promises"
        )
        raise Invalid(
            f"model.path: found neither {expected} nor a code_configuration, so nothing says how to call the model; "
            "add code_configuration with code and scoring_script",
            param="code_configuration",
        )
    raise Invalid(
        "model: give a model, a code_configuration with a scoring script, or a command that starts a server",
        param="model",
    )


def check_script(code: Document, folder: str, where: str = "code_configuration") -> None:
    """Whether the script is in the folder, as far as that can be told. Invalid names the field."""
    script = code.get("scoring_script")
    if not script:
        raise Invalid(
            f"{where}.scoring_script: the field is missing",
            param=f"{where}.scoring_script",
        )
    if not folder or not os.path.isabs(folder):
        return  # refused when it is copied
    inside = os.path.normpath(script)
    if os.path.isabs(script) or inside.startswith(".."):
        raise Invalid(
            f"{where}.scoring_script: expected a path below the code folder, got {script!r:.200}",
            param=f"{where}.scoring_script",
        )
    if os.path.isdir(folder) and not is_stored(Path(folder) / inside):
        raise Invalid(
            f"{where}.scoring_script: there is no {script!r:.200} in {folder!r:.200}",
            param=f"{where}.scoring_script",
        )


# --- parts ----------------------------------------------------------------------------------------


def _environment(document: Document, find_asset: FindAsset, notes: list[str]) -> dict[str, Any] | None:
    given = document.get("environment")
    if given is None:
        return None
    if isinstance(given, str):
        name, version = name_and_version(given)
        found = find_asset("environment", name, version)
        if found is None:
            raise Invalid(
                f"environment: there is no registered environment {given!r:.100}; register it with farebox "
                "environment create -f, or write it out with conda_file",
                param="environment",
            )
        given = found
    made = environment_fields(given, "environment.")
    routes = made.get("inference_config")
    if routes and document.get("command"):
        notes.append(
            "environment.inference_config: the paths count; the port is the one that the command gets"
        )
    for name, why in (
        ("image", "an image is used in a cluster; here the other fields make the environment"),
        ("build", "an image is built for a cluster; here the other fields make the environment"),
    ):
        if made.get(name):
            notes.append(f"environment.{name}: {why}")
    return made


def _command(given: object) -> tuple[str, ...]:
    if not given:
        return ()
    if isinstance(given, list):
        return tuple(given)
    try:
        return tuple(shlex.split(str(given)))
    except ValueError as error:
        raise Invalid(f"command: {error}; write it as a list instead", param="command") from None


def variables_of(given: Document | None) -> dict[str, str]:
    made: dict[str, str] = {}
    for name, value in (given or {}).items():
        param = f"environment_variables.{name[:60]}"
        if not name or "=" in name or "\0" in name:
            raise Invalid(f"{param}: not a name that an environment variable may have", param=param)
        if name in ("PORT", "FAREBOX_REPLICA_ID") or value is None:
            why = "it is set for each instance" if value is not None else "the value is missing"
            raise Invalid(f"{param}: {why}", param=param)
        made[name] = str(value).lower() if isinstance(value, bool) else str(value)
    if len(made) > MAX_VARIABLES:
        raise Invalid(
            f"environment_variables: at most {MAX_VARIABLES}, got {len(made)}", param="environment_variables"
        )
    return made


def _probe(document: Document, name: str, environment: Document | None) -> Probe:
    given = dict(document.get(name) or {})
    route = _routes(environment)
    path = (route.liveness if name == "liveness_probe" else route.readiness).path
    return Probe(**given, path=path)


def _routes(environment: Document | None) -> InferenceRoutes:
    given = (environment or {}).get("inference_config") or {}
    made = {
        part: InferenceRoute(**given[f"{part}_route"])
        for part in ("scoring", "liveness", "readiness")
        if given.get(f"{part}_route")
    }
    return InferenceRoutes(**made)


def _resources(given: Document) -> Resources:
    def amounts(part: str) -> ResourceAmounts:
        found = given.get(part) or {}
        where = f"resources.{part}"
        return ResourceAmounts(
            quantities.cpu_milli(found.get("cpu") or 0, f"{where}.cpu"),
            quantities.memory_bytes(found.get("memory") or 0, f"{where}.memory"),
            quantities.gpu_count(found.get("nvidia.com/gpu") or 0, f"{where}.nvidia.com/gpu"),
        )

    made = Resources(amounts("requests"), amounts("limits"))
    for name, part in (("cpu_milli", "cpu"), ("memory_bytes", "memory"), ("gpus", "nvidia.com/gpu")):
        least, most = getattr(made.requests, name), getattr(made.limits, name)
        if most and least > most:
            param = f"resources.limits.{part}"
            raise Invalid(f"{param}: the limit is below the request", param=param)
    return made


def _check_timeout(spec: DeploymentSpec) -> None:
    most = 300_000 if spec.target == "kubernetes" else 180_000
    if spec.request_settings.request_timeout_ms > most:
        param = "request_settings.request_timeout_ms"
        raise Invalid(
            f"{param}: at most {most} for type {spec.target}, got {spec.request_settings.request_timeout_ms}",
            param=param,
        )


def _note_local(document: Document, made: Assembled) -> None:
    spec, notes = made.spec, made.notes
    notes += collecting(spec.data_collector)[1]
    if document.get("instance_type") and spec.instance_type != INSTANCE_TYPE:
        notes.append("instance_type: instances are processes on this machine")
    if spec.target == "kubernetes":
        notes.append("type: instances are processes on this machine")
    if spec.kind == "command" and {"conda_file", "requirements"} & set(spec.environment or {}):
        notes.append("environment: a command runs with what the machine has")
    if spec.kind == "command" and not any("{port}" in part for part in spec.command):
        notes.append("command: has no {port}, so the server must listen on the PORT of its environment")
    if spec.kind == "script" and spec.environment is None:
        notes.append("environment: none is given; the script runs with the packages of the scoring server")
    made.spec = replace(spec, notes=tuple(notes))


def _notes(document: Document, names: tuple[str, ...]) -> list[str]:
    found = ["$schema: which document it is follows from the command"] if document.get("$schema") else []
    said = {
        "location": "there is one place, this machine",
        "identity": "processes run as the server's own user",
        "properties": "kept with the document, nothing reads them",
    }
    for name in names:
        if document.get(name) is not None:
            found.append(f"{name}: {said.get(name, 'is decided by the server')}")
    return found


def _texts(given: Document | None) -> dict[str, Any] | None:
    """Tags as people write them: a number or a yes is taken for its text."""
    if given is None:
        return None
    return {
        name: str(value).lower()
        if isinstance(value, bool)
        else str(value)
        if isinstance(value, int | float)
        else value
        for name, value in given.items()
    }
