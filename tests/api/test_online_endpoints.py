"""Online endpoints and their deployments over the management API."""

import os
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from serving.online import store
from tests.api.console_platform import ConsolePlatform, open_platform

SCORE = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    made = open_platform(tmp_path)
    made.project()
    return made


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "score.py").write_text(SCORE)
    return folder


def _endpoint(console: ConsolePlatform, name: str = "shop", **fields: Any) -> Any:
    answer = console.client.post("/api/online-endpoints", json={"name": name, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def _blue(code: Path, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, "code_configuration": {"code": str(code), "scoring_script": "score.py"}, **fields}


def _deploy(console: ConsolePlatform, document: dict[str, Any], query: str = "") -> Any:
    answer = console.client.post(f"/api/online-endpoints/shop/deployments{query}", json=document)
    assert answer.status_code == 202, answer.text
    return answer.json()


def _finish(
    console: ConsolePlatform, deployment: dict[str, Any], failure: tuple[str, str] | None = None
) -> None:
    """As the runtime does."""
    with console.db.begin() as connection:
        assert store.finish_provisioning(
            connection, deployment["id"], deployment["generation"], failure, console.clock.now_ms()
        )


def _refused(answer: Any, status: int, param: str | None = None, *says: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem.get("param")) == (status, param), answer.text
    for part in says:
        assert part in problem["detail"], problem["detail"]
    return problem


# --- endpoints ------------------------------------------------------------------------------------


def test_an_endpoint_is_created_shown_changed_and_deleted(console: ConsolePlatform) -> None:
    made = _endpoint(console, tags={"team": "a", "cost": 7}, description="Sells.")
    assert made["provisioning_state"] == "Succeeded" and made["tags"] == {"team": "a", "cost": "7"}
    assert made["scoring_uri"] == "http://farebox.test:8080/endpoints/shop/score"
    operation = console.get(made["operation"]["url"])
    assert (operation["state"], operation["kind"]) == ("Succeeded", "endpoint.create")
    assert console.get("/api/online-endpoints/shop") == made | {"operation": None}
    assert [each["name"] for each in console.get("/api/online-endpoints")["data"]] == ["shop"]
    assert console.get("/api/serverless-endpoints")["data"] == []
    patched = console.client.patch("/api/online-endpoints/shop", json={"tags": {"new": "b"}}).json()
    assert patched["tags"] == {"team": "a", "cost": "7", "new": "b"} and patched["description"] == "Sells."
    replaced = console.client.put("/api/online-endpoints/shop", json={"auth_mode": "aml_token"}).json()
    assert (replaced["tags"], replaced["auth_mode"]) == ({}, "aml_token")
    gone = console.client.delete("/api/online-endpoints/shop")
    assert (gone.status_code, gone.json()["provisioning_state"]) == (202, "Deleting")
    assert gone.headers["operation-location"] == gone.json()["operation"]["url"]
    _refused(console.client.get("/api/online-endpoints/shop"), 404, "name")
    _endpoint(console)  # the name is free again


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "name", "expected a text"),
        ({"name": "a"}, "name", "3 to 32"),
        ({"name": "shop", "auth_mod": "key"}, "auth_mod", "did you mean 'auth_mode'"),
        ({"name": "shop", "auth_mode": "password"}, "auth_mode", "'key', 'aml_token' or 'aad_token'"),
        ({"name": "shop", "traffic": {"blue": 100}}, "traffic.blue", "has no deployment yet"),
        ({"name": "shop", "tags": {"a": ["b"]}}, "tags.a", "expected a text"),
        (
            {"name": "shop", "public_network_access": "off"},
            "public_network_access",
            "'enabled' or 'disabled'",
        ),
        (
            {"name": "shop", "identity": {"type": "user_assigned"}},
            "identity.user_assigned_identities",
            "missing",
        ),
        ({"name": "shop", "compute": "azureml:k8s", "auth_mode": "aad_token"}, "auth_mode", "Kubernetes"),
    ],
)
def test_bad_endpoints_name_the_field(
    console: ConsolePlatform, body: dict[str, Any], param: str, says: str
) -> None:
    _refused(console.client.post("/api/online-endpoints", json=body), 422, param, says)


def test_what_has_no_effect_is_reported(console: ConsolePlatform) -> None:
    made = _endpoint(
        console, **{"$schema": "https://azuremlschemas.azureedge.net/x.json", "location": "west"}
    )
    assert [note.partition(":")[0] for note in made["notes"]] == ["$schema", "location"]


