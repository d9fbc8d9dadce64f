"""The console's door: keys, who may do what, bodies, errors, ids; and organizations, projects and keys."""

import json
import re
from pathlib import Path

import pytest

from access import store
from core.clock import iso
from functions.console.authorization import PUBLIC, ROUTES
from functions.console.dependencies import ConsoleDependencies
from functions.console.middleware import MAX_BODY_BYTES
from tests.api.console_platform import ConsolePlatform, open_platform


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    return open_platform(tmp_path)


def routes_of(console: ConsolePlatform) -> set[tuple[str, str]]:
    return {(method, route.path) for route in console.app.state.routes for method in route.methods}


# --- who may do what ------------------------------------------------------------------------------


def test_the_authorization_table_names_every_route_and_no_other(console: ConsolePlatform) -> None:
    assert routes_of(console) == set(ROUTES)
    # The description is made by the framework, from what it really serves.
    described = {
        (method.upper(), re.sub(r"\{[^}]*\}", "{}", path))
        for path, methods in console.app.openapi()["paths"].items()
        for method in methods
    }
    assert described == {(method, re.sub(r"\{[^}]*\}", "{}", path)) for method, path in ROUTES}
    others = {
        (method, route.path)
        for route in console.app.routes
        if getattr(route, "path", "")
        for method in route.methods - {"HEAD"}
    }
    assert others == PUBLIC


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_every_route_wants_a_key_that_may_call_it(tmp_path: Path, method: str, path: str) -> None:
    console = open_platform(tmp_path)
    project = console.project()
    console.add_model()
    key = console.post("/api/keys", project=project["id"], name="ci")["key"]
    console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    endpoint_key = console.post("/api/serverless-endpoints/my-chat/list-keys")["primaryKey"]
    url = re.sub(r"\{[^}]*\}", "x-1", path)

    def status(headers: dict[str, str]) -> int:
        # Not JSON: who may not call learns nothing of what is wrong with the body.
        return console.client.request(method, url, headers=headers, content=b"{").status_code

    allowed = ROUTES[method, path]
    assert status({"authorization": ""}) == 401
    assert status(console.as_key("fbx_sk_" + "a" * 44)) == 401
    assert (status(console.as_key(key)) == 403) is ("project" not in allowed)
    assert (status(console.as_key(endpoint_key)) == 403) is ("endpoint" not in allowed)
    assert status(console.as_key(console.admin_key)) not in (401, 403)


@pytest.mark.parametrize(
    ("header", "code", "says"),
    [
        (None, "missing_api_key", "send the header Authorization: Bearer KEY"),
        ("", "malformed_api_key", "Bearer KEY"),
        ("Bearer", "malformed_api_key", "Bearer KEY"),
        ("Bearer a b", "malformed_api_key", "Bearer KEY"),
        ("Basic YTpi", "malformed_api_key", "Bearer KEY"),
        ("Bearer " + "x" * 300, "malformed_api_key", "Bearer KEY"),
        ("Bearer fbx_sk_unknown", "invalid_api_key", "not known here"),
        ("Bearer \xe9", "invalid_api_key", "not known here"),
    ],
)
def test_a_key_that_does_not_open_says_why(console: ConsolePlatform, header, code, says) -> None:
    del console.client.headers["authorization"]
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    answer = console.client.get("/api/organizations", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert says in answer.json()["detail"]


def test_expired_and_revoked_keys_are_told_apart(console: ConsolePlatform) -> None:
    console.project()
    made = console.post("/api/keys", project="acme/web", name="ci", expires_in_s=60)
    headers = console.as_key(made["key"])
    assert console.client.get("/api/models", headers=headers).status_code == 200
    console.clock.advance(60_000)
    assert console.client.get("/api/models", headers=headers).json()["code"] == "expired_api_key"
    revoked = console.client.delete(f"/api/keys/{made['id']}").json()
    assert revoked["status"] == "revoked"
    assert revoked["revoked_at"] == iso(console.clock.now_ms())
    assert console.client.get("/api/models", headers=headers).json()["code"] == "revoked_api_key"


# --- requests that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "status", "param", "says"),
    [
        (b"{", "application/json", 400, None, "not valid JSON"),
        (b"", "application/json", 400, None, "got nothing"),
        (b"[" * 100_000, "application/json", 400, None, "not valid JSON"),
        (b'{"name": ' + b"9" * 5000 + b"}", "application/json", 400, None, "not valid JSON"),
        (b'{"name": "\xff"}', "application/json", 400, None, "not valid JSON"),
        (b"name=acme", "application/x-www-form-urlencoded", 400, None, "Content-Type: application/json"),
        (b"[]", "application/json", 422, None, "expected a JSON object"),
        (b"{}", "application/json", 422, "name", "name: the field is missing"),
        (b'{"nam": "acme"}', "application/json", 422, "nam", "unknown field 'nam', did you mean 'name'?"),
        (b'{"name": 1}', "application/json", 422, "name", "expected a valid string"),
        (b'{"name": null}', "application/json", 422, "name", "expected a valid string"),
        (b'{"name": " "}', "application/json", 422, "name", "1 to 64 characters"),
        (b'{"name": "\\ud800"}', "application/json", 422, "name", "unicode"),
        (b'{"\\ud800": 1}', "application/json", 422, "\\ud800", "unknown field"),
        (b'{"name": "' + b"x" * MAX_BODY_BYTES + b'"}', "application/json", 413, None, "1048576"),
    ],
)
def test_a_wrong_body_is_answered_with_what_is_wrong(console, body, kind, status, param, says) -> None:
    answer = console.client.post("/api/organizations", content=body, headers={"content-type": kind})
    assert answer.status_code == status, answer.text
    problem = json.loads(answer.text)
    assert problem["status"] == status
    assert problem.get("param") == param
    assert says in problem["detail"]
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert len(answer.text) < 2000
    assert console.get("/api/organizations")["data"] == []


