"""Every command of `farebox`, against a stub of the server: as a table, as JSON, and what it sends."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import farebox
import pytest
import yaml
from click.testing import CliRunner, Result
from farebox.cli import endpoints
from farebox.cli.main import cli
from farebox.cli.output import align_points, flatten
from farebox.cli.reference import walk

from tests.console_stub import (
    ADMIN_KEY,
    COMPLETION,
    DEPLOYMENT,
    ENDPOINT,
    INSTANCE_PRICE,
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
    USAGE,
    Answer,
    Stub,
    page,
    problem,
    running_stub,
)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    with running_stub() as running:
        monkeypatch.setenv("FAREBOX_URL", running.url)
        monkeypatch.setenv("FAREBOX_API_KEY", ADMIN_KEY)
        monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("FAREBOX_OUTPUT", raising=False)
        yield running


def run(*arguments: str, code: int = 0, stdin: str | bytes | None = None) -> Result:
    """One command; its exit code must be `code`."""
    result = CliRunner().invoke(cli, list(arguments), input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


MODEL_FILE = 'id: acme/mock-chat\nprices: {input: "0.15"}  # comment\n'
KEYS = {"primaryKey": PRIMARY, "secondaryKey": SECONDARY}
ENDPOINTS = "/api/serverless-endpoints"
ADDED = {"id": MODEL["id"], "outcome": "added", "message": "acme/mock-chat was added", "model": MODEL}

# command, what the table must show, the API's JSON, the request it made
COMMANDS: list[tuple[str, list[str], Any, tuple[str, str, Any]]] = [
    ("org create acme", ["acme", "org_1"], ORGANIZATION, ("POST", "/api/organizations", {"name": "acme"})),
    ("org list", ["name", "acme", "org_1"], page(ORGANIZATION), ("GET", "/api/organizations", {})),
    (
        "project create web --org acme",
        ["web", "proj_1"],
        PROJECT,
        ("POST", "/api/projects", {"name": "web", "organization": "acme"}),
    ),
    ("project list", ["web", "acme"], page(PROJECT), ("GET", "/api/projects", {})),
    ("project list --org acme", ["web"], page(PROJECT), ("GET", "/api/projects", {"organization": "acme"})),
    (
        "key create --project web --name laptop --expires-in 30d",
        [PROJECT_KEY, "laptop"],
        KEY | {"key": PROJECT_KEY},
        ("POST", "/api/keys", {"project": "web", "name": "laptop", "expires_in_s": 2592000}),
    ),
    (
        "key list --project web",
        ["laptop", "never", "ok"],
        page(KEY),
        ("GET", "/api/keys", {"project": "web"}),
    ),
    (
        "key revoke key_1",
        ["revoked"],
        KEY | {"status": "revoked", "revoked_at": "2026-01-31T12:00:00.000Z"},
        ("DELETE", "/api/keys/key_1", None),
    ),
    (
        "model list --task chat",
        ["acme/mock-chat", "8192", "0.075", "0.0005"],
        page(MODEL),
        ("GET", "/api/models", {"task": "chat"}),
    ),
    (
        "model show acme/mock-chat",
        ["prices.cached_input     0.075", "engine.kind"],
        MODEL,
        ("GET", "/api/models/acme/mock-chat", {}),
    ),
    ("model add -f FILE", ["added", "acme/mock-chat was added"], ADDED, ("POST", "/api/models", None)),
    ("model remove acme/mock-chat", ["Removed"], MODEL, ("DELETE", "/api/models/acme/mock-chat", None)),
    (
        "model prices acme/mock-chat",
        ["price_1", "always", "0.15"],
        page(PRICE),
        ("GET", "/api/model-prices/acme/mock-chat", {}),
    ),
    (
        "instance-price set local 0.015",
        ["per_minute_usd", "0.015"],
        INSTANCE_PRICE,
        ("PUT", "/api/instance-prices/local", {"per_minute_usd": "0.015"}),
    ),
    (
        "instance-price list",
        ["local", "0.015"],
        {"data": [INSTANCE_PRICE], "next": None},
        ("GET", "/api/instance-prices", {}),
    ),
    (
        "serverless-endpoint create my-chat --model acme/mock-chat --project web --tag team=x --tag a=b=c",
        ["scoring_uri", "Online", "tags.team"],
        ENDPOINT,
        (
            "POST",
            ENDPOINTS,
            {
                "name": "my-chat",
                "model": "acme/mock-chat",
                "project": "web",
                "tags": {"team": "x", "a": "b=c"},
            },
        ),
    ),
    (
        "serverless-endpoint update my-chat --content-safety disabled",
        ["content_safety"],
        ENDPOINT | {"content_safety": "disabled"},
        ("PATCH", f"{ENDPOINTS}/my-chat", {"content_safety": "disabled"}),
    ),
    (
        "serverless-endpoint update my-chat --no-tags",
        ["scoring_uri"],
        ENDPOINT | {"content_safety": "disabled"},
        ("PATCH", f"{ENDPOINTS}/my-chat", {"tags": {}}),
    ),
    (
        "serverless-endpoint suspend my-chat",
        ["Suspended my-chat"],
        ENDPOINT | {"state": "Suspended"},
        ("POST", f"{ENDPOINTS}/my-chat/suspend", None),
    ),
    (
        "serverless-endpoint reinstate my-chat",
        ["Reinstated my-chat"],
        ENDPOINT,
        ("POST", f"{ENDPOINTS}/my-chat/reinstate", None),
    ),
    ("serverless-endpoint list", ["my-chat", "Online", "ready"], page(ENDPOINT), ("GET", ENDPOINTS, {})),
    (
        "serverless-endpoint show my-chat",
        ["deployment.replicas[0].pid"],
        ENDPOINT,
        ("GET", f"{ENDPOINTS}/my-chat", {}),
    ),
    (
        "serverless-endpoint delete my-chat --yes",
        ["Deleted my-chat."],
        ENDPOINT | {"state": "Deleted"},
        ("DELETE", f"{ENDPOINTS}/my-chat", None),
    ),
    (
        "serverless-endpoint get-credentials my-chat",
        [PRIMARY, SECONDARY],
        KEYS,
        ("POST", f"{ENDPOINTS}/my-chat/list-keys", None),
    ),
    (
        "serverless-endpoint regenerate-keys my-chat --key-type secondary",
        [PRIMARY, SECONDARY],
        KEYS,
        ("POST", f"{ENDPOINTS}/my-chat/regenerate-keys", {"key_type": "secondary"}),
    ),
    (
        "serverless-endpoint get-logs my-chat --lines 3",
        ["one", "three"],
        {"name": "my-chat", "lines": ["one", "two", "three"]},
        ("GET", f"{ENDPOINTS}/my-chat/logs", {"lines": "3"}),
    ),
    (
        "deployment list",
        ["acme/mock-chat", "ready", "out of memory", "2026-01-31T12:00:00.000Z"],
        page(DEPLOYMENT),
        ("GET", "/api/deployments", {}),
    ),
    (
        "usage --org acme --project web --from 2026-01-01 --to 2026-02-01T00:00:00+01:00 --by model,day",
        ["quantity", "600", "sku"],
        USAGE,
        (
            "GET",
            "/api/usage",
            {
                "organization": "acme",
                "project": "web",
                "start": "2026-01-01T00:00:00Z",
                "end": "2026-01-31T23:00:00Z",
                "group_by": "model,day",
            },
        ),
    ),
    (
        "receipt req_1",
        ["usage.cached_input", "400", "0.0001242"],
        RECEIPT,
        ("GET", "/api/receipts/req_1", {}),
    ),
    (
        "receipts --org acme --limit 5 --after c1",
        ["req_1", "completed", "0.0001242"],
        page(RECEIPT),
        ("GET", "/api/receipts", {"organization": "acme", "limit": "5", "after": "c1"}),
    ),
    (
        "invoice preview --org acme --period 2026-01",
        ["Invoice preview for acme", "0.00609", "To pay: 0.01 USD", "endpoint_minute"],
        PREVIEW,
        ("GET", "/api/invoices/preview", {"organization": "acme", "period": "2026-01"}),
    ),
    ("status", ["ready", "0.1.0", "acme/mock-chat"], None, ("GET", "/api/deployments", {})),
    ("version", [farebox.__version__], None, ("", "", None)),
    (
        "chat --endpoint my-chat --system Be.brief --max-tokens 9 --temperature 0 Hi",
        ["Hello there"],
        COMPLETION,
        ("POST", "/endpoints/my-chat/v1/chat/completions", None),
    ),
]


@pytest.mark.parametrize(("command", "shown", "answer", "request_"), COMMANDS, ids=[c[0] for c in COMMANDS])
def test_every_command_as_table_and_json(
    stub: Stub, tmp_path: Path, command: str, shown: list[str], answer: Any, request_: tuple[str, str, Any]
) -> None:
    (tmp_path / "m.yaml").write_text(MODEL_FILE)
    arguments = [str(tmp_path / "m.yaml") if word == "FILE" else word for word in command.split()]
    table = run(*arguments, "-o", "table").stdout
    for text in shown:
        assert text in table
    assert "\x1b" not in table
    assert not re.search(r"[ \t]$", table, re.MULTILINE)
    method, path, sent = request_
    if path:
        assert (stub.last.method, stub.last.path) == (method, path)
        if sent is not None:
            assert (stub.last.query if method == "GET" else stub.last.json) == sent

    printed = json.loads(run(*arguments, "-o", "json").stdout)
    if answer is not None:
        assert printed == answer
    assert yaml.safe_load(run("-o", "yaml", *arguments).stdout) == printed
    assert run(*arguments, "--output", "tsv").stdout.strip()


def test_no_command_is_left_out() -> None:
    tested = {command for command, *_ in COMMANDS}
    # The others are run on a real console or platform, where they can be seen to do what they say.
    for path in (Path(__file__).parents[1] / "api").glob("test_*.py"):
        # cli("event", "send") through the whole command line, cli(event, "send") through its group.
        words = re.findall(r'\b(?:cli|answer)\(\s*"?([\w-]+)"?(?:,\s*"([\w-]+)")?', path.read_text())
        tested |= {" ".join(each).strip() for each in words}
    elsewhere = {"farebox up", "farebox engine", "farebox demo", "farebox completion"}
    for name, _ in walk(cli, "farebox"):
        assert name in elsewhere or any(f"farebox {each} ".startswith(f"{name} ") for each in tested), name


def test_every_help_has_its_sections() -> None:
    for path, command in walk(cli, "farebox"):
        if path in ("farebox up", "farebox engine", "farebox demo"):
            continue
        text = run(*path.split()[1:], "--help").stdout
        assert "Examples:" in text
        assert path in text.split("Examples:")[1]
        assert (command.help or "").strip()
    root = run("-h").stdout
    assert "Exit codes:" in root
    assert "cannot connect" in root
    assert "FAREBOX_API_KEY" in root
    assert "..." not in root.split("Commands:")[1].split("Exit codes:")[0]  # no summary is cut off


def test_the_format_is_json_when_piped_and_can_be_set(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert json.loads(run("org", "list").stdout) == page(ORGANIZATION)
    monkeypatch.setenv("FAREBOX_OUTPUT", "yaml")
    assert yaml.safe_load(run("org", "list").stdout) == page(ORGANIZATION)
    assert json.loads(run("org", "list", "-o", "JSON").stdout) == page(ORGANIZATION)
    assert yaml.safe_load(run("-o", "json", "org", "list", "-o", "yaml").stdout) == page(ORGANIZATION)
    monkeypatch.setenv("FAREBOX_OUTPUT", "xml")
    assert "FAREBOX_OUTPUT" in run("org", "list", code=2).stderr


def test_url_and_key_may_be_given_on_either_side(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_URL", "http://127.0.0.1:1")
    run("org", "list", "--url", stub.url, "--api-key", "one")
    assert stub.last.headers["authorization"] == "Bearer one"
    run("--url", stub.url, "--api-key", "two", "org", "list")
    assert stub.last.headers["authorization"] == "Bearer two"


def test_the_local_admin_key_is_found(stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FAREBOX_API_KEY")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "admin.key").write_text("fbx_admin_local\n")
    run("org", "list")
    assert stub.last.headers["authorization"] == "Bearer fbx_admin_local"


def test_secrets_come_with_a_note_on_stderr(stub: Stub) -> None:
    created = run("key", "create", "--project", "web", "--name", "n", "-o", "json")
    assert json.loads(created.stdout)["key"] == PROJECT_KEY
    assert "cannot be shown again" in created.stderr
    assert PROJECT_KEY not in created.stderr
    assert created.stdout.count(PROJECT_KEY) == 1
    assert "secret" in run("serverless-endpoint", "get-credentials", "my-chat").stderr
    assert PROJECT_KEY not in run("key", "list", "-o", "table").stdout


def test_tables_are_aligned(stub: Stub) -> None:
    lines = run("invoice", "preview", "--org", "acme", "-o", "table").stdout.splitlines()
    minute, tokens, total = (
        next(line for line in lines if line.startswith(word))
        for word in ("endpoint_minute", "input", "total")
    )
    assert minute.index("0.006") == tokens.index("0.00009") == total.index("0.00609")
    assert len({line.rindex(".") for line in (minute, tokens, total)}) == 1
    assert align_points(["1", "0.25", "10.5"]) == ["1   ", "0.25", "10.5 "]
    wide = "acme/" + "x" * 300
    stub.set("GET", "/api/models", Answer(200, page(MODEL | {"id": wide})))
    assert wide in run("model", "list", "-o", "table").stdout  # never wrapped where a program reads


def test_usage_shows_its_grouping_first(stub: Stub) -> None:
    heading = run("usage", "-o", "table").stdout.splitlines()[0]
    assert heading.split() == ["day", "sku", "quantity", "requests", "errors"]


def test_empty_lists_say_what_to_do(stub: Stub) -> None:
    for command, path in [
        ("org", "organizations"),
        ("project", "projects"),
        ("key", "keys"),
        ("model", "models"),
    ]:
        stub.set("GET", f"/api/{path}", Answer(200, page()))
        result = run(command, "list", "-o", "table")
        assert result.stdout == ""
        assert f"farebox {command} " in result.stderr
        assert run(command, "list", "-o", "tsv").stdout == ""


def test_nothing_a_server_says_reaches_the_terminal_as_control(stub: Stub) -> None:
    evil = ORGANIZATION | {"name": "a\x1b[31mb\nc"}
    stub.set("GET", "/api/organizations", Answer(200, page(evil)))
    stub.set("POST", "/api/organizations", Answer(201, evil))
    assert "\x1b" not in run("org", "list", "-o", "table").stdout
    assert "\x1b" not in run("org", "create", "x", "-o", "table").stdout
    assert run("org", "list", "-o", "tsv").stdout.startswith("a\x1b[31mb\\nc\t")
    stub.set("POST", "/api/organizations", problem(409, "conflict", "\x1b[2Jtaken"))
    assert "\x1b" not in run("org", "create", "x", code=1).stderr


def test_model_add_sends_the_file_as_it_is(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_bytes(b"id: x # \xc3\xa4\r\n")
    run("model", "add", "-f", str(tmp_path / "m.yaml"))
    assert stub.last.body == b"id: x # \xc3\xa4\r\n"
    assert stub.last.headers["content-type"] == "application/yaml"
    run("model", "add", "-f", "-", stdin=MODEL_FILE)
    assert stub.last.body == MODEL_FILE.encode()
    (tmp_path / "m.json").write_text('{"id": "x"}')
    run("model", "add", "-f", str(tmp_path / "m.json"))
    assert stub.last.headers["content-type"] == "application/json"


AZURE = """\
$schema: https://azuremlschemas.azureedge.net/latest/serverlessEndpoint.schema.json
name: my-chat
model_id: azureml://registries/azureml-meta/models/acme/mock-chat
auth_mode: key
content_safety: {content_safety_status: enabled}
tags: {team: search, level: 3, on: true}
"""


def test_endpoint_files_of_ours_and_of_azure(stub: Stub, tmp_path: Path) -> None:
    path = tmp_path / "e.yaml"
    path.write_text("name: my-chat\nmodel: acme/mock-chat\nproject: web\n")
    assert run("serverless-endpoint", "create", "-f", str(path)).stderr == ""
    assert stub.last.json == {"name": "my-chat", "model": "acme/mock-chat", "project": "web"}
    run("serverless-endpoint", "create", "other", "--model", "m", "--tag", "a=b", "-f", str(path))
    assert stub.last.json == {"name": "other", "model": "m", "project": "web", "tags": {"a": "b"}}
    path.write_text(AZURE)
    result = run("serverless-endpoint", "create", "-f", str(path))
    assert result.stderr == ""
    assert stub.last.json == {
        "name": "my-chat",
        "model": "acme/mock-chat",
        "content_safety": "enabled",
        "tags": {"team": "search", "level": "3", "True": "true"},  # YAML 1.1 reads `on` as true
    }


def test_delete_asks(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    refused = run("serverless-endpoint", "delete", "my-chat", code=2)
    assert "--yes" in refused.stderr
    monkeypatch.setattr(endpoints, "is_terminal", lambda stream: True)
    assert (
        "Nothing was changed" in run("serverless-endpoint", "delete", "my-chat", code=2, stdin="n\n").stderr
    )
    assert not [each for each in stub.seen if each.method == "DELETE"]
    assert "Delete endpoint my-chat?" in run("serverless-endpoint", "delete", "my-chat", stdin="y\n").stderr
    assert stub.last.method == "DELETE"


def test_logs_can_be_followed(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = f"{ENDPOINTS}/my-chat/logs"
    texts = ["a\nb\n", "a\nb\n", "a\nb\nc\n", "b\nc\nd\n"]
    stub.set(
        "GET",
        path,
        *(Answer(200, text, kind="text/plain") for text in texts),
        problem(404, "not_found", "gone"),
    )
    monkeypatch.setattr(endpoints, "_FOLLOW_EVERY_S", 0)
    result = run("serverless-endpoint", "get-logs", "my-chat", "--lines", "1", "--follow", code=1)
    assert result.stdout == "b\nc\nd\n"
    assert "gone" in result.stderr
    assert run("serverless-endpoint", "get-logs", "my-chat", "--follow", "-o", "json", code=2).stderr
    stub.set("GET", path, Answer(200, "", kind="text/plain"))
    assert "empty" in run("serverless-endpoint", "get-logs", "my-chat").stderr


def test_new_lines_of_a_rolling_log() -> None:
    assert endpoints.new_lines([], ["a"]) == ["a"]
    assert endpoints.new_lines(["a"], ["a"]) == []
    assert endpoints.new_lines(["a"], ["a", "a"]) == ["a"]
    assert endpoints.new_lines(["a", "b", "c"], ["b", "c", "d"]) == ["d"]
    assert endpoints.new_lines(["a", "b"], ["x", "y"]) == ["x", "y"]


def test_chat_streams_and_takes_the_endpoints_key(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("chat", "--endpoint", "my-chat", "-", stdin="What?\n")
    assert result.stdout == "Hello there\n"
    assert "Waiting" in result.stderr
    assert stub.last.headers["authorization"] == f"Bearer {PRIMARY}"
    assert stub.last.json["messages"] == [{"role": "user", "content": "What?\n"}]
    assert stub.last.json["stream"] is True
    assert run("chat", "--endpoint", "my-chat", "Hi", "--no-stream").stdout == "Hello there\n"
    assert "project's key" in run("chat", "--model", "m", "Hi", code=2).stderr
    monkeypatch.setenv("FAREBOX_API_KEY", PROJECT_KEY)
    assert run("chat", "--model", "acme/mock-chat", "Hi").stdout == "Hello there\n"
    assert stub.last.headers["authorization"] == f"Bearer {PROJECT_KEY}"
    assert "either" in run("chat", "Hi", code=2).stderr
    assert "no question" in run("chat", "--model", "m", "-", code=2, stdin="").stderr
    broken = Answer(200, 'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n', kind="text/event-stream")
    stub.set("POST", "/v1/chat/completions", broken)
    result = run("chat", "--model", "acme/mock-chat", "Hi", code=3)
    assert result.stdout == "Hel\n"
    assert "broke off" in result.stderr


def test_status_of_a_server_that_is_not_ready(stub: Stub) -> None:
    stub.set("GET", "/readyz", problem(503, "unavailable", "starting"))
    stub.set("GET", "/api/deployments", problem(401, "invalid_api_key", "no"))
    assert json.loads(run("status", code=1).stdout)["ready"] is False
    assert "admin key" in run("status", "-o", "table", code=1).stderr


def test_more_receipts(stub: Stub) -> None:
    stub.set("GET", "/api/receipts", Answer(200, page(RECEIPT, after="c9")))
    assert json.loads(run("receipts").stdout)["next"] == "c9"
    assert "--after c9" in run("receipts", "-o", "table").stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = run("completion", shell).stdout
    assert "_FAREBOX_COMPLETE" in script
    assert f"{shell}_complete" in script


def test_flatten() -> None:
    nested = {"a": {"b": 1}, "c": [{"d": True}], "e": [], "f": None, "g": ["x", "y"]}
    assert flatten(nested) == [("a.b", "1"), ("c[0].d", "yes"), ("g", "x, y")]
