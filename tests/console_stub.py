"""A server with canned answers that speaks the console's contract, to test client and command line."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ADMIN_KEY = "fbx_admin_" + "a" * 43
PROJECT_KEY = "fbx_sk_" + "p" * 43
PRIMARY, SECONDARY = "fbx_ep_" + "1" * 43, "fbx_ep_" + "2" * 43
TIME = "2026-01-31T12:00:00.000Z"

ORGANIZATION = {"id": "org_1", "name": "acme", "created_at": TIME}
PROJECT = {
    "id": "proj_1",
    "name": "web",
    "organization_id": "org_1",
    "organization": "acme",
    "created_at": TIME,
}
KEY = {
    "id": "key_1",
    "name": "laptop",
    "hint": "fbx_sk_…pppp",
    "project_id": "proj_1",
    "organization_id": "org_1",
    "status": "ok",
    "created_at": TIME,
    "expires_at": None,
    "revoked_at": None,
}
MODEL = {
    "id": "acme/mock-chat",
    "task": "chat",
    "context_length": 8192,
    "engine": {"kind": "external", "url": "http://127.0.0.1:9100"},
    "prices": {"input": "0.15", "cached_input": "0.075", "output": "0.6", "endpoint_minute": "0.0005"},
    "origin": "operator",
    "created_at": TIME,
    "updated_at": TIME,
}
INSTANCE_PRICE = {
    "instance_type": "local",
    "per_minute_usd": "0.015",
    "model": "instance:local",
    "starts_at": "2026-01-31T12:00:00.000Z",
}
PRICE = {
    "id": "price_1",
    "model": "acme/mock-chat",
    "starts_at": None,
    "prices": MODEL["prices"],
    "created_at": TIME,
}
REPLICA = {
    "id": "rep_1",
    "state": "ready",
    "phase": None,
    "url": "http://127.0.0.1:9100",
    "pid": 4711,
    "started_at": TIME,
    "ready_at": TIME,
    "stopped_at": None,
    "reason": None,
}
DEPLOYMENT = {
    "id": "dep_1",
    "model": "acme/mock-chat",
    "state": "ready",
    "external": False,
    "phase": None,
    "in_flight": 3,
    "last_call_at": TIME,
    "stops_at": None,
    "retry_at": None,
    "created_at": TIME,
    "replicas": [REPLICA],
    "last_failure": {"at": TIME, "reason": "out of memory"},
}
ENDPOINT = {
    "id": "end_1",
    "name": "my-chat",
    "state": "Online",
    "model": "acme/mock-chat",
    "project_id": "proj_1",
    "organization_id": "org_1",
    "scoring_uri": "http://127.0.0.1:8080/endpoints/my-chat/v1/chat/completions",
    "openai_base_url": "http://127.0.0.1:8080/endpoints/my-chat/v1",
    "created_at": TIME,
    "tags": {"team": "search"},
    "content_safety": "enabled",
    "deployment": DEPLOYMENT,
}
RECEIPT = {
    "request_id": "req_1",
    "organization": "acme",
    "project": "web",
    "endpoint": "my-chat",
    "model": "acme/mock-chat",
    "status": "completed",
    "operation": "chat.completions",
    "stream": True,
    "time": TIME,
    "usage": {"input": 1000, "cached_input": 400, "output": 7, "reasoning": 0},
    "billed": {"input": 600, "cached_input": 400, "output": 7},
    "usage_source": "engine",
    "price_version": "price_1",
    "cost_usd": "0.0001242",
    "attempts": [{"attempt": 1, "status": "completed"}],
}
PREVIEW = {
    "organization": "acme",
    "organization_id": "org_1",
    "period_start": "2026-01-01T00:00:00Z",
    "period_end": "2026-02-01T00:00:00Z",
    "as_of": TIME,
    "currency": "usd",
    "lines": [
        {
            "sku": "input",
            "model": "acme/mock-chat",
            "quantity": 600,
            "unit_price_usd": "0.00000015",
            "price_per_million_usd": "0.15",
            "amount_usd": "0.00009",
            "rounded_usd": "0.00",
        },
        {
            "sku": "endpoint_minute",
            "endpoint": "my-chat",
            "quantity": 12,
            "unit_price_usd": "0.0005",
            "amount_usd": "0.006",
            "rounded_usd": "0.01",
        },
    ],
    "total_exact_usd": "0.00609",
    "total_usd": "0.01",
    "status": "preview",
    "held": [{"sku": "output", "model": "acme/mock-chat", "quantity": 3, "reason": "no price"}],
}
USAGE = {
    "organization": "acme",
    "start": "2026-01-01T00:00:00.000Z",
    "end": TIME,
    "data": [
        {"requests": 2, "errors": 0, "day": "2026-01-31", "sku": "input", "quantity": 600},
        {"requests": 2, "errors": 0, "day": "2026-01-31", "sku": "output", "quantity": 7},
    ],
    "next": None,
}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello there"}, "finish_reason": "stop"}
    ],
    "usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7},
}
STREAM = (
    ": waiting\n\n"
    'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    'data: {"choices":[{"index":0,"delta":{"content":"Hello "}}]}\n\n'
    'data: {"choices":[{"index":0,"delta":{"content":"there"},"finish_reason":"stop"}]}\n\n'
    'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    "data: [DONE]\n\n"
)


def page(*rows: Any, after: str | None = None) -> dict[str, Any]:
    """The contract's list."""
    return {"data": list(rows), "next": after}