def test_a_body_without_length_is_bounded_too(console: ConsolePlatform) -> None:
    sent = []

    def endless():
        for _ in range(100):
            sent.append(1)
            yield b" " * 65_536

    answer = console.client.post("/api/organizations", content=endless())
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("GET", "/api/organisations", 404, "there is nothing at '/api/organisations'"),
        ("GET", "/", 404, "nothing"),
        ("GET", "/api/organizations/", 404, "nothing"),
        ("PATCH", "/api/organizations", 405, "it takes GET, POST"),
        ("POST", "/api/keys/key_1", 405, "it takes DELETE"),
        ("GET", "/api/organizations?limt=3", 422, "unknown parameter 'limt', did you mean 'limit'?"),
        ("GET", "/api/organizations?limit=0", 422, "limit: expected greater than or equal to 1"),
        ("GET", "/api/organizations?limit=201", 422, "limit: expected less than or equal to 200"),
        ("GET", "/api/organizations?limit=x", 422, "limit: expected a valid integer"),
        ("GET", "/api/keys?project=none", 404, "there is no project 'none'"),
        ("GET", "/api/models?task=chatt", 422, "task: expected 'chat'"),
        ("DELETE", "/api/keys/key_none", 404, "there is no API key 'key_none'"),
    ],
)
def test_a_wrong_address_is_answered_with_what_is_wrong(console, method, path, status, says) -> None:
    answer = console.client.request(method, path)
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-request-id"]


def test_an_unexpected_error_shows_nothing_but_the_request_id(console, monkeypatch, caplog) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the secret is 42")

    monkeypatch.setattr(store, "list_organizations", broken)
    answer = console.client.get("/api/organizations")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert any(getattr(r, "request_id", "") == answer.headers["x-request-id"] for r in caplog.records)


