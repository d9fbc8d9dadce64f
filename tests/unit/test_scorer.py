"""The scorer as its users see it: scripts of all three kinds, every status, ids, workers; real processes."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.processes import free_port

SCORER = Path(__file__).parents[2] / "functions" / "scorer"
ECHO = "import json\ndef init():\n    pass\ndef run(data):\n    return json.loads(data)\n"


class Scorer:
    """One scorer process."""

    def __init__(self, folder: Path, script: str, *options: str, **environ: str) -> None:
        self.port = free_port()
        (folder / "score.py").write_text(script)
        command = [sys.executable, "-m", "farebox_scorer", "--entry-script", str(folder / "score.py")]
        self.process = subprocess.Popen(
            self.start([*command, "--port", str(self.port), *options]),
            env={**os.environ, "PYTHONPATH": str(SCORER), **environ},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self, command: list[str]) -> list[str]:
        """What is run; tests with other bounds run it otherwise."""
        return command

    def wait(self) -> "Scorer":
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(self.url + "/").text == "Healthy"
                return self
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.05)
        raise AssertionError("not ready")

    def post(self, body: Any, **headers: str) -> httpx.Response:
        kept = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, bytes):
            return httpx.post(self.url + "/score", content=body, headers=kept, timeout=20)
        return httpx.post(self.url + "/score", json=body, headers=kept, timeout=20)

    def end(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=20)


@contextlib.contextmanager
def scoring(folder: Path, script: str, *options: str, **environ: str) -> Iterator[Scorer]:
    scorer = Scorer(folder, script, *options, **environ)
    try:
        yield scorer.wait()
    finally:
        scorer.end()


def test_a_text_in_and_json_out(tmp_path: Path) -> None:
    with scoring(tmp_path, ECHO) as scorer:
        answer = scorer.post(
            {"a": [1, "ü"]}, x_request_id="mine", x_ms_client_request_id="theirs", TraceId="t-1"
        )
        assert (answer.status_code, answer.json()) == (200, {"a": [1, "ü"]})
        assert answer.headers["content-type"] == "application/json"
        assert (answer.headers["x-request-id"], answer.headers["x-ms-client-request-id"]) == (
            "mine",
            "theirs",
        )
        assert answer.headers["x-ms-request-id"] == "theirs" and answer.headers["TraceId"] == "t-1"
        assert answer.headers["x-ms-run-function-failed"] == "False"
        whole, _, decimals = answer.headers["x-ms-run-fn-exec-ms"].partition(".")
        assert whole.isdigit() and len(decimals) == 3
        got = httpx.get(scorer.url + "/score?a=1&b=[1,2]&c=x&d=y&d=null").json()
        assert got == {"a": 1, "b": [1, 2], "c": "x", "d": ["y", None]}
        assert len(scorer.post({}).headers["x-request-id"]) == 36


def test_every_refusal(tmp_path: Path) -> None:
    with scoring(tmp_path, ECHO) as scorer:
        raised = scorer.post(b"not json")
        assert (raised.status_code, raised.headers["x-ms-run-function-failed"]) == (500, "True")
        assert raised.json()["message"] == "The scoring script raised JSONDecodeError; see its log."
        assert scorer.post(b"\xff").status_code == 400
        assert scorer.post({}, x_request_id="x" * 101).status_code == 431
        assert scorer.post({}, x_ms_client_request_id="x" * 101).status_code == 431
        assert httpx.put(scorer.url + "/score").status_code == 405
        assert httpx.post(scorer.url + "/").status_code == 405
        assert httpx.get(scorer.url + "/nothing").status_code == 404
        assert httpx.options(scorer.url + "/score").status_code == 200
        with socket.create_connection(("127.0.0.1", scorer.port)) as raw:
            raw.sendall(b"NONSENSE\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400")
        assert scorer.post({"still": "well"}).status_code == 200


def test_requests_on_one_connection_are_answered_in_turn(tmp_path: Path) -> None:
    with scoring(tmp_path, ECHO) as scorer, socket.create_connection(("127.0.0.1", scorer.port)) as raw:
        one = b'POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 7\r\n\r\n{"n":%d}'
        raw.sendall(b"".join(one % number for number in range(5)))
        raw.settimeout(5)
        seen = b""
        while seen.count(b'{"n": ') < 5:
            seen += raw.recv(65536)
        assert [seen.index(b'{"n": %d}' % number) for number in range(5)] == sorted(
            seen.index(b'{"n": %d}' % number) for number in range(5)
        )


def test_raw_requests_and_answers(tmp_path: Path) -> None:
    script = """
