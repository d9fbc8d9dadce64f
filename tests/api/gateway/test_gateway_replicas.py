"""Several servers behind one deployment: which gets a call, what happens when one fails, is busy, or leaves."""

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from functions.gateway import balancing, retrying
from metering.model import Usage
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

CALL: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}
AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}


@pytest.fixture
def second() -> Iterator[MockEngine]:
    with MockEngine() as running:
        yield running


@pytest.fixture
def pair(gateway: RunningGateway, engine: MockEngine, second: MockEngine) -> RunningGateway:
    gateway.set_route(urls=(engine.url, second.url))
    return gateway


def post(gateway: RunningGateway, **more: Any) -> httpx.Response:
    return httpx.post(gateway.url + "/v1/chat/completions", json=CALL | more, headers=AUTH, timeout=20)


class Load:
    """Callers who call without pause until told to stop."""

    def __init__(self, gateway: RunningGateway, callers: int, **more: Any) -> None:
        self._gateway, self._more = gateway, more
        self._stop = threading.Event()
        self.statuses: list[int] = []
        self.unfinished = 0
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(callers)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        with httpx.Client(headers=AUTH, timeout=20) as client:
            while not self._stop.is_set():
                stream = bool(number % 2)
                body = CALL | self._more | {"stream": stream}
                answer = client.post(self._gateway.url + "/v1/chat/completions", json=body)
                self.statuses.append(answer.status_code)
                self.unfinished += stream and not answer.text.endswith("[DONE]\n\n")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        assert set(self.statuses) == {200}
        assert not self.unfinished


def test_the_quick_server_gets_more_calls(
    pair: RunningGateway, engine: MockEngine, second: MockEngine
) -> None:
    engine.default = Behaviour(first_delay=1.0)
    second.default = Behaviour(first_delay=0.01)
    load = Load(pair, 6)
    wait_until(lambda: len(load.statuses) >= 60, 30)
    load.stop()
    assert len(engine.seen) >= 3
    assert len(second.seen) > 2 * len(engine.seen)


def test_equal_servers_get_equally_many(pair: RunningGateway, engine: MockEngine, second: MockEngine) -> None:
    for _ in range(20):
        assert post(pair).status_code == 200
    assert (len(engine.seen), len(second.seen)) == (10, 10)


def test_a_server_that_refuses_is_left_alone_and_comes_back(
    pair: RunningGateway, engine: MockEngine, second: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancing, "EJECTED_FIRST_S", 0.4)
    second.stop()
    load = Load(pair, 4)
    wait_until(lambda: len(load.statuses) > 200, 60)
    failed = [event for event in pair.journal.events if event.status == "error"]
    # Three (and those that were on their way) before it is ejected, one for each trial since.
    assert 3 <= len(failed) <= 20
    assert {event.attempt for event in failed} == {1}
    assert pair.control.wakes == [], "the other server is there"
    text = httpx.get(pair.url + "/metrics").text
    assert 'farebox_gateway_replicas{deployment="dep_1",state="ejected"} 1' in text
    second.start()
    second.seen.clear()
    wait_until(lambda: len(second.seen) > 30, 30)
    load.stop()
    text = httpx.get(pair.url + "/metrics").text
    assert 'farebox_gateway_replicas{deployment="dep_1",state="ejected"} 0' in text


def test_a_server_that_answers_500_is_ejected(
    pair: RunningGateway, engine: MockEngine, second: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancing, "EJECTED_FIRST_S", 60)
    second.default = Behaviour(status=500)
    statuses = [post(pair).status_code for _ in range(20)]
    assert statuses.count(500) == 3, "not tried again: it may have done the work"
    assert len(second.seen) == 3


