"""The repository checks itself: what a reviewer would otherwise have to remember."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "access",
    "billing",
    "catalog",
    "core",
    "functions",
    "metering",
    "migrations",
    "serving",
    "webhooks",
    "wire",
    "sdk",
)
MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 70


def _tracked(*suffixes: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.suffix in suffixes and path.is_file()]


def _sources() -> list[Path]:
    return [p for p in _tracked(".py") if p.relative_to(ROOT).parts[0] in PACKAGES]


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_files_stay_short_enough_to_read() -> None:
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in _tracked(".py")}
    long = {name: count for name, count in lines.items() if count > MAX_FILE_LINES}
    assert not long, f"over {MAX_FILE_LINES} lines: {long}"


def test_functions_stay_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in _sources()
        if path.parent.name != "versions"  # a migration is a list of statements
        for node in _functions(ast.parse(path.read_text()))
        if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long, f"over {MAX_FUNCTION_LINES} lines: {long}"


def _handles_money(path: Path) -> bool:
    parts = path.relative_to(ROOT).parts
    return parts[0] == "billing" or parts == ("core", "money.py") or path.name in {"prices.py", "rate.py"}


def test_no_float_touches_money() -> None:
    offending = []
    for path in filter(_handles_money, _sources()):
        for node in ast.walk(ast.parse(path.read_text())):
            literal = isinstance(node, ast.Constant) and isinstance(node.value, float)
            cast = isinstance(node, ast.Name) and node.id == "float"
            division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            decimal = path.name == "money.py"  # as_decimal divides Decimals, on purpose
            if literal or cast or (division and not decimal):
                offending.append(f"{path.relative_to(ROOT)}:{node.lineno}")  # type: ignore[attr-defined]
    assert not offending, f"floats or true division near money: {offending}"


def test_nothing_names_one_machine() -> None:
    pattern = re.compile(r"(?<![\w.])/(?:work|opt/pypi|opt/wheels|farm|root)/\w")
    here = Path(__file__)
    offending = [
        f"{p.relative_to(ROOT)}:{number}"
        for p in _tracked(".py", ".md", ".yaml", ".yml", ".toml", ".lock", ".txt", ".sh", "")
        if p != here
        for number, line in enumerate(p.read_text(errors="replace").splitlines(), 1)
        if pattern.search(line)
    ]
    assert not offending, offending


def test_no_unfinished_work() -> None:
    marker = re.compile(
        r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError\(\)|pytest\.mark\.(skip|xfail)\b"
    )
    here = Path(__file__)
    offending = [
        f"{p.relative_to(ROOT)}:{n}"
        for p in _tracked(".py")
        if p != here
        for n, line in enumerate(p.read_text().splitlines(), 1)
        if marker.search(line)
    ]
    assert not offending, offending


@pytest.mark.parametrize("package", ["access", "billing", "catalog", "metering", "serving", "webhooks"])
def test_every_domain_package_has_its_page(package: str) -> None:
    text = (ROOT / package / "README.md").read_text()
    assert 10 <= len(text.splitlines()) <= 120, "one page: terms, invariants, what it does not do"


FORBIDDEN_IN_GATEWAY = (
    "stripe", "kubernetes", "kserve", "pandas", "numpy", "torch", "vllm", "alembic", "cryptography", "rich",
    "httpx", "openai", "yaml", "billing", "farebox", "functions.console", "functions.wiring", "psutil",
)  # fmt: skip


def test_the_gateway_imports_nothing_heavy() -> None:
    program = "import functions.gateway.main, sys; print('\\n'.join(sys.modules))"
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(run.stdout.split())
    found = sorted(name for name in FORBIDDEN_IN_GATEWAY if name in loaded)
    assert not found, f"the gateway process must not import {found}"


def test_every_setting_is_documented() -> None:
    from dataclasses import fields

    from core.settings import Settings

    page = (ROOT / "docs" / "settings.md").read_text()
    missing = [f.name for f in fields(Settings) if f"`FAREBOX_{f.name.upper()}`" not in page]
    assert not missing, f"docs/settings.md lacks {missing}"


def test_constants_of_compiled_modules_are_final() -> None:
    """mypyc compiles a `Final` number into its uses; any other name is looked up in a dictionary each time."""
    from functions.gateway.compiling import MODULES

    tests_replace_it = "fast_protocol.py _HEAD_TIMEOUT_S"
    found = [
        f"{path.name} {target.id}"
        for path in (ROOT / (module.replace(".", "/") + ".py") for module in MODULES)
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Assign)
        for target in ast.walk(node)
        if isinstance(target, ast.Name) and isinstance(target.ctx, ast.Store)
        if target.id.isupper() and len(target.id) > len("_T")
    ]
    assert found == [tests_replace_it]


def test_make_help_lists_every_public_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE):
        assert re.search(rf"make {target}\b", shown), target


def test_relative_links_in_documents_lead_somewhere() -> None:
    broken = []
    for page in _tracked(".md"):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target) and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(ROOT)} -> {target}")
    assert not broken, broken


def test_one_version_everywhere() -> None:
    import tomllib

    from core.version import VERSION

    for project in ("pyproject.toml", "sdk/pyproject.toml"):
        assert tomllib.loads((ROOT / project).read_text())["project"]["version"] == VERSION, project
