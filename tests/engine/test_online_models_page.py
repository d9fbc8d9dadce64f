"""docs/online-models.md runs as printed: scikit-learn, MLflow and a real vLLM behind one endpoint."""

import ast
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from tests import platform as platforms

pytestmark = [pytest.mark.engine, pytest.mark.long, pytest.mark.timeout(1800)]

PAGE = platforms.ROOT / "docs" / "online-models.md"
RENTS = [705.0, 900.0]  # of the two flats in the page's request, as the least squares have them: ±10


def test_the_page_runs_as_printed(tmp_path: Path, engine_settings: Settings) -> None:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shared = {
        "FAREBOX_ENGINES_DIR": str(engine_settings.engines_path),
        "FAREBOX_MODELS_DIR": str(engine_settings.models_path),
    }
    with platforms.running(tmp_path / "home", **shared) as platform:
        environ = platform.environ | {
            "FAREBOX_URL": platform.url,
            "FAREBOX_HOME": str(platform.home),
            "PIP_NO_COMPILE": "1",  # the training runs once
            "PATH": f"{platforms.FAREBOX.parent}:{os.environ['PATH']}",
        }
        script = "set -euo pipefail\n" + "\n".join(blocks)
        run = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=900
        )
        assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
        assert "unexpected error" not in (platform.home / "logs" / "platform.log").read_text()
    out = run.stdout
    answers = [
        json.loads(line) for line in re.findall(r"^(?:python: )?.*?(\[[\d., ]+\])$", out, re.MULTILINE)
    ]
    assert len(answers) == 1 + 1 + 16 + 3 + 5, (
        "of both, mirrored, split and promoted and taken back, and in Python"
    )
    for answer in answers:
        assert answer == pytest.approx(RENTS, abs=10)
    assert re.search(r"floor.*\(424\)$", out, re.MULTILINE), "the column that is missing is named"
    assert out.count(" (424)\n") == 2, "nor are records taken"
    chat = _document(out, "chat.completion")
    assert chat["usage"]["completion_tokens"] == 8
    assert re.search(r"^chat\s+Succeeded\s+0$", out, re.MULTILINE)
    [compared] = _document(out, '"answers"')["data"]
    assert (compared["deployment"], compared["shadow"]) == ("script", "mlflow")
    assert compared["answers"] == {"same": compared["pairs"], "different": 0} and compared["pairs"] > 0
    assert "python: 8 tokens" in out
    changes = re.findall(r"^python: (\{.*?\}) (\{.*?\}) ", out, re.MULTILINE)
    assert [
        _given(traffic) | {f"copies of {name}": share for name, share in _given(copies).items()}
        for traffic, copies in changes
    ] == [
        {"script": 100, "copies of mlflow": 50},
        {"script": 90, "mlflow": 10},
        {"mlflow": 100},
        {"script": 100},
    ]


def _given(shares: str) -> dict[str, int]:
    """As printed, without shares of 0."""
    return {name: share for name, share in ast.literal_eval(shares).items() if share}


def _document(text: str, part: str) -> dict[str, Any]:
    """The first line with JSON that has `part` in it."""
    found: dict[str, Any] = json.loads(
        next(line for line in text.splitlines() if line[:1] == "{" and part in line)
    )
    return found
