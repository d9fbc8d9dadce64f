"""Deployments written out for a cluster: what KServe's own schema takes, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.api.console_cli import RunCommand, cli_of
from tests.api.console_platform import ConsolePlatform

SCHEMA = json.loads((Path(__file__).parents[1] / "contract" / "kserve" / "inferenceservice.json").read_text())
TRITON = """
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineDeployment.schema.json
name: Dense
endpoint_name: vision
model: {name: densenet, version: 1, path: ./models, type: triton_model}
instance_type: Standard_NC6s_v3
instance_count: 2
environment_variables: {LOG: "1"}
resources: {requests: {cpu: "4", memory: 8Gi, nvidia.com/gpu: "1"}, limits: {cpu: "8", memory: 16Gi}}
request_settings: {request_timeout_ms: 3000, max_concurrent_requests_per_instance: 4}
"""
OWN = """
name: own
endpoint_name: vision
environment:
  image: example/own:1
  inference_config:
    liveness_route: {port: 8080, path: /live}
    readiness_route: {port: 8080, path: /ready}
    scoring_route: {port: 8080, path: /predict}
model: {path: "s3://models/own"}
instance_type: Standard_DS3_v2
instance_count: 1
readiness_probe: {initial_delay: 5, period: 20, failure_threshold: 60}
scale_settings:
  {type: target_utilization, min_instances: 1, max_instances: 5, target_utilization_percentage: 60, idle_to_zero_s: 900}
