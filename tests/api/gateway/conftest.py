"""An engine, a gateway before it, and the official client."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway_fixture import PROJECT_KEY, RunningGateway
from tests.mock_engine import MockEngine


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with MockEngine() as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, engine: MockEngine) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path, engine.url) as running:
        yield running


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY, max_retries=0) as made:
        yield made