def test_the_limit_of_endpoints(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.online.rules.MAX_ENDPOINTS", 1)
    _endpoint(console)
    problem = _refused(console.client.post("/api/online-endpoints", json={"name": "second"}), 409)
    assert problem["code"] == "OutOfQuota"


# --- keys and tokens ------------------------------------------------------------------------------


def test_one_key_is_renewed_and_the_other_stays(console: ConsolePlatform) -> None:
    _endpoint(console)
    before = console.post("/api/online-endpoints/shop/list-keys")
    after = console.post("/api/online-endpoints/shop/regenerate-keys")  # primary is the default
    assert after["primaryKey"] != before["primaryKey"] and after["secondaryKey"] == before["secondaryKey"]
    answer = console.client.post("/api/online-endpoints/shop/regenerate-keys", json={"key_type": "third"})
    _refused(answer, 422, "key_type", "'primary' or 'secondary'")
    _refused(console.client.post("/api/online-endpoints/shop/token"), 409, "auth_mode", "has auth_mode key")


def test_a_token_is_short_lived_and_another_mode_closes_what_was_open(console: ConsolePlatform) -> None:
    _endpoint(console, auth_mode="aml_token")
    _refused(console.client.post("/api/online-endpoints/shop/list-keys"), 409, "auth_mode", "token instead")
    _refused(console.client.post("/api/online-endpoints/shop/regenerate-keys", json={}), 409, "auth_mode")
    token = console.post("/api/online-endpoints/shop/token")
    assert token["expiryTimeUtc"] > token["refreshAfterTimeUtc"]
    key = console.as_key(token["accessToken"])
    assert (
        console.client.get("/api/events/schemas", headers=key).status_code == 200
    )  # it is a key of the endpoint
    assert console.client.get("/api/online-endpoints", headers=key).status_code == 403
    console.clock.advance(3600 * 1000 + 1)
    assert console.client.get("/api/events/schemas", headers=key).status_code == 401
    again = console.as_key(console.post("/api/online-endpoints/shop/token")["accessToken"])
    console.client.patch("/api/online-endpoints/shop", json={"auth_mode": "key"})
    assert console.client.get("/api/events/schemas", headers=again).status_code == 401
    assert console.post("/api/online-endpoints/shop/list-keys")["primaryKey"]


# --- deployments ----------------------------------------------------------------------------------


def test_a_deployment_is_created_with_copies_of_its_own(
    console: ConsolePlatform, code: Path, tmp_path: Path
) -> None:
    model = tmp_path / "weights.bin"
    model.write_bytes(b"w" * 1000)
    _endpoint(console)
    made = _deploy(console, _blue(code, model={"path": str(model)}, instance_type="Standard_DS3_v2"))
    assert (made["kind"], made["provisioning_state"], made["generation"]) == ("script", "Creating", 1)
    assert made["operation"]["state"] == "Running"
    assert any(note.startswith("instance_type: ") for note in made["notes"])
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=made["id"])
    assert found is not None
    home = tmp_path / "online" / made["id"] / "1"
    assert (found.spec.code_path, found.spec.model_path) == (
        str(home / "code"),
        str(home / "model/weights.bin"),
    )
    assert found.spec.model_dir == str(home / "model")
    (code / "score.py").write_text("broken")
    assert (home / "code/score.py").read_text() == SCORE
    assert list((tmp_path / "online/.staging").iterdir()) == []
    _finish(console, made)
    shown = console.get("/api/online-endpoints/shop/deployments/blue")
    assert shown["provisioning_state"] == "Succeeded"
    assert console.get(made["operation"]["url"])["state"] == "Succeeded"
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 0}


def test_all_traffic_comes_with_readiness(console: ConsolePlatform, code: Path) -> None:
    _endpoint(console)
    made = _deploy(console, _blue(code), "?all_traffic=true")
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 0}
    _finish(console, made)
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 100}


