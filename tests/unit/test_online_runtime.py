"""Instances of online deployments on this machine: real processes of the real scorer, under a runtime of quick timing."""

import asyncio
import contextlib
import json
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import Unavailable
from core.settings import Settings
from serving import store as servers
from serving.local_runtime import LocalRuntime
from serving.model import Endpoint
from serving.online import autoscale, fleet, store
from serving.online.launch import Report
from serving.online.model import OnlineDeployment, OnlineEndpoint
from serving.online.runtime import OnlineRuntime
from serving.online.scaling import ScaleRule
from serving.online.spec import (
    DeploymentSpec,
    EndpointSpec,
    InferenceRoute,
    InferenceRoutes,
    Probe,
    ScaleSettings,
)
from serving.routes import resolve
from tests.runtime_values import QUICK, World, open_world

SCRIPT = """
import json, os, time
def init():
    global name
    name = os.environ.get("NAME", "")
def run(data):
    return {"name": name, "got": json.loads(data), "model": os.environ.get("AZUREML_MODEL_DIR", "")}
"""
SOON = Probe(initial_delay=1, period=1, timeout=1, failure_threshold=3)


class Here:
    """This test's own environment has what the scorer needs."""

    def python(self, environment: Mapping[str, object] | None, model: Path | None) -> Path:
        return Path(sys.executable)

    def build(self, environment: Mapping[str, object] | None, model: Path | None, report: Report) -> None:
        report("nothing to build")


