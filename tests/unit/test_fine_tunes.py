"""LoRA fine-tunes: what the catalog takes, whose pool serves them, and that a running server is replaced for one."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalog.load import model_document, parse_model
from catalog.model import Adapter, Engine, ModelSpec, Prices
from catalog.store import put_model
from core.errors import Conflict, FareboxError, Invalid, NotFound, Unavailable
from core.settings import Settings
from serving import vllm_launcher
from serving.endpoints import create_serverless, delete_endpoint
from serving.engines import install
from serving.fine_tunes import check_fine_tune, check_no_fine_tunes
from serving.launch import Launch
from serving.local_runtime import LocalRuntime
from serving.model import Endpoint
from serving.online.launch import catalog_model
from serving.online.spec import DeploymentSpec
from serving.routes import resolve
from serving.vllm_launcher import VllmLauncher
from tests.lora_adapter import write_config
from tests.runtime_values import World, end_everything, model, open_world, until

DOCUMENT: dict[str, Any] = {
    "id": "acme/tuned",
    "task": "chat",
    "adapter": {"base": "acme/mock", "path": "/adapters/tuned"},
    "context_length": 4096,
    "prices": {"input": "2", "output": "3"},
}


def tuned(folder: Path, model_id: str = "acme/tuned", base: str = "acme/mock") -> ModelSpec:
    return replace(
        model(model_id), adapter=Adapter(base, str(folder)), prices=Prices(input=7, output=9), engine=Engine()
    )


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    world = open_world(tmp_path / "home")
    yield world
    for runtime in world.runtimes:
        await runtime.stop_all()
    end_everything(world)


def offer(world: World, spec: ModelSpec, name: str = "tuned") -> Endpoint:
    now_ms = world.clock.now_ms()
    with world.db.begin() as connection:
        check_fine_tune(connection, spec)
        put_model(connection, spec, now_ms)
        return create_serverless(
            connection, name=name, model_id=spec.id, org_id="org_1", project_id="proj_1", now_ms=now_ms
        )


def test_an_entry_and_back() -> None:
    spec = parse_model(DOCUMENT)
    assert spec.adapter == Adapter("acme/mock", "/adapters/tuned") and not spec.external
    assert parse_model(model_document(spec)) == spec


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"adapter": {"base": "acme/mock"}}, "adapter.path"),
        ({"adapter": {"path": "/a"}}, "adapter.base"),
        ({"adapter": {"base": "acme/mock", "path": "relative"}}, "adapter.path"),
        ({"adapter": {"base": "acme/mock", "path": "/a", "rank": 8}}, "adapter.rank"),
        ({"source": {"repository": "acme/x"}}, "source"),
        ({"engine": {"kind": "vllm"}}, "engine"),
        ({"task": "embedding", "prices": {"input": "1"}}, "adapter"),
    ],
)
def test_entries_with_mistakes(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse_model(DOCUMENT | changes)
    assert refused.value.param == field


async def test_what_the_catalog_refuses(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    world.endpoint()
    with world.db.begin() as connection:
        put_model(connection, model("acme/away", kind="external", url="http://127.0.0.1:1"), 1)
        good = tuned(folder)
        wrong: list[tuple[ModelSpec, type[FareboxError], str]] = [
            (replace(good, adapter=Adapter("acme/mokc", str(folder))), NotFound, "adapter.base"),
            (replace(good, adapter=Adapter("acme/away", str(folder))), Invalid, "adapter.base"),
            (replace(good, task="completion"), Invalid, "adapter.base"),
            (replace(good, context_length=8192), Invalid, "context_length"),
            (good, Invalid, "adapter.path"),  # there is no folder yet
        ]
        for spec, kind, param in wrong:
            with pytest.raises(kind) as refused:
                check_fine_tune(connection, spec)
            assert refused.value.param == param
        for rank in ("8", 0, 513, None, True):
            write_config(folder, rank)
            with pytest.raises(Invalid, match="r: expected a rank"):
                check_fine_tune(connection, good)
        write_config(folder, 8, peft_type="IA3")
        with pytest.raises(Invalid, match="IA3"):
            check_fine_tune(connection, good)
        write_config(folder)
        (folder / "adapter_model.safetensors").unlink()
        with pytest.raises(Invalid, match="has neither"):
            check_fine_tune(connection, good)
        (folder / "adapter_config.json").write_text("{")
        with pytest.raises(Invalid, match="not JSON"):
            check_fine_tune(connection, good)
        write_config(folder)
        check_fine_tune(connection, good)
        put_model(connection, good, 1)
        with pytest.raises(Invalid, match="fine-tune itself"):
            check_fine_tune(connection, tuned(folder, "acme/again", base=good.id))
        with pytest.raises(Conflict, match="is the base of acme/tuned"):
            check_no_fine_tunes(connection, "acme/mock")
        check_no_fine_tunes(connection, good.id)
        with pytest.raises(Invalid, match="use a serverless endpoint"):
            catalog_model(connection, DeploymentSpec(name="blue", kind="catalog", model=good.id))


async def test_it_is_a_model_of_its_own_in_its_bases_pool(world: World, tmp_path: Path) -> None:
    base = world.endpoint(spec=model(max_parallel=5))
    write_config(tmp_path / "adapter")
    made = offer(world, tuned(tmp_path / "adapter"))
    assert made.deployment_id == base.deployment_id and made.model_id == "acme/tuned"
    with world.db.read() as connection:
        route = resolve(connection, "acme/tuned", project_id="proj_1")
        of_base = resolve(connection, "acme/mock", project_id="proj_1")
    assert route is not None and of_base is not None
    assert (route.served_model, route.model_id, route.max_parallel) == ("acme/tuned", "acme/tuned", 5)
    assert of_base.served_model == "acme/mock"
    assert route.unit_prices(world.clock.now_ms() + 120_000)["input"] == 7
    assert of_base.unit_prices(world.clock.now_ms() + 120_000)["input"] == 1


@pytest.fixture
async def runtime(world: World) -> AsyncIterator[LocalRuntime]:
    runtime = world.runtime()
    task = asyncio.create_task(runtime.run())
    await asyncio.sleep(0)
    yield runtime
    task.cancel()


async def test_a_running_server_that_lacks_it_is_replaced(
    world: World, runtime: LocalRuntime, tmp_path: Path
) -> None:
    base = world.endpoint()
    first = await runtime.wake(base.deployment_id, 10_000)
    assert first.state == "ready"
    write_config(tmp_path / "adapter")
    made = offer(world, tuned(tmp_path / "adapter"))
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    with world.db.read() as connection:
        route = resolve(connection, "tuned", project_id="proj_1")
    assert route is not None and route.urls == (), "nobody gets the old one any more"
    again = await runtime.wake(made.deployment_id, 10_000)
    assert again.state == "ready" and again.url != first.url
    old, new = sorted(world.replicas(base.deployment_id), key=lambda each: each.started_ms)
    assert (old.state, old.reason) == ("stopped", "another one is to know a new fine-tune")
    assert new.state == "ready"
    # What it knows it keeps: neither the same again nor one less has it replaced.
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    with world.db.begin() as connection:
        delete_endpoint(connection, made, world.clock.now_ms())
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    assert (await runtime.wake(base.deployment_id, 10_000)).url == again.url


async def test_one_that_is_starting_is_replaced_before_anybody_gets_it(
    world: World, runtime: LocalRuntime, tmp_path: Path
) -> None:
    base = world.endpoint()
    world.launcher.options = ["--start-delay", "0.7"]
    waking = asyncio.create_task(runtime.wake(base.deployment_id, 10_000))
    await until(lambda: any(each.pid for each in world.replicas(base.deployment_id)), "begun")
    write_config(tmp_path / "adapter")
    made = offer(world, tuned(tmp_path / "adapter"))
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    assert (await waking).state == "ready"
    old, new = sorted(world.replicas(base.deployment_id), key=lambda each: each.started_ms)
    assert (old.state, new.state) == ("stopped", "ready")
    assert (await runtime.wake(base.deployment_id, 10_000)).url == new.url


async def test_one_that_does_not_fit_does_not_take_its_base_down(
    world: World, runtime: LocalRuntime, tmp_path: Path
) -> None:
    write_config(tmp_path / "good")
    write_config(tmp_path / "bad")
    base, good = world.endpoint(), offer(world, tuned(tmp_path / "good", "acme/good"), "good")
    bad = (tuned(tmp_path / "bad", "acme/bad"), str(tmp_path / "bad"))

    def dies_of_it(launch: Launch) -> Launch:
        loaded = {path for _, path in launch.fine_tunes}
        return (
            replace(launch, argv=(*launch.argv, "--die-at-start", "shapes differ"))
            if bad[1] in loaded
            else launch
        )

    world.launcher.change = dies_of_it
    assert (await runtime.wake(base.deployment_id, 10_000)).state == "ready"
    made = offer(world, bad[0], "bad")
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    again = await runtime.wake(base.deployment_id, 20_000)
    assert again.state == "ready", "without it"
    await asyncio.sleep(2.5)  # the runtime has looked again
    assert (await runtime.wake(good.deployment_id, 10_000)).url == again.url
    states = [each.state for each in world.replicas(base.deployment_id)]
    assert sorted(states) == ["failed", "ready", "stopped"]


async def test_a_base_that_fails_by_itself_keeps_its_fine_tunes(
    world: World, runtime: LocalRuntime, tmp_path: Path
) -> None:
    write_config(tmp_path / "good")
    base = world.endpoint()
    offer(world, tuned(tmp_path / "good"))
    launched: list[int] = []

    def dies_twice(launch: Launch) -> Launch:
        launched.append(len(launch.fine_tunes))
        # Each start asks twice.
        return (
            replace(launch, argv=(*launch.argv, "--die-at-start", "no memory"))
            if len(launched) <= 4
            else launch
        )

    world.launcher.change = dies_twice
    assert (await runtime.wake(base.deployment_id, 20_000)).state == "ready"
    assert launched == [1, 1, 0, 0, 1, 1]


async def test_a_base_stays_one(world: World, tmp_path: Path) -> None:
    write_config(tmp_path / "adapter")
    world.endpoint()
    world.endpoint("other", model("acme/other"))
    spec = tuned(tmp_path / "adapter")
    offer(world, spec)
    with world.db.begin() as connection:
        for changed, param in (
            (model("acme/mock", kind="external", url="http://127.0.0.1:1"), "model"),
            (tuned(tmp_path / "adapter", "acme/mock", "acme/other"), "model"),
            (tuned(tmp_path / "adapter", base="acme/other"), "adapter"),
            (tuned(tmp_path / "adapter", "acme/other"), "adapter"),
            (model("acme/tuned"), "adapter"),
        ):
            with pytest.raises(Conflict) as refused:
                check_fine_tune(connection, changed)
            assert refused.value.param == param
        check_fine_tune(connection, spec)


async def test_an_adapter_that_is_lost_keeps_nothing_from_running(
    world: World, runtime: LocalRuntime, tmp_path: Path
) -> None:
    base = world.endpoint()
    first = await runtime.wake(base.deployment_id, 10_000)
    write_config(tmp_path / "adapter")
    made = offer(world, tuned(tmp_path / "adapter"))
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    await asyncio.to_thread(runtime.offer, made.deployment_id)
    assert (await runtime.wake(base.deployment_id, 10_000)).url == first.url


def test_the_engines_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_launcher, "_machine_kind", lambda: "vllm")
    monkeypatch.setattr(install, "python_of", lambda kind, _: Path("/python"))
    base = parse_model(
        {name: value for name, value in DOCUMENT.items() if name != "adapter"}
        | {"id": "acme/mock", "source": {"repository": "acme/mock"}}
    )
    write_config(tmp_path / "one", 4)
    write_config(tmp_path / "two", 20)
    specs = [tuned(tmp_path / "one", "acme/one"), tuned(tmp_path / "two", "acme/two")]
    launcher = VllmLauncher(Settings(home=tmp_path))
    launch = launcher(base, 1, [*specs, tuned(tmp_path / "lost", "acme/lost")])
    argv = list(launch.argv)
    at = argv.index("--lora-modules")
    assert [json.loads(each)["name"] for each in argv[at + 1 : at + 3]] == ["acme/one", "acme/two"]
    assert argv[argv.index("--max-lora-rank") + 1] == "32"
    assert argv[argv.index("--max-loras") + 1] == "2"
    assert launch.fine_tunes == {(each.id, each.adapter.path) for each in specs if each.adapter}
    assert launch.spec_hash != launcher(base, 1).spec_hash
    assert "--enable-lora" not in launcher(base, 1).argv
    own = replace(base, engine=replace(base.engine, args=("--lora_modules=mine=/mine",)))
    assert "--lora_modules=mine=/mine" in launcher(own, 1).argv
    with pytest.raises(Unavailable, match="--lora-modules would replace the fine-tunes"):
        launcher(own, 1, specs)
