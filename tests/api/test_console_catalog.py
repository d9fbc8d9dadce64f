"""Models, prices, endpoints and deployments over the management API."""

from pathlib import Path

import pytest

from access import store as access_store
from access.keys import hash_key
from catalog.load import parse_model
from core.clock import MINUTE_MS, iso
from serving import store as serving_store
from serving.model import LiveStatus, Replica
from tests.api.console_platform import MOCK_CHAT, SERVED, ConsolePlatform, open_platform


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    return open_platform(tmp_path)


# --- models ---------------------------------------------------------------------------------------


def test_a_model_is_added_shown_listed_and_removed(console: ConsolePlatform) -> None:
    added = console.add_model()
    assert added.status_code == 201
    body = added.json()
    assert (body["id"], body["outcome"]) == ("acme/mock-chat", "added")
    assert body["price_version"]["prices"]["input"] == "0.15"
    shown = console.get("/api/models/acme/mock-chat")
    assert shown == body["model"]
    assert shown["engine"] == {"kind": "external", "url": "http://127.0.0.1:9100"}
    assert shown["prices"] == {
        "input": "0.15",
        "cached_input": "0.075",
        "output": "0.6",
        "endpoint_minute": "0.0005",
    }
    assert console.get("/api/models/acme%2Fmock-chat") == shown
    console.add_model(SERVED)
    assert [m["id"] for m in console.get("/api/models")["data"]] == ["acme/mock-chat", "acme/served"]
    assert [m["id"] for m in console.get("/api/models?task=embedding")["data"]] == ["acme/served"]
    assert console.get("/api/models?limit=1")["next"] == "acme/mock-chat"
    assert console.client.delete("/api/models/acme/mock-chat").json() == shown
    gone = console.client.get("/api/models/acme/mock-chat")
    assert (gone.status_code, gone.json()["code"]) == (404, "model_not_found")
    assert console.client.delete("/api/models/acme/mock-chat").status_code == 404


def test_what_is_shown_of_a_model_can_be_sent_again(console: ConsolePlatform) -> None:
    shown = console.add_model().json()["model"]
    for ours in ("origin", "created_at", "updated_at"):
        del shown[ours]
    parse_model(shown)
    again = console.client.post("/api/models", json=shown)
    assert (again.status_code, again.json()["outcome"]) == (200, "unchanged")


def test_another_price_makes_a_version_that_starts_with_the_next_minute(console: ConsolePlatform) -> None:
    console.add_model()
    now_ms = console.clock.now_ms()
    starts_at = iso(now_ms - now_ms % MINUTE_MS + MINUTE_MS)
    changed = console.add_model(MOCK_CHAT.replace('"0.15"', '"0.20"'))
    assert (changed.status_code, changed.json()["outcome"]) == (200, "changed")
    assert changed.json()["price_version"]["starts_at"] == starts_at
    assert starts_at in changed.json()["message"]
    versions = console.get("/api/model-prices/acme/mock-chat")["data"]
    assert [(v["starts_at"], v["prices"]["input"]) for v in versions] == [(None, "0.15"), (starts_at, "0.2")]
    unchanged = console.add_model(MOCK_CHAT.replace('"0.15"', '"0.20"')).json()
    assert unchanged["outcome"] == "unchanged"
    assert "price_version" not in unchanged
    console.client.delete("/api/models/acme/mock-chat")
    assert len(console.get("/api/model-prices/acme/mock-chat")["data"]) == 2
    assert console.client.get("/api/model-prices/acme/none").status_code == 404