from azureml.contrib.services.aml_request import AMLRequest, rawhttp
from azureml.contrib.services.aml_response import AMLResponse
def init(): pass
@rawhttp
def run(request):
    if request.method == "GET":
        return AMLResponse({"args": request.args, "all": request.args.getlist("a")}, 200, json_str=True)
    if request.headers.get("X-Kind") == "empty":
        return AMLResponse(None, 202)
    return AMLResponse(request.get_data()[::-1], 418, {"Content-Type": "image/x", "X-Own": "1"})
"""
    with scoring(tmp_path, script) as scorer:
        answer = scorer.post(b"\x00abc\xff")
        assert (answer.status_code, answer.content) == (418, b"\xffcba\x00")
        assert (answer.headers["content-type"], answer.headers["x-own"]) == ("image/x", "1")
        assert httpx.get(scorer.url + "/score?a=1&a=2").json() == {"args": {"a": "1"}, "all": ["1", "2"]}
        empty = scorer.post(b"", x_kind="empty")
        assert (empty.status_code, empty.json()) == (202, {})


def test_headers_reach_a_script_that_asks_for_them(tmp_path: Path) -> None:
    script = "def init(): pass\ndef run(data, request_headers): return request_headers.get('x-mine')\n"
    with scoring(tmp_path, script) as scorer:
        assert scorer.post({}, X_Mine="yes").json() == "yes"


SCHEMA = """
def is_schema_decorated(function): return hasattr(function, "schema")
def get_input_schema(function): return {"type": "object", "properties": function.schema}
def get_output_schema(function): return {"type": "integer"}
"""
WITH_SCHEMA = """
def init(): pass
def run(first, second=2): return first * second
run.schema = {"first": {"type": "integer"}, "second": {"type": "integer"}}
"""


def test_a_script_with_a_schema_gets_one_argument_a_member(tmp_path: Path) -> None:
    (tmp_path / "inference_schema").mkdir()  # the parts of the package that are asked for
    (tmp_path / "inference_schema" / "__init__.py").touch()
    (tmp_path / "inference_schema" / "schema_util.py").write_text(SCHEMA)
    with scoring(tmp_path, WITH_SCHEMA) as scorer:
        assert scorer.post({"first": 3, "second": 5}).json() == 15
        assert scorer.post({"first": 3}).json() == 6
        missing = scorer.post({"second": 3})
        assert missing.status_code == 400 and "first" in missing.json()["message"]
        assert scorer.post(b"[1]", content_type="application/json").status_code == 400
        assert scorer.post(b"{", content_type="application/json").status_code == 400
        assert scorer.post(b"a=1", content_type="application/x-www-form-urlencoded").status_code == 415
        assert httpx.get(scorer.url + "/score?first=4").json() == 8
        for version, name in (("2", "swagger"), ("3", "openapi"), ("3.1", "openapi")):
            document = httpx.get(f"{scorer.url}/swagger.json?version={version}").json()
            assert document[name].startswith(version)
            assert "first" in json.dumps(document)
        assert httpx.get(scorer.url + "/swagger.json").json()["swagger"] == "2.0"
        assert httpx.get(scorer.url + "/swagger.json?version=9").status_code == 404


def test_a_swagger_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "swagger3.json").write_text('{"openapi": "3.0.0", "mine": true}')
    with scoring(tmp_path, ECHO) as scorer:
        assert httpx.get(scorer.url + "/swagger.json?version=3").json()["mine"] is True
        assert "mine" not in httpx.get(scorer.url + "/swagger.json").json()


@pytest.mark.parametrize(
    ("script", "status", "says"),
    [
        ("import nowhere", 3, "UserScriptImportError"),
        ("def run(data): pass", 4, "UserScriptFunctionNotFound"),
        ("def init(): pass\nrun = 3", 4, "UserScriptFunctionNotFound"),
        ("def init(): pass\ndef run(): pass", 4, "needs a parameter"),
        ("def init(): pass\ndef run(*args): pass", 4, "*args"),
        ("def init(): pass\ndef run(a, /): pass", 4, "may not have"),
        (
            "def init(): raise OSError('no weights')\ndef run(data): pass",
            5,
            "UserScriptInitFailed: init() raised OSError",
        ),
    ],
)
def test_a_script_that_cannot_serve_ends_with_its_status(
    tmp_path: Path, script: str, status: int, says: str
) -> None:
    scorer = Scorer(tmp_path, script)
    _, err = scorer.process.communicate(timeout=20)
    assert scorer.process.returncode == status
    assert says in err.decode().splitlines()[-1]


def test_the_health_page_answers_while_the_script_works(tmp_path: Path) -> None:
    script = "import time\ndef init(): pass\ndef run(data): time.sleep(2); return 1\n"
    with scoring(tmp_path, script) as scorer:
        calling = threading.Thread(target=scorer.post, args=({},))
        calling.start()
        time.sleep(0.3)
        began = time.monotonic()
        assert httpx.get(scorer.url + "/").text == "Healthy"
        assert time.monotonic() - began < 1
        calling.join()


def test_a_script_that_takes_too_long(tmp_path: Path) -> None:
    script = "import time\ndef init(): pass\ndef run(data): time.sleep(float(data)); return 1\n"
    with scoring(tmp_path, script, SCORING_TIMEOUT_MS="300") as scorer:
        late = scorer.post(b"1")
        assert (late.status_code, late.headers["x-ms-run-function-failed"]) == (500, "True")
        assert scorer.post(b"0").status_code in (200, 500)  # the one before it has to end first
        time.sleep(1)
        assert scorer.post(b"0").status_code == 200


def test_workers_share_a_port_and_one_that_dies_comes_back(tmp_path: Path) -> None:
    script = "import os\ndef init(): pass\ndef run(data):\n    if 'die' in data: os._exit(1)\n    return os.getpid()\n"
    with scoring(tmp_path, script, "--worker-count", "2") as scorer:
        seen = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            seen.add(scorer.post({}).json())
        assert len(seen) == 2
        with contextlib.suppress(httpx.TransportError):
            scorer.post("die")
        after = set()
        while len(after) < 2 and time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                after.add(scorer.post({}).json())
        assert len(after) == 2 and after != seen


def test_sigterm_lets_the_call_under_way_finish(tmp_path: Path) -> None:
    script = "import time\ndef init(): pass\ndef run(data): time.sleep(1); return 'done'\n"
    with scoring(tmp_path, script) as scorer:
        found: list[httpx.Response] = []
        calling = threading.Thread(target=lambda: found.append(scorer.post({})))
        calling.start()
        time.sleep(0.4)
        scorer.process.send_signal(signal.SIGTERM)
        calling.join()
        assert found[0].json() == "done"
        assert scorer.process.wait(10) == 0


def test_cors_for_those_who_are_named(tmp_path: Path) -> None:
    with scoring(tmp_path, ECHO, "--access-control-allow-origins", "https://a.test") as scorer:
        ours = scorer.post({}, Origin="https://a.test")
        assert ours.headers["access-control-allow-origin"] == "https://a.test"
        assert "access-control-allow-origin" not in scorer.post({}, Origin="https://b.test").headers


def test_a_body_without_end_is_refused(tmp_path: Path) -> None:
    with scoring(tmp_path, ECHO) as scorer:
        connection = http.client.HTTPConnection("127.0.0.1", scorer.port, timeout=5)
        connection.putrequest("POST", "/score")
        connection.putheader("content-length", str(10**12))
        connection.putheader("expect", "100-continue")
        connection.endheaders()
        with contextlib.suppress(TimeoutError, OSError, http.client.HTTPException):
            assert connection.getresponse().status in (400, 413)
        connection.close()
        assert scorer.post({}).status_code == 200


@pytest.mark.parametrize("piece", [b"x-a: " + b"b" * 1000 + b"\r\n", b"b" * 1000], ids=["many", "one"])
def test_headers_without_end_are_refused(tmp_path: Path, piece: bytes) -> None:
    with (
        scoring(tmp_path, ECHO) as scorer,
        socket.create_connection(("127.0.0.1", scorer.port), timeout=5) as caller,
    ):
        caller.sendall(b"GET / HTTP/1.1\r\nhost: a\r\nx-a: ")
        closed = False
        for _ in range(1000):  # 1 MB; 64 KiB are taken
            try:
                caller.sendall(piece)
            except OSError:
                closed = True
                break
            time.sleep(0.0005)
        assert closed
        assert scorer.post({}).status_code == 200