def test_silence_before_the_first_byte_ejects(
    tmp_path, engine: MockEngine, second: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancing, "EJECTED_FIRST_S", 60)
    engine.default = Behaviour(first_delay=0.7)
    second.default = Behaviour(first_delay=30)
    with RunningGateway(tmp_path, engine.url, upstream_first_byte_timeout_s=1) as gateway:
        gateway.set_route(urls=(engine.url, second.url))
        threads = [threading.Thread(target=post, args=(gateway,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = len(second.seen)
        assert seen >= 3
        engine.default = Behaviour()
        assert [post(gateway).status_code for _ in range(10)] == [200] * 10
        assert len(second.seen) == seen


def test_the_second_attempt_goes_to_the_other_server(
    pair: RunningGateway, engine: MockEngine, second: MockEngine
) -> None:
    second.script.append(Behaviour(reset=True))
    assert [post(pair).status_code for _ in range(2)] == [200, 200]
    failed, done = [event for event in pair.journal.events if event.request_id == _retried(pair)]
    assert (failed.status, failed.http_status, failed.usage) == ("error", 502, Usage())
    assert (done.status, done.event_id) == ("completed", f"{failed.event_id}:2")
    assert done.event_id in [seen.headers["x-request-id"] for seen in engine.seen]
    assert len(engine.seen) + len(second.seen) == 3
    assert pair.control.wakes == []


def test_at_most_three_attempts(pair: RunningGateway, engine: MockEngine, second: MockEngine) -> None:
    engine.default = second.default = Behaviour(reset=True)
    response = post(pair)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
    assert [event.attempt for event in pair.journal.events] == [1, 2, 3]
    assert {event.usage for event in pair.journal.events} == {Usage()}
    assert len(engine.seen) + len(second.seen) == 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_server_sends_callers_to_another(
    pair: RunningGateway, engine: MockEngine, second: MockEngine, stream: bool
) -> None:
    second.default = Behaviour(status=503)
    assert [post(pair, stream=stream).status_code for _ in range(2)] == [200, 200]
    error, done = [event for event in pair.journal.events if event.request_id == _retried(pair)]
    assert (error.status, error.http_status, error.usage, error.usage_source) == (
        "error",
        503,
        Usage(),
        "none",
    )
    assert (done.status, done.attempt) == ("completed", 2)


def _retried(gateway: RunningGateway) -> str:
    [request_id] = [event.request_id for event in gateway.journal.events if event.attempt == 2]
    return request_id


def test_a_busy_server_that_is_alone_is_waited_for_if_it_asks_for_little(
    gateway: RunningGateway, engine: MockEngine
) -> None:
    engine.script.append(Behaviour(status=503, headers={"retry-after": "1"}))
    began = time.monotonic()
    assert post(gateway).status_code == 200
    assert time.monotonic() - began >= 1
    engine.script.append(Behaviour(status=503, headers={"retry-after": "30"}))
    refused = post(gateway)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
    assert [event.http_status for event in gateway.journal.events] == [503, 200, 503]


def test_a_server_leaves_under_load_without_one_failed_call(
    pair: RunningGateway, engine: MockEngine, second: MockEngine
) -> None:
    engine.default = second.default = Behaviour(tokens=5, chunk_delay=0.02)
    load = Load(pair, 8)
    second.wait_seen(10, 30)
    with httpx.stream(
        "POST", pair.url + "/v1/chat/completions", json=CALL | {"stream": True, "user": "long"}, headers=AUTH
    ) as long:
        lines = long.iter_lines()
        next(lines)
        pair.set_route(urls=(engine.url,))  # as the change feed tells it
        wait_until(lambda: all(seen.ended.is_set() for seen in second.seen))
        count = len(second.seen)
        rest = list(lines)
    assert "data: [DONE]" in rest
    second.stop()
    time.sleep(0.5)
    load.stop()
    assert len(second.seen) == count, "it got no new calls"
    assert {event.status for event in pair.journal.events} == {"completed"}
    assert pair.gateway is not None
    [(_, servers)] = pair.gateway.places.servers()
    assert servers.counts() == (1, 0)


def test_a_stream_on_a_server_that_left_goes_on(
    pair: RunningGateway, engine: MockEngine, second: MockEngine
) -> None:
    engine.default = second.default = Behaviour(tokens=30, chunk_delay=0.03)
    texts: list[str] = []
    threads = [threading.Thread(target=lambda: texts.append(post(pair, stream=True).text)) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(second.seen) == 2 and all(seen.produced for seen in second.seen))
    pair.set_route(urls=(engine.url,))
    assert not any(seen.ended.is_set() for seen in second.seen)
    for thread in threads:
        thread.join()
    assert all(text.endswith("[DONE]\n\n") for text in texts)
    assert not any(seen.disconnected for seen in second.seen)


# -- pauses, and the bound on a whole answer --


def test_pauses_have_full_jitter_and_a_bound() -> None:
    for attempt, longest in ((1, 0.2), (2, 0.4), (3, 0.8), (9, 1.0)):
        pauses = [retrying.pause_s(attempt) for _ in range(2000)]
        assert 0 <= min(pauses) < 0.05 * longest
        assert 0.95 * longest < max(pauses) <= longest


def test_an_answer_may_not_take_for_ever(tmp_path, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=100, chunk_delay=0.05)
    with RunningGateway(tmp_path, engine.url, upstream_total_timeout_s=1) as gateway:
        text = post(gateway, stream=True).text
        last = [line for line in text.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "answer_too_long"
        [event] = gateway.journal.events
        assert (event.status, event.http_status, event.usage_source) == ("interrupted", 504, "engine")
        assert event.usage.input == 3
        assert 5 <= event.usage.output <= engine.seen[0].produced < 60
        assert engine.seen[0].ended.wait(2)
        assert engine.seen[0].disconnected
        plain = post(gateway)
        assert (plain.status_code, plain.json()["error"]["code"]) == (504, "answer_too_long")
        assert (gateway.journal.events[1].status, gateway.journal.events[1].usage) == ("error", Usage())
