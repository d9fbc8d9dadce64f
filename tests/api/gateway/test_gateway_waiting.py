"""A model that has to be started first: who waits, who is told what, and what is recorded of it."""

import json
import threading
import time
from collections.abc import Iterator

import httpx
import openai
import pytest

from metering.model import Usage
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

MESSAGES = [{"role": "user", "content": "one two three"}]
CALL = {"model": MODEL, "messages": MESSAGES}
AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}


@pytest.fixture
def asleep(tmp_path, engine: MockEngine) -> Iterator[RunningGateway]:
    """A gateway whose only deployment has no server yet."""
    with RunningGateway(
        tmp_path,
        "",
        sse_comment_every_s=1,
        hold_plain_call_s=1,
        wait_for_start_s=3,
        max_waiting_per_deployment=3,
    ) as running:
        running.control.answers = [{"state": "ready", "url": engine.url}]
        yield running


def post(gateway: RunningGateway, **more: object) -> httpx.Response:
    return httpx.post(gateway.url + "/v1/chat/completions", json=CALL | more, headers=AUTH, timeout=20)


def test_one_start_however_many_wait(asleep: RunningGateway, engine: MockEngine) -> None:
    asleep.control.hold.clear()
    statuses: list[int] = []
    callers = [threading.Thread(target=lambda: statuses.append(post(asleep).status_code)) for _ in range(3)]
    for caller in callers:
        caller.start()
    wait_until(lambda: asleep.gateway is not None and asleep.gateway.in_flight == 3)
    time.sleep(0.05)
    full = post(asleep)
    assert (full.status_code, full.json()["error"]["code"]) == (503, "queue_full")
    assert int(full.headers["retry-after"]) > 0
    asleep.control.hold.set()
    for caller in callers:
        caller.join()
    assert statuses == [200] * 3
    assert asleep.control.wakes == ["dep_1"]
    assert [event.status for event in asleep.journal.events] == ["completed"] * 3  # none of the refused one


@pytest.mark.timing
def test_a_plain_call_is_held_for_a_while_then_told_when_to_come_again(asleep: RunningGateway) -> None:
    asleep.control.answers = [{"state": "starting"}]
    began = time.monotonic()
    response = post(asleep)
    assert 0.9 < time.monotonic() - began < 2
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_starting")
    assert response.headers["retry-after"] == "7"
    [event] = asleep.journal.events
    assert (event.status, event.usage, event.usage_source, event.sent_ms) == ("error", Usage(), "none", 0)


def test_the_official_client_comes_again_by_itself(asleep: RunningGateway, engine: MockEngine) -> None:
    starting = {"state": "starting", "retry_after_s": 1}
    asleep.control.answers = [starting, starting, starting, {"state": "ready", "url": engine.url}]
    client = openai.OpenAI(base_url=asleep.url + "/v1", api_key=PROJECT_KEY, max_retries=2)
    assert client.chat.completions.create(model=MODEL, messages=MESSAGES).choices


def test_a_streaming_caller_sees_that_it_waits(asleep: RunningGateway, engine: MockEngine) -> None:
    asleep.control.hold.clear()
    release = threading.Timer(2.5, asleep.control.hold.set)
    release.start()
    text = post(asleep, stream=True).text
    release.join()
    assert text.startswith(": waiting\n\n")
    assert text.count(": waiting") in (2, 3)
    assert text.endswith("data: [DONE]\n\n")
    assert asleep.journal.events[0].usage == Usage(input=3, output=4)


def test_comments_while_the_engine_thinks(asleep: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(first_delay=1.5)
    client = openai.OpenAI(base_url=asleep.url + "/v1", api_key=PROJECT_KEY, max_retries=0)
    text = post(asleep, stream=True).text
    assert text.startswith(": waiting\n\n")
    assert len(list(client.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True))) == 5


def test_a_start_that_fails(asleep: RunningGateway, engine: MockEngine) -> None:
    asleep.control.answers = [{"state": "failed", "reason": "8 GiB of memory are needed, 2 GiB are free"}]
    response = post(asleep)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (503, "model_start_failed")
    assert "8 GiB" in error["message"]
    assert response.headers["retry-after"] == "7"
    assert post(asleep, stream=True).status_code == 503  # nothing was sent yet, so the status tells
    asleep.control.hold.clear()
    threading.Timer(1.5, asleep.control.hold.set).start()
    response = post(asleep, stream=True)
    assert response.status_code == 200
    last = response.text.strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_start_failed"
    assert "[DONE]" not in response.text
    assert [event.status for event in asleep.journal.wait_events(3)] == ["error"] * 3


@pytest.mark.timing
def test_a_stream_waits_longer_but_not_for_ever(asleep: RunningGateway) -> None:
    asleep.control.answers = [{"state": "starting"}]
    began = time.monotonic()
    text = post(asleep, stream=True).text
    assert 2.9 < time.monotonic() - began < 4
    assert "model_starting" in text


def test_hanging_up_while_waiting(asleep: RunningGateway, engine: MockEngine) -> None:
    asleep.control.hold.clear()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(asleep.url + "/v1/chat/completions", json=CALL, headers=AUTH, timeout=0.3)
    [event] = asleep.journal.wait_events(1)
    assert (event.status, event.usage, event.usage_source) == ("client_disconnect", Usage(), "none")
    asleep.control.hold.set()  # the start itself went on
    assert post(asleep).status_code == 200
    assert not engine.seen[0].disconnected


def test_a_server_that_is_gone_is_started_again(asleep: RunningGateway, engine: MockEngine) -> None:
    asleep.set_route(urls=("http://127.0.0.1:9",))  # nothing listens there
    assert post(asleep).status_code == 200
    assert asleep.control.wakes == ["dep_1"]
    assert [event.status for event in asleep.journal.events] == ["error", "completed"]
    assert [event.attempt for event in asleep.journal.events] == [1, 2]


def test_the_control_process_is_told_how_busy_deployments_are(
    asleep: RunningGateway, engine: MockEngine
) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    caller = threading.Thread(target=post, args=(asleep,))
    caller.start()
    wait_until(lambda: any(report["dep_1"]["in_flight"] == 1 for report in asleep.control.activity))
    release.set()
    caller.join()
    wait_until(lambda: asleep.control.activity[-1]["dep_1"]["in_flight"] == 0)
    assert abs(asleep.control.activity[-1]["dep_1"]["last_ms"] - time.time() * 1000) < 5000
    time.sleep(1.5)
    count = len(asleep.control.activity)
    time.sleep(1.2)
    assert len(asleep.control.activity) == count  # nothing changes, nothing is said


def test_no_control_process(tmp_path) -> None:
    gateway = RunningGateway(tmp_path, "", hold_plain_call_s=1)
    gateway.control_up = False
    with gateway:
        assert post(gateway).status_code == 503
        assert httpx.get(gateway.url + "/healthz").status_code == 200
        ready = httpx.get(gateway.url + "/readyz")
        assert ready.status_code == 503
        assert "control" in ready.json()["problems"][0]
        response = httpx.get(gateway.url + "/api/projects")
        assert (response.status_code, response.json()["code"]) == (503, "control_unavailable")
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["request_id"] == response.headers["x-request-id"]
        assert "retry-after" in response.headers