def test_a_busy_database_is_503_with_a_time_to_retry(console: ConsolePlatform) -> None:
    with console.db.begin() as holder:
        holder.exec_driver_sql("CREATE TABLE held (x INTEGER)")
        short = console.db.engine.raw_connection()
        short.close()
        deps: ConsoleDependencies = console.app.state.dependencies
        with deps.db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 1")
        # The pool hands the same connection out again.
        answer = console.client.post("/api/organizations", json={"name": "acme"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "2"


def test_the_gateways_request_id_is_kept_and_any_other_text_is_not(console: ConsolePlatform) -> None:
    known = "req_01m84a7w2mr26fc85e68dvsam0"
    answer = console.client.get("/api/organizations", headers={"x-request-id": known})
    assert answer.headers["x-request-id"] == known
    answer = console.client.get("/api/organizations", headers={"x-request-id": "<script>"})
    assert answer.headers["x-request-id"].startswith("req_")


def test_the_description_has_a_summary_and_an_answer_for_every_route(console: ConsolePlatform) -> None:
    del console.client.headers["authorization"]
    document = console.get("/api/openapi.json")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            assert operation["description"], path
            assert any(code in operation["responses"] for code in ("200", "201", "202")), (method, path)
            assert operation["responses"]["422"]["content"], path
            assert operation["security"], path


def test_the_page_of_the_description_loads_nothing_from_elsewhere(console: ConsolePlatform) -> None:
    del console.client.headers["authorization"]
    answer = console.client.get("/api/docs")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?://", answer.text)


# --- organizations, projects, keys ----------------------------------------------------------------


def test_organizations_and_projects(console: ConsolePlatform) -> None:
    acme = console.post("/api/organizations", name=" acme ")
    assert acme == {"id": acme["id"], "name": "acme", "created_at": iso(console.clock.now_ms())}
    taken = console.client.post("/api/organizations", json={"name": "acme"})
    assert (taken.status_code, taken.json()["param"]) == (409, "name")
    web = console.post("/api/projects", name="web", organization="acme")
    assert web == {
        "id": web["id"],
        "name": "web",
        "organization_id": acme["id"],
        "organization": "acme",
        "created_at": iso(console.clock.now_ms()),
    }
    again = console.client.post("/api/projects", json={"name": "web", "organization": acme["id"]})
    assert again.status_code == 409
    missing = console.client.post("/api/projects", json={"name": "web", "organization": "nobody"})
    assert (missing.status_code, missing.json()["param"]) == (404, "organization")
    assert console.get("/api/organizations") == {"data": [acme], "next": None}
    assert console.get("/api/projects?organization=acme") == {"data": [web], "next": None}


def test_lists_are_paged_to_the_end(console: ConsolePlatform) -> None:
    for i in range(5):
        console.post("/api/organizations", name=f"org {i}")
        console.clock.advance(1)
    names, after, pages = [], "", 0
    while True:
        page = console.get(f"/api/organizations?limit=2&after={after}")
        names += [each["name"] for each in page["data"]]
        pages += 1
        if page["next"] is None:
            break
        after = page["next"]
    assert (names, pages) == ([f"org {i}" for i in range(5)], 3)
    assert len(console.get("/api/organizations?limit=5")["data"]) == 5
    assert console.get("/api/organizations?limit=5")["next"] is None


def test_a_key_is_shown_once(console: ConsolePlatform) -> None:
    project = console.project()
    made = console.post("/api/keys", project="acme/web", name="ci")
    assert made["key"].startswith("fbx_sk_")
    assert made["project_id"] == project["id"]
    assert made["organization_id"] == project["organization_id"]
    assert made["expires_at"] is None
    listed = console.get("/api/keys?project=web")["data"]
    assert listed == [{name: value for name, value in made.items() if name != "key"}]
    assert made["key"] not in console.client.get("/api/keys").text


def test_when_a_key_expires(console: ConsolePlatform) -> None:
    console.project()
    now_ms = console.clock.now_ms()
    at = console.post("/api/keys", project="web", name="a", expires_at="2099-01-01T00:00:00+01:00")
    assert at["expires_at"] == "2098-12-31T23:00:00.000Z"
    later = console.post("/api/keys", project="web", name="b", expires_in_s=3600)
    assert later["expires_at"] == iso(now_ms + 3_600_000)
    for body, param in [
        ({"expires_at": "2001-01-01"}, "expires_at"),
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"expires_in_s": 0}, "expires_in_s"),
        ({"expires_in_s": "60"}, "expires_in_s"),
        ({"expires_in_s": 10**15}, "expires_in_s"),
        ({"expires_in_s": 60, "expires_at": "2099-01-01"}, "expires_in_s"),
    ]:
        answer = console.client.post("/api/keys", json={"project": "web", "name": "x"} | body)
        assert (answer.status_code, answer.json()["param"]) == (422, param), body
    assert len(console.get("/api/keys?project=web")["data"]) == 2
