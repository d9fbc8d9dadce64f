"""A gateway before a mock engine, with a priced model for every task."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.route import Tariff
from tests.contract.clients.values import ROUTES_OF_TASK, TARIFF
from tests.gateway_fixture import RunningGateway, make_route
from tests.mock_engine import MockEngine


@pytest.fixture
def engine() -> Iterator[MockEngine]:
    with MockEngine() as running:
        yield running


@pytest.fixture
def gateway(tmp_path: Path, engine: MockEngine) -> Iterator[RunningGateway]:
    made = RunningGateway(tmp_path, engine.url)
    routes: dict[str, dict[str, Any]] = ROUTES_OF_TASK
    made.directory.routes = [
        make_route(engine.url, task=task, tariffs=(Tariff(0, TARIFF),), **names)
        for task, names in routes.items()
    ]
    with made:
        yield made
