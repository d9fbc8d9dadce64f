"""Every proof that `docs/feature-table.md` names is there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_test_that_is_named_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "feature-table.md").read_text())
    assert len(named) > 15
    missing = [f"{path}::{name}" for path, name in named if name not in _tests(ROOT / path)]
    assert not missing


def _tests(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
