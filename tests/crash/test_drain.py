"""SIGTERM on real processes: nothing new is taken, what is in flight is finished within the grace, nothing is lost."""

import json
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine, wait_until

pytestmark = pytest.mark.crash

STREAMS, PLAIN = 4, 3


def prepare(platform: platforms.Platform, engine: MockEngine) -> str:
    """A key that may call the engine's model as `my-chat`."""
    with platform.client() as client:
        client.models.add(platforms.external_model(engine.url))
        client.organizations.create("acme")
        client.projects.create("web", organization="acme")
        client.serverless_endpoints.create("my-chat", model="acme/mock-chat")
        return str(client.keys.create(project="web", name="drain")["key"])


class Caller(threading.Thread):
    """One call; `text` is the whole answer, `error` what broke it off."""

    def __init__(self, url: str, key: str, *, stream: bool) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self.stream = url, key, stream
        self.text = self.request_id = ""
        self.status = 0
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        body: dict[str, Any] = {
            "model": "my-chat",
            "messages": [{"role": "user", "content": "one two three"}],
        }
        body |= {"stream": self.stream}
        headers = {"authorization": f"Bearer {self._key}"}
        url = self._url + "/v1/chat/completions"
        try:
            with httpx.stream("POST", url, json=body, headers=headers, timeout=30) as answer:
                self.status, self.request_id = answer.status_code, answer.headers["x-request-id"]
                for part in answer.iter_text():
                    self.text += part
        except httpx.HTTPError as error:
            self.error = error


def refused_from_now(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) != 0


def receipts(home: Path, environ: dict[str, str]) -> dict[str, dict[str, Any]]:
    """By request id, from a platform started again."""
    with platforms.running(home, **environ) as platform, platform.client() as client:
        return {each["request_id"]: each for each in client.receipts.iterate(organization="acme")}


def test_calls_in_flight_are_finished(tmp_path: Path) -> None:
    home, port = tmp_path / "home", platforms.free_port()
    with MockEngine() as engine:
        engine.default = Behaviour(tokens=20, chunk_delay=0.1)
        platform = platforms.start(home, port)
        platforms.await_ready(platform)
        key = prepare(platform, engine)
        idle = socket.create_connection(("127.0.0.1", port))  # a kept connection nobody uses
        callers = [Caller(platform.url, key, stream=True) for _ in range(STREAMS)]
        callers += [Caller(platform.url, key, stream=False) for _ in range(PLAIN)]
        wait_until(lambda: len(engine.seen) == STREAMS + PLAIN and all(c.text for c in callers[:STREAMS]), 15)
        began = time.monotonic()
        platform.process.send_signal(signal.SIGTERM)
        wait_until(lambda: refused_from_now(port), 1.5)
        assert any(caller.is_alive() for caller in callers), "the rest of this test would show nothing"
        idle.settimeout(1)
        assert idle.recv(1) == b"", "closed, not left hanging"
        assert platform.process.wait(20) == 0
        assert time.monotonic() - began < 12, "it does not sit out the grace"
        for caller in callers:
            caller.join(5)
    assert [caller.error for caller in callers] == [None] * len(callers)
    assert {caller.status for caller in callers} == {200}
    for caller in callers:
        if caller.stream:
            assert caller.text.endswith("data: [DONE]\n\n")
        else:
            assert json.loads(caller.text)["usage"]["completion_tokens"] == 20
    found = receipts(home, {})
    assert found.keys() == {caller.request_id for caller in callers}
    assert {receipt["status"] for receipt in found.values()} == {"completed"}


def test_what_does_not_end_within_the_grace_is_cut_and_billed_for_what_came(tmp_path: Path) -> None:
    home, port = tmp_path / "home", platforms.free_port()
    grace = {"FAREBOX_DRAIN_GRACE_S": "1"}
    with MockEngine() as engine:
        engine.default = Behaviour(tokens=1000, chunk_delay=0.05)
        platform = platforms.start(home, port, **grace)
        platforms.await_ready(platform)
        key = prepare(platform, engine)
        callers = [Caller(platform.url, key, stream=True) for _ in range(3)]
        wait_until(lambda: len(engine.seen) == 3 and all(caller.text for caller in callers), 15)
        assert platform.stop() == 0
        for caller in callers:
            caller.join(5)
        produced = [seen.produced for seen in engine.seen]
    for caller in callers:
        assert caller.error is None, "the stream ends with an error event, not with a reset"
        last = [line for line in caller.text.splitlines() if line.startswith("data: ")][-1]
        assert json.loads(last[6:])["error"]["code"] == "unavailable"
    found = receipts(home, grace)
    assert found.keys() == {caller.request_id for caller in callers}
    for receipt in found.values():
        assert receipt["status"] == "interrupted"
        assert 1 <= receipt["usage"]["output"] <= max(produced) < 1000
