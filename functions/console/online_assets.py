"""Registered models and environments, which deployments of online endpoints refer to by name and version."""

from pathlib import Path
from typing import Annotated, Any

from fastapi import Query, status
from pydantic import BaseModel, Field

from core.clock import iso
from core.errors import Invalid, NotFound
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.online_shapes import EnvironmentDocument, ModelDocument
from functions.console.routing import console_router
from functions.console.shapes import After, Limit, Page, page
from serving.online import assets, copies
from serving.online.environment_document import environment_fields
from serving.online.model import Asset
from serving.online.triton import check_triton_repository

router = console_router("registered models and environments")

_MAX_NAME = 255
ByName = Annotated[str | None, Query(max_length=_MAX_NAME)]


class AssetOut(BaseModel):
    """A registered model or environment in one version."""

    id: str = Field(description="How deployments refer to it.", examples=["azureml:my-model:1"])
    name: str
    version: str
    document: dict[str, Any]
    created_at: str


@router.post("/registered-models", status_code=status.HTTP_201_CREATED, summary="Register a local model")
def register_model(body: ModelDocument, deps: Deps) -> AssetOut:
    """A folder or file on the server's machine. Each deployment makes its own copy of it."""
    document = body.given()
    _check_names(document)
    path = str(document.get("path") or "")
    if not path:
        raise Invalid("path: the field is missing", param="path")
    if "://" in path and not path.startswith("file://"):
        raise Invalid(f"path: expected a folder or file of this machine, got {path!r:.100}", param="path")
    copies.look(path.removeprefix("file://"), "path", deps.settings.online_model_max_bytes)
    if document.get("type") == "triton_model":
        check_triton_repository(Path(path.removeprefix("file://")), "path")
    return register_asset("model", document, deps)


@router.get("/registered-models", summary="List registered models")
def list_registered_models(
    deps: Deps, name: ByName = None, limit: Limit = 50, after: After = ""
) -> Page[AssetOut]:
    """In order of registration."""
    return _list("model", deps, name, limit, after)


@router.get("/registered-models/{name}/versions/{version}", summary="Show a registered model")
def get_registered_model(name: str, version: str, deps: Deps) -> AssetOut:
    """`latest` is the version registered last."""
    return get_asset("model", deps, name, version)


@router.delete("/registered-models/{name}/versions/{version}", summary="Forget a registered model")
def delete_registered_model(name: str, version: str, deps: Deps) -> AssetOut:
    """The files stay, and so do deployments that were made of them."""
    return _delete("model", deps, name, version)


@router.post("/environments", status_code=status.HTTP_201_CREATED, summary="Register an environment")
def register_environment(body: EnvironmentDocument, deps: Deps) -> AssetOut:
    """What its conda file or requirements say now is kept."""
    document = environment_fields(body.given(), "")
    return register_asset("environment", document, deps)


@router.get("/environments", summary="List environments")
def list_environments(
    deps: Deps, name: ByName = None, limit: Limit = 50, after: After = ""
) -> Page[AssetOut]:
    """In order of registration."""
    return _list("environment", deps, name, limit, after)


@router.get("/environments/{name}/versions/{version}", summary="Show an environment")
def get_environment(name: str, version: str, deps: Deps) -> AssetOut:
    """`latest` is the version registered last."""
    return get_asset("environment", deps, name, version)


@router.delete("/environments/{name}/versions/{version}", summary="Forget an environment")
def delete_environment(name: str, version: str, deps: Deps) -> AssetOut:
    """Deployments that use it go on."""
    return _delete("environment", deps, name, version)


def register_asset(kind: assets.AssetKind, document: dict[str, Any], deps: ConsoleDependencies) -> AssetOut:
    """Register the document under its own name and version."""
    _check_names(document)
    name, version = document.pop("name"), str(document.pop("version", ""))
    document.pop("$schema", None)
    with deps.db.begin() as connection:
        return _out(assets.put_asset(connection, kind, name, version, document, deps.clock.now_ms()))


def _check_names(document: dict[str, Any]) -> None:
    name, version = document.get("name"), str(document.get("version", ""))
    if not name or ":" in name or "@" in name or "/" in name or len(name) > _MAX_NAME:
        raise Invalid(
            f"name: expected 1 to {_MAX_NAME} characters without ':', '@' and '/', got {name!r:.100}",
            param="name",
        )
    if version == "latest" or "/" in version or len(version) > 60:
        raise Invalid(
            "version: expected a number or a short text other than 'latest', without '/'", param="version"
        )


def _list(
    kind: assets.AssetKind, deps: ConsoleDependencies, name: str | None, limit: int, after: str
) -> Page[AssetOut]:
    with deps.db.read() as connection:
        found = assets.list_assets(connection, kind, name=name, limit=limit + 1, after=after)
    return page(found, limit, _out, lambda each: each.id)


def get_asset(kind: assets.AssetKind, deps: ConsoleDependencies, name: str, version: str) -> AssetOut:
    """That version, `latest` for the last one; NotFound."""
    with deps.db.read() as connection:
        found = assets.find_asset(connection, kind, name, "" if version == "latest" else version)
    if found is None:
        raise NotFound(f"there is no {kind} {name[:60]!r} in version {version[:60]!r}", param="name")
    return _out(found)


def _delete(kind: assets.AssetKind, deps: ConsoleDependencies, name: str, version: str) -> AssetOut:
    with deps.db.begin() as connection:
        return _out(assets.delete_asset(connection, kind, name, version))


def _out(asset: Asset) -> AssetOut:
    return AssetOut(
        id=f"azureml:{asset.name}:{asset.version}",
        name=asset.name,
        version=asset.version,
        document=asset.document,
        created_at=iso(asset.created_ms),
    )
