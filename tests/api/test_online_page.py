"""docs/online.md runs as printed: its shell blocks, in order, in one shell, on a platform with real processes."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import platform as platforms

PAGE = platforms.ROOT / "docs" / "online.md"


@pytest.mark.timeout(300)
def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    with platforms.running(tmp_path / "home") as platform:
        environ = platform.environ | {
            "FAREBOX_URL": platform.url,
            "FAREBOX_HOME": str(platform.home),
            "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
        }
        script = "set -euo pipefail\n" + "\n".join(blocks)
        run = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=270
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
        log = (platform.home / "logs" / "platform.log").read_text()
        assert "unexpected error" not in log
    # Who answered, in the order of the page: by the split, with curl, by name, mirrored, promoted, from Python.
    answered = re.findall(r'"version": "(\w+)", "price": 250', run.stdout)
    assert answered == ["blue", "blue", "green", "blue", "green", "green"]
    assert "13 bytes" in run.stdout
    assert "{'blue': 90, 'green': 0, 'own': 0, 'red': 10}" in run.stdout
    assert re.search(r"^blue\s+100$", run.stdout, re.MULTILINE)
