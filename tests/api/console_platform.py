"""The console on a real (SQLite) database, with a runtime that starts nothing, for tests of its routes."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import farebox
import httpx
from click.testing import CliRunner, Result
from farebox.cli.framework import State
from fastapi import FastAPI
from fastapi.testclient import TestClient

from access import store
from access.keys import hash_key, make_key
from access.sealer import Sealer
from core.clock import ManualClock
from core.database import Database, metadata, open_database
from core.settings import Settings
from functions.console.dependencies import ConsoleDependencies
from functions.console.handler import create_console
from metering.ingest import Accepted, payload_hash
from metering.model import Usage, UsageEvent
from metering.store import insert_usage
from serving.model import LiveStatus

MOCK_CHAT = """\
id: acme/mock-chat
task: chat
context_length: 8192
engine: {kind: external, url: "http://127.0.0.1:9100"}
prices: {input: "0.15", cached_input: "0.075", output: "0.60", endpoint_minute: "0.0005"}
"""
SERVED = """\
id: acme/served
task: embedding
source: {repository: acme/served}
prices: {input: "0.01"}
"""


class ConsoleTransport(httpx.BaseTransport):
    """The published client's requests, straight into the console."""

    def __init__(self, client: TestClient) -> None:
        self._client = client

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        answer = self._client.request(
            request.method, str(request.url), content=request.read(), headers=headers
        )
        return httpx.Response(
            answer.status_code, headers=list(answer.headers.items()), content=answer.content
        )


class QuietRuntime:
    """Knows what it was told, starts nothing."""

    def __init__(self) -> None:
        self.live: dict[str, LiveStatus] = {}

    def status(self) -> Mapping[str, LiveStatus]:
        return self.live

    def offer(self, deployment_id: str) -> None:
        """Nothing runs that could lack it."""

    async def read_counters(self) -> None:
        return None

    def tail_log(self, deployment_id: str, lines: int) -> str:
        return f"log of {deployment_id}\n{lines} lines\n"


@dataclass
class ConsolePlatform:
    """A console, its client with the admin key, and what is behind it."""

    app: FastAPI
    client: TestClient
    db: Database
    clock: ManualClock
    runtime: QuietRuntime
    admin_key: str
    caught_up: list[int] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    def as_key(self, key: str) -> dict[str, str]:
        """Headers of a request with another key."""
        return {"authorization": f"Bearer {key}"}

    def sdk(self) -> farebox.Client:
        """The published client with the admin key."""
        transport = ConsoleTransport(self.client)
        return farebox.Client("http://farebox.test:8080", self.admin_key, http_transport=transport)

    def cli(self, group: Any, *arguments: str, output: str = "json") -> Result:
        """A command of the command line."""
        return CliRunner().invoke(group, arguments, obj=State(output=output, _client=self.sdk()))

    def post(self, path: str, **body: Any) -> Any:
        """A POST that must succeed; its answer."""
        answer = self.client.post(path, json=body)
        assert answer.status_code in (200, 201), answer.text
        return answer.json()

    def get(self, path: str, **headers: str) -> Any:
        """A GET that must succeed; its answer."""
        answer = self.client.get(path, headers=headers)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def add_model(self, text: str = MOCK_CHAT) -> Any:
        """Add a model; the answer."""
        return self.client.post("/api/models", content=text, headers={"content-type": "application/yaml"})

    def project(self, organization: str = "acme", project: str = "web") -> dict[str, Any]:
        """A new organization and a new project in it."""
        self.post("/api/organizations", name=organization)
        return dict(self.post("/api/projects", name=project, organization=organization))

    def call(
        self, endpoint: Mapping[str, Any], key_id: str, *, status: str = "completed", **usage: int
    ) -> str:
        """Put one finished call on record, as the relay does; its request id."""
        request_id = f"req_{next(self.numbers):026d}"
        now_ms = self.clock.now_ms()
        event = UsageEvent(
            request_id=request_id,
            org_id=endpoint["organization_id"],
            project_id=endpoint["project_id"],
            key_id=key_id,
            endpoint_id=endpoint["id"],
            deployment_id=endpoint["deployment"]["id"],
            model_id=endpoint["model"],
            operation="chat.completions",
            stream=False,
            status=status,  # type: ignore[arg-type]  # a plain text is easier on the tests
            http_status=200,
            usage=Usage(**usage),
            usage_source="engine",
            received_ms=now_ms - 20,
            sent_ms=now_ms - 15,
            first_byte_ms=now_ms - 5,
            ended_ms=now_ms,
        )
        with self.db.begin() as connection:
            accepted = Accepted("gateway/test", event, payload_hash(event))
            insert_usage(connection, [(accepted, next(self.numbers))], now_ms)
        return request_id


def open_platform(directory: Path, settings: Settings | None = None) -> ConsolePlatform:
    """A console on an empty database in `directory`."""
    db = open_database(f"sqlite:///{directory / 'test.db'}")
    metadata.create_all(db.engine)
    clock, runtime, caught_up = ManualClock(), QuietRuntime(), []
    key = make_key("admin")
    with db.begin() as connection:
        store.add_admin_key(connection, key, clock.now_ms())
        assert store.principal_by_hash(connection, hash_key(key.text), clock.now_ms())
    app = create_console(
        ConsoleDependencies(
            settings=settings or Settings(home=directory),
            clock=clock,
            db=db,
            sealer=Sealer(b"s" * 32),
            runtime=runtime,
            catch_up=lambda: caught_up.append(clock.now_ms()),
        )
    )
    client = TestClient(
        app, headers={"authorization": f"Bearer {key.text}"}, base_url="http://farebox.test:8080"
    )
    return ConsolePlatform(app, client, db, clock, runtime, key.text, caught_up)
