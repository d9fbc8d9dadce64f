"""No route reaches an engine unmetered: whatever vLLM has beyond what is served here is 404, and asks it nothing."""

import http.client

import httpx
import pytest

from functions.gateway.reading import ENDPOINT_PLANS, PLANS
from tests.contract.clients.vllm_routes import ROUTES, SERVED
from tests.gateway_fixture import ENDPOINT, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import MockEngine

AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}
OURS = {"GET /v1/models", "GET /docs", "GET /readyz", "GET /metrics"}  # answered by the gateway itself
PREFIXES = ("", f"/endpoints/{ENDPOINT}", f"/endpoints/{ENDPOINT}/v1")


def test_what_is_served_is_what_is_planned() -> None:
    assert {f"POST {path}" for path in PLANS} == SERVED | {"POST /v1/tokenize"}
    azure = {"/chat/completions", "/completions", "/embeddings"}  # of operations that are metered below /v1
    assert set(ENDPOINT_PLANS) == set(PLANS) | azure


@pytest.mark.parametrize("prefix", PREFIXES)
def test_all_other_routes_are_404(gateway: RunningGateway, engine: MockEngine, prefix: str) -> None:
    planned = ENDPOINT_PLANS if prefix else PLANS
    with httpx.Client(base_url=gateway.url, headers=AUTH) as client:
        for route in sorted(ROUTES - SERVED - OURS):
            method, path = route.split()
            if prefix + path in PLANS or (prefix and path in planned):
                continue
            response = client.request(
                method, prefix + path, json={"model": MODEL, "prompt": "x", "input": "x"}
            )
            assert response.status_code == 404, route
    assert not engine.seen


@pytest.mark.parametrize("path", [
    "/v1/chat/completions/",
    "/v1//chat/completions",
    "/v1/chat/completions/../../pooling",
    "/v1/%63hat/completions/render",
    "/v1/responses/resp_1",
    f"/endpoints/{ENDPOINT}/v1/../../../pooling",
    f"/endpoints/{ENDPOINT}/v1/v1/chat/completions",
    f"/endpoints/{ENDPOINT}/inference/v1/generate",
])  # fmt: skip
def test_no_way_around(gateway: RunningGateway, engine: MockEngine, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    body = b'{"model": "%s", "messages": [{"role": "user", "content": "x"}]}' % MODEL.encode()
    connection.request("POST", path, body, AUTH | {"content-type": "application/json"})
    assert connection.getresponse().status in (400, 404, 405)
    assert not engine.seen
    connection.close()
