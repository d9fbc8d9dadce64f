"""An online endpoint over its bandwidth: calls wait and are not refused, and the answer tells how long."""

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.gateway.bandwidth import BURST_S
from tests.api.gateway import test_gateway_observed as observed
from tests.api.gateway.test_gateway_scoring import deployment, score, serve
from tests.gateway_fixture import ENDPOINT, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until
from tests.mock_scorer import MockScorer

RATE = 40_000
REQUEST, RESPONSE = "ms-azureml-bandwidth-request-delay-ms", "ms-azureml-bandwidth-response-delay-ms"


@pytest.fixture
def blue() -> Iterator[MockScorer]:
    with MockScorer("blue") as scorer:
        yield scorer


def test_the_traffic_log_tells_what_was_waited(
    tmp_path: Path, engine: MockEngine, blue: MockScorer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "functions.gateway.traffic_figures")
    with RunningGateway(tmp_path, engine.url, online_bandwidth_bytes_per_s=RATE) as gateway:
        serve(gateway, deployment(blue, "blue", logged=True), traffic="blue=100")
        blue.body = b"y" * 80_000
        answer = score(gateway, b"x" * 50_000)
        wait_until(lambda: any(each.message == "traffic" for each in caplog.records))
    line = next(each.__dict__ for each in caplog.records if each.message == "traffic")
    assert line["RequestThrottlingDelayMs"] == int(answer.headers[REQUEST]) > 0
    assert line["ResponseThrottlingDelayMs"] == int(answer.headers[RESPONSE]) > 0


def test_who_is_over_it_waits(tmp_path: Path, engine: MockEngine, blue: MockScorer) -> None:
    with RunningGateway(tmp_path, engine.url, online_bandwidth_bytes_per_s=RATE) as gateway:
        serve(gateway, deployment(blue, "blue", timeout_ms=500), traffic="blue=100")
        began, told = time.monotonic(), 0
        first = score(gateway, b"x" * 20_000)
        assert REQUEST not in first.headers and RESPONSE not in first.headers
        for _ in range(4):
            answer = score(gateway, b"x" * 20_000)
            assert answer.status_code == 200, "the wait is not the script's time"
            told += int(answer.headers.get(REQUEST, 0)) + int(answer.headers.get(RESPONSE, 0))
        took = time.monotonic() - began
        assert took >= 100_000 / RATE - BURST_S - 0.1
        assert told / 1000 <= took + 0.1
        assert told >= 500, "1.5 s were due, less what the calls themselves took"
        blue.body = b"y" * 30_000
        assert int(score(gateway, b"").headers[RESPONSE]) > 0
        blue.status = 500
        failed = score(gateway, b"")
        assert failed.status_code == 424 and int(failed.headers[RESPONSE]) > 0
        blue.status, blue.body, blue.pieces = 200, None, [b"z" * 20_000] * 3
        began = time.monotonic()
        assert len(score(gateway, b"").content) == 60_000
        assert time.monotonic() - began >= 1.0


def test_others_do_not(tmp_path: Path, engine: MockEngine, blue: MockScorer) -> None:
    settings = {"online_bandwidth_bytes_per_s": RATE, "online_bandwidth_exceptions": f"{ENDPOINT}=0"}
    with RunningGateway(tmp_path, engine.url, **settings) as gateway:
        serve(gateway, deployment(blue, "blue"), traffic="blue=100")
        for _ in range(3):
            assert REQUEST not in score(gateway, b"x" * 100_000).headers


def test_openais_calls_are_counted_too(tmp_path: Path, engine: MockEngine) -> None:
    """A call waits for what was moved before it, answers of others included; the answer itself is not held up."""
    engine.default = Behaviour(tokens=500)
    with RunningGateway(tmp_path, engine.url, online_bandwidth_bytes_per_s=RATE) as gateway:
        serve(gateway, observed.model(engine), traffic="blue=100")
        answers = [observed.chat(gateway, stream=stream, max_tokens=500) for stream in (True, False, True)]
        assert [each.status_code for each in answers] == [200, 200, 200]
        assert REQUEST not in answers[0].headers
        assert int(answers[1].headers[REQUEST]) > 0
        owed = sum(len(each.content) for each in answers[:2]) / RATE - BURST_S
        assert 0.3 * owed <= sum(int(each.headers.get(REQUEST, 0)) for each in answers) / 1000 <= owed + 1
