"""A real vLLM on the CPU: catalog to invoice, the official clients, hang-ups, scale to zero.

The engine and the sample model are made by the project's own commands where they are missing, and shared by all
runs of one user (FAREBOX_ENGINES_DIR and FAREBOX_MODELS_DIR, else ~/.farebox).
"""

import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import farebox
import openai
import pytest

from catalog.sample import sample_model_dir
from core.settings import Settings
from functions.hand_calculation import minute_sum, token_sums, total_exact, total_rounded
from serving.processes import free_port
from tests import platform as platforms
from tests.lora_adapter import write_adapter

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

IDLE_S = 25
FINE_TUNE = """\
id: acme/tuned
task: chat
adapter: {{base: farebox/sample-chat, path: {folder}}}
context_length: 2048
prices: {{input: "7", output: "9"}}
"""
MODEL = "farebox/sample-chat"
MESSAGES = [{"role": "user", "content": "What is Farebox?"}]


@pytest.fixture(scope="module")
def shared(engine_settings: Settings) -> dict[str, str]:
    """Where the engine and the sample model are."""
    return {
        "FAREBOX_ENGINES_DIR": str(engine_settings.engines_path),
        "FAREBOX_MODELS_DIR": str(engine_settings.models_path),
    }


@pytest.fixture(scope="module")
def platform(
    tmp_path_factory: pytest.TempPathFactory, shared: dict[str, str]
) -> Iterator[platforms.Platform]:
    home = tmp_path_factory.mktemp("home")
    with platforms.running(home, FAREBOX_SCALE_TO_ZERO_AFTER_S=str(IDLE_S), **shared) as platform:
        with platform.client() as client:
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.serverless_endpoints.create("sample", model=MODEL)
        yield platform


@pytest.fixture(scope="module")
def ai(platform: platforms.Platform) -> Iterator[openai.OpenAI]:
    with platform.client() as client:
        key = client.keys.create(project="web", name="test")["key"]
    with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0, timeout=600) as ai:
        yield ai


def _engine_counter(client: farebox.Client, name: str) -> int:
    """A counter of the engine's own Prometheus page."""
    url = next(
        r["url"] for d in client.deployments.list() for r in d["replicas"] if r.get("state") == "ready"
    )
    page = urllib.request.urlopen(f"{url}/metrics", timeout=10).read().decode()
    return round(sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", page, re.MULTILINE)))


def test_first_call_starts_the_engine_and_is_answered(
    platform: platforms.Platform, ai: openai.OpenAI
) -> None:
    assert platform.running("vllm") == [], "no engine runs before the first call"
    raw = ai.chat.completions.with_raw_response.create(
        model="sample", messages=MESSAGES, max_tokens=24, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(raw.parse())
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    usage = chunks[-1].usage
    assert re.search(r"[a-z]{3,} [a-z]{2,}", text), f"words, not noise: {text!r}"
    assert usage is not None and usage.prompt_tokens > 0 and usage.completion_tokens > 0
    with platform.client() as client:
        receipt = client.receipts.get(raw.headers["x-request-id"])
    assert receipt["status"] == "completed" and receipt["usage_source"] == "engine"
    assert receipt["usage"]["input"] == usage.prompt_tokens
    assert receipt["usage"]["output"] == usage.completion_tokens
    assert platform.running("vllm"), "the engine runs now"


def test_plain_calls_completions_and_models(platform: platforms.Platform, ai: openai.OpenAI) -> None:
    assert {m.id for m in ai.models.list()} >= {MODEL, "sample"}
    plain = ai.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=8, n=2, temperature=1)
    assert len(plain.choices) == 2 and plain.usage is not None
    completion = ai.completions.create(model="sample", prompt="Farebox is", max_tokens=8)
    assert completion.usage is not None and completion._request_id is not None
    with platform.client() as client:
        assert (
            client.receipts.get(plain._request_id or "")["usage"]["output"] == plain.usage.completion_tokens
        )
        assert client.receipts.get(completion._request_id)["operation"] == "completions"


def test_cached_prompt_tokens_are_priced_apart(platform: platforms.Platform, ai: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "Tell me about endpoints and invoices. " * 60}]
    ai.chat.completions.create(model="sample", messages=long, max_tokens=4)
    again = ai.chat.completions.create(model="sample", messages=long, max_tokens=4)
    with platform.client() as client:
        receipt = client.receipts.get(again._request_id or "")
    assert receipt["usage"]["cached_input"] > 0
    assert receipt["billed"]["input"] + receipt["billed"]["cached_input"] == receipt["usage"]["input"]


