"""`farebox online-endpoint` and `online-deployment`, against the real management API."""

import json
from pathlib import Path

import pytest

from tests.api.online_platform import BLUE_FILE, OnlinePlatform, open_online


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OnlinePlatform:
    made = open_online(tmp_path)
    monkeypatch.setattr("farebox.polling.time", made.patient())
    return made


@pytest.fixture
def deployed(online: OnlinePlatform) -> OnlinePlatform:
    online.cli("online-endpoint", "create", "-f", f"{online.folder}/endpoint.yml")
    online.cli("online-deployment", "create", "-f", f"{online.folder}/blue.yml", "--all-traffic")
    return online


def test_azure_files_are_taken_as_they_are(online: OnlinePlatform) -> None:
    made = online.cli("online-endpoint", "create", "-f", f"{online.folder}/endpoint.yml")
    assert json.loads(made.stdout)["tags"] == {"team": "search"}
    assert made.stderr.count("Note: $schema") == 1
    blue = online.cli("online-deployment", "create", "-f", f"{online.folder}/blue.yml", "--all-traffic")
    shown = json.loads(blue.stdout)
    assert (shown["provisioning_state"], shown["traffic"], shown["kind"]) == ("Succeeded", 100, "script")
    assert shown["environment"]["conda_file"]["dependencies"][0] == "python=3.11"
    assert "blue: waiting for the runtime" in blue.stderr
    for name in ("$schema", "instance_type", "environment.image"):
        assert blue.stderr.count(f"Note: {name}: ") == 1


def test_safe_roll_out_and_roll_back(deployed: OnlinePlatform) -> None:
    cli, answer = deployed.cli, deployed.answer
    cli("online-deployment", "create", "-f", f"{deployed.folder}/green.yml", "--no-wait")
    busy = cli("online-endpoint", "update", "-n", "shop", "--traffic", "blue=90 green=10", code=1)
    assert "operation in progress" in busy.stderr
    deployed.finish()
    cli("online-endpoint", "update", "-n", "shop", "--mirror-traffic", "green=10")
    refused = cli("online-endpoint", "update", "-n", "shop", "--traffic", "blue=60 green=30", code=1)
    assert "sum to 90" in refused.stderr
    both = answer(
        "online-endpoint",
        "update",
        "-n",
        "shop",
        "--traffic",
        "blue=90,green=10%",
        "--mirror-traffic",
        "green=0",
    )
    assert (both["traffic"], both["mirror_traffic"]) == ({"blue": 90, "green": 10}, {"blue": 0, "green": 0})
    one = answer(
        "online-endpoint", "update", "-n", "shop", "--set", "traffic.blue=0", "--set", "traffic.green=100"
    )
    assert one["traffic"] == {"blue": 0, "green": 100}
    back = answer("online-endpoint", "update", "-n", "shop", "--traffic", "blue=100")
    assert back["traffic"] == {"blue": 100, "green": 0}
    kept = cli("online-deployment", "delete", "-n", "blue", "-e", "shop", "--yes", code=1)
    assert "100 % of the live traffic" in kept.stderr
    cli("online-deployment", "delete", "-n", "green", "-e", "shop", "--yes")
    assert [row["name"] for row in answer("online-deployment", "list", "-e", "shop")["data"]] == ["blue"]


def test_set_changes_one_field_and_a_file_all(deployed: OnlinePlatform) -> None:
    update = ("online-deployment", "update", "--name", "blue", "--endpoint-name", "shop")
    changed = deployed.answer(
        *update, "--set", "instance_count=2", "--set", "request_settings.request_timeout_ms=9000"
    )
    assert (changed["instance_count"], changed["generation"]) == (2, 1)
    assert changed["request_settings"]["request_timeout_ms"] == 9000
    again = deployed.answer("online-deployment", "update", "-f", f"{deployed.folder}/blue.yml")
    assert (again["instance_count"], again["request_settings"]["request_timeout_ms"]) == (1, 5000)
    tagged = deployed.answer("online-endpoint", "update", "-n", "shop", "--set", "tags.owner=me")
    assert tagged["tags"] == {"team": "search", "owner": "me"}
    assert tagged["traffic"] == {"blue": 100}
    whole = deployed.answer("online-endpoint", "update", "-f", f"{deployed.folder}/endpoint.yml")
    assert (whole["tags"], whole["traffic"]) == ({"team": "search"}, {"blue": 100})
    for command in (update, ("online-endpoint", "update", "-n", "shop")):
        assert "nothing to change" in deployed.cli(*command, code=2).stderr