class Site:
    """An online endpoint and a runtime."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now_ms = world.clock.now_ms()
        with world.db.begin() as connection:
            endpoint = Endpoint(
                "ep_1", "online", "shop", "org_1", "proj_1", "", "", "Online", {}, self.now_ms
            )
            servers.insert_endpoint(connection, endpoint)
            online = OnlineEndpoint("ep_1", EndpointSpec("shop"), "Succeeded", self.now_ms)
            store.insert_online_endpoint(connection, online)
        timing = replace(QUICK, start_timeout=20_000)
        self.runtime = LocalRuntime(
            Settings(home=world.home),
            world.db,
            world.clock,
            launcher=world.launcher,
            timing=timing,
            environments=Here(),
        )
        self.task = asyncio.create_task(self.runtime.run())

    def script(self, name: str = "blue", text: str = SCRIPT, **changes: object) -> DeploymentSpec:
        folder = self.world.home / f"code-{name}-{len(text)}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "score.py").write_text(text)
        spec = DeploymentSpec(
            name,
            "script",
            code_path=str(folder),
            scoring_script="score.py",
            liveness_probe=SOON,
            readiness_probe=SOON,
        )
        return replace(spec, **changes)  # type: ignore[arg-type]  # fields by name

    def deploy(self, spec: DeploymentSpec) -> OnlineDeployment:
        made = OnlineDeployment(
            f"dep_{spec.name}", "ep_1", "org_1", "proj_1", spec.name, spec, "Creating", "", "", 1,
            spec.instance_count, self.now_ms, self.now_ms,
        )  # fmt: skip
        with self.world.db.begin() as connection:
            store.insert_online_deployment(connection, made, "")
        return made

    def change(self, made: OnlineDeployment, spec: DeploymentSpec, *, generation: int) -> OnlineDeployment:
        changed = replace(
            made,
            spec=spec,
            generation=generation,
            provisioning_state="Updating",
            instance_count=spec.instance_count,
        )
        with self.world.db.begin() as connection:
            store.update_online_deployment(connection, changed)
        return changed

    def row(self, made: OnlineDeployment) -> OnlineDeployment:
        with self.world.db.read() as connection:
            found = store.find_online_deployment(connection, deployment_id=made.id)
        assert found is not None
        return found

    def urls(self, made: OnlineDeployment) -> tuple[str, ...]:
        with self.world.db.read() as connection:
            return servers.ready_urls(connection, made.id)

    async def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110  # a test
                await asyncio.sleep(0.05)

    async def settled(self, made: OnlineDeployment) -> OnlineDeployment:
        await self.until(lambda: not self.row(made).pending)
        return self.row(made)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(open_world(tmp_path))
    yield site
    site.task.cancel()
    await site.runtime.stop_all()


def ask(url: str, body: object) -> dict[str, object]:
    request = urllib.request.Request(
        url + "/score", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return dict(json.loads(answer.read()))


async def test_a_script_is_served_by_as_many_instances_as_asked(site: Site) -> None:
    model = site.world.home / "model"
    model.mkdir()
    spec = site.script(instance_count=2, environment_variables={"NAME": "blue"}, model_path=str(model))
    made = site.deploy(spec)
    assert (await site.settled(made)).provisioning_state == "Succeeded"
    urls = site.urls(made)
    assert len(urls) == 2
    for url in urls:
        answer = await asyncio.to_thread(ask, url, {"a": 1})
        assert answer == {"name": "blue", "got": {"a": 1}, "model": str(model.parent)}
    assert site.runtime.status()[made.id].state == "ready"
    with site.world.db.read() as connection:
        route = resolve(connection, "shop", project_id="proj_1")
    assert route is not None and route.split is not None
    assert route.split.routes["blue"].urls == urls
    with site.world.db.begin() as connection:
        store.mark_online_deployment_deleted(connection, site.row(made), site.now_ms)
    await site.until(lambda: not site.urls(made))
    await site.until(lambda: made.id not in site.runtime.status())


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("import nowhere_to_be_found", "UserScriptImportError", "nowhere_to_be_found"),
        ("def init(): pass", "UserScriptFunctionNotFound", "run()"),
        ("def init(): raise ValueError('no model')\ndef run(data): pass", "UserScriptInitFailed", "no model"),
    ],
)
async def test_a_script_that_cannot_serve_fails_at_once_and_says_why(
    site: Site, text: str, code: str, says: str
) -> None:
    made = site.deploy(site.script(text=text))
    row = await site.settled(made)
    assert (row.provisioning_state, row.failure_code) == ("Failed", code)
    assert says in row.failure_message
    assert not site.urls(made)
    with site.world.db.read() as connection:
        runs = servers.list_replicas(connection, made.id)
    assert len(runs) == 1, "the same script would fail in the same way"


@pytest.mark.parametrize("egress", ["enabled", "disabled"])
async def test_a_script_with_egress_disabled_reaches_nobody(site: Site, egress: str) -> None:
    text = (
        "import json, socket\ndef init():\n    pass\ndef run(data):\n    try:\n"
        "        socket.create_connection(('127.0.0.1', json.loads(data)), 2)\n        return {'said': 'reached'}\n"
        "    except OSError as error:\n        return {'said': str(error)}\n"
    )
    made = site.deploy(site.script(text=text, egress_public_network_access=egress))
    row = await site.settled(made)
    if row.provisioning_state == "Failed":  # a machine that does not let us
        assert egress == "disabled" and "EgressNotRestricted" in row.failure_message
        return
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = await asyncio.to_thread(ask, site.urls(made)[0], other.getsockname()[1])
    assert (answer["said"] == "reached") == (egress == "enabled"), answer


@pytest.mark.parametrize("egress", ["enabled", "disabled"])
async def test_a_server_of_ones_own_with_egress_disabled_reaches_nobody(site: Site, egress: str) -> None:
    folder = site.world.home / "own"
    folder.mkdir()
    (folder / "server.py").write_text(
        """
