"""`farebox limit` and `budget`: what is sent, what is printed, what is refused before anything is sent."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from farebox.cli.framework import State
from farebox.cli.limits import budget, limit


class FakeLimits:
    """Remembers what was set."""

    def __init__(self) -> None:
        self.stored: dict[str, Any] = {
            "scope": "endpoint",
            "id": "ep_1",
            "organization_id": "org_1",
            "requests_per_minute": 1000,
            "requests_per_day": None,
            "tokens_per_minute": 200_000,
            "parallel_requests": None,
            "on_outage": None,
            "source": "default",
        }
        self.sent: list[tuple[str, str, dict[str, Any]]] = []

    def get(self, scope: str, name: str) -> dict[str, Any]:
        return self.stored

    def set(self, scope: str, name: str, **limits: Any) -> dict[str, Any]:
        self.sent.append((scope, name, limits))
        return self.stored | limits


class FakeBudgets:
    """Remembers what was asked."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def create(self, **values: Any) -> dict[str, Any]:
        self.sent.append(values)
        return {"id": "budget_1"} | values

    def change(self, budget_id: str, **values: Any) -> dict[str, Any]:
        self.sent.append({"id": budget_id} | values)
        return {"id": budget_id}


class FakeClient:
    def __init__(self) -> None:
        self.limits = FakeLimits()
        self.budgets = FakeBudgets()


@pytest.fixture
def client(tmp_path: Path) -> FakeClient:
    return FakeClient()


def run(client: FakeClient, group: Any, *arguments: str) -> Result:
    return CliRunner().invoke(group, arguments, obj=State(output="json", _client=client))  # type: ignore[arg-type]


def test_limits_that_are_not_named_stay(client: FakeClient) -> None:
    result = run(
        client, limit, "set", "--endpoint", "my-chat", "--tpm", "500000", "--rpm", "none", "--parallel", "4"
    )
    assert result.exit_code == 0, result.output
    limits = {
        "requests_per_minute": None,
        "requests_per_day": None,
        "tokens_per_minute": 500_000,
        "parallel_requests": 4,
    }
    assert client.limits.sent == [("endpoint", "my-chat", limits)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["set", "--key", "key_1"], "name a limit"),
        (["set", "--rpm", "5"], "give exactly one of --key, --project, --org, --endpoint"),
        (["set", "--key", "a", "--org", "b", "--rpm", "5"], "give exactly one of"),
        (["set", "--key", "a", "--rpm", "0"], "from 1 on, or none"),
        (["set", "--key", "a", "--rpm", "1.5"], "from 1 on, or none"),
        (["show"], "give exactly one of"),
    ],
)
def test_wrong_use_of_limit_says_what_to_do(client: FakeClient, arguments: list[str], says: str) -> None:
    result = run(client, limit, *arguments)
    assert result.exit_code == 2 and says in result.output
    assert not client.limits.sent


def test_budgets_are_hard_unless_said_otherwise(client: FakeClient) -> None:
    run(client, budget, "create", "--org", "acme", "--amount", "25.00", "--window", "month")
    run(client, budget, "create", "--key", "key_1", "--amount", "1", "--window", "day", "--soft")
    run(client, budget, "change", "budget_1", "--amount", "50")
    assert client.budgets.sent == [
        {"amount_usd": "25.00", "window": "month", "hard": True, "alerts": None, "organization": "acme"},
        {"amount_usd": "1", "window": "day", "hard": False, "alerts": None, "key": "key_1"},
        {"id": "budget_1", "amount_usd": "50", "hard": None, "alerts": None},
    ]


def test_a_change_of_nothing_is_refused(client: FakeClient) -> None:
    assert run(client, budget, "change", "budget_1").exit_code == 2
    assert run(client, budget, "create", "--org", "a", "--amount", "1", "--window", "week").exit_code == 2
