"""A real gateway under uvicorn on loopback, between a mock engine and a scripted control process.

with RunningGateway(tmp_path, engine.url) as gateway:
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=PROJECT_KEY)
    ...
    gateway.journal.wait_events(1)
"""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import uvicorn
import uvloop
from aiohttp import web

from access.keys import hash_key
from access.principal import Principal
from core.changes import Change
from core.clock import SystemClock
from core.errors import FareboxError, JournalFull, NotFound
from core.settings import Settings
from functions.gateway.control import ControlClient
from functions.gateway.fast_lane import FastLane
from functions.gateway.handler import Gateway, GatewayDependencies, create_gateway, fast_protocol
from functions.gateway.lookups import KeyAnswer, RouteName, route_name
from functions.tokens import TokenCounter
from metering.model import UsageEvent
from serving.route import Route
from tests.mock_engine import wait_until

PROJECT_KEY = "fbx_sk_project"
OTHER_KEY = "fbx_sk_other"
ENDPOINT_KEY = "fbx_ep_endpoint"
ADMIN_KEY = "fbx_admin_admin"
MODEL = "acme/mock-chat"
ENDPOINT = "my-mock"


def make_route(url: str, **changes: Any) -> Route:
    """The route of the usual model to `url` ("" for a server that is stopped)."""
    route = Route(
        created_ms=1_760_000_000_000,
        endpoint_id="ep_1",
        endpoint_name=ENDPOINT,
        org_id="org_1",
        project_id="prj_1",
        model_id=MODEL,
        task="chat",
        context_length=8192,
        deployment_id="dep_1",
        served_model="mock",
        external=False,
        continuous_usage=True,
        upstream_key_env="",
        urls=(url,) if url else (),
    )
    return replace(route, **changes)


