"""Online endpoints and their deployments over the management API."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from serving.model import LiveStatus
from serving.online import store
from tests.api.console_platform import SERVED, ConsolePlatform, open_platform
from tests.api.online_calls import SCORE, blue, deploy, endpoint, finish, refused

# --- endpoints ------------------------------------------------------------------------------------


def test_an_endpoint_is_created_shown_changed_and_deleted(console: ConsolePlatform) -> None:
    made = endpoint(console, tags={"team": "a", "cost": 7}, description="Sells.")
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
    refused(console.client.get("/api/online-endpoints/shop"), 404, "name")
    endpoint(console)  # the name is free again


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
    refused(console.client.post("/api/online-endpoints", json=body), 422, param, says)


def test_what_has_no_effect_is_reported(console: ConsolePlatform) -> None:
    made = endpoint(console, **{"$schema": "https://azuremlschemas.azureedge.net/x.json", "location": "west"})
    assert [note.partition(":")[0] for note in made["notes"]] == ["$schema", "location"]


def test_the_limit_of_endpoints(console: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.online.rules.MAX_ENDPOINTS", 1)
    endpoint(console)
    problem = refused(console.client.post("/api/online-endpoints", json={"name": "second"}), 409)
    assert problem["code"] == "OutOfQuota"


# --- keys and tokens ------------------------------------------------------------------------------


def test_one_key_is_renewed_and_the_other_stays(console: ConsolePlatform) -> None:
    endpoint(console)
    before = console.post("/api/online-endpoints/shop/list-keys")
    after = console.post("/api/online-endpoints/shop/regenerate-keys")  # primary is the default
    assert after["primaryKey"] != before["primaryKey"] and after["secondaryKey"] == before["secondaryKey"]
    answer = console.client.post("/api/online-endpoints/shop/regenerate-keys", json={"key_type": "third"})
    refused(answer, 422, "key_type", "'primary' or 'secondary'")
    refused(console.client.post("/api/online-endpoints/shop/token"), 409, "auth_mode", "has auth_mode key")


def test_a_token_is_short_lived_and_another_mode_closes_what_was_open(console: ConsolePlatform) -> None:
    endpoint(console, auth_mode="aml_token")
    refused(console.client.post("/api/online-endpoints/shop/list-keys"), 409, "auth_mode", "token instead")
    refused(console.client.post("/api/online-endpoints/shop/regenerate-keys", json={}), 409, "auth_mode")
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
    endpoint(console)
    made = deploy(console, blue(code, model={"path": str(model)}, instance_type="Standard_DS3_v2"))
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
    finish(console, made)
    shown = console.get("/api/online-endpoints/shop/deployments/blue")
    assert shown["provisioning_state"] == "Succeeded"
    assert console.get(made["operation"]["url"])["state"] == "Succeeded"
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 0}


def test_all_traffic_comes_with_readiness(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    made = deploy(console, blue(code), "?all_traffic=true")
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 0}
    finish(console, made)
    assert console.get("/api/online-endpoints/shop")["traffic"] == {"blue": 100}


def test_a_second_change_waits_but_deletion_cancels(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    made = deploy(console, blue(code))
    for method, path, body in (
        ("POST", "/deployments", blue(code, "green")),
        ("PATCH", "/deployments/blue", {"instance_count": 1}),
        ("PUT", "/traffic", {"traffic": {"blue": 100}}),
        ("PATCH", "", {"description": "x"}),
        ("DELETE", "", None),
    ):
        answer = console.client.request(method, f"/api/online-endpoints/shop{path}", json=body)
        problem = refused(answer, 409, None, "operation in progress: the creation of a deployment")
        assert problem["operation"] == made["operation"]["id"] and answer.headers["retry-after"] == "5"
    assert console.client.delete("/api/online-endpoints/shop/deployments/blue").status_code == 202
    assert console.get(made["operation"]["url"])["error"]["code"] == "OperationCanceled"
    deploy(console, blue(code))


def test_of_two_changes_at_once_one_waits(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    gate = threading.Barrier(2)

    def create(name: str) -> int:
        gate.wait()
        path = "/api/online-endpoints/shop/deployments"
        return int(console.client.post(path, json=blue(code, name)).status_code)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(create, ["blue", "green"])) == [202, 409]
    assert len(console.get("/api/online-endpoints/shop/deployments")["data"]) == 1


def test_a_failure_is_shown_and_the_next_attempt_is_a_new_generation(
    console: ConsolePlatform, code: Path
) -> None:
    endpoint(console)
    made = deploy(console, blue(code))
    finish(console, made, ("UserScriptInitFailed", "init() raised KeyError"))
    shown = console.get("/api/online-endpoints/shop/deployments/blue")
    assert shown["failure"] == {"code": "UserScriptInitFailed", "message": "init() raised KeyError"}
    again = console.client.put("/api/online-endpoints/shop/deployments/blue", json=blue(code)).json()
    assert (again["generation"], again["provisioning_state"], again["failure"]) == (2, "Updating", None)


def test_which_changes_start_new_processes(console: ConsolePlatform, code: Path, tmp_path: Path) -> None:
    endpoint(console)
    finish(console, deploy(console, blue(code)))
    path = "/api/online-endpoints/shop/deployments/blue"
    same = console.client.put(path, json=blue(code, tags={"a": "b"})).json()
    assert (same["generation"], same["provisioning_state"], same["operation"]["state"]) == (
        1, "Succeeded", "Succeeded",
    )  # fmt: skip
    assert len(list((tmp_path / "online" / same["id"]).iterdir())) == 1
    limits = console.client.patch(path, json={"request_settings": {"request_timeout_ms": 9000}}).json()
    assert limits["provisioning_state"] == "Succeeded" and limits["tags"] == {"a": "b"}
    assert limits["request_settings"]["request_timeout_ms"] == 9000
    more = console.client.patch(path, json={"instance_count": 2}).json()
    assert (more["generation"], more["provisioning_state"], more["instance_count"]) == (1, "Updating", 2)
    finish(console, more)
    (code / "score.py").write_text(SCORE + "# edited\n")
    kept = console.client.patch(path, json={"environment_variables": {"DEBUG": True}}).json()
    assert (kept["generation"], kept["environment_variables"]) == (2, {"DEBUG": "true"})
    finish(console, kept)
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=kept["id"])
    assert found is not None and (Path(found.spec.code_path) / "score.py").read_text() == SCORE
    edited = console.client.put(path, json=blue(code)).json()
    assert edited["generation"] == 3
    assert (tmp_path / "online" / kept["id"] / "3/code/score.py").read_text().endswith("# edited\n")


def test_traffic_and_deletion(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    for name in ("blue", "green"):
        finish(console, deploy(console, blue(code, name)))
    split = console.client.put("/api/online-endpoints/shop/traffic", json={"traffic": {"blue": 100}})
    assert split.json()["traffic"] == {"blue": 100, "green": 0}
    both = {"mirror_traffic": {"green": 10}}
    assert (
        console.client.put("/api/online-endpoints/shop/traffic", json=both).json()["mirror_traffic"]["green"]
        == 10
    )
    refused(console.client.put("/api/online-endpoints/shop/traffic", json={}), 422, "traffic")
    answer = console.client.put(
        "/api/online-endpoints/shop/traffic", json={"traffic": {"blue": 60, "green": 30}}
    )
    refused(answer, 422, "traffic", "sum to 90")
    for name, says in (("blue", "100 % of the live traffic"), ("green", "10 % of the traffic as copies")):
        refused(console.client.delete(f"/api/online-endpoints/shop/deployments/{name}"), 409, "name", says)
    cleared = {"traffic": {"green": 100}, "mirror_traffic": {"green": 0}}
    assert console.client.put("/api/online-endpoints/shop/traffic", json=cleared).status_code == 202
    assert console.client.delete("/api/online-endpoints/shop/deployments/blue").status_code == 202
    names = [each["name"] for each in console.get("/api/online-endpoints/shop/deployments")["data"]]
    assert names == ["green"]
    refused(console.client.get("/api/online-endpoints/shop/deployments/gren"), 404, "deployment", "'green'")


def test_kinds_follow_from_what_is_given(console: ConsolePlatform, code: Path, tmp_path: Path) -> None:
    console.add_model(SERVED)
    endpoint(console)
    mlflow = tmp_path / "pipeline"
    mlflow.mkdir()
    (mlflow / "MLmodel").write_text("flavors: {}\n")
    for name, document, kind in (
        ("one", {"model": {"path": str(mlflow), "type": "mlflow_model"}}, "mlflow"),
        ("two", {"model": "acme/served"}, "catalog"),
        ("three", {"model": "azureml://registries/azureml/models/served/versions/4"}, "catalog"),
        (
            "four",
            {"command": "python server.py --port {port}", "code_configuration": {"code": str(code)}},
            "command",
        ),
    ):
        made = deploy(console, {"name": name, **document})
        assert made["kind"] == kind
        finish(console, made)
    refused = console.client.delete("/api/models/acme/served")
    assert "shop/three, shop/two" in refused.json()["detail"]


def test_routes_of_a_server_of_ones_own(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    routes = {
        f"{part}_route": {"port": 8000, "path": f"/{part}"} for part in ("scoring", "liveness", "readiness")
    }
    own = {"name": "own", "environment": {"image": "mine:1", "inference_config": routes}}
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=own)
    refused(answer, 422, "command", "say how to start it")
    made = deploy(console, own | {"command": ["serve", "{port}"], "code_configuration": {"code": str(code)}})
    assert any(note.startswith("environment.inference_config: the paths count") for note in made["notes"])
    with console.db.read() as connection:
        found = store.find_online_deployment(connection, deployment_id=made["id"])
    assert found is not None and found.spec.command == ("serve", "{port}")
    finish(console, made)
    fixed = console.client.patch(
        "/api/online-endpoints/shop/deployments/own", json={"command": "serve 80"}
    ).json()
    assert any(note.startswith("command: has no {port}") for note in fixed["notes"])
    assert (found.spec.routes.scoring.path, found.spec.readiness_probe.path) == ("/scoring", "/readiness")


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
        ({"code_configuration": {"code": "/tmp"}}, 422, "code_configuration.scoring_script", "missing"),
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
    endpoint(console)
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=blue(code) | change)
    refused(answer, status, param, says)
    assert not list((tmp_path / "online").glob("*/*"))


def test_a_model_that_is_huge_or_a_loop_is_not_copied(tmp_path: Path, code: Path) -> None:
    console = open_platform(tmp_path, Settings(home=tmp_path, online_model_max_bytes=1000))
    console.project()
    endpoint(console)
    large = tmp_path / "large"
    large.mkdir()
    (large / "weights").write_bytes(b"w" * 1001)
    document = blue(code, model={"path": str(large)})
    refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        413,
        "model.path",
        "1000",
    )
    (large / "weights").unlink()
    (large / "loop").symlink_to(large)
    refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        422,
        "model.path",
        "link",
    )
    (large / "loop").unlink()
    os.mkfifo(large / "pipe")
    refused(
        console.client.post("/api/online-endpoints/shop/deployments", json=document),
        422,
        "model.path",
        "regular",
    )


def test_a_script_outside_its_folder_and_a_missing_one(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    for script, says in (("../secret.py", "below the code folder"), ("scor.py", "there is no 'scor.py'")):
        document = blue(code)
        document["code_configuration"]["scoring_script"] = script
        answer = console.client.post("/api/online-endpoints/shop/deployments", json=document)
        refused(answer, 422, "code_configuration.scoring_script", says)


def test_names_in_path_and_document_agree(console: ConsolePlatform, code: Path) -> None:
    endpoint(console)
    answer = console.client.put("/api/online-endpoints/shop/deployments/green", json=blue(code))
    refused(answer, 422, "name", "expected 'green'")
    answer = console.client.post(
        "/api/online-endpoints/shop/deployments", json=blue(code, endpoint_name="other")
    )
    refused(answer, 422, "endpoint_name", "expected 'shop'")
    refused(console.client.get("/api/operations/op_x"), 404, "operation")


def test_twenty_one_deployments_do_not_fit(
    console: ConsolePlatform, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.online.rules.MAX_DEPLOYMENTS_PER_ENDPOINT", 1)
    endpoint(console)
    finish(console, deploy(console, blue(code)))
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=blue(code, "green"))
    assert refused(answer, 409)["code"] == "OutOfQuota"


def test_a_model_on_an_attached_server_is_for_serverless_endpoints(console: ConsolePlatform) -> None:
    console.add_model()
    endpoint(console)
    document = {"name": "blue", "model": "acme/mock-chat"}
    answer = console.client.post("/api/online-endpoints/shop/deployments", json=document)
    refused(answer, 422, "model", "Use a serverless endpoint")


def test_copies_of_what_is_gone_are_removed_after_an_hour(
    console: ConsolePlatform, code: Path, tmp_path: Path
) -> None:
    endpoint(console)
    made = deploy(console, blue(code))
    left = tmp_path / "online" / ".staging" / "left-by-a-crash"
    left.mkdir()
    console.client.delete("/api/online-endpoints/shop/deployments/blue")
    gone = tmp_path / "online" / made["id"]
    green = deploy(console, blue(code, "green"))
    assert gone.exists() and left.exists()
    for folder in (gone, left, tmp_path / "online" / green["id"]):
        os.utime(folder, (0, 0))
    finish(console, green)
    deploy(console, blue(code, "red"))
    assert not gone.exists() and not left.exists() and (tmp_path / "online" / green["id"]).exists()


def test_logs_say_when_there_are_none_yet(
    console: ConsolePlatform, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint(console)
    made = deploy(console, blue(code))
    path = "/api/online-endpoints/shop/deployments/blue/logs"
    assert console.client.get(f"{path}?lines=5").text == f"log of {made['id']}\n5 lines\n"
    assert console.client.get(f"{path}?container=storage-initializer").text.startswith("code: ")
    refused(console.client.get(f"{path}?container=other"), 422, "container")
    monkeypatch.setattr(console.runtime, "tail_log", lambda *_: "")
    assert "try again later" in console.client.get(path).text
    console.runtime.live[made["id"]] = LiveStatus(
        made["id"], "starting", 0, None, None, None, "installing numpy"
    )
    assert console.get(made["operation"]["url"])["phase"] == "installing numpy"
