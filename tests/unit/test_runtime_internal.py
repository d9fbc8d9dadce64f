"""What the gateway may ask of the control process, in the shapes that its client decodes."""

from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest

from core.errors import NotFound
from functions.internal import create_internal
from serving.model import WakeStatus


class FakeRuntime:
    """Answers and remembers."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int]] = []
        self.activity: dict[str, dict[str, Any]] = {}

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus:
        self.asked.append((deployment_id, wait_ms))
        if deployment_id == "dep_none":
            raise NotFound("there is no deployment 'dep_none'", param="deployment")
        return WakeStatus("starting", None, "starting the server", 1, 2, 3)

    def report_activity(self, activity: dict[str, dict[str, Any]]) -> None:
        self.activity |= activity


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
async def client(runtime: FakeRuntime) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_internal(runtime))
    async with httpx.AsyncClient(transport=transport, base_url="http://control") as client:
        yield client


async def test_wake(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    answer = await client.post("/internal/deployments/dep_1/wake?wait_ms=1500")
    assert answer.status_code == 200
    decoded = msgspec.json.decode(answer.content, type=WakeStatus)
    assert decoded == WakeStatus("starting", None, "starting the server", 1, 2, 3)
    assert runtime.asked == [("dep_1", 1500)]
    missing = await client.post("/internal/deployments/dep_none/wake")
    assert missing.status_code == 404
    assert missing.json()["param"] == "deployment"
    assert (await client.post("/internal/deployments/dep_1/wake?wait_ms=-1")).status_code == 422


async def test_activity(client: httpx.AsyncClient, runtime: FakeRuntime) -> None:
    report = {"dep_1": {"in_flight": 3, "last_ms": 5}}
    assert (await client.post("/internal/activity", json=report)).status_code == 204
    assert runtime.activity == {"dep_1": {"in_flight": 3, "last_ms": 5, "ended": 0, "durations_ms": []}}
    ended = {"dep_1": {"in_flight": 3, "last_ms": 5, "ended": 200, "durations_ms": [1] * 100}}
    assert (await client.post("/internal/activity", json=ended)).status_code == 204
    assert runtime.activity == ended
    too_long = {"dep_1": {"in_flight": 3, "last_ms": 5, "ended": 200, "durations_ms": [1] * 101}}
    for wrong in ({"dep_1": {"in_flight": -1, "last_ms": 5}}, {"dep_1": 3}, [1], too_long):
        assert (await client.post("/internal/activity", json=wrong)).status_code == 422