import http.server, json, os, socket
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.say("well")
    def do_POST(self):
        try:
            socket.create_connection(("127.0.0.1", int(self.rfile.read(int(self.headers["content-length"])))), 2)
            self.say("reached")
        except OSError as error:
            self.say(str(error))
    def say(self, said):
        said = json.dumps({"said": said}).encode()
        self.send_response(200); self.send_header("content-length", str(len(said))); self.end_headers()
        self.wfile.write(said)
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""
    )
    spec = DeploymentSpec(
        "own", "command", command=(sys.executable, "server.py"), code_path=str(folder), liveness_probe=SOON,
        readiness_probe=SOON, egress_public_network_access=egress,
    )  # fmt: skip
    made = site.deploy(spec)
    row = await site.settled(made)
    if row.provisioning_state == "Failed":  # a machine that does not let us
        assert egress == "disabled" and "EgressNotRestricted" in row.failure_message
        return
    with socket.create_server(("127.0.0.1", 0)) as other:
        answer = await asyncio.to_thread(ask, site.urls(made)[0], other.getsockname()[1])
    assert (answer["said"] == "reached") == (egress == "enabled"), answer


async def test_a_new_generation_takes_over_without_a_gap(site: Site) -> None:
    spec = site.script(instance_count=2, environment_variables={"NAME": "one"})
    made = site.deploy(spec)
    await site.settled(made)
    gaps, names, over = 0, set(), False

    async def call() -> None:
        nonlocal gaps
        while not over:
            urls = site.urls(made)
            if not urls:
                gaps += 1
            for url in urls:
                # It may be about to leave: the gateway has been told.
                with contextlib.suppress(urllib.error.URLError, OSError):
                    names.add((await asyncio.to_thread(ask, url, {}))["name"])
            await asyncio.sleep(0.02)

    calling = asyncio.create_task(call())
    changed = site.change(made, replace(spec, environment_variables={"NAME": "two"}), generation=2)
    assert (await site.settled(changed)).provisioning_state == "Succeeded"
    await site.until(lambda: len(site.urls(made)) == 2)
    over = True
    await calling
    assert gaps == 0
    assert names == {"one", "two"}
    for url in site.urls(made):
        assert (await asyncio.to_thread(ask, url, {}))["name"] == "two"


async def test_a_generation_that_fails_leaves_the_old_one_serving(site: Site) -> None:
    spec = site.script(environment_variables={"NAME": "one"})
    made = site.deploy(spec)
    await site.settled(made)
    before = site.urls(made)
    broken = site.script(text="def init(): raise ValueError('broken')\ndef run(data): pass")
    row = await site.settled(site.change(made, broken, generation=2))
    assert (row.provisioning_state, row.failure_code) == ("Failed", "UserScriptInitFailed")
    assert site.urls(made) == before
    mended = await site.settled(
        site.change(made, replace(spec, environment_variables={"NAME": "3"}), generation=3)
    )
    assert mended.provisioning_state == "Succeeded"
    await site.until(lambda: site.urls(made) and site.urls(made) != before)


async def test_recreate_ends_the_old_before_the_new(site: Site) -> None:
    spec = site.script(strategy="recreate")
    made = site.deploy(spec)
    await site.settled(made)
    seen: list[int] = []

    async def count() -> None:
        while True:
            with site.world.db.read() as connection:
                live = [r for r in servers.live_replicas(connection) if r.deployment_id == made.id]
            seen.append(len(live))
            await asyncio.sleep(0.02)

    counting = asyncio.create_task(count())
    changed = site.change(made, replace(spec, environment_variables={"NAME": "2"}), generation=2)
    assert (await site.settled(changed)).provisioning_state == "Succeeded"
    counting.cancel()
    assert max(seen) == 1


async def test_an_instance_that_dies_is_started_again(site: Site) -> None:
    text = SCRIPT.replace("def run(data):", "def run(data):\n    if 'die' in data: os._exit(9)")
    made = site.deploy(site.script(text=text))
    await site.settled(made)
    [before] = site.urls(made)
    with pytest.raises((urllib.error.URLError, OSError)):
        await asyncio.to_thread(ask, before, "die")
    await site.until(lambda: site.urls(made) and site.urls(made) != (before,))
    assert site.row(made).provisioning_state == "Succeeded"


