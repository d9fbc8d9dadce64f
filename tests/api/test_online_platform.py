"""Online endpoints through a whole platform: real environments, real scorers, calls through the gateway all the while."""

import json
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.processes import free_port
from tests import platform as platforms

SCRIPT = """
import json, os, math
def init():
    global model
    with open(os.path.join(os.environ["AZUREML_MODEL_DIR"], "model", "weights.json")) as file:
        model = json.load(file)
def run(data):
    rows = json.loads(data)["data"]
    return {"by": NAME, "scores": [sum(w * x for w, x in zip(model["weights"], row)) for row in rows]}
"""


class Shop:
    """An operator at a running platform, and a caller of its endpoint."""

    def __init__(self, platform: platforms.Platform, folder: Path) -> None:
        self.platform, self.folder = platform, folder
        self.client = httpx.Client(
            base_url=platform.url, headers={"authorization": f"Bearer {platform.admin_key}"}, timeout=60
        )
        with platform.client() as client:
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
        self.model = folder / "model"
        self.model.mkdir()
        (self.model / "weights.json").write_text('{"weights": [1, 10]}')

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = self.client.request(method, path, json=body)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def operate(self, method: str, path: str, body: Any = None) -> Any:
        """Do it and wait; the ended operation."""
        made = self.ask(method, path, body)
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            operation = self.ask("GET", made["operation"]["url"])
            if operation["state"] != "Running":
                return operation
            time.sleep(0.2)
        raise AssertionError(f"still {operation['phase']}")

    def deployment(self, name: str, script: str = SCRIPT, **fields: Any) -> dict[str, Any]:
        code = self.folder / f"code-{name}"
        code.mkdir(exist_ok=True)
        (code / "score.py").write_text(script.replace("NAME", repr(name)))
        return {
            "name": name,
            "model": {"path": str(self.model)},
            "code_configuration": {"code": str(code), "scoring_script": "score.py"},
            "environment": {"conda_file": {"dependencies": ["python=3.11", {"pip": []}]}},
            "instance_type": "Standard_DS3_v2",
            "instance_count": 1,
            "request_settings": {"max_concurrent_requests_per_instance": 8},
            "readiness_probe": {"initial_delay": 1, "period": 1},
        } | fields

    def key(self) -> str:
        return str(self.ask("POST", "/api/online-endpoints/shop/list-keys")["primaryKey"])


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with platforms.running(tmp_path_factory.mktemp("home")) as platform:
        shop = Shop(platform, tmp_path_factory.mktemp("mine"))
        shop.ask("POST", "/api/online-endpoints", {"name": "shop", "project": "acme/web"})
        yield shop


