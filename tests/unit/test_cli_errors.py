"""What `farebox` says when something fails: one screen, the field, what to do next, the right exit code."""

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from farebox.cli import platform
from farebox.cli.main import cli
from farebox.cli.problems import close_names

from tests.console_stub import ADMIN_KEY, MODEL, Answer, Stub, page, problem, running_stub

ENDPOINTS = "/api/serverless-endpoints"


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stub]:
    with running_stub() as running:
        monkeypatch.setenv("FAREBOX_URL", running.url)
        monkeypatch.setenv("FAREBOX_API_KEY", ADMIN_KEY)
        monkeypatch.setenv("FAREBOX_HOME", str(tmp_path / "home"))
        monkeypatch.delenv("FAREBOX_OUTPUT", raising=False)
        monkeypatch.delenv("FAREBOX_DEBUG", raising=False)
        yield running


def fail(code: int, *arguments: str, stdin: str | bytes | None = None) -> str:
    """The message of a command that must fail with `code`; stdout stays clean."""
    result: Result = CliRunner().invoke(cli, list(arguments), input=stdin)
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 24
    return result.stderr


def test_a_refusal_names_field_next_step_and_request(stub: Stub) -> None:
    several = problem(
        422, "invalid_field", "organization: there are several; name one of a, b", "organization"
    )
    stub.set("GET", "/api/usage", several)
    message = fail(1, "usage", "-o", "json")
    assert "Error: organization: there are several; name one of a, b" in message
    assert "Field: organization (--org)" in message
    assert "Request id: req_refused" in message


def test_details_of_a_refusal_are_shown_once_and_bounded(stub: Stub, tmp_path: Path) -> None:
    errors = [{"param": f"f{i}", "message": f"wrong {i}"} for i in range(50)]
    refusal = problem(422, "invalid_field", "f0: wrong 0", "f0", errors=errors, line=3)
    stub.set("POST", "/api/models", refusal)
    (tmp_path / "m.yaml").write_text("id: x\n")
    message = fail(1, "model", "add", "-f", str(tmp_path / "m.yaml"))
    assert message.count("wrong 0") == 1
    assert "Detail: f1: wrong 1" in message
    assert "line 3" in message
    stub.set("POST", "/api/models", problem(422, "invalid_field", "x" * 100_000))
    assert len(fail(1, "model", "add", "-f", str(tmp_path / "m.yaml"))) < 3000


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (problem(401, "invalid_api_key", "the key has expired"), 4, "FAREBOX_API_KEY"),
        (problem(403, "permission_denied", "a project's key may not"), 4, "admin.key"),
        (problem(409, "conflict", "the name is taken"), 1, "the name is taken"),
        (
            problem(429, "rate_limit_exceeded", "slow down", headers={"retry-after": "9"}),
            1,
            "try again in 9 s",
        ),
        (problem(503, "unavailable", "no", headers={"retry-after": "60"}), 1, "try again in 60 s"),
        (problem(500, "internal_error", "an error on our side"), 1, "server's log"),
        (Answer(404, "<html/>", kind="text/html"), 1, "--url"),
        (Answer(200, "[]"), 1, "--url"),
        (Answer(cut=True), 3, "farebox status"),
    ],
)
def test_every_kind_of_refusal(stub: Stub, answer: Answer, code: int, expected: str) -> None:
    stub.set("GET", "/api/organizations", answer)
    assert expected in fail(code, "org", "list")


def test_no_key_at_all(stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FAREBOX_API_KEY")
    stub.set("GET", "/api/organizations", problem(401, "invalid_api_key", "no key"))
    message = fail(4, "org", "list")
    assert "no key was sent" in message
    assert str(tmp_path / "home" / "admin.key") in message
    assert "authorization" not in stub.last.headers


def test_nobody_listens(stub: Stub) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        message = fail(3, "org", "list", "--url", f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert "farebox up" in message
    message = fail(3, "org", "list", "--url", "http://host.invalid:1")
    assert "FAREBOX_URL" in message
    assert "farebox up" not in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["modle", "list"], "'model'"),
        (["model", "lst"], "'list'"),
        (["org", "list", "--ulr", "x"], "--url"),
        (["org", "list", "-o", "xml"], "tsv"),
        (["org", "list", "--url", "localhost:8080"], "http://localhost:8080"),
        (["org", "list", "--api-key", "ä"], "not a key"),
        (["org", "create"], "NAME"),
        (["org", "create", "a", "b"], "unexpected extra argument"),
        (["project", "create", "x"], "--org"),
        (["key", "create", "--project", "p", "--name", "n", "--expires-in", "30"], "30d"),
        (["key", "create", "--project", "p", "--name", "n", "--expires-in", "0d"], "30d"),
        (["key", "create", "--project", "p", "--name", "n", "--expires-in", "²d"], "30d"),
        (["key", "revoke", ".."], "not a name or id"),
        (["model", "list", "--task", "chta"], "chat"),
        (["serverless-endpoint", "create", "--model", "m"], "name is missing"),
        (["serverless-endpoint", "create", "n"], "farebox model list"),
        (["serverless-endpoint", "create", "n", "--model", "m", "--tag", "x"], "name=value"),
        (["serverless-endpoint", "create", "n", "--model", "m", "--tag", "x=1", "--tag", "x=2"], "twice"),
        (["serverless-endpoint", "update", "n"], "nothing to change"),
        (["serverless-endpoint", "update", "n", "--tag", "x=1", "--no-tags"], "either --tag or --no-tags"),
        (["serverless-endpoint", "get-logs", "n", "--lines", "0"], "1<=x"),
        (["usage", "--by", "moddel"], "did you mean model"),
        (["usage", "--from", "yesterday"], "2026-01-31"),
        (["usage", "--from", "2026-02-01", "--to", "2026-02-01"], "not before"),
        (["invoice", "preview", "--period", "2026-13"], "2026-01"),
        (["completion", "tcsh"], "bash"),
    ],
)
def test_wrong_use(stub: Stub, arguments: list[str], expected: str) -> None:
    message = fail(2, *arguments)
    assert expected in message
    assert not stub.seen