def test_a_second_change_waits_but_deletion_cancels(console: ConsolePlatform, code: Path) -> None:
    _endpoint(console)
    blue = _deploy(console, _blue(code))
    for method, path, body in (
        ("POST", "/deployments", _blue(code, "green")),
        ("PATCH", "/deployments/blue", {"instance_count": 1}),
        ("PUT", "/traffic", {"traffic": {"blue": 100}}),
        ("PATCH", "", {"description": "x"}),
        ("DELETE", "", None),
    ):
        answer = console.client.request(method, f"/api/online-endpoints/shop{path}", json=body)
        problem = _refused(answer, 409, None, "operation in progress: the creation of a deployment")
        assert problem["operation"] == blue["operation"]["id"] and answer.headers["retry-after"] == "5"
    assert console.client.delete("/api/online-endpoints/shop/deployments/blue").status_code == 202
    assert console.get(blue["operation"]["url"])["error"]["code"] == "OperationCanceled"
    _deploy(console, _blue(code))


def test_a_failure_is_shown_and_the_next_attempt_is_a_new_generation(
    console: ConsolePlatform, code: Path
) -> None:
    _endpoint(console)
    made = _deploy(console, _blue(code))
    _finish(console, made, ("UserScriptInitFailed", "init() raised KeyError"))
    shown = console.get("/api/online-endpoints/shop/deployments/blue")
    assert shown["failure"] == {"code": "UserScriptInitFailed", "message": "init() raised KeyError"}
    again = console.client.put("/api/online-endpoints/shop/deployments/blue", json=_blue(code)).json()
    assert (again["generation"], again["provisioning_state"], again["failure"]) == (2, "Updating", None)


def test_which_changes_start_new_processes(console: ConsolePlatform, code: Path, tmp_path: Path) -> None:
    _endpoint(console)
    _finish(console, _deploy(console, _blue(code)))
    path = "/api/online-endpoints/shop/deployments/blue"
    same = console.client.put(path, json=_blue(code, tags={"a": "b"})).json()
    assert (same["generation"], same["provisioning_state"], same["operation"]["state"]) == (
        1, "Succeeded", "Succeeded",
    )  # fmt: skip
    assert len(list((tmp_path / "online" / same["id"]).iterdir())) == 1
    limits = console.client.patch(path, json={"request_settings": {"request_timeout_ms": 9000}}).json()
    assert limits["provisioning_state"] == "Succeeded" and limits["tags"] == {"a": "b"}
    assert limits["request_settings"]["request_timeout_ms"] == 9000
    more = console.client.patch(path, json={"instance_count": 2}).json()
    assert (more["generation"], more["provisioning_state"], more["instance_count"]) == (1, "Updating", 2)
    _finish(console, more)
    (code / "score.py").write_text(SCORE + "# edited\n")
    kept = console.client.patch(path, json={"environment_variables": {"DEBUG": True}}).json()
    assert (kept["generation"], kept["environment_variables"]) == (2, {"DEBUG": "true"})
    _finish(console, kept)
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=kept["id"])
    assert found is not None and (Path(found.spec.code_path) / "score.py").read_text() == SCORE
    edited = console.client.put(path, json=_blue(code)).json()
    assert edited["generation"] == 3
    assert (tmp_path / "online" / kept["id"] / "3/code/score.py").read_text().endswith("# edited\n")


def test_traffic_and_deletion(console: ConsolePlatform, code: Path) -> None:
    _endpoint(console)
    for name in ("blue", "green"):
        _finish(console, _deploy(console, _blue(code, name)))
    split = console.client.put("/api/online-endpoints/shop/traffic", json={"traffic": {"blue": 100}})
    assert split.json()["traffic"] == {"blue": 100, "green": 0}
    both = {"mirror_traffic": {"green": 10}}
    assert (
        console.client.put("/api/online-endpoints/shop/traffic", json=both).json()["mirror_traffic"]["green"]
        == 10
    )
    _refused(console.client.put("/api/online-endpoints/shop/traffic", json={}), 422, "traffic")
    answer = console.client.put(
        "/api/online-endpoints/shop/traffic", json={"traffic": {"blue": 60, "green": 30}}
    )
    _refused(answer, 422, "traffic", "sum to 90")
    for name, says in (("blue", "100 % of the live traffic"), ("green", "10 % of the traffic as copies")):
        _refused(console.client.delete(f"/api/online-endpoints/shop/deployments/{name}"), 409, "name", says)
    cleared = {"traffic": {"green": 100}, "mirror_traffic": {"green": 0}}
    assert console.client.put("/api/online-endpoints/shop/traffic", json=cleared).status_code == 202
    assert console.client.delete("/api/online-endpoints/shop/deployments/blue").status_code == 202
    names = [each["name"] for each in console.get("/api/online-endpoints/shop/deployments")["data"]]
    assert names == ["green"]
    _refused(console.client.get("/api/online-endpoints/shop/deployments/gren"), 404, "deployment", "'green'")


