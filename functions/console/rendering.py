"""Deployments as resources for a cluster: written out, not applied."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy import Connection

from core.errors import Invalid, NotFound
from functions.console.dependencies import Deps
from functions.console.online_shapes import OnlineDeploymentDocument
from functions.console.routing import console_router
from manifests.online import Source, inference_service
from serving.online import assets
from serving.online.assemble import deployment_spec
from serving.online.references import name_and_version
from serving.online.spec import DeploymentSpec
from serving.online.triton import check_triton_repository

router = console_router("online deployments")

_RULES: Final = (
    "scale_settings: rules and schedules are Farebox' own; in the cluster the number follows calls in flight, between "
    "the fewest and the most of them"
)


StorageUri = Annotated[
    str, Query(max_length=4000, description="Where pods find the model.", examples=["pvc://models/churn"])
]
Image = Annotated[str, Query(max_length=4000, description="What pods run; else environment.image.")]


class RenderedOut(BaseModel):
    """For `kubectl apply`."""

    manifests: list[dict[str, Any]]
    notes: list[str] = Field(description="What is different there.")


@router.post("/render/online-deployment", summary="Write a deployment out for a cluster")
def render_online_deployment(
    body: OnlineDeploymentDocument,
    deps: Deps,
    storage_uri: StorageUri = "",
    image: Image = "",
    namespace: Annotated[str, Query(max_length=300)] = "default",
) -> RenderedOut:
    """As a KServe InferenceService: Triton repositories, servers of one's own as an image, and images of packages.

    Nothing is made, here or in the cluster.
    """
    document = body.given()
    endpoint = document.get("endpoint_name")
    if not endpoint:
        raise Invalid("endpoint_name: the field is missing", param="endpoint_name")
    with deps.db.read() as connection:
        model = _model(connection, document)
        environment = _environment(connection, document)
    source = _source(model, environment, storage_uri, image)
    spec = _spec(document, environment)
    notes = []
    if spec.scale.rules or spec.scale.schedules:
        notes.append(_RULES)
    return RenderedOut(manifests=[inference_service(endpoint, spec, source, namespace)], notes=notes)


def _spec(document: dict[str, Any], environment: dict[str, Any] | None) -> DeploymentSpec:
    """Everything but what the pods run, which is decided apart."""
    rest = {name: value for name, value in document.items() if name not in ("model", "code_configuration")}
    routes = (environment or {}).get("inference_config")
    rest["environment"] = {"inference_config": routes} if routes else None
    rest["type"] = "kubernetes"
    # A server that is started by some command, for all that the document's other fields are concerned.
    rest["command"] = document.get("command") or "server"
    spec = deployment_spec(rest, lambda *_: None, lambda _: None).spec
    return spec if document.get("command") else replace(spec, command=())


def _source(
    model: dict[str, Any] | None, environment: dict[str, Any] | None, storage_uri: str, image: str
) -> Source:
    uri = storage_uri or _uri_of(model)
    if model is not None and model.get("type") == "triton_model":
        if not uri:
            raise Invalid(
                f"storage_uri: the pods cannot reach {model['path']!r:.100}; copy the repository to where they can, and "
                "give that, e.g. pvc://models/triton",
                param="storage_uri",
            )
        return Source(storage_uri=uri)
    image = image or str((environment or {}).get("image") or "")
    if not image:
        raise Invalid(
            "image: pods run an image. For a script or an MLflow model make one with farebox model package --archive, "
            "and give that. Models of the catalog are not written out yet",
            param="image",
        )
    return Source(image=image, storage_uri=uri if model is not None else "")


def _uri_of(model: dict[str, Any] | None) -> str:
    path = str((model or {}).get("path") or "")
    return path if "://" in path and not path.startswith("file://") else ""


def _model(connection: Connection, document: dict[str, Any]) -> dict[str, Any] | None:
    given = document.get("model")
    if isinstance(given, str) and given:
        name, version = name_and_version(given)
        asset = assets.find_asset(connection, "model", name, version)
        if asset is None:
            raise NotFound(
                f"model: there is no registered model {given!r:.100}; register it with farebox model "
                "create, or write it out with path and type",
                param="model",
            )
        given = asset.document
    if not given:
        return None
    if not given.get("path"):
        raise Invalid("model.path: the field is missing", param="model.path")
    if given.get("type") == "triton_model" and not _uri_of(given):
        check_triton_repository(Path(str(given["path"]).removeprefix("file://")), "model.path")
    return dict(given)


def _environment(connection: Connection, document: dict[str, Any]) -> dict[str, Any] | None:
    given = document.get("environment")
    if not isinstance(given, str):
        return given
    name, version = name_and_version(given)
    asset = assets.find_asset(connection, "environment", name, version)
    if asset is None:
        raise NotFound(
            f"environment: there is no registered environment {given!r:.100}",
            param="environment",
        )
    return asset.document
