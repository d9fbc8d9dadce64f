"""docs/edge-cases.md names a test for every rule: none may be missing, renamed or left out."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def _rows() -> dict[int, str]:
    page = (ROOT / "docs" / "edge-cases.md").read_text()
    return {int(number): row for number, row in re.findall(r"^\| (\d+) \|(.*)$", page, re.MULTILINE)}


def _tests_in(path: str) -> set[str]:
    file = ROOT / path
    tree = ast.parse(file.read_text()) if file.exists() else ast.Module([], [])
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {node.name for node in functions}


def test_every_rule_has_a_test_that_exists() -> None:
    rows = _rows()
    assert sorted(rows) == list(range(1, 34))
    assert not [number for number, row in rows.items() if not _NAMED.search(row)], "rules without a test"
    named = {match for row in rows.values() for match in _NAMED.findall(row)}
    missing = [f"{path}::{test}" for path, test in sorted(named) if test not in _tests_in(path)]
    assert not missing, f"docs/edge-cases.md names tests that are not there: {missing}"