class Callers:
    """Call all the while; every answer is counted."""

    def __init__(self, shop: Shop, number: int) -> None:
        self._url, self._key = f"{shop.platform.url}/endpoints/shop/score", shop.key()
        self._over = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.by: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._run) for _ in range(number)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        with httpx.Client(headers={"authorization": f"Bearer {self._key}"}, timeout=30) as client:
            while not self._over.is_set():
                answer = client.post(self._url, json={"data": [[1, 2]]})
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    assert answer.json()["scores"] == [21]
                    self.by[answer.json()["by"]] += 1
                time.sleep(0.002)

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def score(shop: Shop, key: str, body: Any, **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(
        f"{shop.platform.url}/endpoints/shop/score",
        json=body,
        headers={"authorization": f"Bearer {key}"} | named,
        timeout=30,
    )


@pytest.mark.timeout(400)
def test_blue_and_green(shop: Shop) -> None:
    """Deployed, called, split, mirrored, promoted, updated under load, rolled back, refused, deleted."""
    key = shop.key()
    assert score(shop, key, {}).status_code == 404, "no deployment yet"
    blue = shop.deployment("blue")
    made = shop.operate("POST", "/api/online-endpoints/shop/deployments?all_traffic=true", blue)
    assert made["state"] == "Succeeded", made
    answer = score(shop, key, {"data": [[1, 2], [3, 4]]})
    assert (answer.status_code, answer.json()) == (200, {"by": "blue", "scores": [21, 43]})
    assert score(shop, key, "nonsense").status_code == 424
    green = shop.deployment("green")
    assert shop.operate("POST", "/api/online-endpoints/shop/deployments", green)["state"] == "Succeeded"
    assert score(shop, key, {"data": [[0, 1]]}, azureml_model_deployment="green").json()["by"] == "green"
    callers = Callers(shop, 4)
    try:
        shop.ask("PUT", "/api/online-endpoints/shop/traffic", {"mirror_traffic": {"green": 30}})
        time.sleep(2)
        assert set(callers.by) == {"blue"}, "a shadow answers nobody"
        shop.ask(
            "PUT",
            "/api/online-endpoints/shop/traffic",
            {"traffic": {"blue": 50, "green": 50}, "mirror_traffic": {}},
        )
        time.sleep(2)
        assert set(callers.by) == {"blue", "green"}, (
            callers.statuses,
            shop.ask("GET", "/api/online-endpoints/shop"),
        )
        shop.ask("PUT", "/api/online-endpoints/shop/traffic", {"traffic": {"green": 100}})
        time.sleep(1.5)
        before = callers.by["blue"]
        time.sleep(1)
        assert callers.by["blue"] == before
        changed = shop.deployment("green", SCRIPT + "\n# another\n", environment_variables={"A": "1"})
        updated = shop.operate("PUT", "/api/online-endpoints/shop/deployments/green", changed)
        assert updated["state"] == "Succeeded", updated
        time.sleep(1)
        shop.ask("PUT", "/api/online-endpoints/shop/traffic", {"traffic": {"blue": 100}})
        time.sleep(1.5)
    finally:
        callers.stop()
    assert set(callers.statuses) == {200}, callers.statuses
    assert callers.statuses[200] > 500
    broken = shop.deployment(
        "bad", "def init():\n    raise ValueError('no weights')\ndef run(data):\n    pass\n"
    )
    failed = shop.operate("POST", "/api/online-endpoints/shop/deployments", broken)
    assert failed["state"] == "Failed" and failed["error"]["code"] == "UserScriptInitFailed", failed
    assert "no weights" in failed["error"]["message"]
    missing = shop.deployment(
        "env", environment={"conda_file": {"dependencies": ["no-such-package-of-anybody"]}}
    )
    failed = shop.operate("POST", "/api/online-endpoints/shop/deployments", missing)
    assert failed["state"] == "Failed" and failed["error"]["code"] == "ImageBuildFailure", failed
    assert "no-such-package-of-anybody" in failed["error"]["message"]
    usage = shop.ask("GET", "/api/usage?organization=acme&group_by=endpoint")["data"]
    assert usage[0]["endpoint"] == "shop" and usage[0]["requests"] >= callers.statuses[200]
    renewed = shop.ask("POST", "/api/online-endpoints/shop/regenerate-keys", {"key_type": "primary"})
    deadline = time.monotonic() + 10
    while score(shop, key, {"data": []}).status_code != 401 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert score(shop, key, {"data": []}).status_code == 401
    assert score(shop, renewed["primaryKey"], {"data": []}).status_code == 200
    logs = shop.client.get("/api/online-endpoints/shop/deployments/blue/logs")
    assert logs.status_code == 200
    assert json.dumps(usage)


MLMODEL = """
flavors:
  python_function:
    loader_module: rooms_loader
    code: code
    data: data
    env: conda.yaml
signature:
  inputs: '[{"name": "a", "type": "double", "required": true}, {"name": "b", "type": "double", "required": true}]'
  outputs: '[{"type": "double"}]'
"""
LOADER = """
class Model:
    def predict(self, frame, params=None):
        return (frame["a"] + 10 * frame["b"]).to_numpy()
def _load_pyfunc(path):
    return Model()
"""
OWN = """
import http.server, os, json
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        length = int(self.headers.get("content-length", 0))
        body = json.dumps({"path": self.path, "got": self.rfile.read(length).decode()}).encode()
        self.send_response(200); self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body))); self.end_headers(); self.wfile.write(body)
    do_GET = do_POST = answer
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest.mark.timeout(400)
def test_an_mlflow_model_needs_no_script(shop: Shop) -> None:
    folder = shop.folder / "mlflow"
    (folder / "code").mkdir(parents=True)
    (folder / "data").mkdir()
    (folder / "MLmodel").write_text(MLMODEL)
    (folder / "code" / "rooms_loader.py").write_text(LOADER)
    (folder / "requirements.txt").write_text("mlflow-skinny\npandas\nnumpy\n")
    made = shop.operate(
        "POST",
        "/api/online-endpoints/shop/deployments",
        {"name": "mlflow", "model": {"path": str(folder), "type": "mlflow_model"}, "instance_count": 1}
        | {
            "readiness_probe": {"initial_delay": 1, "period": 1},
            "request_settings": {"request_timeout_ms": 20_000},
        },
    )
    assert made["state"] == "Succeeded", made
    key = shop.key()
    rows = {"input_data": {"columns": ["a", "b"], "index": [0, 1], "data": [[1.0, 2.0], [3.0, 4.0]]}}
    answer = score(shop, key, rows, azureml_model_deployment="mlflow")
    assert (answer.status_code, answer.json()) == (200, [21.0, 43.0])
    for wrong in (
        {"input_data": [{"a": 1, "b": 2}]},
        {"input_data": {"columns": ["a"], "data": [[1.0]]}},
        {"a": 1},
    ):
        refused = score(shop, key, wrong, azureml_model_deployment="mlflow")
        assert refused.status_code == 424
        assert refused.headers["ms-azureml-model-error-statuscode"] == "400"


def test_a_server_of_ones_own(shop: Shop) -> None:
    code = shop.folder / "own"
    code.mkdir()
    (code / "server.py").write_text(OWN)
    routes = {
        f"{kind}_route": {"port": 8000, "path": f"/{kind}"} for kind in ("liveness", "readiness", "scoring")
    }
    made = shop.operate(
        "POST",
        "/api/online-endpoints/shop/deployments",
        {
            "name": "own",
            "command": [sys.executable, str(code / "server.py")],
            "environment": {"image": "registry.test/own:1", "inference_config": routes},
            "readiness_probe": {"initial_delay": 1, "period": 1},
        },
    )
    assert made["state"] == "Succeeded", made
    answer = score(shop, shop.key(), {"a": 1}, azureml_model_deployment="own")
    assert (answer.status_code, answer.json()["path"]) == (200, "/scoring")
    assert json.loads(answer.json()["got"]) == {"a": 1}


def as_docker_would(archive: Path, root: Path) -> tuple[list[str], dict[str, str], Path]:
    """Follow the Dockerfile but for FROM and RUN: its command, variables and working directory, below `root`."""
    context = root / "context"
    with tarfile.open(archive) as packed:
        packed.extractall(context, filter="data")

    def inside(text: str) -> str:
        return text.replace("/var/azureml-app", f"{root}/app").replace("/opt/farebox", f"{root}/scorer")

    command: list[str] = []
    variables, directory = {}, root
    for line in (context / "Dockerfile").read_text().splitlines():
        verb, _, rest = line.partition(" ")
        if verb == "COPY" and not rest.startswith("requirements"):
            source, _, target = rest.partition(" ")
            shutil.copytree(context / source, inside(target))
        elif verb == "ENV":
            name, _, value = rest.partition("=")
            variables[name] = inside(json.loads(value))
        elif verb == "WORKDIR":
            directory = Path(inside(rest))
        elif verb == "CMD":
            command = [inside(each) for each in json.loads(rest)]
    return command, variables, directory


@pytest.mark.timeout(300)
def test_a_model_is_packaged_deployed_and_taken_elsewhere(shop: Shop, tmp_path: Path) -> None:
    """Frozen as it is now: edits afterwards change nothing; the same runs without Farebox."""
    code = tmp_path / "code"
    code.mkdir()
    (code / "score.py").write_text(SCRIPT.replace("NAME", "os.environ['BY']"))
    (tmp_path / "packed.yml").write_text(
        """
$schema: http://azureml/sdk-2-0/ModelVersionPackage.json
base_environment_source: {type: environment_asset, resource_id: azureml:plain:1}
target_environment: packed
inferencing_server:
  type: azureml_online
  code_configuration: {code: code, scoring_script: score.py}
model_configuration: {mode: copy}
environment_variables: {BY: the package}
"""
    )
    cli, archive = shop.platform.cli, tmp_path / "packed.tar"
    shop.ask(
        "POST", "/api/environments",
        {"name": "plain", "conda_file": {"dependencies": ["python=3.11", {"pip": []}]}},
    )  # fmt: skip
    cli("model", "create", "--name", "weights", "--path", str(shop.model))
    asked = ("--name", "weights", "--version", "1", "-f", str(tmp_path / "packed.yml"))
    made = json.loads(cli("model", "package", *asked, "--archive", str(archive), "-o", "json").stdout)
    assert (made["id"], made["document"]["package"]["kind"]) == ("azureml:packed:1", "script")
    (code / "score.py").write_text("raise SystemExit")
    spec = {
        "name": "packed",
        "environment": "azureml:packed:1",
        "readiness_probe": {"initial_delay": 1, "period": 1},
    }
    deployed = shop.operate("POST", "/api/online-endpoints/shop/deployments", spec)
    assert deployed["state"] == "Succeeded", deployed
    answer = score(shop, shop.key(), {"data": [[1, 2]]}, azureml_model_deployment="packed")
    assert answer.json() == {"by": "the package", "scores": [21]}
    changed = shop.operate(
        "PATCH", "/api/online-endpoints/shop/deployments/packed", {"environment_variables": {"BY": "me"}}
    )
    assert changed["state"] == "Succeeded", changed
    answer = score(shop, shop.key(), {"data": [[1, 2]]}, azureml_model_deployment="packed")
    assert answer.json() == {"by": "me", "scores": [21]}
    # Elsewhere: what `docker run` would start, with the interpreter of the same environment.
    command, variables, directory = as_docker_would(archive, tmp_path / "image")
    python = next(
        each for each in shop.platform.running("farebox_scorer") if "/pkg_" in " ".join(each.cmdline())
    )
    port = free_port()
    command = [python.cmdline()[0], *command[1:-4], "--port", str(port), *command[-2:]]
    process = subprocess.Popen(command, env={"PATH": "/usr/bin:/bin"} | variables, cwd=directory)
    try:
        there = httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=httpx.HTTPTransport(retries=8))
        assert there.post("/score", json={"data": [[0, 3]]}).json() == {"by": "the package", "scores": [30]}
        there.close()
    finally:
        process.kill()
        process.wait()


def test_packages_are_refused_where_they_do_not_fit(shop: Shop) -> None:
    shop.ask("POST", "/api/registered-models", {"name": "bare", "path": str(shop.model)})
    path = "/api/registered-models/bare/versions/1/package"
    for body, status, param in (
        ({"target_environment": "x"}, 422, "inferencing_server.code_configuration"),
        ({}, 422, "target_environment"),
        ({"target_environment": "x", "inferencing_servre": {}}, 422, "inferencing_servre"),
        ({"target_environment": "x", "base_environment_source": {"resource_id": "azureml:no:1"}}, 404,
         "base_environment_source.resource_id"),
        ({"target_environment": "a/b"}, 422, "inferencing_server.code_configuration"),
    ):  # fmt: skip
        answer = shop.client.post(path, json=body)
        assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
    missing = shop.client.post(
        "/api/registered-models/no/versions/1/package", json={"target_environment": "x"}
    )
    assert missing.status_code == 404
    with_code = shop.deployment("wrong") | {"environment": "azureml:packed:1"}
    refused = shop.client.post("/api/online-endpoints/shop/deployments", json=with_code)
    assert (refused.status_code, refused.json()["param"]) == (422, "model")
    assert shop.client.get("/api/environments/plain/versions/1/package").json()["code"] == "no_package"
    online = shop.platform.home / "online"
    assert len([each for each in online.iterdir() if each.name.startswith("pkg_")]) == 1, (
        "nothing is left of refusals"
    )


@pytest.mark.timeout(200)
def test_with_package(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCRIPT.replace("NAME", "'frozen'"))
    (tmp_path / "frozen.yml").write_text(
        "name: frozen\nendpoint_name: shop\nmodel: azureml:weights@latest\nenvironment: azureml:plain:1\n"
        "code_configuration: {code: ., scoring_script: score.py}\nreadiness_probe: {initial_delay: 1, period: 1}\n"
    )
    run = shop.platform.cli(
        "online-deployment", "create", "-f", str(tmp_path / "frozen.yml"), "--with-package"
    )
    assert "Packaged as azureml:shop-frozen-package:1" in run.stderr
    answer = score(shop, shop.key(), {"data": [[1, 2]]}, azureml_model_deployment="frozen")
    assert answer.json() == {"by": "frozen", "scores": [21]}
    inline = shop.platform.cli(
        "online-deployment", "create", "-f", str(tmp_path / "frozen.yml"), "--set", "model={path: /m}",
        "--with-package", ok=False,
    )  # fmt: skip
    assert inline.returncode == 2 and "azureml:NAME:VERSION" in inline.stderr
