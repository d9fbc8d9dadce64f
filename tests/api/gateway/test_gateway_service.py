"""The routes beside the calls: health, documentation, wrong paths, and the way to the control process."""

import http.client
import re
import subprocess
import sys

import httpx
import pytest

from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway
from tests.mock_engine import wait_until

AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}


def test_health(gateway: RunningGateway) -> None:
    for path in ("/healthz", "/readyz", "/"):
        response = httpx.get(gateway.url + path)
        assert response.status_code == 200
        assert response.headers["x-request-id"].startswith("req_")
        assert httpx.head(gateway.url + path).status_code == 200
    assert httpx.get(gateway.url + "/").json()["docs"] == "/docs"
    gateway.journal.broken = True
    assert "journal" in httpx.get(gateway.url + "/readyz").text


def test_a_lost_database_is_told_and_calls_go_on(gateway: RunningGateway) -> None:
    call = {"model": ENDPOINT, "messages": [{"role": "user", "content": "hi"}]}
    assert httpx.post(gateway.url + "/v1/chat/completions", json=call, headers=AUTH).status_code == 200
    gateway.directory.fails = True
    wait_until(lambda: "database" in httpx.get(gateway.url + "/readyz").text, 8)
    assert httpx.post(gateway.url + "/v1/chat/completions", json=call, headers=AUTH).status_code == 200
    gateway.directory.fails = False
    wait_until(lambda: httpx.get(gateway.url + "/readyz").status_code == 200)


def test_the_openapi_document(gateway: RunningGateway) -> None:
    document = httpx.get(gateway.url + "/openapi.json").json()
    prefix = "/endpoints/{endpoint_name}"
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
        for full in (path, prefix + path):
            operation = document["paths"][full]["post"]
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert ("model" in schema["required"]) == (full == path)
            assert {"200", "400", "401", "404", "503"} <= set(operation["responses"])
            assert operation["security"]
    assert {"/v1/models", "/v1/models/{model}", "/healthz", "/readyz"} <= set(document["paths"])
    for path, item in document["paths"].items():
        for operation in item.values():
            parameters = operation.get("parameters", [])
            named = {p["name"] for p in parameters if p["in"] == "path"}
            assert named == set(re.findall(r"\{(\w+)\}", path))
    operations = [o for item in document["paths"].values() for o in item.values()]
    assert len({o["operationId"] for o in operations}) == len(operations)
    assert "bearer" in document["components"]["securitySchemes"]
    assert httpx.get(gateway.url + "/docs").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [
    ("GET", "/v1/chat/completions", 405),
    ("HEAD", "/v1/chat/completions", 405),
    ("OPTIONS", "/v1/chat/completions", 405),
    ("OPTIONS", "/v1/models", 405),
    ("DELETE", f"/endpoints/{ENDPOINT}/v1/embeddings", 405),
    ("GET", "/v1/nothing", 404),
    ("POST", "/v1/chat/completions/", 404),
    ("POST", "/endpoints//v1/chat/completions", 404),
    ("POST", "/endpoints/a/b/v1/chat/completions", 401),
    ("GET", "/nothing", 404),
    ("PUT", "/healthz", 405),
    ("HEAD", "/nothing", 404),
])  # fmt: skip
def test_wrong_paths_and_methods(gateway: RunningGateway, method: str, path: str, status: int) -> None:
    response = httpx.request(method, gateway.url + path, follow_redirects=False)
    assert response.status_code == status
    assert response.headers["x-request-id"].startswith("req_")
    if status == 405:
        assert response.headers["allow"]
    if method == "HEAD":
        return
    body = response.json()
    if path.startswith(("/v1", "/endpoints")):
        assert set(body["error"]) == {"message", "type", "param", "code"}
    else:
        assert response.headers["content-type"] == "application/problem+json"
        assert (body["status"], body["request_id"]) == (status, response.headers["x-request-id"])


def test_the_way_to_the_control_process(gateway: RunningGateway) -> None:
    headers = AUTH | {
        "host": "models.example.com",
        "x-forwarded-host": "evil",
        "x-request-id": "mine",
        "te": "trailers",
        "connection": "keep-alive, x-drop",
        "x-drop": "1",
    }
    path = "/api/models/acme%2Fmock?a=%2F&b=1"
    response = httpx.request("PATCH", gateway.url + path, headers=headers, content=b"body")
    assert response.status_code == 207
    assert response.content == b"control:body"
    assert response.headers["set-cookie"] == "a=b"
    assert "x-private" not in response.headers
    assert response.headers["x-request-id"].startswith("req_")
    [seen] = gateway.control.requests
    assert (seen["method"], seen["path"]) == ("PATCH", path)
    sent = {name.lower(): value for name, value in seen["headers"].items()}
    assert sent["host"] == sent["x-forwarded-host"] == "models.example.com"
    assert sent["x-request-id"] == response.headers["x-request-id"]
    assert sent["x-forwarded-proto"] == "http"
    assert sent["authorization"] == AUTH["authorization"]
    assert not {"te", "x-drop"} & set(sent)


def test_bodies_through_the_proxy(gateway: RunningGateway) -> None:
    parts = [b"x" * 65536] * 20
    response = httpx.post(gateway.url + "/api/x", content=iter(parts))
    assert response.content == b"control:" + b"".join(parts)
    assert httpx.get(gateway.url + "/api/x").content == b"control:"
    for content in (b"x" * 11_000_000, iter([b"x" * 1_000_000] * 11)):
        response = httpx.post(gateway.url + "/api/x", content=content, timeout=20)
        assert (response.status_code, response.json()["code"]) == (413, "too_large")


@pytest.mark.parametrize(
    "path", ["/api/../internal/activity", "/api/%2e%2e/internal/activity", "/api/x/..%2f../internal/activity"]
)
def test_the_internal_routes_cannot_be_reached(gateway: RunningGateway, path: str) -> None:
    raw = http.client.HTTPConnection("127.0.0.1", gateway.port)
    raw.putrequest("POST", path)
    raw.endheaders()
    assert raw.getresponse().status == 400
    assert not gateway.control.requests
    assert httpx.post(gateway.url + "/internal/activity", json={}).status_code == 404
    assert not gateway.control.activity


def test_what_the_gateway_imports() -> None:
    code = (
        "import functions.gateway.main, sys; "
        "print([m for m in ('stripe', 'kubernetes', 'pandas', 'redis', 'torch', 'alembic', 'psutil', 'openai', "
        "'functions.console', 'billing', 'serving.local_runtime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
