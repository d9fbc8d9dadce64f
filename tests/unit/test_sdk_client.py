"""The Python client against a server that speaks the contract."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import farebox
import pytest
from farebox import config

from tests.console_stub import (
    ADMIN_KEY,
    COMPLETION,
    DEPLOYMENT,
    ENDPOINT,
    KEY,
    MODEL,
    ORGANIZATION,
    PREVIEW,
    PRICE,
    PRIMARY,
    PROJECT,
    PROJECT_KEY,
    RECEIPT,
    SECONDARY,
    STREAM,
    USAGE,
    Answer,
    Stub,
    page,
    problem,
    running_stub,
)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as running:
        yield running


@pytest.fixture
def client(stub: Stub) -> Iterator[farebox.Client]:
    with farebox.Client(stub.url, ADMIN_KEY) as opened:
        yield opened


def test_every_method_sends_the_contract_and_returns_its_json(stub: Stub, client: farebox.Client) -> None:
    assert client.organizations.create("acme") == ORGANIZATION
    assert stub.last.json == {"name": "acme"}
    assert stub.last.headers["authorization"] == f"Bearer {ADMIN_KEY}"
    assert client.organizations.list() == [ORGANIZATION]
    assert client.projects.create("web", organization="acme") == PROJECT
    assert stub.last.json == {"name": "web", "organization": "acme"}
    assert client.projects.list(organization="acme") == [PROJECT]
    assert stub.last.query == {"organization": "acme"}
    assert client.keys.create(project="web", name="laptop", expires_in_s=60)["key"] == PROJECT_KEY
    assert stub.last.json == {"project": "web", "name": "laptop", "expires_in_s": 60}
    assert client.keys.list(project="web") == [KEY]
    assert client.keys.revoke("key_1")["status"] == "revoked"
    assert client.models.list(task="chat") == [MODEL]
    assert stub.last.query == {"task": "chat"}
    assert client.models.get("acme/mock-chat") == MODEL
    assert client.models.remove("acme/mock-chat") == MODEL
    assert client.models.prices("acme/mock-chat") == [PRICE]
    assert client.models.add("id: acme/mock-chat\n")["outcome"] == "added"
    assert (stub.last.body, stub.last.headers["content-type"]) == (
        b"id: acme/mock-chat\n",
        "application/yaml",
    )
    assert client.deployments.list() == [DEPLOYMENT]
    assert client.usage.list(organization="acme", group_by="day,model") == USAGE
    assert stub.last.query == {"organization": "acme", "group_by": "day,model"}
    assert client.receipts.get("req_1") == RECEIPT
    assert client.receipts.list(limit=5) == page(RECEIPT)
    assert client.invoices.preview("acme", period="2026-01") == PREVIEW
    assert stub.last.query == {"organization": "acme", "period": "2026-01"}


def test_serverless_endpoints(stub: Stub, client: farebox.Client) -> None:
    endpoints = client.serverless_endpoints
    assert endpoints.create("my-chat", model="acme/mock-chat", tags={"a": "b"}) == ENDPOINT
    assert stub.last.json == {"name": "my-chat", "model": "acme/mock-chat", "tags": {"a": "b"}}
    assert endpoints.list() == [ENDPOINT]
    assert endpoints.get("my-chat") == ENDPOINT
    assert endpoints.get_keys("my-chat") == {"primaryKey": PRIMARY, "secondaryKey": SECONDARY}
    endpoints.regenerate_keys("my-chat", key_type="secondary")
    assert stub.last.json == {"key_type": "secondary"}
    assert endpoints.get_logs("my-chat", lines=3) == "one\ntwo\nthree\n"
    endpoints.delete("my-chat")
    assert (stub.last.method, stub.last.path) == ("DELETE", "/api/serverless-endpoints/my-chat")


def test_lists_follow_their_pages(stub: Stub, client: farebox.Client) -> None:
    stub.set("GET", "/api/models", Answer(200, page(MODEL, after="c1")), Answer(200, page(MODEL)))
    assert client.models.list(task="chat") == [MODEL, MODEL]
    assert stub.last.query == {"task": "chat", "after": "c1"}
    stub.set("GET", "/api/receipts", Answer(200, page(RECEIPT, after="c2")), Answer(200, page(RECEIPT)))
    assert list(client.receipts.iterate(organization="acme")) == [RECEIPT, RECEIPT]
    assert stub.last.query == {"organization": "acme", "after": "c2"}


def test_a_refusal_is_an_exception_with_every_part(stub: Stub, client: farebox.Client) -> None:
    refusal = problem(422, "invalid_field", "name: too long", "name", {"retry-after": "7"}, line=3)
    stub.set("POST", "/api/organizations", refusal)
    with pytest.raises(farebox.FareboxAPIError) as caught:
        client.organizations.create("x" * 99)
    error = caught.value
    assert (error.status, error.code, error.message) == (422, "invalid_field", "name: too long")
    assert (error.param, error.request_id, error.retry_after_s) == ("name", "req_refused", 7.0)
    assert error.extra == {"line": 3}
    assert "req_refused" in str(error)
    assert "name" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(404, "<html>nginx</html>", kind="text/html"),
        Answer(200, "<html>hello</html>", kind="text/html"),
        Answer(200, {"models": []}),
        Answer(200, []),
        Answer(500, "null"),
        Answer(302, "", {"location": "http://elsewhere.example/"}),
    ],
)
def test_another_server_is_noticed(stub: Stub, client: farebox.Client, answer: Answer) -> None:
    stub.set("GET", "/api/models", answer)
    with pytest.raises(farebox.FareboxAPIError, match="is the address right") as caught:
        client.models.list()
    assert caught.value.code == "unexpected_answer"
    assert len(stub.seen) == 1  # a redirect is not followed: the key stays here


def test_only_reads_are_repeated(stub: Stub, client: farebox.Client) -> None:
    busy = problem(503, "unavailable", "starting", headers={"retry-after": "0"})
    stub.set("GET", "/api/models", busy, busy, Answer(200, page(MODEL)))
    assert client.models.list() == [MODEL]
    stub.set("GET", "/api/models", Answer(cut=True), Answer(200, page(MODEL)))
    assert client.models.list() == [MODEL]
    stub.seen.clear()
    stub.set("POST", "/api/organizations", busy, Answer(201, ORGANIZATION))
    with pytest.raises(farebox.FareboxAPIError, match="starting"):
        client.organizations.create("acme")
    stub.set("POST", "/api/organizations", Answer(cut=True), Answer(201, ORGANIZATION))
    with pytest.raises(farebox.FareboxConnectionError, match="broke"):
        client.organizations.create("acme")
    assert len(stub.seen) == 2


@pytest.mark.parametrize("wait", [None, "600", "Wed, 21 Oct 2026 07:28:00 GMT", "-1"])
def test_a_long_wait_is_reported_not_waited(stub: Stub, client: farebox.Client, wait: str | None) -> None:
    headers = {} if wait is None else {"retry-after": wait}
    stub.set("GET", "/api/models", problem(503, "unavailable", "starting", headers=headers))
    with pytest.raises(farebox.FareboxAPIError, match="starting"):
        client.models.list()
    assert len(stub.seen) == 1


def test_repeats_are_bounded(stub: Stub, client: farebox.Client) -> None:
    stub.set("GET", "/api/models", Answer(cut=True))
    with pytest.raises(farebox.FareboxConnectionError) as caught:
        client.models.list()
    assert not caught.value.refused
    assert len(stub.seen) == 3


def test_nobody_listens() -> None:
    with socket.socket() as bound:  # bound, not listening: refused
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with (
            farebox.Client(url, ADMIN_KEY) as client,
            pytest.raises(farebox.FareboxConnectionError) as caught,
        ):
            client.models.list()
    assert caught.value.refused
    assert url in str(caught.value)


def test_a_silent_server_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            farebox.Client(url, ADMIN_KEY, timeout=0.2) as client,
            pytest.raises(farebox.FareboxConnectionError, match="in time"),
        ):
            client.models.list()


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a//b", "/a"])
def test_names_cannot_reach_another_route(stub: Stub, client: farebox.Client, name: str) -> None:
    with pytest.raises(farebox.FareboxConfigError, match="not a name or id"):
        client.models.remove(name)
    assert not stub.seen


def test_names_are_quoted(stub: Stub, client: farebox.Client) -> None:
    with pytest.raises(farebox.FareboxAPIError):
        client.models.get("acme/a b?c#d%")
    assert stub.last.path == "/api/models/acme/a%20b%3Fc%23d%25"


def test_chat(stub: Stub, client: farebox.Client) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    assert client.chat.complete(messages, endpoint="my-chat", api_key=PRIMARY, max_tokens=3) == COMPLETION
    assert stub.last.json == {"model": "my-chat", "messages": messages, "max_tokens": 3}
    assert stub.last.headers["authorization"] == f"Bearer {PRIMARY}"
    events = list(client.chat.stream(messages, model="acme/mock-chat"))
    assert stub.last.path == "/v1/chat/completions"
    assert [event.kind for event in events] == ["waiting", "text", "text", "end"]
    assert "".join(event.text for event in events) == "Hello there"
    assert events[-1].usage == {"prompt_tokens": 5, "completion_tokens": 2}
    assert (events[-1].finish_reason, events[-1].request_id) == ("stop", "req_1")
    with pytest.raises(farebox.FareboxConfigError, match="either"):
        client.chat.complete(messages, endpoint="a", model="b")


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (STREAM.replace("data: [DONE]\n\n", ""), "broke off"),
        ('data: {"error": {"message": "engine died", "code": "upstream_error"}}\n\n', "engine died"),
        ('data: {"error": "odd"}\n\n', "odd"),
        ("data: {not json\n\n", "not JSON"),
        ("data: 3\n\n", "not JSON"),
    ],
)
def test_a_stream_that_fails(stub: Stub, client: farebox.Client, stream: str, expected: str) -> None:
    stub.set("POST", "/v1/chat/completions", Answer(200, stream, kind="text/event-stream"))
    with pytest.raises(farebox.FareboxError, match=expected):
        list(client.chat.stream([], model="m"))


def test_status(stub: Stub, client: farebox.Client) -> None:
    usual = {"url": stub.url, "healthy": True, "ready": True, "problems": []}
    usual |= {"version": "0.1.0", "api_version": "1"}
    assert client.status() == usual | {"deployments": [DEPLOYMENT]}
    stub.set("GET", "/readyz", Answer(503, {"status": "not ready", "problems": ["the disk is full"]}))
    stub.set("GET", "/api/openapi.json", problem(503, "unavailable", "starting"))
    stub.set("GET", "/api/deployments", problem(401, "invalid_api_key", "no key"))
    unready = {"ready": False, "problems": ["the disk is full"], "api_version": None, "deployments": None}
    assert client.status() == usual | unready
    stub.set("GET", "/healthz", Answer(200, "ok", kind="text/plain"))
    with pytest.raises(farebox.FareboxAPIError, match="is the address right"):
        client.status()


def test_where_the_key_comes_from(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text(ADMIN_KEY + "\n")
    home = {"FAREBOX_HOME": str(tmp_path)}
    assert config.resolve(environ=home).api_key == ADMIN_KEY
    assert config.resolve(environ=home).url == config.DEFAULT_URL
    assert config.resolve(environ=home | {"FAREBOX_API_KEY": PROJECT_KEY}).api_key == PROJECT_KEY
    assert config.resolve(environ=home | {"FAREBOX_API_KEY": " "}).api_key == ADMIN_KEY
    assert config.resolve(api_key="k", environ=home | {"FAREBOX_API_KEY": PROJECT_KEY}).api_key == "k"
    # The local admin key never leaves this machine.
    assert config.resolve("http://10.0.0.1:8080", environ=home).api_key is None
    assert config.resolve(environ=home | {"FAREBOX_URL": "https://api.example/fb/"}).api_key is None
    assert config.resolve("http://127.0.0.1.example:80", environ=home).api_key is None
    assert config.resolve("http://[::1]:80", environ=home).api_key == ADMIN_KEY
    assert config.resolve("http://localhost:80", environ=home).api_key == ADMIN_KEY
    assert ADMIN_KEY not in repr(config.resolve(environ=home))


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", "directory"])
def test_an_unusable_key_file_is_explained(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "admin.key"
    if content == "directory":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    connection = config.resolve(environ={"FAREBOX_HOME": str(tmp_path)})
    assert connection.api_key is None
    assert str(path) in connection.key_source


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("127.0.0.1:8080", "write http://127.0.0.1:8080"),
        ("ftp://a", "http"),
        ("http://", "http"),
        ("http://a:99999", "Port out of range"),
        ("http://u:p@a", "FAREBOX_API_KEY"),
        ("http://a?b", "no '\\?'"),
        ("http://a b", "no blanks"),
    ],
)
def test_addresses_that_are_none(url: str, expected: str) -> None:
    with pytest.raises(farebox.FareboxConfigError, match=expected):
        config.resolve(url, environ={})


@pytest.mark.parametrize("key", ["a b", "schlüssel", "a\nb", "x" * 600])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        config.resolve(environ={"FAREBOX_API_KEY": key})


def test_answers_stay_as_they_are(stub: Stub, client: farebox.Client) -> None:
    exact = {"cost_usd": "0.000000000001", "quantity": 2**63, "später": None}
    stub.set("GET", "/api/receipts/req_2", Answer(200, json.dumps(exact)))
    assert dict(client.receipts.get("req_2")) == exact
