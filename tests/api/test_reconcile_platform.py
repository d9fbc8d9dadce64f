"""`farebox reconcile` on a platform with a counting engine: mixed calls are clean, calls past the gateway are not."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.mock_engine import Behaviour, MockEngine, wait_until
from tests.platform import Platform, await_ready, external_model, running

MODEL = "acme/mock-chat"
SLACK_S = 0.7  # an answer may be ahead of the engine's counters by half a second


@dataclass
class Setting:
    """A platform, the engine behind it, and the official client."""

    platform: Platform
    engine: MockEngine
    ai: openai.OpenAI

    def ask(self, **options: Any) -> Any:
        messages = [{"role": "user", "content": "one two three"}]
        return self.ai.chat.completions.create(model=MODEL, messages=messages, **options)

    def reconcile(self, *options: str) -> tuple[int, dict[str, Any]]:
        """Exit status and answer of the command."""
        time.sleep(SLACK_S)
        run = self.platform.cli("reconcile", "-o", "json", *options, ok=False)
        return run.returncode, json.loads(run.stdout)


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with MockEngine() as engine, running(tmp_path / "home") as platform:
        engine.default = Behaviour(tokens=5, cached_tokens=1)
        with platform.client() as client:
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.models.add(external_model(engine.url))
            client.serverless_endpoints.create("my-chat", model=MODEL)
            key = client.keys.create(project="web", name="ci")["key"]
        with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0) as ai:
            made = Setting(platform, engine, ai)
            assert made.reconcile()[0] == 0  # the first reading of the engine
            yield made


def _causes(answer: dict[str, Any]) -> dict[str, int]:
    """Kind to quantity of all SKUs, of differences between engine and events."""
    found: dict[str, int] = {}
    for hour in answer["data"]:
        for each in hour["differences"]:
            if each["between"] == "engine":
                found[each["kind"]] = found.get(each["kind"], 0) + each["quantity"]
    return found


def test_mixed_calls_are_clean(setting: Setting) -> None:
    for _ in range(5):
        setting.ask()
    setting.ask(n=2)
    assert len(list(setting.ask(stream=True))) > 4
    setting.engine.script.append(Behaviour(tokens=500, chunk_delay=0.01))
    with setting.ask(stream=True) as stream:  # a caller who leaves
        for number, _ in enumerate(stream):
            if number == 20:
                break
    setting.engine.script.append(Behaviour(tokens=50, fail_after=3))
    with pytest.raises((openai.APIError, httpx.HTTPError)):  # an engine that breaks off
        list(setting.ask(stream=True))
    setting.engine.script.append(Behaviour(status=400))
    with pytest.raises(openai.BadRequestError):
        setting.ask()
    status, answer = setting.reconcile()
    assert (status, answer["unexplained"]) == (0, 0), answer
    causes = _causes(answer)
    assert causes["repeated_prompt"] == 3 and causes["unbilled_error"] > 0
    assert set(causes) <= {"repeated_prompt", "unbilled_error", "hang_up", "in_flight", "not_counted"}
    output = [hour["figures"]["output"] for hour in answer["data"] if "output" in hour["figures"]]
    assert sum(figures["events"] for figures in output) >= 5 * 5 + 2 * 5 + 5 + 20
    table = setting.platform.cli("reconcile", "-o", "table").stdout
    assert "every difference is explained" in table and "my-chat" in table


def test_a_call_past_the_gateway_is_an_alarm_to_the_operator(setting: Setting) -> None:
    setting.ask()
    body = {"model": "mock", "messages": [{"role": "user", "content": "for free please"}], "max_tokens": 5}
    httpx.post(setting.engine.url + "/v1/chat/completions", json=body).raise_for_status()
    status, answer = setting.reconcile()
    assert status == 1 and answer["unexplained"] > 0, json.dumps(answer["data"])
    assert _causes(answer)["unmetered"] == 3 + 5
    shown = setting.platform.cli("reconcile", "-o", "table", ok=False)
    assert shown.returncode == 1 and "UNEXPLAINED: unmetered" in shown.stdout
    assert "NOT explained" in shown.stdout and "calls past the gateway" in shown.stdout


def test_an_engine_that_restarts_within_the_hour(setting: Setting) -> None:
    setting.ask()
    assert setting.reconcile()[0] == 0
    setting.engine.restart_counters()
    time.sleep(SLACK_S)
    setting.ask()
    status, answer = setting.reconcile()
    assert status == 0, answer
    engine = sum(
        hour["figures"]["output"]["engine"] for hour in answer["data"] if "output" in hour["figures"]
    )
    assert engine == 10


@pytest.mark.crash
@pytest.mark.parametrize(("stream", "cause"), [(True, "interrupted"), (False, "gateway_restart")])
def test_a_gateway_that_is_killed_in_the_middle_of_calls(setting: Setting, stream: bool, cause: str) -> None:
    setting.ask()
    setting.engine.default = Behaviour(tokens=200, cached_tokens=1, chunk_delay=0.02)

    def call() -> None:
        with contextlib.suppress(openai.APIError, httpx.HTTPError):
            list(setting.ask(stream=stream))

    with ThreadPoolExecutor(8) as callers:
        running_calls = [callers.submit(call) for _ in range(8)]
        time.sleep(2)
        (gateway,) = setting.platform.running("functions.gateway")
        gateway.kill()
        for each in running_calls:
            each.result(30)
    await_ready(setting.platform)
    setting.engine.default = Behaviour(tokens=5, cached_tokens=1)
    wait_until(lambda: _answers(setting), 20)
    status, answer = setting.reconcile()
    assert status == 0, json.dumps(answer["data"])
    assert cause in _causes(answer), "streams are noted every second, plain calls are not"


def _answers(setting: Setting) -> bool:
    try:
        return bool(setting.ask())
    except (openai.APIError, httpx.HTTPError):
        return False


def test_the_command_refuses_what_makes_no_sense(setting: Setting) -> None:
    refused = setting.platform.cli("reconcile", "--from", "2999-01-01", ok=False)
    assert refused.returncode == 1 and "start: expected a time before" in refused.stderr
    refused = setting.platform.cli("reconcile", "--from", "2025-01-01", "--to", "2025-03-01", ok=False)
    assert refused.returncode == 1 and "at most 7 days" in refused.stderr
    refused = setting.platform.cli("reconcile", "--org", "acmee", ok=False)
    assert refused.returncode == 1 and "acme" in refused.stderr
    assert json.loads(setting.platform.cli("alarms", "list", "-o", "json").stdout)["data"] == []
