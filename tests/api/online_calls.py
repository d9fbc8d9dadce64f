"""Calls to the management API that tests of online endpoints share."""

from pathlib import Path
from typing import Any

from serving.online import store
from tests.api.console_platform import ConsolePlatform

SCORE = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"


def endpoint(console: ConsolePlatform, name: str = "shop", **fields: Any) -> Any:
    answer = console.client.post("/api/online-endpoints", json={"name": name, **fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def blue(code: Path, name: str = "blue", **fields: Any) -> dict[str, Any]:
    return {"name": name, "code_configuration": {"code": str(code), "scoring_script": "score.py"}, **fields}


def deploy(console: ConsolePlatform, document: dict[str, Any], query: str = "") -> Any:
    answer = console.client.post(f"/api/online-endpoints/shop/deployments{query}", json=document)
    assert answer.status_code == 202, answer.text
    return answer.json()


def finish(
    console: ConsolePlatform, deployment: dict[str, Any], failure: tuple[str, str] | None = None
) -> None:
    """As the runtime does."""
    with console.db.begin() as connection:
        assert store.finish_provisioning(
            connection, deployment["id"], deployment["generation"], failure, console.clock.now_ms()
        )


def refused(answer: Any, status: int, param: str | None = None, *says: str) -> dict[str, Any]:
    problem: dict[str, Any] = answer.json()
    assert (answer.status_code, problem.get("param")) == (status, param), answer.text
    for part in says:
        assert part in problem["detail"], problem["detail"]
    return problem
