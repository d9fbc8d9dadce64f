"""The whole platform is killed at random moments while it serves: no answered call is lost, none is billed twice."""

import os
import random
import threading
import time
from decimal import Decimal
from pathlib import Path

import pytest

from serving.processes import free_port
from tests import platform as platforms
from tests.callers import Caller, kill
from tests.mock_engine import Behaviour, MockEngine

pytestmark = pytest.mark.crash

ROUNDS = 6
CALLERS = 6


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
                kill(platform, only_gateway=bool(round_number % 2))
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
