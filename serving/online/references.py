"""Which model a deployment means: a folder, a registered model, or one of the catalog."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.errors import Invalid, NotFound

_REGISTRY = re.compile(r"azureml://registries/[^/]+/models/(.+?)(?:/(?:versions|labels)/[^/]+)?")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model. One of `path` (absolute) and `catalog_id` is set, or neither when no model was given."""

    written: str = ""
    path: str = ""
    catalog_id: str = ""
    name: str = ""
    version: str = ""
    type: str = ""


def parse_reference(
    given: object,
    find_asset: Callable[[str, str, str], "dict[str, Any] | None"],
    find_model: Callable[[str], "str | None"],
) -> Reference:
    """What `model` refers to; NotFound or Invalid says what it could be instead."""
    if given is None or given == "":
        return Reference()
    if isinstance(given, dict):
        return _inline(given)
    written = str(given)
    if written.startswith("azureml:") and not written.startswith("azureml://"):
        name, version = name_and_version(written)
        found = find_asset("model", name, version)
        if found is not None:
            return _inline({**found, "written": written})
        catalog_id = find_model(name)
        if catalog_id is None:
            raise NotFound(
                f"model: there is no registered model {written!r:.100} and no {name!r:.100} in the catalog; register "
                "it with farebox model create -f, or give its folder with model.path",
                code="model_not_found",
                param="model",
            )
        return Reference(written, catalog_id=catalog_id, name=name, version=version)
    registry = _REGISTRY.fullmatch(written)
    if written.startswith("azureml://") and registry is None:
        raise Invalid(
            f"model: {written!r:.100} is kept in Azure; copy it here and give its folder with model.path",
            param="model",
        )
    name = registry[1] if registry else written
    catalog_id = find_model(name)
    if catalog_id is None:
        raise NotFound(
            f"model: there is no {name!r:.100} in the catalog; farebox model list shows what there is; for a local "
            "model give its folder with model.path",
            code="model_not_found",
            param="model",
        )
    return Reference(written, catalog_id=catalog_id, name=name)


def _inline(given: dict[str, Any]) -> Reference:
    path = given.get("path") or ""
    if not path:
        raise Invalid("model.path: the field is missing", param="model.path")
    if "://" in path and not path.startswith("file://"):
        raise Invalid(
            f"model.path: expected a folder or file of this machine, got {path!r:.100}; copy it here first",
            param="model.path",
        )
    path = path.removeprefix("file://").rstrip("/") or "/"
    return Reference(
        written=given.get("written") or "",
        path=path,
        name=given.get("name") or path.rpartition("/")[2],
        version=str(given.get("version") or "1"),
        type=given.get("type") or "",
    )


def name_and_version(written: str) -> tuple[str, str]:
    """Name and version ("" for the latest) of `azureml:name:version`, `azureml:name@latest` or `name`."""
    name = written.removeprefix("azureml:")
    if name.endswith("@latest"):
        return name.removesuffix("@latest"), ""
    head, colon, version = name.rpartition(":")
    return (head, version) if colon else (name, "")
