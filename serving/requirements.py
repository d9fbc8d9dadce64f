"""What an environment asks for, as pip understands it: conda files, requirements, MLflow models. Pure but for reading.

Conda's channels are not used: packages that PyPI has under the same or a known name come from there. What only conda has
is refused, but for the few that a wheel brings along anyway.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import Invalid
from wire.yaml_source import parse_yaml

MAX_LINES = 2000
MAX_FILE_BYTES = 256 * 1024

# Conda's name to PyPI's, where they differ.
_NAMES = {
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "py-xgboost": "xgboost",
    "py-xgboost-cpu": "xgboost",
    "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless",
    "pyyaml": "PyYAML",
    "tensorflow-base": "tensorflow",
    "python-dateutil": "python-dateutil",
    "beautifulsoup4": "beautifulsoup4",
    "faiss": "faiss-cpu",
    "msgpack-python": "msgpack",
    "matplotlib-base": "matplotlib",
    "numpy-base": "numpy",
    "scikit-learn-intelex": "scikit-learn-intelex",
    "python-graphviz": "graphviz",
}
# Parts of conda's own world: a wheel brings its own, or pip does not need them.
_HARMLESS = frozenset(
    {
        "pip",
        "setuptools",
        "wheel",
        "mkl",
        "mkl-service",
        "intel-openmp",
        "libblas",
        "openblas",
        "nomkl",
        "blas",
        "cudatoolkit",
        "cudnn",
        "pytorch-cuda",
        "cpuonly",
        "libgcc-ng",
        "libstdcxx-ng",
        "openssl",
        "ca-certificates",
        "certifi",
    }
)
_CONDA_ONLY = frozenset(
    {"gcc", "gxx", "cmake", "r-base", "nodejs", "openjdk", "ffmpeg", "gcc_linux-64", "gxx_linux-64"}
)
_SPEC = re.compile(r"(?:[\w.-]+::)?([A-Za-z0-9_.-]+)\s*([^\[\]]*)(?:\[([^\]]*)\])?\s*")
_MAX_SPEC = 300  # characters of one package
_BRACKETS = re.compile(
    r"(\w+)\s*=\s*(?:'([^']*)'|\"([^\"]*)\"|([^,\s]*))"
)  # conda's numpy[version='>=1.20,<2']
_VERSION = re.compile(r"[0-9][\w.*+!-]*")


@dataclass(frozen=True, slots=True)
class Requirements:
    """Lines for pip, the Python that was asked for ("" any), and what was left out or changed, for people."""

    lines: tuple[str, ...] = ()
    python: str = ""
    notes: tuple[str, ...] = ()


def requirements_of(environment: Mapping[str, object] | None, model: Path | None = None) -> Requirements:
    """Of an environment, or of an MLflow model's folder. Invalid names the field."""
    if environment and environment.get("conda_file") is not None:
        return from_conda(environment["conda_file"], "environment.conda_file")
    if environment and environment.get("requirements") is not None:
        return from_lines(environment["requirements"], "environment.requirements")
    return _of_model(model) if model is not None else Requirements()


def from_conda(document: object, param: str) -> Requirements:
    """A conda environment as parsed: `dependencies`, one of which may be a mapping with `pip`."""
    if not isinstance(document, Mapping):
        raise Invalid(
            f"{param}: expected fields such as `dependencies`, got {type(document).__name__}", param=param
        )
    given = document.get("dependencies") or []
    if not isinstance(given, list):
        raise Invalid(f"{param}.dependencies: expected a list", param=f"{param}.dependencies")
    lines: list[str] = []
    notes: list[str] = []
    python = ""
    for number, each in enumerate(given):
        where = f"{param}.dependencies[{number}]"
        if isinstance(each, Mapping):
            lines += _pip_part(each, where)
            continue
        name, version = _split(each, where)
        if name == "python":
            python = version.lstrip("=~<>! ").removesuffix(".*")
        elif name in _HARMLESS:
            if name not in ("pip", "setuptools", "wheel"):
                notes.append(f"{where}: {name} is conda's own; the packages from PyPI bring what they need")
        elif name in _CONDA_ONLY:
            raise Invalid(
                f"{where}: {name!r} is no Python package and PyPI does not have it; install it on the machine and leave "
                "it out here",
                param=where,
            )
        else:
            lines.append(_NAMES.get(name, name) + _pip_version(version, where))
    return Requirements(_bounded(lines, param), python, tuple(notes))


