"""docs/cli.md is what the commands say of themselves."""

from pathlib import Path

from farebox.cli.main import cli
from farebox.cli.reference import reference, walk

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_reference_is_current() -> None:
    message = "docs/cli.md is stale: .venv/bin/python -m farebox.cli.reference > docs/cli.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), message


def test_every_command_is_in_it() -> None:
    for path, _ in walk(cli, "farebox"):
        assert f"### {path}\n" in reference()
