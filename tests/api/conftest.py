"""Fixtures of tests of the management API; a file that wants another platform has its own of the same name."""

from pathlib import Path

import pytest

from tests.api.console_platform import ConsolePlatform, open_platform
from tests.api.online_calls import SCORE


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    """A platform with one organization and one project."""
    made = open_platform(tmp_path)
    made.project()
    return made


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with the smallest scoring script."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "score.py").write_text(SCORE)
    return folder