def test_invoke_sends_the_file_with_the_endpoints_key(deployed: OnlinePlatform) -> None:
    invoke = (
        "online-endpoint",
        "invoke",
        "--name",
        "shop",
        "--request-file",
        f"{deployed.folder}/request.json",
    )
    assert "file" in deployed.cli("online-endpoint", "invoke", "--help").stdout
    assert deployed.cli(*invoke).stdout == '{"data": [1]}\n'
    key = deployed.answer("online-endpoint", "get-credentials", "-n", "shop")["primaryKey"]
    request = deployed.called[0]
    assert (request.url.path, request.headers["authorization"]) == ("/endpoints/shop/score", f"Bearer {key}")
    assert "azureml-model-deployment" not in request.headers
    deployed.cli(*invoke, "--deployment-name", "blue", "--path", "/v1/models")
    request = deployed.called[1]
    assert (request.url.path, request.headers["azureml-model-deployment"]) == (
        "/endpoints/shop/v1/models",
        "blue",
    )
    bad = deployed.write("bad.json", '"fail"')
    failed = deployed.cli("online-endpoint", "invoke", "-n", "shop", "-r", bad, code=1)
    assert "the model answered 500: KeyError: price" in failed.stderr and "Request id: r1" in failed.stderr
    assert (
        "request_file"
        in deployed.cli("online-endpoint", "invoke", "-n", "shop", "-r", "/none", code=2).stderr
    )


def test_keys_logs_and_the_end(deployed: OnlinePlatform) -> None:
    before = deployed.answer("online-endpoint", "get-credentials", "-n", "shop")
    after = deployed.answer("online-endpoint", "regenerate-keys", "-n", "shop", "--key-type", "secondary")
    assert after["primaryKey"] == before["primaryKey"] and after["secondaryKey"] != before["secondaryKey"]
    logs = ("online-deployment", "get-logs", "-n", "blue", "-e", "shop")
    assert (
        "200 lines"
        in deployed.cli("online-deployment", "get-logs", "-n", "blue", "-e", "shop", output=None).stdout
    )
    assert "3 lines" in deployed.cli(*logs, "--lines", "3", output=None).stdout
    assert "code: " in deployed.cli(*logs, "-c", "storage-initializer", output=None).stdout
    slip = deployed.cli("online-deployment", "show", "-n", "bleu", "-e", "shop", code=1)
    assert "did you mean 'blue'" in slip.stderr
    assert "add --yes" in deployed.cli("online-endpoint", "delete", "-n", "shop", code=2).stderr
    deployed.cli("online-endpoint", "delete", "-n", "shop", "--yes")
    assert deployed.answer("online-endpoint", "list")["data"] == []


def test_a_failed_deployment_says_why_and_what_next(online: OnlinePlatform) -> None:
    online.cli("online-endpoint", "create", "-n", "shop")
    online.failure = ("UserScriptInitFailed", "init() raised KeyError: 'MODEL'")
    failed = online.cli("online-deployment", "create", "-f", f"{online.folder}/blue.yml", code=1)
    assert "blue failed: UserScriptInitFailed: init() raised KeyError: 'MODEL'" in failed.stderr
    assert "Next: farebox online-deployment get-logs --name blue --endpoint-name shop" in failed.stderr


def test_query_picks_a_part(deployed: OnlinePlatform) -> None:
    assert deployed.answer("online-endpoint", "show", "-n", "shop")["traffic"] == {"blue": 100}
    show = ("online-endpoint", "show", "-n", "shop", "--query")
    assert (
        deployed.cli(*show, "scoring_uri", output="tsv").stdout
        == "http://farebox.test:8080/endpoints/shop/score\n"
    )
    assert deployed.cli(*show, "traffic").stdout == '{\n  "blue": 100\n}\n'
    listed = ("online-deployment", "list", "-e", "shop", "--query")
    assert deployed.cli(*listed, "data[].{n: name, t: traffic}", output="tsv").stdout == "blue\t100\n"
    assert deployed.cli(*listed, "data[].name", output="table").stdout == "blue\n"
    assert deployed.cli(*show, "nothing.here").stdout == "null\n"
    assert "--query [" in deployed.cli(*show, "[", code=2).stderr


