"""Packages of registered models: made, and downloaded for `docker build`; and the models themselves."""

import os
import tarfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from fastapi import status
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from core.errors import Invalid, NotFound
from core.ids import new_id
from functions.console.dependencies import ConsoleDependencies, Deps
from functions.console.online_assets import AssetOut, get_asset, register_asset
from functions.console.online_shapes import PackageDocument
from functions.console.routing import console_router
from serving.environments import SCORER_NEEDS
from serving.online import assets, copies, packages
from serving.online.assemble import check_script, variables_of
from serving.online.environment_document import environment_fields
from serving.online.launch import SCORER
from serving.online.packages import Package
from serving.online.references import name_and_version
from serving.requirements import requirements_of

router = console_router("registered models and environments")

_CODE: Final = "inferencing_server.code_configuration"
_CHUNK: Final = 256 * 1024


@router.post(
    "/registered-models/{name}/versions/{version}/package",
    status_code=status.HTTP_201_CREATED,
    summary="Package a registered model",
)
def package_model(name: str, version: str, body: PackageDocument, deps: Deps) -> AssetOut:
    """Model, code and environment are frozen together, and registered as the environment `target_environment`.

    A deployment with this environment needs neither `model` nor `code_configuration`.
    """
    document = body.given()
    model = get_asset("model", deps, name, version)
    found = {**model.document, "name": model.name, "version": model.version}
    with deps.db.read() as connection:
        environment = _base(connection, document)
    variables = variables_of(document.get("environment_variables"))
    target = _target(document)
    package, requirements = packages.plan(new_id("pkg"), found, document, environment, variables)
    made = _stored(package, found, document, deps)
    try:
        registered = packages.environment_of(made, requirements, document) | target
        return register_asset("environment", registered, deps)
    except BaseException:
        copies.discard(Path(made.folder))
        raise


@router.get(
    "/environments/{name}/versions/{version}/package",
    summary="Download a package",
    response_class=StreamingResponse,
    responses={200: {"description": "A tar archive", "content": {"application/x-tar": {}}}},
)
def download_package(name: str, version: str, deps: Deps) -> StreamingResponse:
    """Everything that an image is made of: `docker build -t NAME - < package.tar`."""
    found = get_asset("environment", deps, name, version)
    package = packages.package_of(found.document)
    if package is None:
        raise NotFound(f"environment {name!r:.60} is no package", code="no_package", param="name")
    folder = _readable(package, deps)
    requirements = requirements_of(found.document)

    def write(target: Any) -> None:
        packages.write_context(target, package, folder, requirements, SCORER_NEEDS, SCORER)

    headers = {"content-disposition": f'attachment; filename="{package.id}.tar"'}
    return StreamingResponse(_piped(write), media_type="application/x-tar", headers=headers)


@router.get(
    "/registered-models/{name}/versions/{version}/content",
    summary="Download a registered model",
    response_class=StreamingResponse,
    responses={200: {"description": "A tar archive", "content": {"application/x-tar": {}}}},
)
def download_model(name: str, version: str, deps: Deps) -> StreamingResponse:
    """Its folder or file as it is now on the server's machine."""
    found = get_asset("model", deps, name, version)
    path = Path(str(found.document.get("path", "")).removeprefix("file://"))
    files = copies.look(str(path), "path", deps.settings.online_model_max_bytes)

    def write(target: Any) -> None:
        with tarfile.open(fileobj=target, mode="w|", dereference=True) as archive:
            for each in files.files:
                archive.add(
                    files.root / each, each if path.is_file() else f"{path.name}/{each}", recursive=False
                )

    headers = {"content-disposition": 'attachment; filename="model.tar"'}  # names may have any signs
    return StreamingResponse(_piped(write), media_type="application/x-tar", headers=headers)


def _stored(
    package: Package, model: Mapping[str, Any], document: Mapping[str, Any], deps: ConsoleDependencies
) -> Package:
    code = (document.get("inferencing_server") or {}).get("code_configuration")
    if code is not None:
        check_script(code, str(code.get("code")), _CODE)
    home, settings = deps.settings.home, deps.settings
    staged = copies.stage(
        home,
        None if code is None else str(code["code"]),
        str(model["path"]).removeprefix("file://"),
        max_model_bytes=settings.online_model_max_bytes,
        keyring=deps.keyring,
        code_param=f"{_CODE}.code",
    )
    assert staged is not None, "a package has a model"
    return packages.placed(package, staged, lambda folder, name: copies.settle(folder, home, name, 1))


def _base(connection: Connection, document: Mapping[str, Any]) -> dict[str, Any] | None:
    source = document.get("base_environment_source")
    if source is None:
        return None
    name, version = name_and_version(str(source["resource_id"]))
    found = assets.find_asset(connection, "environment", name, version)
    if found is None:
        raise NotFound(
            f"base_environment_source.resource_id: there is no registered environment {source['resource_id']!r:.100}; "
            "register it with farebox environment create -f",
            param="base_environment_source.resource_id",
        )
    return environment_fields(found.document, "base_environment_source.")


def _target(document: Mapping[str, Any]) -> dict[str, str]:
    given = document.get("target_environment")
    if isinstance(given, dict):
        return {key: str(value) for key, value in given.items() if value is not None}
    if not given:
        raise Invalid("target_environment: the field is missing", param="target_environment")
    name, version = name_and_version(str(given))
    return {"name": name, "version": version} if version else {"name": name}


def _readable(package: Package, deps: ConsoleDependencies) -> Path:
    """Where its copies are, decrypted."""
    folder = Path(package.folder)
    if not folder.is_dir():
        raise NotFound(f"the files of package {package.id} are gone", code="package_gone", param="name")
    return folder if deps.opened is None else deps.opened.open_folder(folder)


def _piped(write: Any) -> Iterator[bytes]:
    """What `write` writes to a file, as it does so; a reader who leaves ends it."""
    reading, writing = os.pipe()
    failures: list[Exception] = []

    def run() -> None:
        try:
            with open(writing, "wb") as target:
                write(target)
        except Exception as error:  # told by who reads, or nobody: the caller may have left
            failures.append(error)

    thread = threading.Thread(target=run, name="package", daemon=True)
    thread.start()
    with open(reading, "rb") as source:
        while chunk := source.read(_CHUNK):
            yield chunk
    thread.join()
    if failures:
        raise failures[0]  # the connection breaks off, so that a part is not taken for the whole
