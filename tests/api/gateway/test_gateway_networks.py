"""Private by configuration: who may connect, who may manage, and endpoints that answer private networks only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from serving.traffic import Split
from tests.api.gateway.test_gateway_scoring import deployment
from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway
from tests.mock_engine import MockEngine
from tests.mock_scorer import MockScorer

AUTHORIZED = {"authorization": f"Bearer {PROJECT_KEY}"}
CHAT = {"model": ENDPOINT, "messages": [{"role": "user", "content": "Hello"}]}
FAR = "10.0.0.0/8"  # the tests come from loopback


@contextmanager
def running(tmp_path: Path, engine: MockEngine, **settings: str) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path, engine.url, **settings) as gateway:
        yield gateway


def chat(gateway: RunningGateway, path: str = "/v1/chat/completions") -> httpx.Response:
    return httpx.post(gateway.url + path, json=CHAT, headers=AUTHORIZED, timeout=20)


def test_who_may_connect(tmp_path: Path, engine: MockEngine) -> None:
    with running(tmp_path, engine, allowed_networks=FAR) as gateway:
        for path in ("/v1/models", "/healthz", "/api/keys", "/metrics", "/"):
            answer = httpx.get(gateway.url + path, headers=AUTHORIZED)
            assert answer.status_code == 403, path
        with httpx.Client() as client:  # one connection, several calls
            for _ in range(3):
                answer = client.post(gateway.url + "/v1/chat/completions", json=CHAT, headers=AUTHORIZED)
                assert answer.json()["error"]["code"] == "network_not_allowed"
        assert not engine.seen
    with running(tmp_path / "b", engine, allowed_networks=f"{FAR},127.0.0.1") as gateway:
        assert chat(gateway).status_code == 200


def test_the_management_may_be_closed_to_whom_calls(tmp_path: Path, engine: MockEngine) -> None:
    with running(tmp_path, engine, management_networks=FAR) as gateway:
        answer = httpx.get(gateway.url + "/api/keys", headers=AUTHORIZED)
        assert (answer.status_code, answer.json()["code"]) == (403, "network_not_allowed")
        assert answer.headers["content-type"] == "application/problem+json"
        assert chat(gateway).status_code == 200


@pytest.mark.parametrize(("networks", "status"), [("127.0.0.0/8", 200), (FAR, 403)])
def test_a_private_endpoint(tmp_path: Path, engine: MockEngine, networks: str, status: int) -> None:
    with running(tmp_path, engine, private_networks=networks) as gateway:
        assert chat(gateway).status_code == 200
        gateway.set_route(private=True)
        below = f"/endpoints/{ENDPOINT}/v1/chat/completions"
        for path in ("/v1/chat/completions", below, below):
            answer = chat(gateway, path)
            assert answer.status_code == status, answer.text
            if status == 403:
                assert answer.json()["error"]["code"] == "private_endpoint"
        info = f"{gateway.url}/endpoints/{ENDPOINT}/info?api-version=2024-05-01-preview"
        assert httpx.get(info, headers=AUTHORIZED).status_code == status


def test_a_private_endpoint_of_a_script(tmp_path: Path, engine: MockEngine) -> None:
    with MockScorer("blue") as blue, running(tmp_path, engine, private_networks=FAR) as gateway:
        split = Split({"blue": deployment(blue, "blue")}, (("blue", 100),), None)
        gateway.set_route(urls=(), split=split)
        url = f"{gateway.url}/endpoints/{ENDPOINT}/score"
        assert httpx.post(url, json={}, headers=AUTHORIZED).status_code == 200
        gateway.set_route(urls=(), split=split, private=True)
        for path in ("/score", "/swagger.json", "/comparison"):
            method = "POST" if path == "/score" else "GET"
            address = f"{gateway.url}/endpoints/{ENDPOINT}{path}"
            answer = httpx.request(method, address, json={}, headers=AUTHORIZED)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "private_endpoint"), path


def test_a_suspended_endpoint(gateway: RunningGateway, engine: MockEngine) -> None:
    assert chat(gateway).status_code == 200
    gateway.set_route(suspended="endpoint_suspended")
    seen = len(engine.seen)
    for path in ("/v1/chat/completions", f"/endpoints/{ENDPOINT}/v1/chat/completions"):
        answer = chat(gateway, path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "endpoint_suspended")
    assert len(engine.seen) == seen
    gateway.set_route(suspended="")
    assert chat(gateway).status_code == 200