def test_bad_requests_keep_the_engines_meaning(ai: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="sample", messages=[{"role": "user", "content": "word " * 9000}])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        ai.chat.completions.create(model="sample", messages=MESSAGES, temperature=-3)


def test_a_hang_up_is_billed_for_what_was_produced(platform: platforms.Platform, ai: openai.OpenAI) -> None:
    raw = ai.chat.completions.with_raw_response.create(
        model="sample", messages=MESSAGES, max_tokens=3000, stream=True, extra_body={"ignore_eos": True}
    )
    stream = raw.parse()
    for number, _ in enumerate(stream):
        if number == 40:
            break
    stream.close()
    deadline = time.monotonic() + 20
    with platform.client() as client:
        while True:
            try:
                receipt = client.receipts.get(raw.headers["x-request-id"])
                break
            except farebox.FareboxAPIError as error:
                if error.status != 404 or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        assert receipt["status"] == "client_disconnect"
        assert 35 <= receipt["usage"]["output"] < 2500, "billed for what was produced, and the engine stopped"
        time.sleep(1)
        running = _engine_counter(client, "vllm:num_requests_running")
    assert running == 0, "the engine was told to stop"


def test_tokens_billed_are_tokens_produced(platform: platforms.Platform, ai: openai.OpenAI) -> None:
    with platform.client() as client:
        before = _engine_counter(client, "vllm:generation_tokens_total")
        known = {receipt["request_id"] for receipt in client.receipts.iterate(organization="acme")}
        for length in range(1, 21):
            ai.chat.completions.create(model="sample", messages=MESSAGES, max_tokens=length, temperature=1)
        produced = _engine_counter(client, "vllm:generation_tokens_total") - before
        fresh = [r for r in client.receipts.iterate(organization="acme") if r["request_id"] not in known]
    assert len(fresh) == 20
    assert sum(receipt["usage"]["output"] for receipt in fresh) == produced


