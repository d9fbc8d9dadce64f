"""`egress_public_network_access: disabled`: a script is called as ever, and reaches nobody."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

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