"""


@pytest.fixture
def cli(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunCommand]:
    with cli_of(console, monkeypatch) as run:
        yield run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models" / "densenet" / "1").mkdir(parents=True)
    (tmp_path / "models" / "densenet" / "1" / "model.onnx").write_bytes(b"onnx")
    (tmp_path / "triton.yml").write_text(TRITON)
    (tmp_path / "own.yml").write_text(OWN)
    return tmp_path


def rendered(cli: RunCommand, *arguments: str) -> Any:
    """The one resource, which KServe would take."""
    text = cli("online-deployment", "render", *arguments).stdout
    [found] = yaml.safe_load_all(text)
    jsonschema.validate(found, SCHEMA)
    return found


def test_a_triton_repository(cli: RunCommand, folder: Path) -> None:
    found = rendered(cli, "-f", str(folder / "triton.yml"), "--storage-uri", "pvc://models/vision")
    assert found["metadata"]["name"] == "vision-dense"
    assert found["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Knative"
    assert found["spec"]["predictor"] == {
        "minReplicas": 2, "maxReplicas": 2, "scaleMetric": "concurrency", "scaleTarget": 4,
        "containerConcurrency": 4, "timeout": 3 + 10 + 10 * 30,
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "model": {
            "runtime": "kserve-tritonserver", "modelFormat": {"name": "triton", "version": "2"},
            "protocolVersion": "v2", "storageUri": "pvc://models/vision", "env": [{"name": "LOG", "value": "1"}],
            "resources": {
                "requests": {"cpu": "4000m", "memory": "8589934592", "nvidia.com/gpu": "1"},
                "limits": {"cpu": "8000m", "memory": "17179869184", "nvidia.com/gpu": "1"},
            },
        },
    }  # fmt: skip


def test_a_server_that_comes_as_an_image(cli: RunCommand, folder: Path) -> None:
    found = rendered(cli, "-f", str(folder / "own.yml"), "--namespace", "models")
    assert found["metadata"]["namespace"] == "models"
    annotations = found["metadata"]["annotations"]
    assert annotations["autoscaling.knative.dev/target-utilization-percentage"] == "60"
    assert annotations["autoscaling.knative.dev/scale-to-zero-pod-retention-period"] == "900s"
    assert annotations["serving.knative.dev/progress-deadline"] == "1265s"
    predictor = found["spec"]["predictor"]
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (0, 5)
    [container] = predictor["containers"]
    assert container["image"] == "example/own:1" and container["ports"][0]["containerPort"] == 8080
    assert container["readinessProbe"]["httpGet"] == {"path": "/ready", "port": 8080}
    assert container["env"] == [
        {"name": "AZUREML_MODEL_DIR", "value": "/mnt/models"}, {"name": "STORAGE_URI", "value": "s3://models/own"},
    ]  # fmt: skip
    other = rendered(cli, "-f", str(folder / "own.yml"), "--image", "example/own:2", "--set", "model=")
    [container] = other["spec"]["predictor"]["containers"]
    assert container["image"] == "example/own:2" and "env" not in container


def test_the_image_of_a_package_serves_on_the_scorers_port(cli: RunCommand, folder: Path) -> None:
    (folder / "blue.yml").write_text(
        "name: blue\nendpoint_name: vision\ncode_configuration: {code: ., scoring_script: score.py}\n"
        "scale_settings: {type: rules, min_instances: 1, max_instances: 3, rules: [{condition: "
        '"CpuUtilizationPercentage > 70 avg 5m", scale: out 1}]}\n'
    )
    found = rendered(cli, "-f", str(folder / "blue.yml"), "--image", "churn:3")
    [container] = found["spec"]["predictor"]["containers"]
    assert (container["image"], container["ports"][0]["containerPort"]) == ("churn:3", 5001)
    assert "command" not in container
    as_list = cli(
        "online-deployment", "render", "-f", str(folder / "blue.yml"), "--image", "churn:3", "-o", "json"
    )
    assert json.loads(as_list.stdout)["items"] == [found]
    assert "rules and schedules" in as_list.stderr


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("triton.yml", (), "storage_uri: the pods cannot reach"),
        ("triton.yml", ("--set", "model.path=/no/where"), "there is no folder"),
        ("triton.yml", ("--set", "model=azureml:none:1"), "there is no registered model"),
        (
            "triton.yml",
            (
                "--set",
                f"endpoint_name=e{31 * 'x'}",
                "--set",
                f"name=d{31 * 'x'}",
                "--storage-uri",
                "pvc://a/b",
            ),
            "cannot be a name in a cluster",
        ),
        ("own.yml", ("--namespace", "Not Good"), "namespace: 'Not Good' cannot be a name"),
        ("own.yml", ("--set", "environment=azureml:none:1"), "there is no registered environment"),
        ("own.yml", ("--set", "environment.image="), "image: pods run an image"),
        ("own.yml", ("--set", "instance_cuont=2"), "instance_count"),
    ],
)
def test_what_cannot_be_written_out(
    cli: RunCommand, folder: Path, file: str, change: tuple[str, ...], says: str
) -> None:
    run = cli("online-deployment", "render", "-f", str(folder / file), *change, code=1)
    assert says in run.stderr, run.stderr


def test_a_repository_has_to_be_one(cli: RunCommand, folder: Path) -> None:
    """When it is registered as well as when it is written out."""
    (folder / "empty").mkdir()
    (folder / "flat" / "densenet").mkdir(parents=True)
    (folder / "flat" / "densenet" / "model.onnx").write_bytes(b"onnx")
    for path, says in (("empty", "is empty"), ("flat", "'densenet' has no version"), ("models", "")):
        arguments = (
            "model",
            "create",
            "--name",
            path,
            "--path",
            str(folder / path),
            "--type",
            "triton_model",
        )
        run = cli(*arguments, code=1 if says else 0)
        assert says in run.stderr
    found = rendered(
        cli, "-f", str(folder / "triton.yml"), "--set", "model=azureml:models:1", "--storage-uri", "gs://b/m"
    )
    assert found["spec"]["predictor"]["model"]["storageUri"] == "gs://b/m"
    refused = cli("online-deployment", "create", "-f", str(folder / "triton.yml"), code=1)
    assert "online-deployment render" in refused.stderr or "there is no online endpoint" in refused.stderr
