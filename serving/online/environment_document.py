"""An environment's document, with what the small files say that it names (a conda file, requirements)."""

import os
from collections.abc import Mapping
from typing import Any

from core.errors import Invalid
from wire.yaml_source import parse_yaml

MAX_TEXT_FILE = 256 * 1024
Document = Mapping[str, Any]


def environment_fields(given: Document, prefix: str) -> dict[str, Any]:
    """An environment with what its files say in place of their paths; `prefix` begins the names of fields."""
    made = {key: value for key, value in given.items() if value is not None}
    if isinstance(made.get("conda_file"), str):
        made["conda_file"] = _conda(made["conda_file"], f"{prefix}conda_file")
    if isinstance(made.get("requirements_file"), str):
        made["requirements"] = _read(made.pop("requirements_file"), f"{prefix}requirements_file").splitlines()
    if not {"conda_file", "requirements", "image", "build", "inference_config"} & set(made):
        raise Invalid(
            f"{prefix}conda_file: the field is missing; an environment is made by conda_file, requirements_file or image",
            param=f"{prefix}conda_file",
        )
    return made


def _conda(path: str, param: str) -> Any:
    try:
        value = parse_yaml(_read(path, param)).value
    except Invalid as error:
        if error.param == param:
            raise
        raise Invalid(f"{param}: {path}: {error.message}", param=param) from None
    if not isinstance(value, dict):
        raise Invalid(f"{param}: {path}: expected fields such as `dependencies`", param=param)
    return value


def _read(path: str, param: str) -> str:
    if not os.path.isabs(path):
        raise Invalid(f"{param}: expected an absolute path, got {path!r:.200}", param=param)
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_FILE + 1)
        text = content.decode()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise Invalid(f"{param}: {path!r:.200} cannot be read: {reason}", param=param) from None
    if len(content) > MAX_TEXT_FILE:
        raise Invalid(f"{param}: {path!r:.200} is larger than {MAX_TEXT_FILE // 1024} KiB", param=param)
    return text
