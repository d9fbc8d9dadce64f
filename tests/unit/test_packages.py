"""Packages of models: what is asked for, what is refused, and the image's recipe."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from core.errors import Invalid
from serving.environments import SCORER_NEEDS
from serving.online import packages
from serving.online.launch import SCORER
from serving.online.packages import Package
from serving.requirements import Requirements, requirements_of

CODE = {"code": "/mine/code", "scoring_script": "./score.py"}


def plan(
    model: Path, environment: dict[str, Any] | None = None, **document: Any
) -> tuple[Package, Requirements]:
    registered = {"name": "churn", "version": "3", "path": f"file://{model}"}
    return packages.plan("pkg_1", registered, document, environment, {"A": "b"})


@pytest.fixture
def mlflow(tmp_path: Path) -> Path:
    folder = tmp_path / "iris"
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "requirements.txt").write_text("mlflow-skinny\nnumpy\n")
    (folder / "python_env.yaml").write_text("python: 3.12.1\n")
    return folder


def test_an_mlflow_model_brings_its_environment(mlflow: Path) -> None:
    package, needs = plan(mlflow)
    assert (package.kind, package.model_entry, package.scoring_script) == ("mlflow", "iris", "")
    assert needs == Requirements(("mlflow-skinny", "numpy"), "3.12.1")
    scripted, same = plan(mlflow, inferencing_server={"code_configuration": CODE})
    assert (scripted.kind, scripted.scoring_script, same) == ("script", "score.py", needs)
    _, other = plan(mlflow, {"requirements": ["pandas"]})
    assert other.lines == ("pandas",)


def test_what_it_needs_is_written_out(mlflow: Path) -> None:
    """The registered document makes the same environment again, and is found to be a package."""
    package, needs = plan(mlflow)
    document = packages.environment_of(package, needs, {"description": "d", "tags": {"a": "b"}, "x": 1})
    assert requirements_of(document).lines == needs.lines
    assert packages.package_of(document) == package
    assert (document["description"], document["tags"], "x" in document) == ("d", {"a": "b"}, False)
    assert packages.package_of({"conda_file": {}}) is None and packages.package_of(None) is None


@pytest.mark.parametrize(
    ("document", "environment", "param"),
    [
        ({}, {"requirements": []}, "inferencing_server.code_configuration"),
        ({"inferencing_server": {"code_configuration": CODE}}, None, "base_environment_source"),
        ({"inferencing_server": {"type": "triton"}}, None, "inferencing_server.type"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, document: dict[str, Any], environment: dict[str, Any] | None, param: str
) -> None:
    with pytest.raises(Invalid) as refused:
        plan(tmp_path, environment, **document)
    assert refused.value.param == param
    with pytest.raises(Invalid, match="a line break cannot be"):
        packages.plan("pkg_1", {"name": "t", "version": "1", "path": "/t"}, {"inferencing_server": {
            "code_configuration": CODE}}, {"requirements": []}, {"A": "b\nRUN rm"})  # fmt: skip
    with pytest.raises(Invalid, match="Triton"):
        packages.plan(
            "pkg_1", {"name": "t", "version": "1", "path": "/t", "type": "triton_model"}, {}, None, {}
        )


def test_the_recipe_of_an_image() -> None:
    package = Package(
        "pkg_1", "script", "churn", "3", "w", "sub/score.py", environment_variables={"SAY": 'a "$b"\\'}
    )
    text = packages.dockerfile(package, Requirements(("numpy",), "3.12"))
    assert text.splitlines() == [
        "FROM python:3.12-slim",
        "COPY requirements.txt /tmp/requirements.txt",
        "RUN pip install --no-cache-dir -r /tmp/requirements.txt",
        "COPY scorer /opt/farebox",
        "COPY model /var/azureml-app/azureml-models/churn/3",
        "COPY code /var/azureml-app/code",
        'ENV AML_APP_ROOT="/var/azureml-app/code"',
        'ENV AZUREML_ENTRY_SCRIPT="sub/score.py"',
        'ENV AZUREML_MODEL_DIR="/var/azureml-app/azureml-models/churn/3"',
        'ENV PYTHONPATH="/opt/farebox"',
        'ENV SAY="a \\"\\$b\\"\\\\"',
        "WORKDIR /var/azureml-app/code",
        "USER 1000",
        "EXPOSE 5001",
        'CMD ["python", "-m", "farebox_scorer", "--host", "0.0.0.0", "--port", "5001", '
        '"--entry-script", "/var/azureml-app/code/sub/score.py"]',
    ]
    odd = Package("pkg_3", "script", "my model\nRUN rm", "1", "w", 'a "$b".py')
    lines = packages.dockerfile(odd, Requirements()).splitlines()
    assert "COPY model /var/azureml-app/azureml-models/my_model_RUN_rm/1" in lines
    assert json.loads(lines[-1].removeprefix("CMD "))[-1] == '/var/azureml-app/code/a "$b".py'
    mlflow = packages.dockerfile(Package("pkg_2", "mlflow", "iris", "1", "iris"), Requirements(python="2.7"))
    assert "FROM python:3.11-slim" in mlflow and "COPY code" not in mlflow
    assert '"--mlflow-model", "/var/azureml-app/azureml-models/iris/1/iris"]' in mlflow


def test_the_archive_holds_all_of_it(tmp_path: Path) -> None:
    for name in ("model/w/a.bin", "code/score.py", "code/__pycache__/score.pyc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "code" / "score.py").chmod(0o600)
    written = io.BytesIO()
    package = Package("pkg_1", "script", "churn", "3", "w", "score.py")
    packages.write_context(written, package, tmp_path, Requirements(("numpy",)), SCORER_NEEDS, SCORER)
    with tarfile.open(fileobj=io.BytesIO(written.getvalue())) as archive:
        names = {each.name for each in archive if each.isfile()}
        assert archive.getmember("code/score.py").mode & 0o444 == 0o444, "readable by the image's user"
        assert {each.uid for each in archive} == {0}
        lines = archive.extractfile("requirements.txt")
        assert lines is not None
        assert lines.read().decode().splitlines() == ["numpy", *SCORER_NEEDS]
    assert {"Dockerfile", "requirements.txt", "model/w/a.bin", "code/score.py"} <= names
    assert "scorer/farebox_scorer/__main__.py" in names and not [each for each in names if "pycache" in each]
