"""Each task in its own unit, from the call to the invoice, on a whole platform: seconds of audio, tokens read only."""

from collections.abc import Iterator
from decimal import Decimal

import httpx
import openai
import pytest

from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine

EAR = """
id: acme/ear
name: Ear
publisher: acme
task: transcription
engine: {{kind: external, url: "{url}", model: mock}}
prices: {{audio_second: "0.0001", endpoint_minute: "0.0005"}}
"""
RERANKER = """
id: acme/reranker
name: Reranker
publisher: acme
task: rerank
engine: {{kind: external, url: "{url}", model: mock}}
prices: {{input: "0.05", endpoint_minute: "0.0005"}}
"""


@pytest.fixture(scope="module")
def engine() -> Iterator[MockEngine]:
    with MockEngine() as engine:
        engine.default = Behaviour(audio_seconds=2.1)
        yield engine


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory, engine: MockEngine) -> Iterator[platforms.Platform]:
    with platforms.running(tmp_path_factory.mktemp("home")) as platform:
        with platform.client() as client:
            for text in (EAR, RERANKER):
                client.models.add(text.format(url=engine.url))
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            client.serverless_endpoints.create("my-ear", model="acme/ear", project="web")
            client.serverless_endpoints.create("my-reranker", model="acme/reranker", project="web")
        yield platform


def test_from_the_call_to_the_invoice(platform: platforms.Platform) -> None:
    with platform.client() as client:
        key = client.keys.create(project="web", name="laptop")["key"]
        assert client.serverless_endpoints.get("my-ear")["scoring_uri"].endswith("/v1/audio/transcriptions")
        with openai.OpenAI(base_url=platform.url + "/v1", api_key=key, max_retries=0) as ai:
            heard = [
                ai.audio.transcriptions.with_raw_response.create(
                    model="acme/ear", file=("a.wav", b"abc"), response_format=kind
                )
                for kind in ("json", "verbose_json")
            ]
        body = {"model": "acme/reranker", "query": "one", "documents": ["two three"]}
        headers = {"authorization": f"Bearer {key}"}
        ranked = httpx.post(platform.url + "/v1/rerank", json=body, headers=headers)
        costs = []
        for answer, usage, billed in (
            (heard[0], {"audio_ms": 3000}, {"audio_second": 3}),
            (heard[1], {"audio_ms": 2100}, {"audio_second": 3}),
            (ranked, {"input": 3}, {"input": 3}),
        ):
            receipt = client.receipts.get(answer.headers["x-request-id"])
            assert {name: count for name, count in receipt["usage"].items() if count} == usage
            assert {name: count for name, count in receipt["billed"].items() if count} == billed
            assert receipt["cost_usd"] == answer.headers["x-farebox-cost-usd"]
            costs.append(Decimal(receipt["cost_usd"]))
        assert costs == [Decimal("0.0003"), Decimal("0.0003"), Decimal("0.00000015")]
        preview = client.invoices.preview(organization="acme")
        lines = {line["sku"]: line for line in preview["lines"] if line["sku"] != "endpoint_minute"}
        assert set(lines) == {"audio_second", "input"}
        assert (lines["audio_second"]["quantity"], lines["audio_second"]["amount_usd"]) == (6, "0.0006")
        assert lines["audio_second"]["unit_price_usd"] == "0.0001"
        assert not lines["audio_second"].get("price_per_million_usd")
        [row] = [
            row
            for row in client.usage.list(organization="acme", group_by="model")["data"]
            if row["model"] == "acme/ear"
        ]
        assert row["audio_second"] == 6
