"""Registered models and environments over the management API."""

from pathlib import Path
from typing import Any

import pytest

from serving.online import store
from tests.api.console_platform import ConsolePlatform
from tests.api.online_calls import blue, deploy, endpoint, refused


def test_registered_models_and_environments_are_referred_to(
    console: ConsolePlatform, code: Path, tmp_path: Path
) -> None:
    conda = tmp_path / "conda.yml"
    conda.write_text("dependencies: [python=3.11, {pip: [numpy]}]\n")
    model = {"name": "churn", "path": str(code), "type": "custom_model"}
    assert console.client.post("/api/registered-models", json=model).json()["id"] == "azureml:churn:1"
    assert console.client.post("/api/registered-models", json=model).json()["id"] == "azureml:churn:2"
    again = console.client.post(
        "/api/registered-models", json=model | {"version": "2", "path": str(tmp_path)}
    )
    refused(again, 409, "version", "other content")
    made = console.post("/api/environments", name="sk", version=3, conda_file=str(conda))
    assert made["document"]["conda_file"]["dependencies"][0] == "python=3.11"
    endpoint(console)
    deployed = deploy(console, blue(code, model="azureml:churn@latest", environment="azureml:sk:3"))
    assert deployed["environment"]["conda_file"]["dependencies"][1] == {"pip": ["numpy"]}
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=deployed["id"])
    assert found is not None and (found.spec.model_name, found.spec.model_version) == ("churn", "2")
    assert found.spec.model_path.endswith("/1/model/mine")
    assert console.get("/api/registered-models?name=churn&limit=1")["next"]
    assert console.get("/api/environments/sk/versions/latest") == made
    console.client.delete("/api/environments/sk/versions/3")
    refused(console.client.get("/api/environments/sk/versions/3"), 404, "name")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("registered-models", {"name": "churn"}, "path"),
        ("registered-models", {"name": "a:b", "path": "/tmp"}, "name"),
        ("registered-models", {"name": "churn", "path": "/nowhere"}, "path"),
        ("registered-models", {"name": "churn", "path": "azureml://x"}, "path"),
        ("environments", {"name": "sk"}, "conda_file"),
        ("environments", {"name": "sk", "version": "latest", "image": "x"}, "version"),
        ("environments", {"image": "x"}, "name"),
    ],
)
def test_bad_registrations(console: ConsolePlatform, path: str, body: dict[str, Any], param: str) -> None:
    refused(console.client.post(f"/api/{path}", json=body), 422, param)