async def test_a_probe_that_fails_takes_an_instance_out_of_traffic(site: Site) -> None:
    folder = site.world.home / "own"
    folder.mkdir()
    (folder / "server.py").write_text(
        """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        bad = os.path.exists("unready") if self.path == "/ready" else os.path.exists("dead")
        self.send_response(503 if bad else 200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
    )
    routes = InferenceRoutes(InferenceRoute("/predict"), InferenceRoute("/live"), InferenceRoute("/ready"))
    spec = DeploymentSpec(
        "own", "command", command=(sys.executable, "server.py", "{port}"), code_path=str(folder), routes=routes,
        liveness_probe=SOON, readiness_probe=SOON,
    )  # fmt: skip
    made = site.deploy(spec)
    assert (await site.settled(made)).provisioning_state == "Succeeded"
    [url] = site.urls(made)
    (folder / "unready").touch()
    await site.until(lambda: not site.urls(made))
    (folder / "unready").unlink()
    await site.until(lambda: site.urls(made) == (url,))
    (folder / "dead").touch()
    await site.until(lambda: (site.urls(made) and site.urls(made) != (url,)) or not site.urls(made))
    (folder / "dead").unlink()
    await site.until(lambda: site.urls(made) and site.urls(made) != (url,))


async def test_more_and_fewer_instances(site: Site) -> None:
    spec = site.script()
    made = site.deploy(spec)
    await site.settled(made)
    more = site.change(made, replace(spec, instance_count=3), generation=1)
    assert (await site.settled(more)).provisioning_state == "Succeeded"
    assert len(site.urls(made)) == 3
    fewer = site.change(made, replace(spec, instance_count=1), generation=1)
    await site.settled(fewer)
    await site.until(lambda: len(site.urls(made)) == 1)


async def test_a_change_right_after_another_one_is_told_too(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime sees both as one: it never saw the row between them."""
    spec = site.script()
    made = site.deploy(spec)
    await site.until(lambda: made.id in site.runtime.status())
    with monkeypatch.context() as patch:
        patch.setattr(OnlineRuntime, "look", lambda _: asyncio.sleep(0))
        await site.settled(made)
        more = site.change(made, replace(spec, instance_count=2), generation=1)
    assert (await site.settled(more)).provisioning_state == "Succeeded"
    assert len(site.urls(made)) == 2


async def test_an_instance_that_finds_no_room_is_told_and_not_tried_in_a_hurry(site: Site) -> None:
    spec = site.script()
    made = site.deploy(spec)
    await site.settled(made)
    [url] = site.urls(made)
    more = replace(spec, instance_count=2, environment_variables={"FULL": "1"})
    original = Here.build

    def full(self: Here, environment: object, model: object, report: Report) -> None:
        raise Unavailable("no room", code="no_room")

    Here.build = full  # type: ignore[assignment,method-assign]  # a machine that is full
    try:
        row = await site.settled(site.change(made, replace(more, environment_variables={}), generation=1))
        assert (row.provisioning_state, row.failure_code) == ("Failed", "OutOfQuota")
        assert site.urls(made) == (url,), "what serves goes on"
        await asyncio.sleep(1)
        with site.world.db.read() as connection:
            assert len(servers.list_replicas(connection, made.id)) == 2
    finally:
        Here.build = original  # type: ignore[method-assign]


async def test_calls_scale_it_up(site: Site) -> None:
    scale = ScaleSettings(
        "target_utilization", min_instances=1, max_instances=3, target_utilization_percentage=50
    )
    made = site.deploy(site.script(scale=scale))
    await site.settled(made)
    assert len(site.urls(made)) == 1
    site.runtime.report_activity({made.id: {"in_flight": 1, "last_ms": 1}})
    await site.until(lambda: len(site.urls(made)) == 2)
    site.runtime.report_activity({made.id: {"in_flight": 9, "last_ms": 2}})
    await site.until(lambda: len(site.urls(made)) == 3)


async def test_rules_scale_it_up_to_what_fits_and_down_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "SAMPLE_EVERY_MS", 100)
    monkeypatch.setattr(autoscale, "SAMPLE_EVERY_MS", 100)
    calls = "ConcurrentRequestsPerInstance"
    rules = (
        ScaleRule(calls, ">", 2, "avg", 1, "out", 1, cooldown_s=1),
        ScaleRule(calls, "<", 1, "avg", 1, "in", 1, cooldown_s=1),
    )
    made = site.deploy(site.script(scale=ScaleSettings("rules", 1, 2, rules=rules)))
    await site.settled(made)
    assert len(site.urls(made)) == 1
    site.runtime.report_activity({made.id: {"in_flight": 9, "last_ms": 1}})
    await site.until(lambda: len(site.urls(made)) == 2)
    site.runtime.report_activity({made.id: {"in_flight": 0, "last_ms": 2}})
    await site.until(lambda: len(site.urls(made)) == 1)


