"""`kill -9` on the supervising process: the next one adopts what still fits and ends all else, helpers included."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from catalog.store import put_model
from serving import processes, store
from serving.endpoints import delete_endpoint
from serving.model import Replica
from tests.runtime_values import ROOT, World, alive, end_everything, model, open_world, until

pytestmark = pytest.mark.crash


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = open_world(tmp_path / "home")
    yield world
    for runtime in world.runtimes:
        await runtime.stop_all()
    left = world.processes()
    end_everything(world)
    assert left == {}


def _supervise_and_kill(world: World, deployment_id: str, *options: str, expect: str = "ready") -> Replica:
    """Have another process start the server, then kill that process; the server's run as it left it."""
    command = [
        sys.executable,
        "-m",
        "tests.crash.supervisor_process",
        str(world.home),
        deployment_id,
        *options,
    ]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        try:
            assert supervisor.stdout.readline().strip() == expect
        finally:
            supervisor.send_signal(signal.SIGKILL)
    world.launcher.options = list(options)
    newest = world.replicas(deployment_id)[0]
    assert newest.pid is not None
    return newest


def _begin(program: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", program], start_new_session=True)


async def test_a_healthy_server_is_adopted_supervised_and_stopped(world: World) -> None:
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id)
    assert left.pid is not None
    assert alive(left.pid)
    runtime = world.runtime(scale_to_zero_after=1_200)
    supervising = asyncio.create_task(runtime.run())
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert (status.state, status.url) == ("ready", left.url), "the very same server"
    assert len(world.replicas(endpoint.deployment_id)) == 1
    await until(
        lambda: world.replicas(endpoint.deployment_id)[0].state == "stopped", "idle stop of an adopted one"
    )
    assert not alive(left.pid)
    supervising.cancel()


async def test_death_of_an_adopted_server_is_noticed(world: World) -> None:
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id)
    runtime = world.runtime()
    await runtime.recovered()
    assert left.pid is not None
    os.kill(left.pid, signal.SIGKILL)
    await until(lambda: len(world.replicas(endpoint.deployment_id)) == 2, "a second run")
    status = await runtime.wake(endpoint.deployment_id, 10_000)
    assert status.state == "ready"
    assert status.url != left.url
    assert world.replicas(endpoint.deployment_id)[1].state == "failed"


async def test_a_server_that_was_starting_is_waited_for(world: World) -> None:
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id, "--start-delay", "1.5", expect="starting")
    assert left.state == "starting"
    runtime = world.runtime()
    status = await runtime.wake(endpoint.deployment_id, 10_000)
    assert (status.state, status.url) == ("ready", left.url)
    assert len(world.replicas(endpoint.deployment_id)) == 1


@pytest.mark.parametrize("why", ["other command", "unwell", "no endpoint", "other model entry"])
async def test_what_does_not_fit_is_ended_with_its_helpers(world: World, tmp_path: Path, why: str) -> None:
    endpoint, sick = world.endpoint(), tmp_path / "sick"
    options = ["--grandchild", "--stray", "--ignore-sigterm", "--unwell-while", str(sick)]
    left = _supervise_and_kill(world, endpoint.deployment_id, *options)
    assert sum(map(len, world.processes().values())) == 3
    with world.db.begin() as connection:
        if why == "no endpoint":
            delete_endpoint(connection, endpoint, world.clock.now_ms())
        if why == "other model entry":
            put_model(connection, model(kind="external", url="http://127.0.0.1:9"), world.clock.now_ms())
    if why == "other command":
        world.launcher.options = [*options, "--chatter", "1000"]
    if why == "unwell":
        sick.touch()
    runtime = world.runtime()
    await runtime.recovered()
    assert world.processes() == {}
    [ended] = world.replicas(endpoint.deployment_id)
    assert (ended.id, ended.state) == (left.id, "stopped")
    assert "next start of the platform" in ended.reason


async def test_helpers_of_a_server_that_died_meanwhile_are_ended(world: World) -> None:
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id, "--grandchild", "--stray")
    assert left.pid is not None
    os.kill(left.pid, signal.SIGKILL)
    runtime = world.runtime()
    await runtime.recovered()
    assert world.processes() == {}
    [ended] = world.replicas(endpoint.deployment_id)
    assert (ended.state, ended.reason) == ("failed", "died while the platform was not running")
    assert (await runtime.wake(endpoint.deployment_id, 10_000)).state == "ready"


async def test_a_server_whose_pid_was_never_recorded_is_ended(world: World) -> None:
    """Killed between the start of the process and the row that names it."""
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id, "--grandchild")
    unrecorded = replace(left, state="starting", pid=None, process_mark="", port=None, ready_ms=None)
    with world.db.begin() as connection:
        store.save_replica(connection, unrecorded, world.clock.now_ms())
    runtime = world.runtime()
    await runtime.recovered()
    assert world.processes() == {}


async def test_a_stranger_with_the_recorded_pid_is_left_alone(world: World) -> None:
    endpoint = world.endpoint()
    left = _supervise_and_kill(world, endpoint.deployment_id)
    stranger = _begin("import time; time.sleep(60)")
    try:
        with world.db.begin() as connection:
            store.save_replica(connection, replace(left, pid=stranger.pid), world.clock.now_ms())
        runtime = world.runtime(stop_grace=300)
        await runtime.recovered()
        assert stranger.poll() is None, "its pid is in our table, but it is not the process that was recorded"
        assert left.pid is not None
        assert not alive(left.pid), "found by its marker all the same"
    finally:
        stranger.kill()
        stranger.wait()


async def test_another_homes_servers_are_left_alone(world: World, tmp_path: Path) -> None:
    other = open_world(tmp_path / "other")
    try:
        endpoint = other.endpoint()
        runtime = other.runtime()
        await runtime.wake(endpoint.deployment_id, 10_000)
        await world.runtime().recovered()
        assert len(other.processes()) == 1
        await runtime.stop_all()
    finally:
        end_everything(other)


async def test_marks_tell_processes_apart() -> None:
    assert processes.process_mark(os.getpid()) != ""
    child = _begin("pass")
    await until(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "a zombie")
    assert processes.process_mark(child.pid) == "", "a zombie holds nothing"
    child.wait()
    assert processes.process_mark(child.pid) == ""
