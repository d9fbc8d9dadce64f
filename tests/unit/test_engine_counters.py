"""What engines count is read in time, kept within bounds, and never in a server's way."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from catalog.model import Engine, ModelSpec, Prices
from core.clock import ManualClock
from core.database import Database
from metering.engine_counters import Reading, readings_between
from serving.counters import KEEP_MS, CountedServer, CounterReader, read_metrics_page
from tests.mock_engine import MockEngine
from tests.runtime_values import World, end_everything, open_world, until
from wire.prometheus import EngineCounts, engine_counts

PAGE = b"""\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="a {b} 7"} 1.234567e+06
vllm:prompt_tokens_total{engine="1",model_name="a"} 3.0
vllm:prompt_tokens_created{engine="0",model_name="a"} 1.7e+09
vllm:prompt_tokens_cached_total{engine="0",model_name="a"} 20.0
vllm:generation_tokens_total{engine="0",model_name="a"} 9007199254740991.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="a"} 4.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="a"} 1.0
vllm:num_requests_running{engine="0",model_name="a"} 2.0
vllm:num_requests_waiting{engine="0",model_name="a"} 1.0
process_start_time_seconds 1.76666400025e+09
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = open_world(tmp_path / "home")
    yield made
    end_everything(made)


def test_the_counters_on_a_page() -> None:
    assert engine_counts(PAGE) == EngineCounts(1_234_570, 20, 9_007_199_254_740_991, 5, 3, 1_766_664_000_250)


@pytest.mark.parametrize(
    "page",
    [b"", b"\xff\xfe", b"<html>hello</html>", b"vllm:prompt_tokens_total NaN\n", b"vllm:prompt_tokens_total"],
)
def test_what_is_no_such_page(page: bytes) -> None:
    assert engine_counts(page) is None


def test_an_engine_that_does_not_count_cached_tokens() -> None:
    found = engine_counts(b"vllm:prompt_tokens_total 5\nvllm:generation_tokens_total +Inf\n")
    assert found is None, "no number of tokens"
    found = engine_counts(b"vllm:prompt_tokens_total 5\nvllm:generation_tokens_total 7 1700000000\n")
    assert found == EngineCounts(5, None, 7, 0, 0, 0)


def _readings(db: Database) -> list[Reading]:
    with db.read() as connection:
        return [reading for found in readings_between(connection, 0, 2**60).values() for reading in found]


def _reader(db: Database, clock: ManualClock, *servers: CountedServer) -> CounterReader:
    async def known() -> list[CountedServer]:
        return list(servers)

    return CounterReader(db, clock, known)


async def test_a_round_reads_all_and_notes_what_fails(db: Database) -> None:
    clock = ManualClock()
    with MockEngine() as engine:
        servers = [
            CountedServer("dep_1", "rep_1", engine.url),
            CountedServer("dep_2", "rep_2", "http://127.0.0.1:9"),
            CountedServer("dep_3", "rep_3", engine.url + "/nowhere"),
        ]
        reader = _reader(db, clock, *servers)
        await reader.read_all("minute")
        clock.advance(60_000)
        await reader.read_all("minute")
    states = sorted((reading.series, reading.state) for reading in _readings(db))
    # The one without counters is asked again after an hour only.
    assert states == [
        ("rep_1", "read"), ("rep_1", "read"), ("rep_2", "failed"), ("rep_2", "failed"), ("rep_3", "none"),
    ]  # fmt: skip


async def test_old_readings_are_forgotten(db: Database) -> None:
    clock = ManualClock()
    with MockEngine() as engine:
        reader = _reader(db, clock, CountedServer("dep_1", "rep_1", engine.url))
        await reader.read_all("minute")
        clock.advance(KEEP_MS + 1)
        await reader.read_all("minute")
    assert [reading.at_ms for reading in _readings(db)] == [clock.now_ms()]


async def test_a_page_without_end_is_given_up(db: Database) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"vllm:prompt_tokens_total 1\n" * 10_000)

    app = web.Application()
    app.router.add_get("/metrics", endless)
    runner = web.AppRunner(app, shutdown_timeout=0.05)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        assert await read_metrics_page(f"http://127.0.0.1:{runner.addresses[0][1]}") is None
    finally:
        await runner.cleanup()


async def test_a_silent_engine_delays_nothing_for_long(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.counters._TIMEOUT_S", 0.1)

    async def silent(_url: str) -> bytes | None:
        await asyncio.sleep(60)
        return None

    async def known() -> list[CountedServer]:
        return [CountedServer("dep_1", f"rep_{i}", "http://127.0.0.1:9") for i in range(20)]

    async with asyncio.timeout(5):
        await CounterReader(db, ManualClock(), known, silent).read_all("minute")
    assert {reading.state for reading in _readings(db)} == {"failed"}


async def test_a_replica_is_read_before_the_first_call_and_before_its_end(world: World) -> None:
    endpoint = world.endpoint()
    world.launcher.options = ["--metrics"]
    runtime = world.runtime(scale_to_zero_after=400)
    running = asyncio.create_task(runtime.run())
    try:
        status = await runtime.wake(endpoint.deployment_id, 10_000)
        assert status.state == "ready"
        assert [(r.reason, r.state) for r in _readings(world.db)] == [("ready", "read")]
        await until(lambda: len(_readings(world.db)) == 2, "the stop")
        await until(lambda: world.replicas(endpoint.deployment_id)[0].state == "stopped", "its end")
        first, last = _readings(world.db)
        replica = world.replicas(endpoint.deployment_id)[0]
        assert last.reason == "stop" and first.series == last.series == replica.id
        assert first.read_ms <= (replica.ready_ms or 0) and last.read_ms <= (replica.stopped_ms or 0)
    finally:
        await runtime.stop_all()
        running.cancel()


async def test_attached_servers_are_read_while_an_endpoint_uses_them(world: World) -> None:
    with MockEngine() as engine:
        spec = ModelSpec(
            id="acme/attached", task="chat", prices=Prices(input=1, output=2), context_length=4096,
            engine=Engine(kind="external", url=engine.url),
        )  # fmt: skip
        endpoint = world.endpoint(spec=spec)
        runtime = world.runtime()
        await runtime.counters.read_all("asked")
        (reading,) = _readings(world.db)
        assert (reading.deployment_id, reading.state) == (endpoint.deployment_id, "read")
        assert abs(reading.started_ms - engine.started_s * 1000) <= 1
