"""Limits and budgets over the console: what is set is shown, what is wrong is named, what is spent counts."""

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from access.admission.store import read_balances, read_policies, read_policy
from access.tables import budget_moves
from core.changes import last_seq, read_changes
from functions.budgets import BudgetKeeper, HeldReports
from functions.console.dependencies import ConsoleDependencies
from metering.model import Usage, UsageEvent
from tests.api.console_platform import ConsolePlatform, open_platform


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    return open_platform(tmp_path)


def endpoint_and_key(console: ConsolePlatform) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    project = console.project()
    console.add_model()
    endpoint = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    return project, endpoint, console.post("/api/keys", project=project["id"], name="ci")


def usage_event(console: ConsolePlatform, endpoint: dict[str, Any], key: dict[str, Any]) -> UsageEvent:
    now_ms = console.clock.now_ms()
    return UsageEvent(
        "req_1", endpoint["organization_id"], endpoint["project_id"], key["id"], endpoint["id"], "dep_1",
        "acme/mock-chat", "chat.completions", False, "completed", 200, Usage(input=1_000_000), "engine",
        now_ms, now_ms, now_ms, now_ms,
    )  # fmt: skip


def put(console: ConsolePlatform, path: str, **body: Any) -> Any:
    answer = console.client.put(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


# --- limits ---------------------------------------------------------------------------------------


def test_limits_are_set_shown_and_removed(console: ConsolePlatform) -> None:
    _, _, key = endpoint_and_key(console)
    path = f"/api/limits/key/{key['id']}"
    assert console.get(path)["source"] == "default"
    shown = put(console, path, requests_per_minute=60, tokens_per_minute=1000)
    assert shown == console.get(path)
    assert shown | {"organization_id": ""} == {
        "scope": "key",
        "id": key["id"],
        "organization_id": "",
        "requests_per_minute": 60,
        "requests_per_day": None,
        "tokens_per_minute": 1000,
        "parallel_requests": None,
        "on_outage": None,
        "source": "set",
    }
    assert (
        put(console, path, parallel_requests=2)["requests_per_minute"] is None
    )  # in the place of the others
    answer = console.client.delete(path).json()
    assert (answer["source"], answer["parallel_requests"]) == ("default", None)
    console.client.delete(path)  # again: nothing to do


def test_an_endpoint_has_defaults_that_can_be_lifted(console: ConsolePlatform) -> None:
    _, endpoint, _ = endpoint_and_key(console)
    shown = console.get("/api/limits/endpoint/my-chat")
    assert (shown["id"], shown["requests_per_minute"], shown["tokens_per_minute"]) == (
        endpoint["id"],
        1000,
        200_000,
    )
    lifted = put(console, f"/api/limits/endpoint/{endpoint['id']}", requests_per_minute=None)
    assert (lifted["requests_per_minute"], lifted["tokens_per_minute"]) == (None, 200_000)


@pytest.mark.parametrize("path", ["project/acme/web", "project/web", "organization/acme"])
def test_a_scope_may_be_meant_by_name(console: ConsolePlatform, path: str) -> None:
    console.project()
    assert put(console, f"/api/limits/{path}", requests_per_day=5)["requests_per_day"] == 5


def test_an_organization_chooses_what_an_outage_means(console: ConsolePlatform) -> None:
    console.project()
    assert console.get("/api/limits/organization/acme")["on_outage"] == "closed"
    assert put(console, "/api/limits/organization/acme", on_outage="open")["on_outage"] == "open"
    refused = console.client.put("/api/limits/project/web", json={"on_outage": "open"})
    assert (refused.status_code, refused.json()["param"]) == (422, "on_outage")


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("key/key_1", {}, 404, "key"),
        ("endpoint/nobody", {}, 404, "endpoint"),
        ("project/nobody", {}, 404, "project"),
        ("team/x", {}, 422, "scope"),
        ("project/web", {"requests_per_minute": 0}, 422, "requests_per_minute"),
        ("project/web", {"requests_per_minute": 1.5}, 422, "requests_per_minute"),
        ("project/web", {"tokens_per_minute": "9"}, 422, "tokens_per_minute"),
        ("project/web", {"parallel_requests": 10**13}, 422, "parallel_requests"),
        ("project/web", {"requests_per_minut": 5}, 422, "requests_per_minut"),
    ],
)
def test_wrong_limits_are_refused(console: ConsolePlatform, path, body, status, param) -> None:
    console.project()
    answer = console.client.put(f"/api/limits/{path}", json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text


def test_gateways_read_what_was_set_and_are_told(console: ConsolePlatform) -> None:
    _, _, key = endpoint_and_key(console)
    with console.db.read() as connection:
        before = last_seq(connection)
    put(console, f"/api/limits/key/{key['id']}", requests_per_minute=60)
    budget = console.post("/api/budgets", key=key["id"], amount_usd="1", window="day")
    with console.db.read() as connection:
        told = [(change.kind, change.ref) for change in read_changes(connection, before)]
        policy = read_policy(connection, key["id"])
        assert read_policies(connection) == [policy]
        assert told == [("limit", key["id"])] * 2
    assert policy.limits is not None and policy.limits.requests_per_minute == 60
    assert [each.id for each in policy.budgets] == [budget["id"]]


# --- budgets --------------------------------------------------------------------------------------


def test_a_budget_is_created_changed_listed_and_deleted(console: ConsolePlatform) -> None:
    console.project()
    made = console.post("/api/budgets", organization="acme", amount_usd="25.00", window="month")
    assert made["amount_usd"] == "25" and made["hard"] is True and made["scope"] == "organization"
    assert made["spent_usd"] == made["held_usd"] == "0" and made["remaining_usd"] == "25"
    assert made["window_start"] < made["created_at"] < made["resets_at"]
    changed = console.client.patch(
        f"/api/budgets/{made['id']}", json={"amount_usd": "50.5", "hard": False}
    ).json()
    assert (changed["amount_usd"], changed["hard"]) == ("50.5", False)
    console.clock.advance(1)  # ids of one millisecond are in no order
    total = console.post("/api/budgets", project="web", amount_usd="0.000000000001", window="total")
    assert total["resets_at"] is None and total["remaining_usd"] == "0.000000000001"
    assert [each["id"] for each in console.get("/api/budgets")["data"]] == [made["id"], total["id"]]
    assert console.get(f"/api/budgets/{made['id']}") == changed
    assert console.client.delete(f"/api/budgets/{made['id']}").json()["id"] == made["id"]
    assert console.client.get(f"/api/budgets/{made['id']}").status_code == 404
    assert len(console.get("/api/budgets?organization=acme")["data"]) == 1


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"amount_usd": "1", "window": "day"}, 422, "organization"),
        ({"organization": "acme", "project": "web", "amount_usd": "1", "window": "day"}, 422, "organization"),
        ({"organization": "nobody", "amount_usd": "1", "window": "day"}, 404, "organization"),
        ({"organization": "acme", "amount_usd": "-1", "window": "day"}, 422, "amount_usd"),
        ({"organization": "acme", "amount_usd": "1e3", "window": "day"}, 422, "amount_usd"),
        ({"organization": "acme", "amount_usd": "0.0000000000001", "window": "day"}, 422, "amount_usd"),
        ({"organization": "acme", "amount_usd": 1, "window": "day"}, 422, "amount_usd"),
        ({"organization": "acme", "amount_usd": "1", "window": "week"}, 422, "window"),
        ({"organization": "acme", "amount_usd": "1"}, 422, "window"),
    ],
)
def test_wrong_budgets_are_refused(console: ConsolePlatform, body, status, param) -> None:
    console.project()
    answer = console.client.post("/api/budgets", json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text


def test_a_months_budget_counts_what_was_spent_already(console: ConsolePlatform) -> None:
    _, endpoint, key = endpoint_and_key(console)
    console.call(endpoint, key["id"], input=1_000_000, output=500_000)
    console.call(endpoint, "key_other", input=2_000_000)
    console.call(endpoint, key["id"], status="error", input=9_000_000)
    spent = {
        name: console.post("/api/budgets", amount_usd="10", window="month", **{name: value})["spent_usd"]
        for name, value in (("key", key["id"]), ("project", "web"), ("organization", "acme"))
    }
    assert spent == {"key": "0.45", "project": "0.75", "organization": "0.75"}
    total = console.post("/api/budgets", amount_usd="10", window="total", key=key["id"])
    assert total["spent_usd"] == "0"


def test_usage_is_charged_as_it_is_recorded(console: ConsolePlatform) -> None:
    _, endpoint, key = endpoint_and_key(console)
    budget = console.post("/api/budgets", key=key["id"], amount_usd="10", window="day")
    keeper: BudgetKeeper = console.app.state.dependencies.keeper
    with console.db.begin() as connection:
        keeper.charge_usage(connection, [usage_event(console, endpoint, key)], console.clock.now_ms())
    shown = console.get(f"/api/budgets/{budget['id']}")
    assert (shown["spent_usd"], shown["remaining_usd"]) == ("0.15", "9.85")
    with console.db.read() as connection:
        [balance], _ = read_balances(connection, {"gateway-1": 7})
        assert (balance.budget_id, balance.spent_pico, balance.through) == (
            budget["id"],
            15 * 10**10,
            {"gateway-1": 7},
        )
    console.clock.advance(86_400_000)
    assert console.get(f"/api/budgets/{budget['id']}")["spent_usd"] == "0"  # another day


def test_what_moved_more_than_a_minute_ago_is_no_longer_kept_apart(console: ConsolePlatform) -> None:
    _, endpoint, key = endpoint_and_key(console)
    console.post("/api/budgets", key=key["id"], amount_usd="10", window="total")
    keeper: BudgetKeeper = console.app.state.dependencies.keeper
    for _ in range(5):
        with console.db.begin() as connection:
            keeper.charge_usage(connection, [usage_event(console, endpoint, key)], console.clock.now_ms())
        console.clock.advance(40_000)
    with console.db.read() as connection:
        assert [row.spent_pico for row in connection.execute(select(budget_moves))] == [
            60 * 10**10,
            75 * 10**10,
        ]


def test_what_gateways_hold_is_shown_and_forgotten_when_they_fall_silent(console: ConsolePlatform) -> None:
    console.project()
    budget = console.post("/api/budgets", organization="acme", amount_usd="1", window="total")
    deps: ConsoleDependencies = console.app.state.dependencies
    held: HeldReports = deps.held
    held.report("gateway-1", {budget["id"]: 25 * 10**10}, console.clock.now_ms())
    shown = console.get(f"/api/budgets/{budget['id']}")
    assert (shown["held_usd"], shown["remaining_usd"]) == ("0.25", "0.75")
    console.clock.advance(11_000)
    assert console.get(f"/api/budgets/{budget['id']}")["held_usd"] == "0"
