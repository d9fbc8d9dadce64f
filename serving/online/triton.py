"""Triton model repositories: how their folders must be.

Source: NVIDIA Triton Inference Server, "Model Repository": `<model>/[config.pbtxt]`, `<model>/<version>/<model file>`.
"""

from pathlib import Path
from typing import Final

from core.errors import Invalid

_MAX_LOOKED_AT: Final = 1000


def check_triton_repository(path: Path, param: str) -> None:
    """Invalid says what is missing: a folder, a model in it, a version of a model."""
    if not path.is_dir():
        raise Invalid(f"{param}: there is no folder {str(path)!r:.200}", param=param)
    models = [
        each for each, _ in zip(sorted(path.iterdir()), range(_MAX_LOOKED_AT), strict=False) if each.is_dir()
    ]
    if not models:
        raise Invalid(
            f"{param}: {str(path)!r:.200} holds no model; a Triton repository has a folder for each model, and in that "
            "one for each version: MODEL/1/model.onnx",
            param=param,
        )
    for model in models:
        if not any(_is_version(each) for each in model.iterdir()):
            raise Invalid(
                f"{param}: {model.name!r:.100} has no version; a Triton repository has folders MODEL/1/ with model files",
                param=param,
            )


def _is_version(path: Path) -> bool:
    return path.is_dir() and path.name.isascii() and path.name.isdigit() and any(path.iterdir())
