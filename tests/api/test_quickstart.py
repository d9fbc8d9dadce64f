"""docs/quickstart.md runs as printed: its shell blocks, in order, in one shell, against a scripted model server."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from serving.processes import free_port
from tests import platform as platforms
from tests.mock_engine import MockEngine

PAGE = platforms.ROOT / "docs" / "quickstart.md"


def _blocks(page: Path = PAGE) -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _run(
    page: Path, engine: MockEngine, platform: platforms.Platform, folder: Path
) -> subprocess.CompletedProcess[str]:
    # The page names port 9100; the test's model server listens where there is room.
    script = "set -euo pipefail\n" + "\n".join(_blocks(page)).replace("http://127.0.0.1:9100", engine.url)
    environ = platform.environ | {
        "FAREBOX_URL": platform.url,
        "FAREBOX_HOME": str(platform.home),
        "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
    }
    run = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environ, capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def test_serverless_endpoints_run_as_printed(tmp_path: Path) -> None:
    with MockEngine() as engine, platforms.running(tmp_path / "home") as platform:
        run = _run(PAGE.with_name("serverless.md"), engine, platform, tmp_path)
        # Two APIs; the renewed key's old text, its new one; suspended, reinstated; terms accepted, withdrawn; an
        # exhausted budget; no endpoint.
        assert re.findall(r"^(\d{3})$", run.stdout, re.MULTILINE) == [
            "200",
            "200",
            "401",
            "200",
            "403",
            "200",
            "200",
            "403",
            "402",
            "401",
        ]
        compared = next(
            line for line in run.stdout.splitlines() if '"shadow":"next"' in line.replace(" ", "")
        )
        [pair] = json.loads(compared)["data"]
        assert 0 < pair["pairs"] <= 16 and pair["shadow_figures"]["statuses"] == {"200": pair["pairs"]}
        assert len(engine.seen) >= 5 + 1 + 16 + pair["pairs"]
        assert "endpoint_minute" in run.stdout


def test_the_quickstart_runs_as_printed(tmp_path: Path) -> None:
    with MockEngine() as engine, platforms.running(tmp_path / "home") as platform:
        run = _run(PAGE, engine, platform, tmp_path)
        assert len(engine.seen) == 1
        headers = (tmp_path / "headers.txt").read_text()
        request_id = re.search(r"^x-request-id: (\S+)", headers, re.MULTILINE | re.IGNORECASE)
        assert request_id is not None
        receipt = json.loads(platform.cli("receipt", request_id[1], "-o", "json").stdout)
        assert receipt["status"] == "completed" and receipt["usage"]["output"] == 4
        assert request_id[1] in run.stdout


def test_up_explains_what_is_in_its_way(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = _up("--home", str(tmp_path / "a"), "--port", str(port))
        assert run.returncode == 1
        assert f"port {port}" in run.stderr and "--port" in run.stderr

    (tmp_path / "file").write_text("")
    run = _up("--home", str(tmp_path / "file"), "--port", str(free_port()))
    assert run.returncode == 1 and "--home" in run.stderr

    run = _up("--port", "70000")
    assert run.returncode == 2 and "1 to 65535" in run.stderr


def test_up_refuses_a_second_platform_in_the_same_home(tmp_path: Path) -> None:
    with platforms.running(tmp_path) as platform:
        run = _up("--home", str(tmp_path), "--port", str(free_port()))
        assert run.returncode == 1
        assert str(platform.process.pid) in run.stderr


@pytest.mark.parametrize("variable", ["FAREBOX_SCALE_TO_ZERO_AFTER_S", "FAREBOX_MAX_BODY_BYTES"])
def test_a_setting_that_is_no_number_is_named(tmp_path: Path, variable: str) -> None:
    run = _up("--home", str(tmp_path), **{variable: "soon"})
    assert run.returncode == 1 and variable in run.stderr and "soon" in run.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FAREBOX_ALLOWED_NETWORKS", "10.0.0.0/99"),
        ("FAREBOX_ONLINE_BANDWIDTH_EXCEPTIONS", "my-endpoint"),
        ("FAREBOX_CONTENT_SAFETY_URL", "moderations.example"),
    ],
)
def test_a_setting_of_the_gateway_is_checked_before_it_starts(
    tmp_path: Path, variable: str, value: str
) -> None:
    run = _up("--home", str(tmp_path), "--port", str(free_port()), **{variable: value})
    assert run.returncode == 1 and variable in run.stderr and value in run.stderr
    assert "serves on" not in run.stdout


def _up(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = [str(platforms.FAREBOX), "up", *arguments]
    return subprocess.run(
        command, env=platforms.environment(**settings), capture_output=True, text=True, timeout=30
    )