@pytest.mark.parametrize(
    ("body", "kind", "status", "param", "says"),
    [
        (MOCK_CHAT.replace("prices", "pirces"), "application/yaml", 422, "pirces", "did you mean 'prices'?"),
        (MOCK_CHAT.replace('"0.15"', "0.15"), "application/yaml", 422, "prices.input", "quotes"),
        (MOCK_CHAT.replace('"0.15"', '"-1"'), "text/plain", 422, "prices.input", "zero or more"),
        ("{", "application/json", 400, None, "not valid JSON"),
        ("[" * 100_000, "application/json", 400, None, "not valid JSON"),
        ('{"id": "a", "taks": 1}', "application/json", 422, "taks", "did you mean 'task'?"),
        ("", "application/yaml", 422, None, "empty"),
        ("#" * 300_000, "application/yaml", 413, None, "262144"),
    ],
)
def test_a_wrong_model_changes_nothing(console, body, kind, status, param, says) -> None:
    answer = console.client.post("/api/models", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    assert answer.json().get("param") == param
    assert says in answer.json()["detail"]
    assert console.get("/api/models")["data"] == []


# --- endpoints ------------------------------------------------------------------------------------


def test_an_endpoint_from_creation_to_deletion(console: ConsolePlatform) -> None:
    console.add_model()
    project = console.project()
    made = console.post(
        "/api/serverless-endpoints", name="my-chat", model="acme/mock-chat", tags={"team": "a"}
    )
    assert made == {
        "id": made["id"],
        "name": "my-chat",
        "state": "Online",
        "model": "acme/mock-chat",
        "project_id": project["id"],
        "organization_id": project["organization_id"],
        "scoring_uri": "http://farebox.test:8080/endpoints/my-chat/v1/chat/completions",
        "openai_base_url": "http://farebox.test:8080/endpoints/my-chat/v1",
        "created_at": iso(console.clock.now_ms()),
        "tags": {"team": "a"},
        "content_safety": "not configured",
        "deployment": made["deployment"],
    }
    assert made["deployment"]["state"] == "ready"
    assert console.get("/api/serverless-endpoints/my-chat") == made
    assert console.get("/api/serverless-endpoints") == {"data": [made], "next": None}
    assert console.get("/api/serverless-endpoints?project=web")["data"] == [made]
    in_use = console.client.delete("/api/models/acme/mock-chat")
    assert in_use.status_code == 409
    assert "used by endpoint my-chat" in in_use.json()["detail"]
    keys = console.post("/api/serverless-endpoints/my-chat/list-keys")
    deleted = console.client.delete("/api/serverless-endpoints/my-chat")
    assert deleted.json() == made | {"state": "Deleted"}
    missing = console.client.get("/api/serverless-endpoints/my-chat")
    assert missing.status_code == 404
    with console.db.read() as connection:
        for key in keys.values():
            status = access_store.key_status(connection, hash_key(key), console.clock.now_ms())
            assert status == "revoked"
    assert console.client.delete("/api/models/acme/mock-chat").status_code == 200
    again = console.client.post(
        "/api/serverless-endpoints", json={"name": "my-chat", "model": "acme/mock-chat"}
    )
    assert again.json()["code"] == "model_not_found"


def test_an_endpoint_is_suspended_and_reinstated(console: ConsolePlatform) -> None:
    console.add_model()
    console.project()
    name = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")["name"]
    for verb, state in (("suspend", "Suspended"), ("suspend", "Suspended"), ("reinstate", "Online")):
        assert console.post(f"/api/serverless-endpoints/{name}/{verb}")["state"] == state
        assert console.get(f"/api/serverless-endpoints/{name}")["state"] == state
    deeds = [line["action"] for line in console.get("/api/audit?limit=10")["data"]]
    assert sorted(deeds) == ["endpoint.reinstate", "endpoint.suspend"], "the second time changed nothing"
    assert console.client.post("/api/serverless-endpoints/none/suspend").status_code == 404


def test_the_keys_of_an_endpoint(console: ConsolePlatform) -> None:
    console.add_model()
    made = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    first = console.post("/api/serverless-endpoints/my-chat/list-keys")
    assert sorted(first) == ["primaryKey", "secondaryKey"]
    assert console.post("/api/serverless-endpoints/my-chat/list-keys") == first
    renewed = console.post("/api/serverless-endpoints/my-chat/regenerate-keys", key_type="secondary")
    assert renewed["primaryKey"] == first["primaryKey"]
    assert renewed["secondaryKey"] != first["secondaryKey"]
    with console.db.read() as connection:
        now_ms = console.clock.now_ms()
        held = access_store.principal_by_hash(connection, hash_key(renewed["secondaryKey"]), now_ms)
        assert held is not None
        assert (held.kind, held.endpoint_id) == ("endpoint", made["id"])
        assert access_store.key_status(connection, hash_key(first["secondaryKey"]), now_ms) == "revoked"
    wrong = console.client.post(
        "/api/serverless-endpoints/my-chat/regenerate-keys", json={"key_type": "third"}
    )
    assert (wrong.status_code, wrong.json()["param"]) == (422, "key_type")


def test_the_project_of_an_endpoint_when_none_is_named(console: ConsolePlatform) -> None:
    console.add_model()
    made = console.post("/api/serverless-endpoints", name="one-chat", model="acme/mock-chat")
    default = console.get("/api/projects")["data"][0]
    assert (default["organization"], default["name"]) == ("default", "default")
    assert made["project_id"] == default["id"]
    console.project()
    body = {"name": "two-chat", "model": "acme/mock-chat"}
    unclear = console.client.post("/api/serverless-endpoints", json=body)
    assert (unclear.status_code, unclear.json()["param"]) == (422, "project")
    assert "acme/web, default/default" in unclear.json()["detail"]
    console.post("/api/serverless-endpoints", **body, project="acme/web")


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"name": "1st"}, 422, "name"),
        ({"name": "a--b"}, 422, "name"),
        ({"model": "acme/mok-chat"}, 404, "model"),
        ({"project": "none"}, 404, "project"),
        ({"tags": {"a": 1}}, 422, "tags.a"),
        ({"tags": {"a": "x" * 300}}, 422, "tags.a"),
        ({"tgas": {}}, 422, "tgas"),
    ],
)
def test_a_wrong_endpoint_leaves_nothing_behind(console, change, status, param) -> None:
    console.add_model()
    body = {"name": "my-chat", "model": "acme/mock-chat"} | change
    answer = console.client.post("/api/serverless-endpoints", json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
    assert console.get("/api/serverless-endpoints")["data"] == []
    assert console.get("/api/projects")["data"] == []
    assert console.get("/api/deployments")["data"] == []


def test_a_name_in_use_is_a_conflict(console: ConsolePlatform) -> None:
    console.add_model()
    body = {"name": "my-chat", "model": "acme/mock-chat"}
    console.post("/api/serverless-endpoints", **body)
    assert console.client.post("/api/serverless-endpoints", json=body).status_code == 409


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"host": "api.example.com"}, "http://api.example.com"),
        ({"host": "api.example.com", "x-forwarded-proto": "https"}, "https://api.example.com"),
        ({"host": "[::1]:8080"}, "http://[::1]:8080"),
        ({"host": 'x"><script>'}, "http://127.0.0.1:8080"),
        ({"host": "a b", "x-forwarded-proto": "javascript"}, "http://127.0.0.1:8080"),
    ],
)
def test_addresses_are_those_the_caller_uses(console, headers, base) -> None:
    console.add_model(SERVED)
    console.post("/api/serverless-endpoints", name="my-vectors", model="acme/served")
    shown = console.get("/api/serverless-endpoints/my-vectors", **headers)
    assert shown["openai_base_url"] == f"{base}/endpoints/my-vectors/v1"
    assert shown["scoring_uri"] == f"{base}/endpoints/my-vectors/v1/embeddings"


