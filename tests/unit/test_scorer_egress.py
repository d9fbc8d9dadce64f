"""`egress_public_network_access: disabled`: a script is called as ever, and reaches nobody."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from serving.processes import free_port
from tests.unit.test_scorer import SCORER, Scorer, scoring

SCRIPT = """
import json, os, socket, subprocess, sys

CHILD = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 2)"

def init():
    open("written", "w").close()

def reach(host, port):
    try:
        socket.create_connection((host, port), 2).close()
    except OSError as error:
        return type(error).__name__
    return "reached"

def run(data):
    port = json.loads(data)["port"]
    own = socket.create_server(("127.0.0.1", 0))
    child = subprocess.run([sys.executable, "-c", CHILD, str(port)], stderr=subprocess.DEVNULL)
    return {
        "outside": reach("192.0.2.1", 80), "name": reach("farebox.test", 80), "machine": reach("127.0.0.1", port),
        "child": child.returncode, "own": reach(*own.getsockname()), "uid": os.getuid(), "pid": os.getpid(),
    }
"""


@pytest.fixture(scope="module")
def restricted() -> bool:
    """Whether this machine lets a process have a network of its own."""
    tried = "from farebox_scorer import egress; egress.close()"
    run = subprocess.run([sys.executable, "-c", tried], env={**os.environ, "PYTHONPATH": str(SCORER)})
    return run.returncode == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_script_reaches_nobody_but_itself(tmp_path: Path, restricted: bool, workers: str) -> None:
    if not restricted:
        scorer = Scorer(tmp_path, SCRIPT, "--no-egress", "--worker-count", workers)
        _, error = scorer.process.communicate(timeout=20)
        assert (scorer.process.returncode, b"EgressNotRestricted" in error) == (6, True)
        return
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        scoring(tmp_path, SCRIPT, "--no-egress", "--worker-count", workers) as scorer,
    ):
        port = other.getsockname()[1]
        found = [scorer.post({"port": port}).json() for _ in range(10)]
    for each in found:
        assert each["outside"] != "reached" and each["name"] == "gaierror"
        assert each["machine"] == "ConnectionRefusedError", "another service of this machine"
        assert (each["child"], each["own"], each["uid"]) == (1, "reached", os.getuid())
    assert (tmp_path / "written").stat().st_uid == os.getuid()


def test_a_system_that_does_not_allow_it_is_said(tmp_path: Path) -> None:
    forbidden = "import sys, farebox_scorer.egress as e; sys.argv[0] = 'x'\ndef no(): raise OSError(1, 'not allowed')\n"
    forbidden += "e.close = no\nfrom farebox_scorer.__main__ import main; sys.exit(main())"
    (tmp_path / "score.py").write_text("def init():\n    open('ran', 'w')\ndef run(data):\n    return data\n")
    run = subprocess.run(
        [sys.executable, "-c", forbidden, "--entry-script", "score.py", "--port", "0", "--no-egress"],
        env={**os.environ, "PYTHONPATH": str(SCORER)},
        cwd=tmp_path,
        capture_output=True,
        timeout=20,
    )
    assert run.returncode == 6 and run.stderr.startswith(b"EgressNotRestricted: ")
    assert not (tmp_path / "ran").exists(), "the script has not run"


# --- servers of one's own ---------------------------------------------------------------------------

CONFINED = SCORER / "farebox_scorer" / "confined.py"
SERVER = """
import http.server, json, signal, socket, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path.startswith("/reach/"):
            try:
                socket.create_connection(("127.0.0.1", int(self.path.rpartition("/")[2])), 2).close()
                said = b"reached"
            except OSError as error:
                said = type(error).__name__.encode()
            self.say(said)
        else:
            threading.Thread(target=self.server.shutdown).start()
            self.say(b"x" * 300_000)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200); self.send_header("transfer-encoding", "chunked"); self.end_headers()
        for start in range(0, len(body), 100_000):
            piece = body[start:start + 100_000]
            self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(piece), piece)); self.wfile.flush()
        self.wfile.write(b"0\\r\\n\\r\\n")
    def say(self, said):
        self.send_response(200); self.send_header("content-length", str(len(said))); self.end_headers()
        self.wfile.write(said)
    def log_message(self, *a): pass
def stopped(*_):
    sys.exit(9)
signal.signal(signal.SIGTERM, stopped)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
sys.exit(7)
"""


def confined(folder: Path, port: int, *command: str) -> subprocess.Popen[bytes]:
    (folder / "own.py").write_text(SERVER)
    command = command or (sys.executable, "own.py", str(port))
    return subprocess.Popen(
        [sys.executable, CONFINED, "--port", str(port), "--", *command], cwd=folder, stderr=subprocess.PIPE
    )


def connected(port: int, timeout_s: float = 20) -> httpx.Client:
    client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20, trust_env=False)
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up:
        try:
            client.get("/reach/1")
            return client
        except httpx.HTTPError:
            time.sleep(0.05)
    raise AssertionError("it does not answer")


@pytest.fixture
def own(tmp_path: Path, restricted: bool) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    port = free_port()
    process = confined(tmp_path, port)
    if not restricted:
        _, error = process.communicate(timeout=20)
        assert (process.returncode, b"EgressNotRestricted" in error) == (6, True)
        pytest.skip("this machine has no namespaces for us; that was said")
    client = connected(port)
    yield process, client
    client.close()
    process.kill()
    process.communicate()


def test_a_server_of_ones_own_is_called_and_reaches_nobody(
    own: tuple[subprocess.Popen[bytes], httpx.Client],
) -> None:
    process, client = own
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert client.get(f"/reach/{other.getsockname()[1]}").text == "ConnectionRefusedError"
    body = os.urandom(5_000_000)
    assert client.post("/", content=body).content == body
    with ThreadPoolExecutor(20) as pool:
        sizes = pool.map(lambda n: len(client.post("/", content=body[:n]).content), range(1, 200_000, 2_000))
        assert list(sizes) == list(range(1, 200_000, 2_000))
    assert len(client.get("/end").content) == 300_000, "what was written before the end gets out"
    assert process.wait(20) == 7


def test_the_stop_and_the_status_are_passed_on(
    own: tuple[subprocess.Popen[bytes], httpx.Client], tmp_path: Path
) -> None:
    process, _ = own
    process.terminate()
    assert process.wait(20) == 9
    missing = confined(tmp_path, free_port(), "./no-such-server")
    _, error = missing.communicate(timeout=20)
    assert (missing.returncode, error.strip()) == (127, b"./no-such-server: No such file or directory")
    killed = confined(tmp_path, free_port(), sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    killed.communicate(timeout=20)
    assert killed.returncode == 137
