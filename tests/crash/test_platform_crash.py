"""The whole platform is killed at random moments while it serves: no answered call is lost, none is billed twice."""

import http.client
import json
import os
import random
import signal
import threading
import time
import urllib.request
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.processes import free_port
from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine

pytestmark = pytest.mark.crash

ROUNDS = 6
CALLERS = 6


class Caller(threading.Thread):
    """Calls without pause until told to stop; remembers every answer it saw whole."""

    def __init__(self, url: str, key: str, stream: bool, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._key, self._stream, self._stop_event = url + "/v1/chat/completions", key, stream, stop
        self.completed: dict[str, int] = {}

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                self._call()
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(0.02)

    def _call(self) -> None:
        body: dict[str, Any] = {
            "model": "my-chat",
            "messages": [{"role": "user", "content": "one two three"}],
        }
        if self._stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
            request_id = answer.headers["x-request-id"]
        if self._stream:
            frames = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
            if frames[-1] != "[DONE]":
                raise ValueError("cut")
            usage = json.loads(frames[-2])["usage"]
        else:
            usage = json.loads(text)["usage"]
        self.completed[request_id] = usage["completion_tokens"]


def test_kill_nine_at_random_moments(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAREBOX_TEST_SEED", "20261123"))
    print(f"seed {seed}")
    chance = random.Random(seed)
    home, port = tmp_path / "home", free_port()
    with MockEngine() as engine:
        engine.default = Behaviour(tokens=4, chunk_delay=0.01)
        platform = platforms.start(home, port)
        platforms.await_ready(platform)
        with platform.client() as client:
            client.models.add(platforms.external_model(engine.url))
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.serverless_endpoints.create("my-chat", model="acme/mock-chat")
            key = client.keys.create(project="web", name="crash")["key"]
        stop = threading.Event()
        callers = [Caller(platform.url, key, stream=bool(i % 2), stop=stop) for i in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            for round_number in range(ROUNDS):
                time.sleep(chance.uniform(0.3, 1.2))
                _kill(platform, only_gateway=bool(round_number % 2))
                if platform.process.poll() is not None:
                    platform = platforms.start(home, port)
                platforms.await_ready(platform)
        finally:
            stop.set()
            for caller in callers:
                caller.join(15)
        try:
            _assert_exact(platform, {k: v for caller in callers for k, v in caller.completed.items()})
        finally:
            platform.stop()


def _kill(platform: platforms.Platform, *, only_gateway: bool) -> None:
    children = platform.children()
    if only_gateway:
        gateways = platform.running("functions.gateway.main")
        assert gateways, "a gateway runs"
        gateways[0].send_signal(signal.SIGKILL)
        gateways[0].wait(5)
        return
    platform.process.kill()
    platform.process.wait(10)
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"the gateway outlived its supervisor: {alive}"


def _assert_exact(platform: platforms.Platform, completed: dict[str, int]) -> None:
    assert len(completed) > 50, "too few calls to prove anything"
    with platform.client() as client:
        receipts = list(client.receipts.iterate(organization="acme"))
        preview = client.invoices.preview("acme")
    by_id = {receipt["request_id"]: receipt for receipt in receipts}
    assert len(by_id) == len(receipts), "a receipt is listed twice"
    for request_id, output in completed.items():
        assert request_id in by_id, f"an answered call was lost: {request_id}"
        assert by_id[request_id]["usage"]["output"] == output
        assert by_id[request_id]["status"] == "completed"
    billed = [receipt for receipt in receipts if receipt["status"] != "error"]
    expected = sum((Decimal(receipt["cost_usd"]) for receipt in billed), Decimal(0))
    tokens = sum(
        (Decimal(x["amount_usd"]) for x in preview["lines"] if x["sku"] != "endpoint_minute"), Decimal(0)
    )
    assert tokens == expected, "the preview is not the sum of its receipts"