def test_kinds_follow_from_what_is_given(console: ConsolePlatform, code: Path, tmp_path: Path) -> None:
    console.add_model()
    _endpoint(console)
    mlflow = tmp_path / "pipeline"
    mlflow.mkdir()
    (mlflow / "MLmodel").write_text("flavors: {}\n")
    for name, document, kind in (
        ("one", {"model": {"path": str(mlflow), "type": "mlflow_model"}}, "mlflow"),
        ("two", {"model": "acme/mock-chat"}, "catalog"),
        ("three", {"model": "azureml://registries/azureml/models/mock-chat/versions/4"}, "catalog"),
        ("four", {"command": "python server.py --port {port}", "code_configuration": None}, "command"),
    ):
        made = _deploy(console, {"name": name, **document})
        assert made["kind"] == kind
        _finish(console, made)
    refused = console.client.delete("/api/models/acme/mock-chat")
    assert "shop/three, shop/two" in refused.json()["detail"]


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "param", "says"),
    [
        ({"name": "b"}, 422, "name", "3 to 32"),
        ({"instance_cout": 1}, 422, "instance_cout", "did you mean 'instance_count'"),
        ({"instance_count": "1"}, 422, "instance_count", "expected a valid integer"),
        ({"instance_count": 51}, 422, "instance_count", "less than or equal to 50"),
        ({"model": {"pth": "/x"}}, 422, "model.pth", "did you mean 'path'"),
        ({"model": {"path": "model"}}, 422, "model.path", "expected an absolute path"),
        ({"model": {"path": "/there/is/none"}}, 422, "model.path", "there is nothing at '/there/is/none'"),
        ({"model": {"path": "azureml://jobs/x"}}, 422, "model.path", "of this machine"),
        ({"model": {"path": "/tmp", "type": "triton_model"}}, 422, "model.type", "needs Triton's own server"),
        ({"model": "azureml:churn:1"}, 404, "model", "farebox model create"),
        ({"model": "acme/mock-chad"}, 404, "model", "farebox model list"),
        ({"code_configuration": {"code": "/nowhere", "scoring_script": "a.py"}}, 422, "code_configuration.code", "no"),
        ({"code_configuration": {"code": "/"}}, 422, "code_configuration.scoring_script", "missing"),
        ({"environment": "azureml:sklearn@latest"}, 422, "environment", "farebox environment create"),
        ({"environment": {"name": "x"}}, 422, "environment.conda_file", "missing"),
        ({"environment": {"conda_file": "/nowhere.yml"}}, 422, "environment.conda_file", "cannot be read"),
        ({"environment": {"conda_file": {}, "inference_config": {"scoring_route": {"port": 1}}}}, 422,
         "environment.inference_config.liveness_route", "missing"),
        ({"request_settings": {"request_timeout_ms": 200_000}}, 422, "request_settings.request_timeout_ms", "180000"),
        ({"liveness_probe": {"success_threshold": 2}}, 422, "liveness_probe.success_threshold", "1"),
        ({"readiness_probe": {"period": 0}}, 422, "readiness_probe.period", "greater than or equal to 1"),
        ({"resources": {"requests": {"memory": "500m"}}}, 422, "resources.requests.memory", "capital M"),
        ({"resources": {"requests": {"cpu": "4"}, "limits": {"cpu": "1"}}}, 422, "resources.limits.cpu", "below"),
        ({"resources": {"requests": {"nvidia.com/gpu": "1.5"}}}, 422, "resources.requests.nvidia.com/gpu", "whole"),
        ({"resources": {"requests": {"cpu": "4096"}}}, 409, "resources.requests", "the machine has"),
        ({"scale_settings": {"type": "target_utilization", "min_instances": 3}}, 422,
         "scale_settings.max_instances", "below"),
        ({"scale_settings": {"polling_interval": "soon"}}, 422, "scale_settings.polling_interval", "PT10S"),
        ({"environment_variables": {"PORT": "80"}}, 422, "environment_variables.PORT", "set for each instance"),
        ({"environment_variables": {"A": {"b": 1}}}, 422, "environment_variables.A", "a text, a number"),
        ({"command": "unclosed 'quote"}, 422, "command", "write it as a list"),
    ],
)  # fmt: skip
def test_bad_deployments_name_the_field(
    console: ConsolePlatform,
    code: Path,
    tmp_path: Path,
    change: dict[str, Any],
    status: int,
    param: str,
    says: str,
) -> None:
    _endpoint(console)
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=_blue(code) | change)
    _refused(answer, status, param, says)
    assert not list((tmp_path / "online").glob("*/*"))