def test_groups_without_a_command_show_their_help() -> None:
    for arguments in ([], ["org"], ["serverless-endpoint"]):
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 2
        assert "Commands:" in result.stderr + result.stdout


def test_names_are_suggested(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean acme/mock-chat?" in fail(1, "model", "show", "acme/moc-chat")
    assert "did you mean acme/mock-chat?" in fail(1, "model", "remove", "Mock-Chat")
    assert "farebox model list" in fail(1, "model", "prices", "zzz")
    assert "did you mean my-chat?" in fail(1, "serverless-endpoint", "show", "my-chatt")
    assert "did you mean my-chat?" in fail(1, "serverless-endpoint", "delete", "my_chat", "--yes")
    assert "did you mean my-chat?" in fail(1, "chat", "--endpoint", "mychat", "Hi")
    assert "did you mean key_1?" in fail(1, "key", "revoke", "key_2")
    unknown = problem(404, "not_found", "there is no model acme/mok-chat", "model")
    stub.set("POST", ENDPOINTS, unknown)
    message = fail(1, "serverless-endpoint", "create", "n", "--model", "acme/mok-chat")
    assert "did you mean acme/mock-chat?" in message
    stub.set("POST", ENDPOINTS, problem(404, "not_found", "no such project", "project"))
    assert "did you mean web" in fail(
        1, "serverless-endpoint", "create", "n", "--model", "m", "--project", "webb"
    )
    stub.set("POST", "/api/projects", problem(404, "not_found", "no such organization", "organization"))
    assert "did you mean acme?" in fail(1, "project", "create", "x", "--org", "acne")
    # The server's own suggestion is enough, and a list that fails is not a second error.
    stub.set("POST", ENDPOINTS, problem(404, "not_found", "unknown, did you mean 'a/b'?", "model"))
    message = fail(1, "serverless-endpoint", "create", "n", "--model", "acme/mok-chat")
    assert message.lower().count("did you mean") == 1
    stub.set("GET", "/api/models", problem(500, "internal_error", "broken"))
    assert "farebox model list" in fail(1, "model", "show", "acme/moc-chat")


def test_close_names() -> None:
    ids = ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-8B", "acme/mock"]
    assert close_names("qwen/qwen3-8b", ids) == ["Qwen/Qwen3-8B"]
    assert close_names("qwen3-0.6b", ids) == ["Qwen/Qwen3-0.6B"]
    assert close_names("mokc", ids) == ["acme/mock"]
    assert close_names("nothing-like-it", ids) == []
    assert close_names("a", []) == []


@pytest.mark.parametrize("command", [["model", "add"], ["serverless-endpoint", "create"]])
def test_files_that_cannot_be_used(stub: Stub, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "model.yaml").write_text("id: x\n")
    (tmp_path / "empty.yaml").write_text(" \n")
    (tmp_path / "big.yaml").write_bytes(b"#" * 2_000_000)

    def said(name: str) -> str:
        return fail(2, *command, "-f", str(tmp_path / name))

    assert "model.yaml?" in said("modle.yaml")
    assert "no such file" in said("nowhere/else.yaml")
    assert "directory" in fail(2, *command, "-f", str(tmp_path))
    assert "empty" in said("empty.yaml")
    assert "larger" in said("big.yaml")
    assert "cannot be read" in fail(2, *command, "-f", "a\0b")
    assert "empty" in fail(2, *command, "-f", "-", stdin="")
    if os.getuid():
        (tmp_path / "model.yaml").chmod(0)
        assert "Permission denied" in said("model.yaml")
    assert not stub.seen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: [", "line 1"),
        ("name: a\n\tmodel: b\n", "line 2"),
        ("- a\n", "expected fields"),
        ("3: a\n", "expected fields"),
        ("name: 3\nmodel: m\n", "name: expected a text"),
        ("name: n\nmodle: m\n", "did you mean model?"),
        ("name: n\nzzz: m\n", "known fields"),
        ("name: n\nmodel: m\nmodel_id: m\n", "keep one"),
        ("name: n\nmodel: m\nauth_mode: aad_token\n", "auth_mode"),
        ("name: n\nmodel_id: azureml://registries/r/models/m/versions/3\n", "leave its version out"),
        ("name: n\nmodel: m\ntags: [a]\n", "tags"),
        ("name: n\nmodel: m\ntags: {a: [b]}\n", "tags.a"),
        ("name: !!python/object:os.system {}\n", "not YAML"),
        ("a: &a [x]\nb: [*a, *a", "not YAML"),
        ("[" * 10_000, "not YAML"),
    ],
)
def test_endpoint_files_with_mistakes(stub: Stub, text: str, expected: str) -> None:
    assert expected in fail(2, "serverless-endpoint", "create", "-f", "-", stdin=text)
    assert not stub.seen


