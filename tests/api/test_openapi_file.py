"""docs/management-api.json is what the management API says of itself.

To write it anew: FAREBOX_WRITE_OPENAPI=1 .venv/bin/python -m pytest -n 0 tests/api/test_openapi_file.py
"""

import json
import os
from pathlib import Path

from tests.api.console_platform import open_platform

FILE = Path(__file__).parents[2] / "docs" / "management-api.json"
_WRITE = "FAREBOX_WRITE_OPENAPI"


def test_the_file_is_current(tmp_path: Path) -> None:
    document = open_platform(tmp_path).app.openapi()
    text = json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    if os.environ.get(_WRITE):
        FILE.write_text(text, encoding="utf-8")
    command = f"{_WRITE}=1 .venv/bin/python -m pytest -n 0 tests/api/test_openapi_file.py"
    assert FILE.read_text(encoding="utf-8") == text, f"docs/management-api.json is stale: {command}"