def test_a_model_that_is_huge_or_a_loop_is_not_copied(tmp_path: Path, code: Path) -> None:
    console = open_platform(tmp_path, Settings(home=tmp_path, online_model_max_bytes=1000))
    console.project()
    _endpoint(console)
    large = tmp_path / "large"
    large.mkdir()
    (large / "weights").write_bytes(b"w" * 1001)
    document = _blue(code, model={"path": str(large)})
    _refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        413,
        "model.path",
        "1000",
    )
    (large / "weights").unlink()
    (large / "loop").symlink_to(large)
    _refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        422,
        "model.path",
        "link",
    )
    (large / "loop").unlink()
    os.mkfifo(large / "pipe")
    _refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        422,
        "model.path",
        "regular",
    )


def test_a_script_outside_its_folder_and_a_missing_one(console: ConsolePlatform, code: Path) -> None:
    _endpoint(console)
    for script, says in (("../secret.py", "below the code folder"), ("scor.py", "there is no 'scor.py'")):
        document = _blue(code)
        document["code_configuration"]["scoring_script"] = script
        answer = console.client.post("/api/online-endpoints/shop/deployments", json=document)
        _refused(answer, 422, "code_configuration.scoring_script", says)


def test_names_in_path_and_document_agree(console: ConsolePlatform, code: Path) -> None:
    _endpoint(console)
    answer = console.client.put("/api/online-endpoints/shop/deployments/green", json=_blue(code))
    _refused(answer, 422, "name", "expected 'green'")
    answer = console.client.post(
        "/api/online-endpoints/shop/deployments", json=_blue(code, endpoint_name="other")
    )
    _refused(answer, 422, "endpoint_name", "expected 'shop'")
    _refused(console.client.get("/api/operations/op_x"), 404, "operation")


def test_twenty_one_deployments_do_not_fit(
    console: ConsolePlatform, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.online.rules.MAX_DEPLOYMENTS_PER_ENDPOINT", 1)
    _endpoint(console)
    _finish(console, _deploy(console, _blue(code)))
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=_blue(code, "green"))
    assert _refused(answer, 409)["code"] == "OutOfQuota"


# --- registered models and environments -----------------------------------------------------------


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
    _refused(again, 409, "version", "other content")
    made = console.post("/api/environments", name="sk", version=3, conda_file=str(conda))
    assert made["document"]["conda_file"]["dependencies"][0] == "python=3.11"
    _endpoint(console)
    deployed = _deploy(console, _blue(code, model="azureml:churn@latest", environment="azureml:sk:3"))
    assert deployed["environment"]["conda_file"]["dependencies"][1] == {"pip": ["numpy"]}
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=deployed["id"])
    assert found is not None and (found.spec.model_name, found.spec.model_version) == ("churn", "2")
    assert found.spec.model_path.endswith("/1/model/mine")
    assert console.get("/api/registered-models?name=churn&limit=1")["next"]
    assert console.get("/api/environments/sk/versions/latest") == made
    console.client.delete("/api/environments/sk/versions/3")
    _refused(console.client.get("/api/environments/sk/versions/3"), 404, "name")


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
    _refused(console.client.post(f"/api/{path}", json=body), 422, param)


def test_logs_say_when_there_are_none_yet(
    console: ConsolePlatform, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _endpoint(console)
    made = _deploy(console, _blue(code))
    path = "/api/online-endpoints/shop/deployments/blue/logs"
    assert console.client.get(f"{path}?lines=5").text == f"log of {made['id']}\n5 lines\n"
    assert console.client.get(f"{path}?container=storage-initializer").text.startswith("code: ")
    _refused(console.client.get(f"{path}?container=other"), 422, "container")
    monkeypatch.setattr(console.runtime, "tail_log", lambda *_: "")
    assert "try again later" in console.client.get(path).text
