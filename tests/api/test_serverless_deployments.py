"""Several models behind one serverless endpoint: over REST, on the command line, and as calls see them."""

import json
from typing import Any

import pytest
from click.testing import Result
from farebox.cli import serverless_deployments as command_line

from core.changes import last_seq, read_changes
from serving.routes import resolve
from serving.store import deployment_in_use, model_in_use
from tests.api.console_platform import ConsolePlatform
from tests.api.online_calls import refused

DEPLOYMENTS = "/api/serverless-endpoints/chat/deployments"


def model(name: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"acme/{name}",
        "task": "chat",
        "context_length": 8192,
        "engine": {"kind": "external", "url": f"http://127.0.0.1:9/{name}"},
        "prices": {"input": "1", "output": "2"},
    } | more


@pytest.fixture
def chat(console: ConsolePlatform) -> ConsolePlatform:
    offer = {"offer": "theirs", "terms_url": "https://acme.example/terms"}
    for each in (model("small"), model("large"), model("next"), model("theirs", marketplace=offer)):
        assert console.client.post("/api/models", json=each).status_code == 201
    console.post("/api/serverless-endpoints", name="chat", model="acme/small")
    return console


def put(console: ConsolePlatform, name: str, model_id: str, **more: Any) -> Any:
    return console.client.put(f"{DEPLOYMENTS}/{name}", json={"model": model_id} | more)


def route(console: ConsolePlatform, name: str = "", **where: str) -> Any:
    with console.db.read() as connection:
        return resolve(connection, name or None, **(where or {"endpoint_name": "chat"}))  # type: ignore[arg-type]


def test_a_deployment_is_added_replaced_and_deleted(chat: ConsolePlatform) -> None:
    assert [each["name"] for each in chat.get(DEPLOYMENTS)["data"]] == ["default"]
    with chat.db.read() as connection:
        seen = last_seq(connection)
    answer = put(chat, "large", "acme/large")
    assert (answer.status_code, answer.json()["model"]) == (201, "acme/large")
    endpoint_id = chat.get("/api/serverless-endpoints/chat")["id"]
    with chat.db.read() as connection:
        assert endpoint_id in [each.ref for each in read_changes(connection, seen)]
    again = put(chat, "large", "acme/next", mirror_percent=50)
    assert (again.status_code, again.json()["created_at"]) == (200, answer.json()["created_at"])
    rows = {each["name"]: each for each in chat.get(DEPLOYMENTS)["data"]}
    assert (rows["large"]["model"], rows["large"]["mirror_percent"]) == ("acme/next", 50)
    assert rows["default"]["is_default"] and rows["default"]["model"] == "acme/small"
    assert chat.client.delete(f"{DEPLOYMENTS}/large").status_code == 200
    refused(chat.client.delete(f"{DEPLOYMENTS}/large"), 404, "deployment", "no deployment 'large'")
    assert route(chat).split is None


def test_calls_find_it_by_header_and_by_name(chat: ConsolePlatform) -> None:
    put(chat, "large", "acme/large", mirror_percent=20)
    head = route(chat)
    assert head.model_id == "acme/small" and head.split.shares == (("default", 100),)
    assert head.split.mirror == ("large", 20)
    assert {name: each.model_id for name, each in head.split.routes.items()} == {
        "default": "acme/small",
        "large": "acme/large",
    }
    assert head.split.routes["large"].urls == ("http://127.0.0.1:9/large",)
    assert route(chat, "chat/large").model_id == "acme/large"
    assert route(chat, "chat/default").model_id == "acme/small"
    assert route(chat, "chat/none") is None and route(chat, "acme/large") is None
    project = chat.get("/api/serverless-endpoints/chat")["project_id"]
    assert route(chat, "chat/large", project_id=project).model_id == "acme/large"
    assert route(chat, "chat", project_id=project).split is not None


def test_its_pool_and_model_are_in_use_while_the_endpoint_lives(chat: ConsolePlatform) -> None:
    put(chat, "large", "acme/large")
    pool = route(chat, "chat/large").deployment_id
    with chat.db.read() as connection:
        assert deployment_in_use(connection, pool) and model_in_use(connection, "acme/large") == [
            "chat/large"
        ]
    assert chat.client.delete("/api/models/acme/large").status_code == 409
    chat.client.delete("/api/serverless-endpoints/chat")
    with chat.db.read() as connection:
        assert not deployment_in_use(connection, pool) and model_in_use(connection, "acme/large") == []


def test_what_is_refused(chat: ConsolePlatform) -> None:
    refused(put(chat, "large", "acme/lager"), 404, "model", "acme/large")
    refused(put(chat, "x", "acme/large"), 422, "deployment")
    refused(put(chat, "default", "acme/large"), 422, "deployment", "the endpoint itself")
    refused(put(chat, "large", "acme/large", mirror_percent=51), 422, "mirror_percent")
    refused(put(chat, "large", "acme/theirs"), 403, "model", "https://acme.example/terms")
    put(chat, "large", "acme/large", mirror_percent=10)
    refused(put(chat, "next", "acme/next", mirror_percent=1), 409, "mirror_percent", "'large'")
    for number in range(18):
        assert put(chat, f"more-{number}", "acme/next").status_code == 201
    refused(put(chat, "one-more", "acme/next"), 409, "deployment", "20")
    assert put(chat, "more-1", "acme/large").status_code == 200, "no new one"
    refused(chat.client.delete(f"{DEPLOYMENTS}/default"), 422, "deployment", "the endpoint itself")


def test_withdrawn_terms_close_only_that_deployment(chat: ConsolePlatform) -> None:
    chat.post("/api/marketplace-subscriptions", name="theirs", model="acme/theirs")
    assert put(chat, "theirs", "acme/theirs").status_code == 201
    assert chat.get("/api/marketplace-subscriptions/theirs")["endpoints"] == ["chat/theirs"]
    with chat.db.read() as connection:
        seen = last_seq(connection)
    chat.client.delete("/api/marketplace-subscriptions/theirs")
    with chat.db.read() as connection:
        told = [each.ref for each in read_changes(connection, seen)]
    assert chat.get("/api/serverless-endpoints/chat")["id"] in told
    head = route(chat)
    assert head.suspended == "" and head.split.routes["theirs"].suspended == "subscription_missing"


def test_the_command_line(chat: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    def cli(_: str, *arguments: str) -> Result:
        return chat.cli(command_line.serverless_deployment, *arguments)

    where = ("--endpoint-name", "chat")
    made = cli(
        "serverless-deployment", "put", "large", *where, "--model", "acme/large", "--mirror-percent", "5"
    )
    assert json.loads(made.stdout)["mirror_percent"] == 5
    rows = json.loads(cli("serverless-deployment", "list", *where).stdout)["data"]
    assert [each["name"] for each in rows] == ["default", "large"]
    asked: list[str] = []
    monkeypatch.setattr(command_line, "confirm", asked.append)
    assert json.loads(cli("serverless-deployment", "delete", "large", *where).stdout)["name"] == "large"
    assert asked == ["Delete deployment large of chat? Calls that name it will be answered 404."]
