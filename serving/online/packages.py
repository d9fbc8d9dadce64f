"""Packages: a registered model with its code and environment, frozen together (R4.23).

A package is kept like a deployment's copies, in `HOME/online/{package id}/1`, and registered as an environment: a
deployment that names this needs neither model nor code. It is also all that `docker build` needs to make an image of it.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Literal

from core.errors import Invalid
from serving.online.copies import Staged
from serving.requirements import Requirements, requirements_of

PackageKind = Literal["script", "mlflow"]
_ROOT: Final = "/var/azureml-app"
_SCORER: Final = "/opt/farebox"
_PORT: Final = 5001  # of Azure's inference server
_SIGNS: Final = re.compile(r"[^A-Za-z0-9._-]")  # of a name, that a path in a recipe had better not have
_OLDEST_PYTHON: Final = (3, 9)


@dataclass(frozen=True, slots=True)
class Package:
    """What a deployment of it is made of; `folder` is where its copies are."""

    id: str
    kind: PackageKind
    model_name: str
    model_version: str
    model_entry: str
    scoring_script: str = ""
    folder: str = ""
    model_digest: str = ""
    code_digest: str = ""
    environment_variables: dict[str, str] = field(default_factory=dict)

    @property
    def model_path(self) -> str:
        return f"{self.folder}/model/{self.model_entry}"

    @property
    def code_path(self) -> str:
        return f"{self.folder}/code" if self.scoring_script else ""


def package_of(environment: Mapping[str, Any] | None) -> Package | None:
    """The package that a registered environment is; None when it is none."""
    found = (environment or {}).get("package")
    return None if found is None else Package(**found)


def environment_of(
    package: Package, requirements: Requirements, document: Mapping[str, Any]
) -> dict[str, Any]:
    """The document under which it is registered: what it needs is written out, whatever it was asked for with."""
    python = [f"python={requirements.python}"] if requirements.python else []
    described = {name: document[name] for name in ("description", "tags") if document.get(name)}
    return {
        **described,
        "conda_file": {"dependencies": [*python, {"pip": list(requirements.lines)}]},
        "package": asdict(package),
    }


def plan(
    package_id: str,
    model: Mapping[str, Any],
    document: Mapping[str, Any],
    environment: Mapping[str, Any] | None,
    variables: dict[str, str],
) -> tuple[Package, Requirements]:
    """What is to be packaged, without its copies. `model` is the registered document with its name and version,
    `environment` the base environment's. Invalid names the field."""
    server = document.get("inferencing_server") or {}
    if server.get("type", "azureml_online") != "azureml_online":
        raise Invalid(
            "inferencing_server.type: expected azureml_online; other servers are images of their own",
            param="inferencing_server.type",
        )
    if model.get("type") == "triton_model":
        raise Invalid(
            "model: a Triton repository is served by Triton's own image; `farebox online-deployment render` writes what "
            "a cluster needs for it",
            param="model",
        )
    path = Path(str(model.get("path", "")).removeprefix("file://"))
    is_mlflow = (path / "MLmodel").is_file()
    script = (server.get("code_configuration") or {}).get("scoring_script") or ""
    if not script and not is_mlflow:
        raise Invalid(
            "inferencing_server.code_configuration: the field is missing; only MLflow models need no script",
            param="inferencing_server.code_configuration",
        )
    if environment is None and not is_mlflow:
        raise Invalid(
            "base_environment_source: the field is missing; only MLflow models bring an environment along",
            param="base_environment_source",
        )
    said = {**variables, "AZUREML_ENTRY_SCRIPT": script}
    broken = next((name for name, value in said.items() if "\n" in value or "\r" in value), None)
    if broken is not None:
        raise Invalid(
            f"environment_variables.{broken}: a line break cannot be in an image's recipe",
            param=f"environment_variables.{broken}",
        )
    package = Package(
        package_id,
        "script" if script else "mlflow",
        str(model["name"]),
        str(model["version"]),
        path.name,
        os.path.normpath(script) if script else "",
        environment_variables=variables,
    )
    return package, requirements_of(environment, path if environment is None else None)


# --- for docker build -------------------------------------------------------------------------------


def write_context(
    target: IO[bytes],
    package: Package,
    folder: Path,
    requirements: Requirements,
    needs: tuple[str, ...],
    scorer: Path,
) -> None:
    """A tar archive that `docker build` takes: `docker build - < archive`. `folder` has the copies, decrypted."""
    with tarfile.open(fileobj=target, mode="w|", dereference=True) as archive:
        _add_text(archive, "Dockerfile", dockerfile(package, requirements))
        _add_text(archive, "requirements.txt", "".join(f"{line}\n" for line in (*requirements.lines, *needs)))
        for source, name in ((folder / "model", "model"), (folder / "code", "code"), (scorer, "scorer")):
            if source.is_dir():
                archive.add(source, name, filter=_plain)


def dockerfile(package: Package, requirements: Requirements) -> str:
    """How the image is made. It serves on port 5001 as user 1000, with what Azure's images tell a script."""
    parts = (_SIGNS.sub("_", each) for each in (package.model_name, package.model_version))
    model_dir = f"{_ROOT}/azureml-models/{'/'.join(parts)}"
    variables = {**package.environment_variables, "AZUREML_MODEL_DIR": model_dir, "PYTHONPATH": _SCORER}
    command = ["python", "-m", "farebox_scorer", "--host", "0.0.0.0", "--port", str(_PORT)]
    if package.kind == "mlflow":
        command += ["--mlflow-model", f"{model_dir}/{package.model_entry}"]
    else:
        variables |= {"AML_APP_ROOT": f"{_ROOT}/code", "AZUREML_ENTRY_SCRIPT": package.scoring_script}
        command += ["--entry-script", f"{_ROOT}/code/{package.scoring_script}"]
    lines = [
        f"FROM python:{_python(requirements)}-slim",
        "COPY requirements.txt /tmp/requirements.txt",
        "RUN pip install --no-cache-dir -r /tmp/requirements.txt",
        f"COPY scorer {_SCORER}",
        f"COPY model {model_dir}",
        *([f"COPY code {_ROOT}/code"] if package.kind == "script" else []),
        *(f"ENV {name}={_quoted(value)}" for name, value in sorted(variables.items())),
        f"WORKDIR {_ROOT}/code" if package.kind == "script" else f"WORKDIR {_ROOT}",
        "USER 1000",
        f"EXPOSE {_PORT}",
        f"CMD {json.dumps(command)}",
    ]
    return "\n".join(lines) + "\n"


def placed(package: Package, staged: Staged, settle: Callable[[Path, str], Path]) -> Package:
    """The package with its copies in their final place, which `settle` gives them."""
    return replace(
        package,
        folder=str(settle(staged.folder, package.id)),
        model_digest=staged.model_digest,
        code_digest=staged.code_digest,
    )


def _python(requirements: Requirements) -> str:
    numbers = requirements.python.split(".")[:2]
    known = len(numbers) == 2 and all(each.isdigit() for each in numbers)
    if known and (int(numbers[0]), int(numbers[1])) >= _OLDEST_PYTHON:
        return ".".join(numbers)
    return "3.11"


def _quoted(text: str) -> str:
    """For ENV, where `$` would begin a variable."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Readable by the image's user; nobody's name."""
    if "__pycache__" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode |= 0o555 if member.isdir() else 0o444
    return member


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text.encode()), 0o444
    archive.addfile(member, io.BytesIO(text.encode()))