def from_lines(lines: object, param: str) -> Requirements:
    """Requirements as in a file for pip."""
    if isinstance(lines, str):
        lines = lines.splitlines()
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise Invalid(f"{param}: expected a list of texts", param=param)
    kept = [line.split(" #")[0].strip() for line in lines]
    return Requirements(_bounded([line for line in kept if line and not line.startswith("#")], param))


def _of_model(folder: Path) -> Requirements:
    """What MLflow wrote beside the model: the packages are in requirements.txt, the Python is in one of the others."""
    lines = _text_of(folder, "requirements.txt")
    conda = _text_of(folder, "conda.yaml")
    asked = None if conda is None else from_conda(parse_yaml(conda).value, "model: conda.yaml")
    if lines is None:
        return asked or Requirements(("mlflow-skinny",))
    found = from_lines(lines, "model: requirements.txt")
    return replace(found, python=_python_of(folder) or (asked.python if asked else ""))


def _python_of(folder: Path) -> str:
    text = _text_of(folder, "python_env.yaml")
    document = None if text is None else parse_yaml(text).value
    python = document.get("python") if isinstance(document, Mapping) else None
    return python if isinstance(python, str) and _VERSION.fullmatch(python) else ""


def _text_of(folder: Path, name: str) -> str | None:
    path = folder / name
    if not path.is_file():
        return None
    with path.open("rb") as file:
        text = file.read(MAX_FILE_BYTES + 1).decode("utf-8", "replace")
    if len(text) > MAX_FILE_BYTES:
        raise Invalid(f"model: {name} is larger than {MAX_FILE_BYTES // 1024} KiB", param="model")
    return text


def _pip_part(part: Mapping[object, object], where: str) -> Iterator[str]:
    if list(part) != ["pip"] or not isinstance(part["pip"], list):
        raise Invalid(f"{where}: expected a package, or `pip:` with a list", param=where)
    yield from from_lines(part["pip"], f"{where}.pip").lines


def _split(given: object, where: str) -> tuple[str, str]:
    # The bound keeps the patterns' backtracking short: what is given is a stranger's.
    short = isinstance(given, str) and len(given) <= _MAX_SPEC
    match = _SPEC.fullmatch(given.strip()) if short and isinstance(given, str) else None
    if match is None:
        raise Invalid(f"{where}: expected a package such as `numpy=1.26`, got {given!r:.100}", param=where)
    within = {each[1]: each[2] or each[3] or each[4] or "" for each in _BRACKETS.finditer(match[3] or "")}
    return match[1].lower(), within.get("version", match[2]).strip()


def _pip_version(version: str, where: str) -> str:
    """Conda's way of saying a version as pip's: `=1.2` is any 1.2, `==1.2=build` that one, `>=1,<2` is the same."""
    if not version:
        return ""
    if version[0] in "<>!~" or (version.startswith("==") and version.count("=") == 2):
        return version.replace(" ", "")
    exact = version.startswith("==")
    number = version.lstrip("=").split("=")[0].split(" ")[0]  # a build string is conda's own
    if not _VERSION.fullmatch(number):
        raise Invalid(f"{where}: {version!r:.100} is no version", param=where)
    if exact:
        return f"=={number}"
    return f"=={number}" if number.endswith("*") else f"=={number}.*"


def _bounded(lines: list[str], param: str) -> tuple[str, ...]:
    if len(lines) > MAX_LINES:
        raise Invalid(f"{param}: at most {MAX_LINES} packages, got {len(lines)}", param=param)
    for line in lines:
        if line.startswith("-") or "\0" in line:
            raise Invalid(
                f"{param}: {line!r:.100}: options of pip are not taken here; where packages come from is the machine's "
                "own setting (pip's configuration)",
                param=param,
            )
    return tuple(lines)
