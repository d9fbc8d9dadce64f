"""`GET /metrics` of a real gateway: what callers cause shows up, and `docs/metrics.md` lists what there is."""

import re
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway_fixture import MODEL, RunningGateway
from tests.mock_engine import Behaviour, MockEngine

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def scrape(gateway: RunningGateway) -> dict[str, Metric]:
    answer = httpx.get(gateway.url + "/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    # The parser takes `_total` off a counter's name.
    return {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(answer.text)
    }


def value(families: dict[str, Metric], name: str, **labels: str) -> float:
    """The sum of the samples that have these labels."""
    (family,) = (family for key, family in families.items() if name.startswith(key))
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def ask(client: openai.OpenAI, *, stream: bool = False) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "one two three"}], stream=stream
    )
    if stream:
        assert list(answer)


def test_calls_tokens_and_times(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI, lane: str
) -> None:
    engine.default = Behaviour(prompt_tokens=7, cached_tokens=2, tokens=5, first_delay=0.02)
    for stream in (False, True, False):
        ask(client, stream=stream)
    gateway.journal.wait_events(3)
    found = scrape(gateway)
    calls = "farebox_gateway_calls_total"
    assert value(found, calls, model=MODEL, status="completed", operation="chat.completions") == 3
    assert value(found, "farebox_gateway_tokens_total", model=MODEL, sku="input") == 15
    assert value(found, "farebox_gateway_tokens_total", sku="cached_input") == 6
    assert value(found, "farebox_gateway_tokens_total", sku="output") == 15
    for name in ("first_byte", "duration"):
        assert value(found, f"farebox_gateway_{name}_seconds_count", model=MODEL) == 3
        assert value(found, f"farebox_gateway_{name}_seconds_sum") >= 0.05
    assert value(found, "farebox_gateway_commit_seconds_count") == 3
    assert value(found, "farebox_gateway_prepare_seconds_count") == 3
    assert value(found, "farebox_gateway_in_flight") == 0
    assert value(found, "farebox_gateway_journal_bytes") == 3000
    assert value(found, "farebox_gateway_upstream_connections", state="idle") == 1
    assert value(found, "process_resident_memory_bytes") > 1e6


def test_refusals_and_failures(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="none/such", messages=[])
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="wrong"))
    assert httpx.get(gateway.url + "/v1/models").status_code == 401
    engine.default = Behaviour(status=500)
    with pytest.raises(openai.InternalServerError):
        ask(client)
    found = scrape(gateway)
    refusals = "farebox_gateway_refusals_total"
    assert value(found, refusals, http_status="404", code="model_not_found") == 1
    assert value(found, refusals, http_status="401", code="invalid_api_key") == 2
    assert value(found, refusals) == 3
    assert value(found, "farebox_gateway_calls_total", status="error", http_status="500") == 1
    assert value(found, "farebox_gateway_tokens_total") == 0


def test_an_event_that_cannot_be_recorded_is_counted(gateway: RunningGateway, client: openai.OpenAI) -> None:
    gateway.journal.broken_append = True
    with pytest.raises(openai.InternalServerError):
        ask(client)
    assert value(scrape(gateway), "farebox_gateway_unrecorded_events_total") == 1


def test_waiting_and_cold_starts(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    gateway.set_route(urls=())
    gateway.control.answers = [{"state": "ready", "url": engine.url}]
    ask(client)
    gateway.control.answers = [{"state": "failed", "url": None, "reason": "no memory"}]
    with pytest.raises(openai.InternalServerError):
        ask(client)
    found = scrape(gateway)
    assert value(found, "farebox_gateway_queue_seconds_count") == 2
    assert value(found, "farebox_gateway_cold_start_seconds_count") == 1
    assert value(found, "farebox_gateway_start_failures_total") == 1
    assert value(found, "farebox_gateway_waiting") == 0


def test_the_document_lists_every_metric(gateway: RunningGateway, client: openai.OpenAI) -> None:
    ask(client)
    httpx.get(gateway.url + "/v1/models")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| [^|]* \|([^|]*)\|", DOCUMENT.read_text(), re.MULTILINE)
    listed = {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    found = scrape(gateway)
    assert set(found) == set(listed)
    for name, family in found.items():
        kind, labels = listed[name]
        assert family.type == kind, name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == labels, name
