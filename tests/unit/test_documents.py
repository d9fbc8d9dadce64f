"""Documents of the command line: what is read, what is refused, and on which line."""

import contextlib
from pathlib import Path
from typing import Any

import farebox
import pytest
from farebox.documents import DocumentError, load, parse, set_fields
from farebox.entities import (
    CodeConfiguration,
    KubernetesOnlineDeployment,
    ManagedOnlineDeployment,
    Model,
    ResourceRequirementsSettings,
    ResourceSettings,
    load_online_deployment,
    load_online_endpoint,
)
from farebox.errors import FareboxConfigError
from hypothesis import given
from hypothesis import strategies as st


def test_values_are_those_of_yaml_1_2() -> None:
    text = b"a: no\nb: 012\nc: 1.5\nd: true\ne: ~\nf: '1'\ng: 2024-01-01\nh: [1, {x: y}]\n"
    assert parse(text, "f").value == {
        "a": "no", "b": "012", "c": 1.5, "d": True, "e": None, "f": "1", "g": "2024-01-01", "h": [1, {"x": "y"}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &x 1\nb: *x\n", "f, line 1: a: anchors (&) and aliases (*) are not allowed"),
        ("a: 1\nb: *x\n", "f, line 2: b: anchors"),
        ("a: 1\nb: 2\na: 3\n", "f, line 3: a: the field is given twice, first on line 1"),
        ("a:\n  b: 1\n  b: 2\n", "f, line 3: a.b: the field is given twice, first on line 2"),
        ("a:\n\tb: 1\n", "f, line 2: a tab is used to indent"),
        ("a: !!python/object:os.system x\n", "f, line 1: a: tags (!) are not allowed"),
        ("a: 1\n---\nb: 2\n", "f, line 2: expected one document"),
        ("<<: {a: 1}\n", "f, line 1: merge keys"),
        ("a: [1, 2\n", "f, line 2: this is not YAML"),
        ("- a\n", "f: expected fields"),
        ("", "f: is empty"),
        ("? [a]\n: 1\n", "a field's name must be a plain text"),
        ("a: " + "[" * 30 + "]" * 30, "nested too deeply"),
    ],
)
def test_bad_yaml_says_where(text: str, says: str) -> None:
    with pytest.raises(DocumentError) as refused:
        parse(text.encode(), "f")
    assert says in refused.value.message
    assert refused.value.message.count("f, line") <= 1


def test_what_is_no_text_or_too_large() -> None:
    with pytest.raises(DocumentError, match="line 2: expected text in UTF-8"):
        parse(b"a: 1\nb: \xff\n", "f")
    with pytest.raises(DocumentError, match="larger than 256 KiB"):
        parse(b"a: " + b"x" * 300_000, "f")


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    with contextlib.suppress(DocumentError):
        assert isinstance(parse(content, "f").value, dict)


def test_lines_of_fields_the_server_names() -> None:
    document = parse(b"model:\n  path: x\nresources:\n  requests:\n    nvidia.com/gpu: '1'\n", "f")
    assert document.line("model.path") == 2
    assert document.line("resources.requests.nvidia.com/gpu") == 5
    assert document.line("model.type") == 1  # the field around it
    assert (document.line("name"), document.where("name"), document.where("model")) == (0, "f", "f, line 1")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    inner = tmp_path / "env" / "env.yml"
    inner.parent.mkdir()
    inner.write_text("name: sk\nconda_file: conda.yml\n")
    file = tmp_path / "blue.yml"
    file.write_text(
        "name: blue\nmodel: {path: ../m}\ncode_configuration: {code: /abs, scoring_script: score.py}\n"
        "environment: file:env/env.yml\n"
    )
    value = load(file).value
    assert value["model"]["path"] == str(tmp_path.parent / "m")
    assert value["code_configuration"] == {"code": "/abs", "scoring_script": "score.py"}
    assert value["environment"]["conda_file"] == str(tmp_path / "env" / "conda.yml")
    file.write_text("model: {path: azureml://jobs/1}\n")
    assert load(file).value["model"]["path"] == "azureml://jobs/1"
    with pytest.raises(DocumentError, match="cannot be read"):
        load(tmp_path / "none.yml")


def test_set_reads_values_as_yaml_and_goes_inside() -> None:
    document: dict[str, Any] = {"tags": {"a": "b"}}
    set_fields(document, ["instance_count=2", "tags.team=x", 'version="2"', "a.b.c=true", "empty="])
    assert document == {
        "tags": {"a": "b", "team": "x"}, "instance_count": 2, "version": "2", "a": {"b": {"c": True}}, "empty": "",
    }  # fmt: skip
    for bad in ("instance_count", "=1", "a..b=1", "instance_count.x=1", "x=[1"):
        with pytest.raises(FareboxConfigError, match="--set"):
            set_fields(document, [bad])


def test_entities_are_sent_without_what_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blue = ManagedOnlineDeployment(
        name="blue",
        endpoint_name="shop",
        model=Model(path="./model"),
        code_configuration=CodeConfiguration(code=Path("src"), scoring_script="score.py"),
        resources=ResourceRequirementsSettings(requests=ResourceSettings(gpu="1")),
    )
    assert blue.to_dict() == {
        "type": "managed",
        "name": "blue",
        "endpoint_name": "shop",
        "model": {"path": str(tmp_path / "model")},
        "code_configuration": {"code": str(tmp_path / "src"), "scoring_script": "score.py"},
        "resources": {"requests": {"nvidia.com/gpu": "1"}},
    }
    registered = ManagedOnlineDeployment(name="b", model=Model(name="m", version="1", id="azureml:m:1"))
    assert registered.to_dict()["model"] == "azureml:m:1"


def test_files_become_entities(tmp_path: Path) -> None:
    file = tmp_path / "x.yml"
    file.write_text("$schema: x\nname: blue\ntype: kubernetes\ninstance_count: 2\n")
    assert farebox.load_online_deployment is load_online_deployment  # where Azure's SDK has it
    loaded = load_online_deployment(file)
    assert isinstance(loaded, KubernetesOnlineDeployment) and loaded.instance_count == 2
    file.write_text("name: shop\nauth_mod: key\n")
    with pytest.raises(FareboxConfigError, match="did you mean 'auth_mode'"):
        load_online_endpoint(file)
