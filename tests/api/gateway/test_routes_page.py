"""docs/routes.md lists every route and who may call it, and the gateway refuses whoever has no credential.

To write it anew: FAREBOX_WRITE_ROUTES=1 .venv/bin/python -m pytest -n 0 tests/api/gateway/test_routes_page.py
"""

import os
import re
from pathlib import Path
from typing import Any

import httpx

from functions.console.authorization import PUBLIC, ROUTES
from tests.gateway_fixture import RunningGateway

PAGE = Path(__file__).parents[3] / "docs" / "routes.md"
_WRITE = "FAREBOX_WRITE_ROUTES"
_HEAD = """# Every route and who may call it

Made by `tests/api/gateway/test_routes_page.py` from what the code checks; see [authentication](authentication.md).
"""
_TABLE = "| method | path | who |\n| --- | --- | --- |\n"
_WHO = {
    frozenset({"admin"}): "admin",
    frozenset({"admin", "project"}): "admin; project (its own)",
    frozenset({"admin", "project", "endpoint"}): "any key (its own)",
}
_CALLERS = "project key; endpoint key"
_CALLERS_BELOW = _CALLERS + "; identity provider's token"
# Not in the OpenAPI document: what is sent and answered is the deployment's own.
_SCORING = {
    ("POST", "/endpoints/{endpoint_name}/score"): _CALLERS_BELOW,
    ("GET", "/endpoints/{endpoint_name}/swagger.json"): _CALLERS_BELOW,
    ("POST", "/endpoints/{endpoint_name}/{any_path_of_the_deployment}"): _CALLERS_BELOW,
}
_AZURE = {"api-version": "2024-05-01-preview"}


def _calls(document: dict[str, Any]) -> dict[tuple[str, str], str]:
    """Of the gateway's own routes: who may call each."""
    return {
        (method.upper(), path): "everybody"
        if not operation.get("security")
        else _CALLERS_BELOW
        if path.startswith("/endpoints/")
        else _CALLERS
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }


def _rows(routes: dict[tuple[str, str], str]) -> str:
    return _TABLE + "".join(
        f"| {method} | `{path}` | {who} |\n" for (method, path), who in sorted(routes.items(), key=_by_path)
    )


def _by_path(item: tuple[tuple[str, str], str]) -> tuple[str, str]:
    (method, path), _ = item
    return path, method


def test_the_page_is_current(gateway: RunningGateway) -> None:
    calls = _calls(httpx.get(gateway.url + "/openapi.json").json()) | _SCORING
    management = {route: _WHO[kinds] for route, kinds in ROUTES.items()} | dict.fromkeys(PUBLIC, "everybody")
    text = f"{_HEAD}\n## Calls\n\n{_rows(calls)}\n## Management\n\n{_rows(management)}"
    if os.environ.get(_WRITE):
        PAGE.write_text(text, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == text, (
        f"docs/routes.md is stale: set {_WRITE}=1 and run this test"
    )


def test_without_a_credential_the_gateway_answers_what_is_everybodys(gateway: RunningGateway) -> None:
    calls = _calls(httpx.get(gateway.url + "/openapi.json").json()) | _SCORING
    for (method, path), who in calls.items():
        answer = httpx.request(
            method, gateway.url + re.sub(r"\{[^}]*\}", "my-chat", path), json={}, params=_AZURE
        )
        assert (answer.status_code == 401) == (who != "everybody"), f"{method} {path}: {answer.status_code}"