def test_logs_are_text(console: ConsolePlatform) -> None:
    console.add_model()
    console.add_model(SERVED)
    console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    made = console.post("/api/serverless-endpoints", name="my-vectors", model="acme/served")
    answer = console.client.get("/api/serverless-endpoints/my-vectors/logs?lines=7")
    assert answer.text == f"log of {made['deployment']['id']}\n7 lines\n"
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert (
        "attached server, http://127.0.0.1:9100"
        in console.client.get("/api/serverless-endpoints/my-chat/logs").text
    )
    assert console.client.get("/api/serverless-endpoints/my-vectors/logs?lines=0").status_code == 422


# --- deployments ----------------------------------------------------------------------------------


def test_a_deployment_shows_its_state_its_times_and_its_last_failure(console: ConsolePlatform) -> None:
    console.add_model(SERVED)
    now_ms = console.clock.now_ms()
    made = console.post("/api/serverless-endpoints", name="my-vectors", model="acme/served")["deployment"]
    assert (made["state"], made["external"], made["replicas"], made["last_failure"]) == (
        "stopped",
        False,
        [],
        None,
    )
    with console.db.begin() as connection:
        failed = Replica(
            "rep_1", made["id"], "failed", "", now_ms, stopped_ms=now_ms + 5, reason="out of memory"
        )
        serving_store.insert_replica(connection, failed, now_ms)
        ready = Replica("rep_2", made["id"], "ready", "", now_ms + 9, ready_ms=now_ms + 90, pid=7, port=4000)
        serving_store.insert_replica(connection, ready, now_ms)
    console.runtime.live = {
        made["id"]: LiveStatus(made["id"], "idle", 0, now_ms + 100, now_ms + 300_000, None, "")
    }
    shown = console.get("/api/deployments")["data"][0]
    assert (shown["model"], shown["state"], shown["in_flight"]) == ("acme/served", "idle", 0)
    assert shown["stops_at"] == iso(now_ms + 300_000)
    assert shown["last_failure"] == {"at": iso(now_ms + 5), "reason": "out of memory"}
    assert [(r["id"], r["state"], r["url"]) for r in shown["replicas"]] == [
        ("rep_2", "ready", "http://127.0.0.1:4000"),
        ("rep_1", "failed", None),
    ]