def test_reconcile_is_clean_after_all_that_and_tells_a_call_past_the_gateway(
    platform: platforms.Platform, ai: openai.OpenAI
) -> None:
    for length in (1, 7, 30):  # callers who leave: early, later, and without having asked for a stream
        stream = ai.chat.completions.create(
            model="sample", messages=MESSAGES, max_tokens=400, stream=True, extra_body={"ignore_eos": True}
        )
        for number, _ in enumerate(stream):
            if number == length:
                break
        stream.close()
    with pytest.raises(openai.APITimeoutError):
        ai.with_options(timeout=0.3).chat.completions.create(
            model="sample", messages=MESSAGES, max_tokens=2000, extra_body={"ignore_eos": True}
        )
    ai.chat.completions.create(model="sample", messages=MESSAGES, max_tokens=6, n=3, temperature=1)
    time.sleep(3)
    run = platform.cli("reconcile", "-o", "json", ok=False)
    answer = json.loads(run.stdout)
    assert run.returncode == 0, run.stdout
    rows = [hour for hour in answer["data"] if "output" in hour["figures"]]
    assert rows and all(hour["figures"]["output"]["engine"] for hour in rows), "the engine was read"
    kinds = {each["kind"] for hour in rows for each in hour["differences"] if each["between"] == "engine"}
    assert "repeated_prompt" in kinds
    assert kinds <= {"repeated_prompt", "hang_up", "in_flight", "hour_edge", "estimated", "unbilled_error"}
    with platform.client() as client:
        url = next(
            r["url"] for d in client.deployments.list() for r in d["replicas"] if r.get("state") == "ready"
        )
    body = json.dumps({"model": MODEL, "prompt": "for free " * 300, "max_tokens": 300, "ignore_eos": True})
    request = urllib.request.Request(
        f"{url}/v1/completions", body.encode(), {"content-type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=60).close()
    time.sleep(1)
    run = platform.cli("reconcile", ok=False)
    assert run.returncode == 1 and '"unmetered"' in run.stdout, run.stdout


def test_the_preview_equals_the_hand_calculation(platform: platforms.Platform) -> None:
    with platform.client() as client:
        receipts = list(client.receipts.iterate(organization="acme"))
        preview = client.invoices.preview("acme")
        prices = {model["id"]: model["prices"] for model in client.models.list()}
        endpoint = client.serverless_endpoints.get("sample")
    sums = token_sums(receipts, prices)
    per_minute = prices[MODEL]["endpoint_minute"]
    sums.append(minute_sum(endpoint, preview["period_start"], preview["as_of"], per_minute))
    assert Decimal(preview["total_exact_usd"]) == total_exact(sums)
    assert Decimal(preview["total_usd"]) == total_rounded(sums)


def test_idle_engine_is_stopped_and_wakes_again(platform: platforms.Platform, ai: openai.OpenAI) -> None:
    deadline = time.monotonic() + IDLE_S + 60
    while platform.running("vllm"):
        assert time.monotonic() < deadline, "still running long after the last call"
        time.sleep(0.5)
    with platform.client() as client:
        assert {d["state"] for d in client.deployments.list()} == {"stopped"}
    answer = ai.chat.completions.create(model="sample", messages=MESSAGES, max_tokens=4)
    assert answer.usage is not None and answer.usage.completion_tokens > 0


def test_logs_hold_the_engines_words_and_not_the_callers(
    platform: platforms.Platform, ai: openai.OpenAI
) -> None:
    secret = "the weather in Ouagadougou"
    ai.chat.completions.create(model="sample", messages=[{"role": "user", "content": secret}], max_tokens=4)
    with platform.client() as client:
        log = client.serverless_endpoints.get_logs("sample", lines=500)
    assert "vLLM" in log or "vllm" in log
    kept = [p for p in Path(platform.home).rglob("*") if p.is_file() and secret.encode() in p.read_bytes()]
    assert not kept, f"prompts must not be stored: {kept}"
    assert secret not in log


def test_a_fine_tune_is_served_beside_its_base(
    platform: platforms.Platform, ai: openai.OpenAI, engine_settings: Settings, tmp_path: Path
) -> None:
    """An engine that runs without it is replaced; both are then models of one engine, each with its own prices."""

    def say(model: str) -> tuple[str, dict[str, Any]]:
        raw = ai.chat.completions.with_raw_response.create(
            model=model, messages=MESSAGES, max_tokens=8, temperature=0
        )
        with platform.client() as client:
            receipt = client.receipts.get(raw.headers["x-request-id"])
        return raw.parse().choices[0].message.content or "", dict(receipt)

    before, _ = say("sample")
    write_adapter(tmp_path / "adapter", sample_model_dir(engine_settings.models_path))
    with platform.client() as client:
        client.models.add(FINE_TUNE.format(folder=tmp_path / "adapter"))
        client.serverless_endpoints.create("tuned", model="acme/tuned")
    text, receipt = say("acme/tuned")
    assert text != before
    assert receipt["model"] == "acme/tuned" and receipt["usage"]["output"] == 8
    usage = receipt["usage"]
    assert receipt["usage_source"] == "engine"
    assert Decimal(receipt["cost_usd"]) == Decimal(usage["input"] * 7 + usage["output"] * 9) / 1_000_000
    assert say("sample")[0] == before
    assert len(platform.running("api_server")) == 1, "one engine for both"


def test_demo_ends_with_zero(tmp_path: Path, shared: dict[str, str]) -> None:
    """`make run ARGS=--once`, without the set-up that make does."""
    environ = platforms.environment(FAREBOX_HOME=str(tmp_path / "home"), **shared)
    command = [str(platforms.FAREBOX), "demo", "--once", "--port", str(free_port())]
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "equals the hand calculation" in run.stdout
