"""Figures of online deployments, and the line in the log for each call of one that asks for it."""

import logging
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from functions.gateway.traffic_figures import TrafficFigures
from tests.api.gateway.test_gateway_scoring import SCORE, deployment, score, serve
from tests.gateway_fixture import ENDPOINT, PROJECT_KEY, RunningGateway
from tests.mock_engine import wait_until
from tests.mock_scorer import MockScorer


@pytest.fixture
def blue() -> Iterator[MockScorer]:
    with MockScorer("blue") as scorer:
        yield scorer


def figures(gateway: RunningGateway) -> dict[str, float]:
    """Series of deployments by name and labels, without the endpoint's."""
    page = httpx.get(gateway.url + "/metrics").text
    found = re.findall(
        r"^farebox_gateway_deployment_(\S+?)\{endpoint=\"[^\"]*\",(.*)\} (\S+)$", page, re.MULTILINE
    )
    return {f"{name} {labels}".replace('"', ""): float(value) for name, labels, value in found}


def test_calls_are_counted_by_status_and_the_models_own(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue", timeout_ms=300), traffic="blue=100")
    for _ in range(2):
        assert score(gateway, b'{"data":[1]}').status_code == 200
    blue.status = 503
    assert score(gateway).status_code == 424
    blue.status, blue.delay_s = 200, 1.0
    assert score(gateway).status_code == 408
    found = figures(gateway)
    counted = {name: value for name, value in found.items() if name.startswith("requests_total")}
    assert counted == {
        "requests_total deployment=blue,status_code=200,model_status_code=200": 2,
        "requests_total deployment=blue,status_code=424,model_status_code=503": 1,
        "requests_total deployment=blue,status_code=408,model_status_code=": 1,
    }
    assert found["network_bytes_total deployment=blue,direction=in"] == 4 * len(b'{"data":[1]}')
    assert found["network_bytes_total deployment=blue,direction=out"] >= 2 * len(b'{"from":"blue"}')
    assert found["duration_seconds_count deployment=blue"] == 4
    assert found["duration_seconds_bucket deployment=blue,le=0.25"] == 3


def test_who_hangs_up_is_counted_as_499(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.delay_s = 2.0
    head = f"POST {SCORE} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {PROJECT_KEY}\r\ncontent-length: 2\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port)) as caller:
        caller.sendall(head.encode() + b"{}")
        wait_until(lambda: bool(blue.seen))
    name = "requests_total deployment=blue,status_code=499,model_status_code="
    wait_until(lambda: figures(gateway).get(name) == 1)


def test_a_line_for_each_call_of_a_deployment_that_asks(
    gateway: RunningGateway, blue: MockScorer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "functions.gateway.traffic_figures")
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    score(gateway)
    serve(gateway, deployment(blue, "blue", logged=True), traffic="blue=100")
    answer = score(gateway, b'{"secret":1}', user_agent="tester/" + "9" * 90, x_client_request_id="mine")
    blue.status = 500
    score(gateway)
    wait_until(lambda: sum(record.getMessage() == "traffic" for record in caplog.records) == 2)
    first, second = [record.__dict__ for record in caplog.records if record.getMessage() == "traffic"]
    assert (first["Method"], first["Path"]) == ("POST", SCORE)
    assert (first["EndpointName"], first["DeploymentName"]) == (ENDPOINT, "blue")
    assert (first["ResponseCode"], first["ModelStatusCode"]) == (200, 200)
    assert first["RequestPayloadSize"] == len(b'{"secret":1}') and first["ResponsePayloadSize"] > 0
    assert first["XRequestId"] == answer.headers["x-request-id"]
    assert (first["XMSClientRequestId"], len(first["UserAgent"])) == ("mine", 70)
    parts = sum(first[f"{part}DurationMs"] for part in ("Request", "Model", "Response"))
    assert parts == first["TotalDurationMs"] >= 0
    assert (first["Protocol"], first["AuthType"]) == ("HTTP/1.1", "key")
    assert (first["RequestThrottlingDelayMs"], first["ResponseThrottlingDelayMs"]) == (0, 0)
    assert (second["ResponseCode"], second["ModelStatusCode"]) == (424, 500)
    everything = " ".join(str(record.__dict__) for record in caplog.records)
    assert "secret" not in everything and PROJECT_KEY not in everything


def test_figures_are_bounded() -> None:
    traffic = TrafficFigures()
    for number in range(1500):
        traffic._of("shop", f"d{number}")
    assert len(traffic._by) == 1001 and ("other", "other") in traffic._by
