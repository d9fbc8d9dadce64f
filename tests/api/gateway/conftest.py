"""An engine, a gateway before it, and the official client."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.gateway_fixture import PROJECT_KEY, RunningGateway
from tests.mock_engine import MockEngine

_ONE_LANE = ("test_gateway_service", "test_http_conformance")  # of other routes, or of both at once


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What callers see of the metered routes must not depend on the lane that serves them."""
    if not metafunc.module.__name__.endswith(_ONE_LANE):
        metafunc.parametrize("lane", ["fast", "slow"], indirect=True)


@pytest.fixture(autouse=True)
def lane(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    chosen = getattr(request, "param", "fast")
    monkeypatch.setattr(RunningGateway, "lane", chosen)
    return chosen


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