@dataclass
class Answer:
    """What the stub sends for one route."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    cut: bool = False  # close the connection instead of answering


def problem(
    status: int,
    code: str,
    detail: str,
    param: str | None = None,
    headers: dict[str, str] | None = None,
    **extra: Any,
) -> Answer:
    """A refusal as the console sends it."""
    body = {
        "type": f"urn:farebox:error:{code}",
        "title": "Refused",
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": "req_refused",
        **({"param": param} if param else {}),
        **extra,
    }
    return Answer(status, body, headers or {}, "application/problem+json")


@dataclass
class Seen:
    """A request that came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def contract() -> dict[tuple[str, str], list[Answer]]:
    """Every route's usual answer. A list: one answer after the other, the last one for ever."""
    endpoint, model = "/api/serverless-endpoints", "/api/models"
    added = {"id": MODEL["id"], "outcome": "added", "message": "acme/mock-chat was added", "model": MODEL}
    usual: dict[tuple[str, str], Any] = {
        ("GET", "/healthz"): {"status": "ok", "version": "0.1.0"},
        ("GET", "/readyz"): {"status": "ready", "problems": []},
        ("GET", "/api/openapi.json"): {"openapi": "3.1.0", "info": {"title": "Farebox", "version": "1"}},
        ("GET", "/api/organizations"): page(ORGANIZATION),
        ("GET", "/api/projects"): page(PROJECT),
        ("GET", "/api/keys"): page(KEY),
        ("DELETE", "/api/keys/key_1"): KEY | {"status": "revoked", "revoked_at": TIME},
        ("GET", model): page(MODEL),
        ("GET", f"{model}/acme/mock-chat"): MODEL,
        ("DELETE", f"{model}/acme/mock-chat"): MODEL,
        ("GET", "/api/model-prices/acme/mock-chat"): page(PRICE),
        ("GET", endpoint): page(ENDPOINT),
        ("GET", f"{endpoint}/my-chat"): ENDPOINT,
        ("DELETE", f"{endpoint}/my-chat"): ENDPOINT | {"state": "Deleted"},
        ("POST", f"{endpoint}/my-chat/suspend"): ENDPOINT | {"state": "Suspended"},
        ("PATCH", f"{endpoint}/my-chat"): ENDPOINT | {"content_safety": "disabled"},
        ("POST", f"{endpoint}/my-chat/reinstate"): ENDPOINT,
        ("POST", f"{endpoint}/my-chat/list-keys"): {"primaryKey": PRIMARY, "secondaryKey": SECONDARY},
        ("POST", f"{endpoint}/my-chat/regenerate-keys"): {"primaryKey": PRIMARY, "secondaryKey": SECONDARY},
        ("GET", "/api/instance-prices"): {"data": [INSTANCE_PRICE], "next": None},
        ("PUT", "/api/instance-prices/local"): INSTANCE_PRICE,
        ("GET", "/api/deployments"): page(DEPLOYMENT),
        ("GET", "/api/usage"): USAGE,
        ("GET", "/api/receipts"): page(RECEIPT),
        ("GET", "/api/receipts/req_1"): RECEIPT,
        ("GET", "/api/invoices/preview"): PREVIEW,
    }
    routes = {route: [Answer(200, body)] for route, body in usual.items()}
    created = {
        "/api/organizations": ORGANIZATION,
        "/api/projects": PROJECT,
        "/api/keys": KEY | {"key": PROJECT_KEY},
        endpoint: ENDPOINT,
        model: added,
    }
    routes |= {("POST", path): [Answer(201, body)] for path, body in created.items()}
    routes["GET", f"{endpoint}/my-chat/logs"] = [
        Answer(200, "one\ntwo\nthree\n", kind="text/plain; charset=utf-8")
    ]
    streamed = Answer(200, STREAM, {"x-request-id": "req_1"}, "text/event-stream")
    routes["POST", "/endpoints/my-chat/v1/chat/completions"] = [streamed]
    routes["POST", "/v1/chat/completions"] = [streamed]
    return routes


class Stub:
    """The server; `seen` holds its requests, `answers` may be changed by a test."""

    def __init__(self) -> None:
        self.answers = contract()
        self.seen: list[Seen] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:  # the base class's names
                stub.answer(self)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def set(self, method: str, path: str, *answers: Answer) -> None:
        """Answers for a route, one after the other."""
        self.answers[method, path] = list(answers)

    @property
    def last(self) -> Seen:
        return self.seen[-1]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.seen.append(Seen(handler.command, parts.path, query, headers, body))
        left = self.answers.get((handler.command, parts.path))
        missing = problem(404, "not_found", f"there is nothing named {parts.path.rpartition('/')[2]}")
        answer = missing if left is None else left.pop(0) if len(left) > 1 else left[0]
        if answer.kind == "text/event-stream" and not json.loads(body).get("stream"):
            answer = Answer(200, COMPLETION, answer.headers)
        if answer.cut:
            handler.close_connection = True
            return
        content = answer.body if isinstance(answer.body, str) else json.dumps(answer.body)
        payload = b"" if answer.status == 204 else content.encode()
        handler.send_response(answer.status)
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-type", answer.kind)
        handler.send_header("content-length", str(len(payload)))
        handler.end_headers()
        handler.wfile.write(payload)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def running_stub() -> Iterator[Stub]:
    stub = Stub()
    try:
        yield stub
    finally:
        stub.close()
