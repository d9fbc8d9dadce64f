"""What the fuzz tests share: a platform with a model of each kind, an engine that answers whatever it is sent."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

from tests import platform as platforms
from tests.mock_engine import Behaviour, MockEngine, Seen, wait_until

MODEL = "acme/mock-chat"
ENDPOINT = "fuzzed"
# Model and endpoint by task, so that no route's fuzzing ends at "no such model".
TASKS = {
    "chat": (MODEL, ENDPOINT),
    "embedding": ("acme/embed", "fuzzed-embed"),
    "transcription": ("acme/ears", "fuzzed-ears"),
}
FREE_PATHS = ("/tokenize", "/v1/messages/count_tokens")


class TolerantEngine(MockEngine):
    """Answers every request, whatever is in it: what went through the gateway is the gateway's to meter."""

    async def open_request(self, request: web.Request) -> tuple[Seen, Behaviour, web.StreamResponse | None]:
        raw = await request.read()
        body: Any = {}
        with contextlib.suppress(ValueError):
            body = json.loads(raw)
        tame = _tame(body if isinstance(body, dict) else {})
        seen = Seen(request.path, request.headers.copy(), raw, tame, prompt_tokens=3)
        self.seen.append(seen)
        return seen, self.default, None

    def metered(self) -> list[str]:
        """The gateway's ids of the attempts it was sent on metered routes."""
        return [seen.headers["x-request-id"] for seen in list(self.seen) if seen.path not in FREE_PATHS]


def _tame(body: dict[str, Any]) -> dict[str, Any]:
    """What the mock engine can work with."""
    options, choices = body.get("stream_options"), body.get("n")
    return {
        "model": "mock",
        "messages": [{"role": "user", "content": "one two three"}],
        "prompt": "one two three",
        "input": "one two three",
        "query": "one",
        "documents": ["two", "three"],
        "text_1": "one",
        "text_2": "two",
        "stream": body.get("stream") is True,
        "stream_options": options if isinstance(options, dict) else {},
        "n": choices if type(choices) is int and 0 < choices <= 128 else 1,
    }


@dataclass
class Target:
    """A platform to be fuzzed."""

    platform: platforms.Platform
    engine: TolerantEngine
    key: str

    @property
    def url(self) -> str:
        return self.platform.url

    def gateway(self) -> psutil.Process:
        (process,) = self.platform.running("functions.gateway")
        return process

    def check_ledger(self) -> int:
        """Every attempt the engine saw is on the ledger once, and nothing else is; how many there are."""
        seen = self.engine.metered()
        assert len(seen) == len(set(seen)), "an attempt's id came twice"
        wait_until(lambda: len(self.events()) >= len(set(seen)), 15)
        events = self.events()
        assert sorted(events) == sorted(seen)
        return len(events)

    def events(self) -> list[str]:
        path = self.platform.home / "farebox.db"
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            return [row[0] for row in connection.execute("SELECT event_id FROM usage_events")]


@contextmanager
def running_target(home: Path) -> Iterator[Target]:
    """A platform with models, endpoints and a project's key."""
    with TolerantEngine() as engine, platforms.running(home) as platform:
        with platform.client() as client:
            client.organizations.create("acme")
            client.projects.create("web", organization="acme")
            for task, (model, endpoint) in TASKS.items():
                text = platforms.external_model(engine.url, model)
                if task == "transcription":
                    text = _without_tokens(text)
                client.models.add(text.replace("task: chat", f"task: {task}"))
                client.serverless_endpoints.create(endpoint, model=model, project="web")
                client.limits.set("endpoint", endpoint, tokens_per_minute=None, requests_per_minute=None)
            key = client.keys.create(project="web", name="fuzz")["key"]
        yield Target(platform, engine, key)


def _without_tokens(text: str) -> str:
    prices = 'prices: {audio_second: "0.0001", endpoint_minute: "0.0005"}\n'
    return "".join(
        line if not line.startswith("prices:") else prices for line in text.splitlines(keepends=True)
    )
