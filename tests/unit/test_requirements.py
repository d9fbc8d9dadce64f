"""What an environment asks pip for: conda's ways of writing, and what MLflow leaves beside a model."""

from pathlib import Path

import pytest

from core.errors import Invalid
from serving.requirements import from_conda, requirements_of


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ("numpy", "numpy"),
        ("numpy=1.26", "numpy==1.26.*"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy=1.26.4=py311h64a7726_0", "numpy==1.26.4.*"),
        ("numpy >=1.20,<2", "numpy>=1.20,<2"),
        ("conda-forge::numpy=1.26.*", "numpy==1.26.*"),
        ("numpy[version='>=1.20,<2']", "numpy>=1.20,<2"),
        ('numpy[version="1.26", channel=conda-forge]', "numpy==1.26.*"),
        ("numpy[channel=conda-forge]", "numpy"),
        ("numpy 1.26[build=py311*]", "numpy==1.26.*"),
        ("pytorch=2.4", "torch==2.4.*"),
    ],
)
def test_condas_ways_of_writing(written: str, line: str) -> None:
    assert from_conda({"dependencies": [written]}, "conda_file").lines == (line,)


@pytest.mark.parametrize(
    ("dependency", "says"),
    [
        ({"pip": "numpy"}, "`pip:` with a list"),
        ({"npm": []}, "`pip:` with a list"),
        (17, "expected a package"),
        ("numpy[", "expected a package"),
        ("numpy" + " " * 100_000 + "[", "expected a package"),
        ("numpy[" + "v" * 100_000 + "]", "expected a package"),
        ("numpy=latest", "is no version"),
        ("r-base", "no Python package"),
    ],
)
def test_what_cannot_be_asked_for(dependency: object, says: str) -> None:
    with pytest.raises(Invalid, match=says) as refused:
        from_conda({"dependencies": ["python=3.11", dependency]}, "environment.conda_file")
    assert refused.value.param == "environment.conda_file.dependencies[1]"


CONDA = "dependencies: [python=3.10.4, pip<=23, {pip: [mlflow==3.1.0]}]\n"


def test_an_mlflow_model_says_its_packages_and_its_python(tmp_path: Path) -> None:
    assert requirements_of(None, tmp_path).lines == ("mlflow-skinny",), "it says nothing"
    (tmp_path / "conda.yaml").write_text(CONDA)
    found = requirements_of(None, tmp_path)
    assert (found.lines, found.python) == (("mlflow==3.1.0",), "3.10.4")
    (tmp_path / "requirements.txt").write_text("mlflow-skinny==3.1.0\n# none\nnumpy # and why\n")
    found = requirements_of(None, tmp_path)
    assert (found.lines, found.python) == (("mlflow-skinny==3.1.0", "numpy"), "3.10.4")
    (tmp_path / "python_env.yaml").write_text("python: 3.11.7\ndependencies: [-r requirements.txt]\n")
    assert requirements_of(None, tmp_path).python == "3.11.7"
    (tmp_path / "python_env.yaml").write_text("python: 3.11\n")
    assert requirements_of(None, tmp_path).python == "3.10.4", "a number is no version: 3.1 and 3.10 are one"
    (tmp_path / "requirements.txt").write_text("-r others.txt\n")
    with pytest.raises(Invalid, match=r"requirements\.txt"):
        requirements_of(None, tmp_path)
