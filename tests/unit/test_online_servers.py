"""Servers of one's own that do not become ready: what is said of them."""

import logging
import sys
from pathlib import Path

import pytest

from serving.online.spec import DeploymentSpec, InferenceRoute, InferenceRoutes, Probe
from serving.processes import free_port
from tests.unit.test_online_runtime import Site, site

__all__ = ["site"]

SOON = Probe(initial_delay=0, period=1, timeout=1, failure_threshold=3)
ROUTES = InferenceRoutes(InferenceRoute("/predict"), InferenceRoute("/live"), InferenceRoute("/ready"))
SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(int(sys.argv[2])); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *a): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def server(folder: Path, name: str, port: str, status: int) -> DeploymentSpec:
    (folder / "server.py").write_text(SERVER)
    return DeploymentSpec(
        name, "command", command=(sys.executable, "server.py", port, str(status)), code_path=str(folder),
        routes=ROUTES, liveness_probe=SOON, readiness_probe=SOON,
    )  # fmt: skip


async def test_a_probe_that_never_passes(site: Site, tmp_path: Path) -> None:
    row = await site.settled(site.deploy(server(tmp_path, "unready", "{port}", 503)))
    assert (row.provisioning_state, row.failure_code) == ("Failed", "ResourceNotReady")
    assert "not ready within 3 s: it does not answer GET /ready with a success" in row.failure_message
    assert not site.urls(row)


async def test_a_server_that_listens_elsewhere(site: Site, tmp_path: Path) -> None:
    row = await site.settled(site.deploy(server(tmp_path, "elsewhere", str(free_port()), 200)))
    assert (row.provisioning_state, row.failure_code) == ("Failed", "ResourceNotReady")
    assert "it does not listen on the port that it was given" in row.failure_message


async def test_two_deployments_on_one_port(site: Site, tmp_path: Path) -> None:
    """Each is given a port of its own; who insists on one that is taken is told so by its own last words."""
    first = site.deploy(server(tmp_path, "first", "{port}", 200))
    assert (await site.settled(first)).provisioning_state == "Succeeded"
    [url] = site.urls(first)
    row = await site.settled(site.deploy(server(tmp_path, "second", url.rpartition(":")[2], 200)))
    assert row.provisioning_state == "Failed"
    assert "Address already in use" in row.failure_message
    assert site.urls(first) == (url,), "the first one serves on"
    third = site.deploy(server(tmp_path, "third", "{port}", 200))
    assert (await site.settled(third)).provisioning_state == "Succeeded"
    assert site.urls(third) != (url,)


TOUCHED = SERVER.replace(
    "self.send_response(int(sys.argv[2]))",
    "import os; self.send_response(503 if os.path.exists(self.path.strip('/')) else 200)",
)


async def test_what_happens_is_logged_under_azures_names(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Made, started, taken out of traffic, killed by its probe and started again; R7.2's table of events."""
    caplog.set_level(logging.INFO, "serving.online.instance")
    spec = server(tmp_path, "told", "{port}", 200)
    (tmp_path / "server.py").write_text(TOUCHED)
    made = site.deploy(spec)
    await site.settled(made)
    [url] = site.urls(made)
    (tmp_path / "ready").touch()
    await site.until(lambda: not site.urls(made))
    (tmp_path / "live").touch()
    await site.until(lambda: "BackOff" in names(caplog))
    (tmp_path / "live").unlink()
    (tmp_path / "ready").unlink()
    await site.until(lambda: site.urls(made) and site.urls(made) != (url,))
    await site.until(lambda: names(caplog).count("Started") == 2)  # the table is written before the log
    assert names(caplog) == [
        "Created", "Started", "ReadinessProbeFailed", "LivenessProbeFailed", "BackOff", "Created", "Started",
    ]  # fmt: skip
    first = next(each.__dict__ for each in caplog.records if each.msg == "deployment event")
    assert (first["EndpointId"], first["DeploymentName"]) == (made.endpoint_id, "told")
    assert first["InstanceId"].startswith("rep_") and first["Message"]


def names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.__dict__["Name"] for each in caplog.records if each.msg == "deployment event"]
