"""`tier: low_priority`: instances that yield their place to dedicated ones, and come back."""

import os
from dataclasses import replace
from typing import Any

import pytest

from core.errors import FareboxError
from serving.online import rules, store
from serving.online.model import OnlineDeployment
from serving.online.rules import Capacity, yielding
from serving.online.spec import DeploymentSpec, ResourceAmounts, Resources, ScaleSettings
from serving.store import list_replicas
from tests.unit.test_online_runtime import Site, site

__all__ = ["site"]

MACHINE = Capacity(4_000, 16 << 30, 0)


def spec(name: str, count: int, cpu: int, **fields: Any) -> DeploymentSpec:
    resources = Resources(requests=ResourceAmounts(cpu_milli=cpu))
    return DeploymentSpec(name, "script", instance_count=count, resources=resources, **fields)


def low(name: str, count: int, cpu: int = 1_000, **fields: Any) -> DeploymentSpec:
    return spec(name, count, cpu, tier="low_priority", **fields)


@pytest.mark.parametrize(
    ("specs", "capacity", "allowed"),
    [
        ([low("a", 3)], MACHINE, {"a": 3}),
        ([low("a", 9)], MACHINE, {"a": 4}),
        ([low("a", 3), spec("b", 2, 1_000)], MACHINE, {"a": 2}),
        ([low("a", 3), low("c", 3), spec("b", 2, 500)], MACHINE, {"a": 3, "c": 0}),
        ([low("a", 3), spec("b", 4, 1_000)], MACHINE, {"a": 0}),
        ([low("a", 3), spec("b", 9, 1_000)], MACHINE, {"a": 0}),
        ([low("a", 1), spec("b", 1, 0, scale=ScaleSettings("target_utilization", 1, 39))], MACHINE, {"a": 0}),
        ([low("a", 5), spec("b", 1, 100)], replace(MACHINE, instances=6), {"a": 3}),  # 1.2 each: 2 and 4 of 6
        ([spec("b", 1, 100)], MACHINE, {}),
    ],
)
def test_what_dedicated_ones_leave(
    specs: list[DeploymentSpec], capacity: Capacity, allowed: dict[str, int]
) -> None:
    assert yielding({each.name: each for each in specs}, capacity) == allowed


def deployed(of: DeploymentSpec) -> OnlineDeployment:
    return OnlineDeployment(
        "dep", "ep", "org", "proj", of.name, of, "Succeeded", "", "", 1, of.instance_count, 1, 1
    )


def test_low_ones_hold_nothing_but_have_to_fit_once() -> None:
    held = [deployed(low("a", 4))]
    rules.check_room(spec("b", 4, 1_000), held, MACHINE)
    full = [deployed(spec("c", 4, 1_000))]
    rules.check_room(low("d", 4), full, MACHINE)
    with pytest.raises(FareboxError, match="5 instances need 5000"):
        rules.check_room(low("d", 5), [], MACHINE)
    with pytest.raises(FareboxError, match="other deployments hold 4000"):
        rules.check_room(spec("b", 1, 1_000), full, MACHINE)


async def test_it_yields_and_comes_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.local_runtime.capacity", lambda _: Capacity(2_000, 64 << 30, 0))
    room = Resources(requests=ResourceAmounts(cpu_milli=1_000))
    made = site.deploy(replace(site.script("low", instance_count=2), tier="low_priority", resources=room))
    await site.settled(made)
    assert len(site.urls(made)) == 2
    with site.world.db.read() as connection:
        pids = [each.pid for each in list_replicas(connection, made.id)]
    assert {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids if pid} == {10}
    dedicated = site.deploy(replace(site.script("first", instance_count=1), resources=room))
    await site.settled(dedicated)
    await site.until(lambda: len(site.urls(made)) == 1)
    more = site.deploy(replace(site.script("second", instance_count=1), resources=room))
    await site.settled(more)
    await site.until(lambda: not site.urls(made))
    await site.until(lambda: "waiting for room" in site.runtime.status()[made.id].phase)
    assert len(site.urls(dedicated)) == len(site.urls(more)) == 1
    with site.world.db.begin() as connection:
        store.mark_online_deployment_deleted(connection, more, site.now_ms)
    await site.until(lambda: len(site.urls(made)) == 1)
