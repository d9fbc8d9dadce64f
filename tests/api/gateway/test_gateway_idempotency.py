"""`Idempotency-Key`: one call however often it is asked for, its outcome told again, nothing billed twice."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from access.principal import Principal
from core.clock import SystemClock
from core.errors import Conflict
from functions.gateway import idempotency
from functions.gateway.idempotency import Outcomes, Recorder, Replayed
from tests.gateway_fixture import MODEL, OTHER_KEY, PROJECT_KEY, RunningGateway, make_route
from tests.mock_engine import Behaviour, MockEngine, wait_until

CALL = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}
CHAT = "/v1/chat/completions"


def post(
    gateway: RunningGateway, body: Any = CALL, path: str = CHAT, name: str = "k1", key: str = PROJECT_KEY
) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "idempotency-key": name}
    return httpx.post(gateway.url + path, json=body, headers=headers, timeout=20)


@pytest.mark.parametrize(
    "extra", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}]
)
def test_an_outcome_is_told_again(gateway: RunningGateway, engine: MockEngine, extra: dict[str, Any]) -> None:
    first = post(gateway, CALL | extra)
    engine.default = Behaviour(tokens=9)
    for _ in range(2):
        again = post(gateway, CALL | extra)
        assert (again.status_code, again.content) == (200, first.content)
        assert again.headers["idempotent-replayed"] == "true"
        for name in ("x-request-id", "content-type"):
            assert again.headers[name] == first.headers[name]
    assert "idempotent-replayed" not in first.headers
    assert len(engine.seen) == len(gateway.journal.events) == 1


def test_another_body_path_or_tenant(gateway: RunningGateway, engine: MockEngine) -> None:
    gateway.directory.routes.append(
        make_route(engine.url, endpoint_id="ep_2", org_id="org_2", project_id="prj_2")
    )
    assert post(gateway).status_code == 200
    for body, path in ((CALL | {"temperature": 0}, CHAT), (CALL, "/endpoints/my-mock/v1/chat/completions")):
        refused = post(gateway, body, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert refused.json()["error"]["param"] == "Idempotency-Key"
    assert "idempotent-replayed" not in post(gateway, key=OTHER_KEY).headers
    assert post(gateway, name="k2").status_code == 200
    assert len(engine.seen) == 3
    for name in ("", "x" * 256, "a b"):
        assert post(gateway, name=name).json()["error"]["param"] == "Idempotency-Key"


def test_a_call_in_flight(gateway: RunningGateway, engine: MockEngine) -> None:
    hold = threading.Event()
    engine.default = Behaviour(hold=hold)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(post, gateway)
        engine.wait_seen(1)
        refused = post(gateway)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_in_use")
        hold.set()
        assert running.result().status_code == 200
    assert post(gateway).headers["idempotent-replayed"] == "true"


def test_what_failed_is_tried_anew(gateway: RunningGateway, engine: MockEngine) -> None:
    for trouble in (
        Behaviour(status=500),
        Behaviour(status=400),
        Behaviour(fail_after=2, fail_how="error_event"),
    ):
        engine.script.append(trouble)
        body = CALL | {"stream": trouble.fail_after is not None}
        post(gateway, body, name=f"k{trouble.status}")
        assert "idempotent-replayed" not in post(gateway, body, name=f"k{trouble.status}").headers
    gateway.journal.broken_append = True
    assert post(gateway, name="disk").status_code == 503
    gateway.journal.broken_append = False
    assert post(gateway, name="disk").status_code == 200
    assert post(gateway, CALL | {"model": "none"}, name="gone").status_code == 404
    assert post(gateway, name="gone").status_code == 200  # a refused request was no call, so its key is free


def test_a_caller_who_left_has_no_outcome(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.script.append(Behaviour(tokens=50, chunk_delay=0.05))
    headers = {"authorization": f"Bearer {PROJECT_KEY}", "idempotency-key": "left"}
    with httpx.stream("POST", gateway.url + CHAT, json=CALL | {"stream": True}, headers=headers) as response:
        next(response.iter_bytes())
    [event] = gateway.journal.wait_events(1)
    assert event.status == "client_disconnect"
    wait_until(lambda: gateway.gateway is not None and not gateway.gateway.in_flight)
    again = post(gateway, CALL | {"stream": True}, name="left")
    assert again.text.endswith("data: [DONE]\n\n") and "idempotent-replayed" not in again.headers
    assert len(gateway.journal.wait_events(2)) == 2


class _Clock(SystemClock):
    later_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.later_ms


ACME = Principal("project", "key_1", "org_1", "prj_1")


async def _sent(outcomes: Outcomes, name: bytes, size: int) -> None:
    async def send(_: object) -> None:
        pass

    recorder = Recorder(send)
    recorder.claim = outcomes.claim(ACME, name, "/", b"")
    await recorder({"type": "http.response.start", "status": 200, "headers": []})
    await recorder({"type": "http.response.body", "body": b"x" * size})
    recorder.end(completed=True)


async def test_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = Outcomes(SystemClock())
    await _sent(outcomes, b"large", idempotency.MAX_OUTCOME_BYTES + 1)
    with pytest.raises(Conflict, match="not kept"):
        outcomes.claim(ACME, b"large", "/", b"")
    monkeypatch.setattr(idempotency, "MAX_BYTES", 10_000)
    for i in range(30):
        await _sent(outcomes, b"k%d" % i, 1000)
    assert len(outcomes) < 10
    monkeypatch.setattr(idempotency, "MAX_OUTCOMES", 5)
    in_flight = [outcomes.claim(ACME, b"f%d" % i, "/", b"") for i in range(8)]
    await _sent(outcomes, b"last", 10)
    assert len(outcomes) <= len(in_flight) + 1
    with pytest.raises(Conflict):
        outcomes.claim(ACME, b"f0", "/", b"")


async def test_outcomes_are_forgotten_after_a_day() -> None:
    clock = _Clock()
    outcomes = Outcomes(clock)
    running = outcomes.claim(ACME, b"old-and-running", "/", b"")
    await _sent(outcomes, b"k", 10)
    clock.later_ms = idempotency.KEEP_MS - 1000
    with pytest.raises(Replayed):
        outcomes.claim(ACME, b"k", "/", b"")
    clock.later_ms = idempotency.KEEP_MS + 1000
    assert outcomes.claim(ACME, b"k", "/", b"") is not None
    assert running is not None


@pytest.mark.timing
def test_replays_are_quick(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=5, chunk_delay=0.1)
    post(gateway, CALL | {"stream": True})
    began = time.monotonic()
    post(gateway, CALL | {"stream": True})
    assert time.monotonic() - began < 0.4
