"""`kill -9` again and again while streams and plain calls go on; then `farebox reconcile` must be clean.

As many kills as fit into `SECONDS`; with `FAREBOX_TEST_KILLS=100` as many as that, however long it takes. The number is
printed.
"""

import json
import os
import random
import threading
import time
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest

from serving.processes import free_port
from tests import platform as platforms
from tests.callers import Caller, kill
from tests.mock_engine import Behaviour, MockEngine

pytestmark = [pytest.mark.crash, pytest.mark.timeout(1800)]

SECONDS = 45
FEWEST = 5  # a machine that does not come so far proves nothing
WHOLE_EVERY = 10  # this kill takes the whole platform
PATIENT, HASTY = 4, 4  # callers of long answers, which are noted meanwhile; and of short ones
LONG, SHORT = 60, 4  # their answers' tokens
SETTINGS = {"FAREBOX_RESTART_PAUSE_S": "0"}


@dataclass(slots=True)
class Round:
    """The platform under attack, what was done to it, and with which chance."""

    platform: platforms.Platform
    chance: random.Random
    kills: int = 0
    whole: int = 0

    def strike(self) -> None:
        """Wait, kill, wait until it serves again."""
        time.sleep(self.chance.uniform(0.05, 1.0))
        self.kills += 1
        only_gateway = self.kills % WHOLE_EVERY != 0
        kill(self.platform, only_gateway=only_gateway)
        if not only_gateway:
            self.whole += 1
            port = int(self.platform.url.rsplit(":", 1)[1])
            self.platform = platforms.start(self.platform.home, port, **SETTINGS)
        platforms.await_ready(self.platform)


def test_many_kills_and_reconcile_is_clean(tmp_path: Path) -> None:
    seed = int(os.environ.get("FAREBOX_TEST_SEED", "20261126"))
    wanted = int(os.environ.get("FAREBOX_TEST_KILLS", "0"))
    with MockEngine() as engine:
        engine.default = Behaviour(tokens=LONG, chunk_delay=0.02, cached_tokens=1)
        attack = Round(platforms.start(tmp_path / "home", free_port(), **SETTINGS), random.Random(seed))
        try:
            platforms.await_ready(attack.platform)
            key = _set_up(attack.platform, engine)
            began = time.monotonic()
            completed = _under_attack(attack, key, wanted)
            took = time.monotonic() - began
            print(
                f"seed {seed}: {attack.kills} kills, {attack.whole} of the whole platform, in {took:.0f} s;"
            )
            print(f"{len(completed)} answers, {len(engine.seen)} calls to the engine")
            assert attack.kills >= (wanted or FEWEST)
            time.sleep(0.7)  # an answer may be ahead of the engine's counters by half a second
            _assert_clean(attack, engine)
            _assert_exact(attack.platform, engine, completed)
        finally:
            attack.platform.stop()


def _set_up(platform: platforms.Platform, engine: MockEngine) -> str:
    with platform.client() as client:
        client.models.add(platforms.external_model(engine.url))
        client.organizations.create("acme")
        client.projects.create("web", organization="acme")
        client.serverless_endpoints.create("my-chat", model="acme/mock-chat")
        key = str(client.keys.create(project="web", name="crash")["key"])
    platform.cli("reconcile")  # the first reading of the engine: all that comes is counted from here
    return key


def _under_attack(attack: Round, key: str, wanted: int) -> dict[str, int]:
    """Request id to output tokens, of every answer that a caller got whole."""
    stop = threading.Event()
    url = attack.platform.url
    callers = [
        Caller(url, key, stream=bool(i % 2), stop=stop, max_tokens=LONG if i < PATIENT else SHORT)
        for i in range(PATIENT + HASTY)
    ]
    for caller in callers:
        caller.start()
    end = time.monotonic() + SECONDS
    try:
        while attack.kills < wanted if wanted else time.monotonic() < end:
            attack.strike()
        time.sleep(1.5)  # the last life of the gateway answers too
    finally:
        stop.set()
        for caller in callers:
            caller.join(15)
    return {request_id: tokens for caller in callers for request_id, tokens in caller.completed.items()}


def _assert_clean(attack: Round, engine: MockEngine) -> None:
    run = attack.platform.cli("reconcile", "-o", "json", ok=False)
    answer = json.loads(run.stdout)
    assert (run.returncode, answer["unexplained"]) == (0, 0), json.dumps(answer["data"])
    causes: dict[tuple[str, str], int] = {}
    counted = 0
    for hour in answer["data"]:
        counted += (hour["figures"].get("output") or {}).get("engine") or 0
        for each in hour["differences"]:
            if each["between"] == "engine":
                kind = (each["kind"], each["sku"])
                causes[kind] = causes.get(kind, 0) + each["quantity"]
    print("explained:", causes)
    assert counted == sum(one.produced for one in engine.seen), "the engine was not read to its end"
    # What was lost without a note is no more than the calls in flight at each kill: within a second for streams.
    lost = causes.get(("gateway_restart", "output"), 0)
    assert lost <= attack.kills * (PATIENT + HASTY) * LONG


def _assert_exact(platform: platforms.Platform, engine: MockEngine, completed: dict[str, int]) -> None:
    assert len(completed) > 50, "too few calls to prove anything"
    with platform.client() as client:
        receipts = list(client.receipts.iterate(organization="acme"))
        preview = client.invoices.preview("acme")
        assert not client.alarms.list(), "an alarm was raised"
    by_id = {receipt["request_id"]: receipt for receipt in receipts}
    assert len(by_id) == len(receipts), "a receipt is listed twice"
    for request_id, output in completed.items():
        assert request_id in by_id, f"an answered call was lost: {request_id}"
        assert by_id[request_id]["usage"]["output"] == output
        assert by_id[request_id]["status"] == "completed"
    billed = [receipt for receipt in receipts if receipt["status"] != "error"]
    assert len(billed) <= len(engine.seen), "more calls are billed than there were"
    output = sum(receipt["usage"]["output"] for receipt in billed)
    assert output <= sum(one.produced for one in engine.seen), "more is billed than came out"
    cost = sum((Decimal(receipt["cost_usd"]) for receipt in billed), Decimal(0))
    lines = [line for line in preview["lines"] if line["sku"] != "endpoint_minute"]
    assert sum((Decimal(line["amount_usd"]) for line in lines), Decimal(0)) == cost