def test_an_endpoint_file_in_another_encoding(stub: Stub) -> None:
    assert "not YAML" in fail(2, "serverless-endpoint", "create", "-f", "-", stdin=b"name: \xff\xfe\n")


def test_a_bug_is_one_line(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    stub.set("GET", "/api/models", Answer(200, page("not an object")))
    message = fail(1, "model", "list", "-o", "table")
    assert "FAREBOX_DEBUG=1" in message
    monkeypatch.setenv("FAREBOX_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(cli, ["model", "list", "-o", "table"]).stderr


class _EntryPoint:
    """Stands for one of the platform's commands."""

    group = platform.GROUP

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self._target = target

    def load(self) -> Any:
        if isinstance(self._target, Exception):
            raise self._target
        return self._target


@pytest.mark.parametrize("name", ["up", "engine", "demo"])
def test_the_platforms_commands_get_every_argument(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen: list[list[str]] = []

    def command(argv: list[str]) -> int:
        seen.append(argv)
        return 7

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [_EntryPoint(name, command)])
    arguments = ["install", "--home", "/x", "--help", "-o", "json", "--port=1", "--", "-x"]
    assert CliRunner().invoke(cli, [name, *arguments]).exit_code == 7
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 7
    assert CliRunner().invoke(cli, [name]).exit_code == 7
    assert seen == [[*arguments], ["--help"], []]


def test_without_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    message = fail(2, "up", "--port", "1")
    assert "farebox-platform" in message
    assert "make setup" in message
    broken = [_EntryPoint("up", ImportError("No module named 'aiohttp'"))]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: broken)
    assert "No module named 'aiohttp'" in fail(2, "up")


def _environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")} | more


def test_help_imports_neither_http_nor_tables_nor_yaml() -> None:
    script = (
        "import sys\n"
        "from farebox.cli.main import main\n"
        "sys.argv = ['farebox', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'httpx', 'rich', 'yaml', 'asyncio', 'importlib.metadata', 'ssl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for arguments in (["--help"], ["model", "add", "--help"], ["version"], ["completion", "zsh"]):
        run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


def test_ctrl_c_ends_with_130(stub: Stub) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = subprocess.Popen(
            [sys.executable, "-m", "farebox", "org", "list"],
            env=_environment(FAREBOX_URL=f"http://127.0.0.1:{silent.getsockname()[1]}", FAREBOX_API_KEY="k"),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # What a shell starts in the background ignores Ctrl-C, and so would all below it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        silent.settimeout(30)
        connection, _ = silent.accept()
        with connection:
            connection.recv(10)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err


def test_a_reader_that_goes_away_is_no_error(stub: Stub) -> None:
    rows = [MODEL | {"id": f"acme/model-{i}"} for i in range(5000)]
    stub.set("GET", "/api/models", Answer(200, page(*rows)))
    process = subprocess.Popen(
        [sys.executable, "-m", "farebox", "model", "list", "-o", "tsv"],
        env=_environment(FAREBOX_URL=stub.url, FAREBOX_API_KEY="k"),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


@pytest.mark.parametrize("no_colour", ["", "1"])
def test_on_a_terminal(stub: Stub, no_colour: str) -> None:
    # A real terminal of 60 columns: a table by default, bold headings unless NO_COLOR, ids in one piece.
    stub.set("GET", "/api/models", Answer(200, page(MODEL | {"id": "acme/" + "x" * 90})))
    ours, theirs = pty.openpty()
    more = {"FAREBOX_URL": stub.url, "FAREBOX_API_KEY": "k", "TERM": "xterm", "COLUMNS": "60"}
    environment = _environment(**more, **({"NO_COLOR": no_colour} if no_colour else {}))
    process = subprocess.Popen(
        [sys.executable, "-m", "farebox", "model", "list"],
        env=environment,
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
    )
    os.close(theirs)
    text, end = b"", time.monotonic() + 30
    while time.monotonic() < end:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        text += piece
        if not piece:
            break
    os.close(ours)
    assert process.wait(timeout=30) == 0
    assert b"x" * 90 in text
    assert b"cached_input" in text
    assert (b"\x1b[" in text) == (not no_colour)