@pytest.mark.parametrize(
    ("old", "new", "says", "where"),
    [
        ("instance_count: 1", "instance_cuont: 1", "did you mean 'instance_count'?", "line 13"),
        ("instance_count: 1", 'instance_count: "1"', "expected a valid integer", "line 13"),
        ("code: ./src", "code: ./scr", "there is nothing at", "line 7"),
        ("path: model/weights.bin", "path: model/none", "there is nothing at", "line 5"),
        ("scoring_script: score.py", "scoring_script: scor.py", "there is no 'scor.py'", "line 8"),
        ("conda_file: conda.yml", "conda_file: none.yml", "cannot be read", "line 10"),
        ("name: blue", "name: b", "3 to 32", "line 2"),
    ],
)
def test_refusals_name_the_files_line(
    online: OnlinePlatform, old: str, new: str, says: str, where: str
) -> None:
    online.cli("online-endpoint", "create", "-n", "shop")
    path = online.write("bad.yml", BLUE_FILE.replace(old, new))
    refused = online.cli("online-deployment", "create", "-f", path, code=1)
    assert says in refused.stderr
    assert f"File: {path}, {where}" in refused.stderr


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("def init(): pass\n", "defines no function run()"),
        ("def run(data): pass\n", "defines no function init()"),
        ("def init(: pass\n", "line 1: not Python"),
        ("def init(): pass\ndef run(*data): pass\n", "line 2: run() has *data"),
        ("def init(): pass\ndef run(**data): pass\n", "run() has **data"),
        ("def init(): pass\ndef run(data, /): pass\n", "positional-only"),
        ("def init(): pass\ndef run(): pass\n", "no parameter"),
    ],
)
def test_a_script_is_looked_at_before_it_is_sent(online: OnlinePlatform, script: str, says: str) -> None:
    online.cli("online-endpoint", "create", "-n", "shop")
    online.write("src/score.py", script)
    create = ("online-deployment", "create", "-f", f"{online.folder}/blue.yml")
    assert says in online.cli(*create, code=2).stderr
    assert online.answer("online-deployment", "list", "-e", "shop")["data"] == []
    online.cli(*create, "--skip-script-validation")


def test_local_has_no_traffic_rules(deployed: OnlinePlatform) -> None:
    for command in (
        ("online-endpoint", "update", "-n", "shop", "--local", "--traffic", "blue=100"),
        ("online-endpoint", "update", "-n", "shop", "--local", "--mirror-traffic", "blue=1"),
        ("online-deployment", "create", "-f", f"{deployed.folder}/green.yml", "--local", "--all-traffic"),
    ):
        assert "a local endpoint has no traffic rules" in deployed.cli(*command, code=2).stderr
    deployed.cli("online-deployment", "create", "-f", f"{deployed.folder}/green.yml", "--local")


@pytest.mark.parametrize("traffic", ["blue", "blue=ten", "=5", "blue=1 blue=2", " ", "blue=-1", "blue=0.5"])
def test_bad_shares(deployed: OnlinePlatform, traffic: str) -> None:
    refused = deployed.cli("online-endpoint", "update", "-n", "shop", "--traffic", traffic, code=2)
    assert "--traffic: " in refused.stderr


def test_registered_models_and_environments(online: OnlinePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(online.folder)
    assert (
        online.answer("model", "create", "-n", "churn", "--path", "model", "--set", "tags.a=b")["id"]
        == "azureml:churn:1"
    )
    file = online.write("env.yml", "name: sk\nversion: 2\nconda_file: conda.yml\n")
    assert online.answer("environment", "create", "-f", file)["id"] == "azureml:sk:2"
    online.cli("online-endpoint", "create", "-n", "shop")
    made = online.answer(
        "online-deployment",
        "create",
        "-f",
        "blue.yml",
        "--set",
        "model=azureml:churn@latest",
        "--set",
        "environment=azureml:sk:2",
    )
    assert made["model"] == "azureml:churn@latest"
    assert [row["id"] for row in online.answer("model", "registered")["data"]] == ["azureml:churn:1"]
    assert [row["id"] for row in online.answer("environment", "list")["data"]] == ["azureml:sk:2"]
    online.cli("environment", "delete", "-n", "sk", "-v", "2")
    assert "no environment" in online.cli("environment", "show", "-n", "sk", code=1).stderr


def test_a_missing_name_says_where_to_give_it(online: OnlinePlatform) -> None:
    path = online.write("nameless.yml", "auth_mode: key\n")
    assert f"in {path}, or give --name" in online.cli("online-endpoint", "create", "-f", path, code=2).stderr
    assert "give --name or -f FILE" in online.cli("online-endpoint", "create", code=2).stderr
    assert "is no such file" in online.cli("online-endpoint", "create", "-f", "/none.yml", code=2).stderr


def test_a_registered_model_is_downloaded(online: OnlinePlatform, tmp_path: Path) -> None:
    online.write("folder/deep/weights.bin", "w" * 100_000)
    online.write("folder/MLmodel", "flavors: {}")
    for name, path in (("whole", "folder"), ("single", "folder/MLmodel")):
        online.cli("model", "create", "--name", name, "--path", str(online.folder / path))
        said = online.answer(
            "model", "download", "--name", name, "--version", "latest", "-p", str(tmp_path / "to")
        )
        assert said["path"] == str(tmp_path / "to" / name)
    assert (tmp_path / "to/whole/folder/deep/weights.bin").read_text() == "w" * 100_000
    assert (tmp_path / "to/single/MLmodel").read_text() == "flavors: {}"
    again = online.cli(
        "model", "download", "--name", "single", "--version", "1", "-p", str(tmp_path / "to"), code=2
    )
    assert "is there already" in again.stderr
    assert "there is no model" in online.cli("model", "download", "-n", "no", "-v", "1", code=1).stderr
