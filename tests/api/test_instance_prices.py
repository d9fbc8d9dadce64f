"""Prices of instances over REST."""

from pathlib import Path

import pytest

from core.clock import MINUTE_MS
from core.settings import Settings
from tests.api.console_platform import ConsolePlatform, open_platform


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    return open_platform(tmp_path)


def _set(console: ConsolePlatform, usd: str, kind: str = "Standard_DS3_v2") -> tuple[int, dict[str, str]]:
    answer = console.client.put(f"/api/instance-prices/{kind}", json={"per_minute_usd": usd})
    return answer.status_code, answer.json()


def test_a_price_is_set_changed_and_listed(console: ConsolePlatform) -> None:
    assert console.get("/api/instance-prices") == {"data": []}
    status, first = _set(console, "0.0150")
    assert (status, first["per_minute_usd"], first["model"]) == (200, "0.015", "instance:Standard_DS3_v2")
    console.clock.advance(90_000)
    _, second = _set(console, "0.02")
    assert second["starts_at"] > first["starts_at"] and second["starts_at"].endswith(":00.000Z")
    assert _set(console, "0.02")[1] == second, "the same again changes nothing"
    _set(console, "1", "local")
    shown = {
        each["instance_type"]: each["per_minute_usd"] for each in console.get("/api/instance-prices")["data"]
    }
    assert shown == {"Standard_DS3_v2": "0.02", "local": "1"}


@pytest.mark.parametrize(
    ("kind", "usd", "param"),
    [
        ("a b", "1", "instance_type"),
        ("a" * 65, "1", "instance_type"),
        ("local", "-1", "per_minute_usd"),
        ("local", "cheap", "per_minute_usd"),
        ("local", "0.0000000000001", "per_minute_usd"),
        ("local", "NaN", "per_minute_usd"),
    ],
)
def test_what_is_no_price_is_refused(console: ConsolePlatform, kind: str, usd: str, param: str) -> None:
    status, answer = _set(console, usd, kind)
    assert (status, answer["param"]) == (422, param)
    assert console.get("/api/instance-prices") == {"data": []}


def test_where_two_people_decide_a_change_is_proposed(tmp_path: Path) -> None:
    console = open_platform(tmp_path, Settings(home=tmp_path, two_person_prices=1))
    assert _set(console, "1")[0] == 200
    console.clock.advance(2 * MINUTE_MS)
    status, answer = _set(console, "2")
    assert (status, answer["code"]) == (409, "needs_approval")
    other = console.client.post("/api/keys", json={"name": "maria", "admin": True}).json()["key"]
    body = {"model": "instance:Standard_DS3_v2", "prices": {"endpoint_minute": "2"}}
    proposal = console.client.post("/api/price-proposals", json=body).json()
    assert "id" in proposal, proposal
    approved = console.client.post(
        f"/api/price-proposals/{proposal['id']}/approve",
        json={},
        headers={"authorization": f"Bearer {other}"},
    )
    assert approved.status_code == 200, approved.text
    assert console.get("/api/instance-prices")["data"][0]["per_minute_usd"] == "2"