class MemoryJournal:
    """Keeps events in memory; may be slow or broken on demand."""

    def __init__(self) -> None:
        self.events: list[UsageEvent] = []
        self.progress: list[UsageEvent] = []
        self.owed: list[UsageEvent] = []
        self.delay_s = 0.001
        self.broken = False
        self.broken_append = False

    async def append(self, event: UsageEvent) -> None:
        await asyncio.sleep(self.delay_s)
        if self.broken_append:
            raise JournalFull("no disk")
        self.events.append(event)

    def append_nowait(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None:
        def end() -> None:
            if self.broken_append:
                on_done(JournalFull("no disk"))
            else:
                self.events.append(event)
                on_done(None)

        asyncio.get_running_loop().call_later(self.delay_s, end)

    def owe(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None:
        self.owed.append(event)
        on_done(None)

    def note_progress(self, event: UsageEvent) -> None:
        self.progress.append(event)

    def depth(self) -> tuple[int, int]:
        return 0, 1000 * len(self.events)

    def check(self) -> None:
        if self.broken:
            raise JournalFull("no disk", retry_after_s=5)

    def wait_events(self, count: int) -> list[UsageEvent]:
        """The events, once there are `count`."""
        wait_until(lambda: len(self.events) >= count)
        return self.events


@dataclass
class Directory:
    """Keys, routes and the change feed, in memory."""

    principals: dict[str, KeyAnswer] = field(default_factory=dict)
    routes: list[Route] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    loads: int = 0
    fails: bool = False

    def add_key(self, text: str, answer: KeyAnswer) -> None:
        self.principals[hash_key(text)] = answer

    def changed(self, kind: str, ref: str) -> None:
        self.changes.append(Change(len(self.changes) + 1, kind, ref))

    def find_principal(self, key_hash: str) -> KeyAnswer:
        self.loads += 1
        return self.principals.get(key_hash, "unknown")

    def resolve_route(self, name: RouteName) -> Route | None:
        self.loads += 1
        for route in self.list_routes(name):
            ours = not name.endpoint_name or name.endpoint_name == route.endpoint_name
            if ours and name.model in (
                "" if name.endpoint_name else None,
                route.model_id,
                route.endpoint_name,
            ):
                return route
        return None

    def list_routes(self, name: RouteName) -> list[Route]:
        return [
            route
            for route in self.routes
            if (not name.project_id or route.project_id == name.project_id)
            and (not name.endpoint_id or route.endpoint_id == name.endpoint_id)
        ]

    def poll_changes(self, after_seq: int) -> list[Change]:
        if self.fails:
            raise OSError("database gone")
        return [change for change in self.changes if change.seq > after_seq]

    def last_seq(self) -> int:
        return len(self.changes)


class ControlScript:
    """The control process's side of the socket."""

    def __init__(self) -> None:
        self.wakes: list[str] = []
        self.answers: list[dict[str, Any]] = []  # of the wakes to come; the last one stays
        self.activity: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.hold = threading.Event()
        self.hold.set()
        self.tokens: TokenCounter | None = None  # None: it has no tokenizers

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_post("/internal/deployments/{id}/wake", self._wake)
        app.router.add_post("/internal/activity", self._activity)
        app.router.add_post("/internal/tokens", self._count_tokens)
        app.router.add_route("*", "/{path:.*}", self._anything)
        return app

    async def _wake(self, request: web.Request) -> web.Response:
        self.wakes.append(request.match_info["id"])
        while not self.hold.is_set():  # noqa: ASYNC110  # set by another thread
            await asyncio.sleep(0.005)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        usual = {"url": None, "reason": "", "started_ms": 1, "expected_ready_ms": 0, "retry_after_s": 7}
        return web.json_response(usual | answer)

    async def _activity(self, request: web.Request) -> web.Response:
        self.activity.append(await request.json())
        return web.Response(status=204)

    async def _count_tokens(self, request: web.Request) -> web.Response:
        try:
            if self.tokens is None:
                raise NotFound("no tokenizers")
            return web.Response(body=await self.tokens.count(await request.read()))
        except FareboxError as error:
            return web.Response(status=error.status)

    async def _anything(self, request: web.Request) -> web.Response:
        body = await request.read()
        seen = {
            "method": request.method,
            "path": request.raw_path,
            "headers": dict(request.headers),
            "body": body,
        }
        self.requests.append(seen)
        headers = {"x-request-id": "theirs", "set-cookie": "a=b", "connection": "x-private", "x-private": "1"}
        return web.Response(status=207, body=b"control:" + body, headers=headers)


class RunningGateway:
    """The gateway and the control script, each under its real server, in one background thread.

    `lane`: "fast" has the fast lane, with every key and name known from the start, so that it serves what it can;
    "slow" has none.
    """

    lane: ClassVar[Literal["fast", "slow"]] = "fast"

    def __init__(self, tmp_path: Path, upstream_url: str, **settings: Any) -> None:
        self.settings = Settings(home=tmp_path, **settings)
        self.journal = MemoryJournal()
        self.directory = Directory(routes=[make_route(upstream_url)])
        self.directory.add_key(PROJECT_KEY, Principal("project", "key_1", "org_1", "prj_1"))
        self.directory.add_key(OTHER_KEY, Principal("project", "key_2", "org_2", "prj_2"))
        self.directory.add_key(ENDPOINT_KEY, Principal("endpoint", "key_3", "org_1", "prj_1", "ep_1"))
        self.directory.add_key(ADMIN_KEY, Principal("admin", "key_4"))
        self.control = ControlScript()
        self.control_up = True
        self.protocol: Any = None
        self.gateway: Gateway | None = None
        self.port = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def fast_lane(self) -> FastLane:
        """The lane that is on."""
        return self.protocol.args[0]  # type: ignore[no-any-return]  # as `protocol_class` makes it

    def __enter__(self) -> "RunningGateway":
        self._thread.start()
        wait_until(lambda: self._server is not None and self._server.started and self.port != 0)
        self._warm_up()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.should_exit = True
        self._thread.join(10)

    def in_loop(self, make: Callable[[], Any]) -> Any:
        """The result of a coroutine run in the gateway's own loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(make(), self._loop).result(10)

    def set_route(self, **changes: Any) -> None:
        """Change the only route, and let the gateway learn of it."""
        self.directory.routes = [replace(self.directory.routes[0], **changes)]
        self.directory.changed("endpoint", "ep_1")
        self.wait_for_changes()
        self._warm_up()

    def wait_for_changes(self) -> None:
        """Return when the gateway has read the whole change feed."""
        wait_until(lambda: self.gateway is not None and self.gateway.lookups.seq == self.directory.last_seq())

    def _warm_up(self) -> None:
        if self.protocol is not None:
            self.in_loop(self._look_everything_up)

    async def _look_everything_up(self) -> None:
        assert self.gateway is not None
        lookups = self.gateway.lookups
        while not lookups.database_reachable:  # noqa: ASYNC110  # the first poll forgets what was known before
            await asyncio.sleep(0.005)
        for key_hash in list(self.directory.principals):
            principal = await lookups.principals.find(key_hash)
            if isinstance(principal, Principal) and principal.kind != "admin":
                for endpoint_name in ("", ENDPOINT):
                    for model in (MODEL, ENDPOINT, ""):
                        name = route_name(principal, endpoint_name, model)
                        if self.directory.resolve_route(name) is not None:
                            await lookups.routes.find(name)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        socket = self.settings.control_socket
        socket.parent.mkdir(parents=True, exist_ok=True)
        runner = web.AppRunner(
            self.control.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        if self.control_up:
            await web.UnixSite(runner, str(socket)).start()
        app = create_gateway(self._dependencies())
        self.gateway = app.state.gateway
        if self.lane == "fast":
            self.protocol = fast_protocol(app)
        config = uvicorn.Config(
            app,
            port=0,
            http=self.protocol or "httptools",
            ws="none",
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        serving = asyncio.ensure_future(self._server.serve())
        while not self._server.started and not serving.done():  # noqa: ASYNC110  # uvicorn has no event for it
            await asyncio.sleep(0.005)
        if self._server.servers:
            self.port = self._server.servers[0].sockets[0].getsockname()[1]
        await serving
        await runner.cleanup()

    def _dependencies(self) -> GatewayDependencies:
        directory = self.directory
        return GatewayDependencies(
            settings=self.settings,
            clock=SystemClock(),
            journal=self.journal,
            control=ControlClient(self.settings.control_socket),
            find_principal=directory.find_principal,
            resolve_route=directory.resolve_route,
            list_routes=directory.list_routes,
            poll_changes=directory.poll_changes,
            last_seq=directory.last_seq,
        )
