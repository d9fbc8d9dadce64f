"""OpenAI's calls to models behind an online endpoint: counted, logged and collected by deployment."""

import json
import logging
import socket
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.online.collecting import Collecting
from serving.route import Route
from tests.api.gateway.test_gateway_collector import lines
from tests.api.gateway.test_gateway_scoring import deployment, serve
from tests.api.gateway.test_gateway_traffic import figures
from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway, make_route
from tests.mock_engine import Behaviour, MockEngine, wait_until

PATH = f"/endpoints/{ENDPOINT}/v1/chat/completions"
KEY = {"authorization": f"Bearer {PROJECT_KEY}"}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}


def model(engine: MockEngine, name: str = "blue", **scoring: Any) -> Route:
    made = deployment(None, name, each=64, timeout_ms=20_000, **scoring)
    of_engine = make_route(engine.url)
    return replace(made, urls=of_engine.urls, task="chat", model_id=of_engine.model_id)


def chat(gateway: RunningGateway, **members: Any) -> httpx.Response:
    return httpx.post(gateway.url + PATH, json=CHAT | members, headers=KEY, timeout=20)


def requests(gateway: RunningGateway) -> dict[str, float]:
    found = figures(gateway)
    return {
        name.removeprefix("requests_total deployment=blue,"): value
        for name, value in found.items()
        if name.startswith("requests_total")
    }


def test_calls_are_counted(gateway: RunningGateway, engine: MockEngine, lane: str) -> None:
    serve(gateway, model(engine), traffic="blue=100")
    before = gateway.fast_lane.served if lane == "fast" else 0
    answers = [chat(gateway), chat(gateway), chat(gateway, stream=True)]
    assert {each.status_code for each in answers} == {200}
    engine.script.append(Behaviour(status=400, error="no"))
    assert chat(gateway).status_code == 400
    wait_until(lambda: sum(requests(gateway).values()) == 4)
    assert requests(gateway) == {
        "status_code=200,model_status_code=200": 3,
        "status_code=400,model_status_code=400": 1,
    }
    found = figures(gateway)
    bodies = [
        len(httpx.Request("POST", "http://x", json=CHAT | more).content) for more in ({}, {"stream": True})
    ]
    assert found["network_bytes_total deployment=blue,direction=in"] == 3 * bodies[0] + bodies[1]
    sent = sum(len(each.content) for each in answers)
    assert sent <= found["network_bytes_total deployment=blue,direction=out"] <= sent + 500  # and the error
    assert found["duration_seconds_count deployment=blue"] == 4
    if lane == "fast":
        assert gateway.fast_lane.served - before >= 3, "figures alone cost nobody the fast lane"


def test_who_hangs_up_is_counted_as_499(gateway: RunningGateway, engine: MockEngine) -> None:
    serve(gateway, model(engine), traffic="blue=100")
    engine.default = Behaviour(first_delay=5.0)
    body = json.dumps(CHAT).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {PROJECT_KEY}\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.sendall(head.encode() + body)
        engine.wait_seen(1)
    wait_until(lambda: requests(gateway) == {"status_code=499,model_status_code=": 1})


def test_a_line_for_each_where_it_is_asked_for(
    gateway: RunningGateway, engine: MockEngine, caplog: pytest.LogCaptureFixture
) -> None:
    serve(gateway, model(engine, logged=True), traffic="blue=100")
    with caplog.at_level(logging.INFO, logger="functions.gateway.traffic_figures"):
        answer = chat(gateway)
        wait_until(lambda: any(each.message == "traffic" for each in caplog.records))
    (line,) = [each for each in caplog.records if each.message == "traffic"]
    found = vars(line)
    assert (found["Path"], found["Method"], found["DeploymentName"]) == (PATH, "POST", "blue")
    assert (found["ResponseCode"], found["ModelStatusCode"]) == (200, 200)
    assert found["ResponsePayloadSize"] == len(answer.content)
    assert found["XRequestId"] == answer.headers["x-request-id"]
    assert "Hello" not in str(found)


def test_bodies_are_collected_where_it_is_asked_for(gateway: RunningGateway, engine: MockEngine) -> None:
    folder = gateway.settings.collected_path
    serve(gateway, model(engine), traffic="blue=100")
    assert chat(gateway).status_code == 200
    time.sleep(0.2)
    assert not folder.exists()
    serve(gateway, model(engine, collecting=Collecting(True, True, 1.0)), traffic="blue=100")
    plain = chat(gateway)
    streamed = chat(gateway, stream=True)
    wait_until(lambda: folder.exists() and len(lines(folder, "request")) == 2)
    wait_until(lambda: len(lines(folder, "response")) == 1)
    asked, answered = lines(folder, "request"), lines(folder, "response")[0]
    assert asked[0]["data"] == CHAT and asked[1]["data"] == CHAT | {"stream": True}
    assert answered["data"] == plain.json()
    assert answered["xrequestid"] == asked[0]["xrequestid"] == plain.headers["x-request-id"]
    assert asked[1]["xrequestid"] == streamed.headers["x-request-id"]


def test_a_copy_wakes_a_sleeping_shadow(gateway: RunningGateway, engine: MockEngine) -> None:
    """The first copy is left out, and the ones to come find a server; it is asked for once."""
    with MockEngine() as other:
        asleep = replace(model(other, "green"), urls=())
        serve(gateway, model(engine), asleep, traffic="blue=100", mirror=("green", 100))
        gateway.control.answers = [{"state": "ready", "url": other.url}]
        gateway.control.hold.clear()
        for _ in range(3):
            assert chat(gateway).status_code == 200
        wait_until(lambda: gateway.control.wakes == ["dep_green"])
        gateway.control.hold.set()
        assert not other.seen
        serve(gateway, model(engine), model(other, "green"), traffic="blue=100", mirror=("green", 100))
        assert chat(gateway).status_code == 200
        other.wait_seen(1)
        assert gateway.control.wakes == ["dep_green"]
