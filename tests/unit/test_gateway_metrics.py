"""The gateway's figures: what is counted, how it is written down, and that it stays small and cheap."""

import time
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import NotFound, RateLimited
from functions.gateway.exposition import Family, render
from functions.gateway.metrics import MAX_MODELS, MAX_REFUSALS, Metrics
from metering.model import Usage
from tests.metering_values import event as usage_event


def values(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by name and labels, as Prometheus reads the page."""
    families = text_string_to_metric_families("".join(render(metrics.families())))
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def call(**changes: Any) -> Any:
    usual = {
        "model_id": "acme/m",
        "usage": Usage(input=10, cached_input=4, output=3),
        "received_ms": 1000,
        "sent_ms": 1002,
        "first_byte_ms": 1022,
        "ended_ms": 1100,
    }
    return usage_event(**(usual | changes))


def test_a_call_is_counted_once_with_its_tokens_and_times() -> None:
    metrics = Metrics()
    metrics.settled(call(), 1103)
    found = values(metrics)
    labels = (("http_status", "200"), ("model", "acme/m"), ("operation", "chat.completions"))
    assert found["farebox_gateway_calls_total", (*labels, ("status", "completed"))] == 1
    tokens = {key[1][1][1]: value for key, value in found.items() if key[0] == "farebox_gateway_tokens_total"}
    assert tokens == {"input": 6, "cached_input": 4, "output": 3}
    model = ("model", "acme/m")
    assert found["farebox_gateway_first_byte_seconds_sum", (model,)] == 0.02
    assert found["farebox_gateway_first_byte_seconds_bucket", (("le", "0.01"), model)] == 0
    assert found["farebox_gateway_first_byte_seconds_bucket", (("le", "0.025"), model)] == 1
    assert found["farebox_gateway_duration_seconds_sum", (model,)] == 0.1
    assert found["farebox_gateway_commit_seconds_sum", ()] == 0.003


def test_a_failed_call_counts_no_tokens_and_an_unanswered_one_no_first_byte() -> None:
    metrics = Metrics()
    metrics.settled(call(status="error", http_status=502, first_byte_ms=0), 1100)
    found = values(metrics)
    assert sum(value for (name, _), value in found.items() if name == "farebox_gateway_tokens_total") == 0
    assert found["farebox_gateway_first_byte_seconds_count", (("model", "acme/m"),)] == 0


def test_clocks_that_step_back_make_no_negative_times() -> None:
    metrics = Metrics()
    metrics.settled(call(received_ms=9000, first_byte_ms=1), 10)
    assert all(value >= 0 for value in values(metrics).values())


def test_labels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_MODELS + 50):
        metrics.settled(call(model_id=f"m{number}"), 1100)
        metrics.refused(NotFound("x", code=f"c{number}"))
    found = values(metrics)
    models = {dict(labels)["model"] for name, labels in found if name == "farebox_gateway_calls_total"}
    assert len(models) == MAX_MODELS + 1
    assert sum(value for (name, _), value in found.items() if name == "farebox_gateway_calls_total") == 1050
    refusals = {
        labels: value for (name, labels), value in found.items() if name == "farebox_gateway_refusals_total"
    }
    assert len(refusals) == MAX_REFUSALS + 1
    assert refusals[("code", "other"), ("http_status", "400")] == MAX_MODELS + 50 - MAX_REFUSALS


def test_refusals_by_reason() -> None:
    metrics = Metrics()
    metrics.refused(RateLimited("slowly"))
    metrics.refused(RateLimited("slowly"))
    found = values(metrics)
    name = "farebox_gateway_refusals_total", (("code", "rate_limit_exceeded"), ("http_status", "429"))
    assert found[name] == 2


def test_labels_are_quoted() -> None:
    odd = 'a"b\\c\nd'
    text = "".join(render([Family("x", "gauge", "odd", [("", (("name", odd),), 1)])]))
    (family,) = text_string_to_metric_families(text)
    assert family.samples[0].labels == {"name": odd}


@pytest.mark.timing
def test_counting_a_call_costs_little() -> None:
    metrics, event = Metrics(), call()
    best = min(_seconds(metrics, event) for _ in range(5))
    assert best < 20e-6, (
        f"{best * 1e9:.0f} ns a call"
    )  # about 1 µs; a slow machine under load is allowed much more


def _seconds(metrics: Metrics, event: Any) -> float:
    began = time.perf_counter()
    for _ in range(1000):
        metrics.settled(event, 1103)
        metrics.prepare.note(45)
    return (time.perf_counter() - began) / 1000