async def test_rules_go_by_calls_and_what_they_took(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "SAMPLE_EVERY_MS", 100)
    monkeypatch.setattr(autoscale, "SAMPLE_EVERY_MS", 100)
    rules = (
        ScaleRule("RequestsPerMinute", ">", 100, "max", 1, "out", 1, cooldown_s=1),
        ScaleRule("RequestLatency_P95", ">", 500, "max", 1, "out", 2, cooldown_s=1),
    )
    made = site.deploy(site.script(scale=ScaleSettings("rules", 1, 3, rules=rules)))
    await site.settled(made)

    async def calls(number: int, took_ms: int, wanted: int) -> None:
        async with asyncio.timeout(20):
            while len(site.urls(made)) != wanted:
                report = {"in_flight": 0, "last_ms": 1, "ended": number, "durations_ms": [took_ms]}
                site.runtime.report_activity({made.id: report})
                await asyncio.sleep(0.1)

    await calls(0, 20, 1)
    await calls(9, 20, 2)
    await calls(0, 900, 3)


async def test_one_that_nobody_calls_sleeps_and_is_woken(site: Site) -> None:
    made = site.deploy(site.script(scale=ScaleSettings(idle_to_zero_s=2)))
    await site.settled(made)
    assert site.urls(made)
    await site.until(lambda: not site.urls(made))
    await site.until(lambda: site.runtime.status()[made.id].state == "stopped")
    status = await site.runtime.wake(made.id, 20_000)
    assert status.state == "ready" and status.url in site.urls(made)


async def test_nothing_is_left_when_the_platform_stops(site: Site) -> None:
    made = site.deploy(site.script(instance_count=2))
    await site.settled(made)
    site.task.cancel()
    await site.runtime.stop_all()
    assert not site.urls(made)
    with site.world.db.read() as connection:
        assert not servers.live_replicas(connection)


async def test_a_script_of_a_deployment_with_collections_keeps_frames(site: Site) -> None:
    text = (
        "from azureml.ai.monitoring import Collector\n"
        "class Frame:\n    columns = ['a']\n    def to_dict(self, orient):\n        return [{'a': 1}]\n"
        "def init():\n    global kept\n    kept = Collector(name='model_inputs')\n"
        "def run(data):\n    kept.collect(Frame())\n    return {'kept': True}\n"
    )
    collector = {"collections": {"model_inputs": {"enabled": True}}, "rolling_rate": "year"}
    made = site.deploy(site.script(text=text, data_collector=collector))
    await site.settled(made)
    assert await asyncio.to_thread(ask, site.urls(made)[0], {}) == {"kept": True}
    folder = site.world.home / "collected" / "modelDataCollector" / "shop" / "blue" / "model_inputs"
    await site.until(lambda: list(folder.rglob("*.jsonl")))
    [file] = folder.rglob("*.jsonl")
    await site.until(file.read_text)
    assert json.loads(file.read_text())["data"] == [{"a": 1}]
