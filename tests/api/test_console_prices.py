"""Changes of prices: two people, dry runs, one organization's own; and what is refused with which field."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.settings import Settings
from tests.api.console_platform import MOCK_CHAT, ConsolePlatform, open_platform

MODEL = "acme/mock-chat"
MINUTE = 60_000


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[ConsolePlatform]:
    made = open_platform(tmp_path)
    made.add_model()
    made.project()
    yield made
    made.db.close()


def _second(platform: ConsolePlatform) -> dict[str, str]:
    return platform.as_key(platform.post("/api/keys", admin=True, name="maria")["key"])


def _used(platform: ConsolePlatform) -> None:
    project = platform.get("/api/projects")["data"][0]["id"]
    endpoint = platform.post("/api/serverless-endpoints", name="chat", model=MODEL, project=project)
    key = platform.post("/api/keys", project=project, name="k")
    platform.call(endpoint, key["id"], input=1_000_000, output=1_000_000)


def test_two_people_change_a_price(platform: ConsolePlatform) -> None:
    maria = _second(platform)
    made = platform.post("/api/price-proposals", model=MODEL, prices={"output": "0.50"}, note="cheaper")
    assert (made["state"], made["starts_at"]) == ("proposed", None)
    assert made["prices"] == {
        "input": "0.15",
        "cached_input": "0.075",
        "output": "0.5",
        "endpoint_minute": "0.0005",
    }
    path = f"/api/price-proposals/{made['id']}"

    refused = platform.client.post(f"{path}/approve", json={})
    assert refused.status_code == 403
    assert "another person" in refused.json()["detail"]
    approved = platform.client.post(f"{path}/approve", json={"note": "yes"}, headers=maria)
    assert approved.status_code == 200, approved.text
    assert approved.json()["state"] == "approved"
    assert approved.json()["decided_by"] != approved.json()["proposed_by"]
    again = platform.client.post(f"{path}/approve", json={}, headers=maria)
    assert again.status_code == 409

    versions = platform.get(f"/api/model-prices/{MODEL}")["data"]
    assert [v["prices"]["output"] for v in versions] == ["0.6", "0.5"]
    assert versions[1]["id"] == approved.json()["price_version"]
    # The file that was added first does not silently undo it: the entry says what was decided.
    assert platform.get(f"/api/models/{MODEL}")["prices"]["output"] == "0.5"


def test_a_proposal_can_be_withdrawn_or_rejected(platform: ConsolePlatform) -> None:
    maria = _second(platform)
    ids = [
        platform.post("/api/price-proposals", model=MODEL, prices={"output": "0.50"})["id"] for _ in range(2)
    ]
    withdrawn = platform.post(f"/api/price-proposals/{ids[0]}/reject")
    assert withdrawn["state"] == "withdrawn"
    rejected = platform.client.post(
        f"/api/price-proposals/{ids[1]}/reject", json={"note": "no"}, headers=maria
    ).json()
    assert (rejected["state"], rejected["decision_note"]) == ("rejected", "no")
    listed = platform.get("/api/price-proposals?state=rejected")["data"]
    assert [each["id"] for each in listed] == [ids[1]]
    assert len(platform.get(f"/api/model-prices/{MODEL}")["data"]) == 1


def test_where_two_people_decide_a_models_file_only_proposes(tmp_path: Path) -> None:
    platform = open_platform(tmp_path)
    deps = platform.app.state.dependencies
    object.__setattr__(deps, "settings", Settings(home=tmp_path, two_person_prices=1))
    assert platform.add_model().status_code == 201  # a new model may be sold at once
    answer = platform.add_model(MOCK_CHAT.replace('"0.60"', '"0.90"').replace("8192", "4096")).json()
    assert "wait for another admin key" in answer["message"]
    assert answer["model"]["context_length"] == 4096
    assert answer["model"]["prices"]["output"] == "0.6"
    proposal = platform.get(f"/api/price-proposals/{answer['price_proposal']}")
    assert proposal["prices"]["output"] == "0.9"
    platform.client.post(f"/api/price-proposals/{proposal['id']}/approve", json={}, headers=_second(platform))
    assert platform.get(f"/api/models/{MODEL}")["prices"]["output"] == "0.9"
    platform.db.close()


def test_an_organizations_own_prices_and_their_end(platform: ConsolePlatform) -> None:
    maria = _second(platform)
    for body in ({"prices": {"output": "0.30"}}, {"ended": True}):
        made = platform.post("/api/price-proposals", model=MODEL, organization="acme", **body)
        answer = platform.client.post(f"/api/price-proposals/{made['id']}/approve", json={}, headers=maria)
        assert answer.status_code == 200, answer.text
    own = platform.get("/api/organizations/acme/prices")["data"]
    assert [(each["ended"], each["prices"].get("output")) for each in own] == [(False, "0.3"), (True, None)]
    assert own[0]["starts_at"] < own[1]["starts_at"]
    assert len(platform.get(f"/api/model-prices/{MODEL}")["data"]) == 1


def test_a_dry_run_shows_the_difference_and_changes_nothing(platform: ConsolePlatform) -> None:
    _used(platform)
    before = platform.get("/api/invoices/preview?organization=acme")
    made = platform.post(
        "/api/price-proposals",
        model=MODEL,
        organization="acme",
        prices={"output": "0.50"},
        terms={
            "input": {
                "scheme": "graduated",
                "tiers": [{"up_to": 400_000, "price": "0.15"}, {"price": "0.05"}],
            }
        },
    )
    tried = platform.post(f"/api/price-proposals/{made['id']}/dry-run")
    [row] = tried["organizations"]
    # output: 0.60 -> 0.50; input: 0.15 -> 0.4 x 0.15 + 0.6 x 0.05 = 0.09
    assert (row["before_usd"], row["after_usd"], row["difference_usd"]) == ("0.75", "0.59", "-0.16")
    terms = [line for line in row["after"] if line["kind"] == "terms"]
    assert [(line["sku"], line["amount_usd"]) for line in terms] == [("input", "-0.06")]
    assert tried["difference_usd"] == "-0.16"
    free = platform.post("/api/price-dry-runs", model=MODEL, organization="acme", prices={"output": "1.20"})
    assert free["organizations"][0]["difference_usd"] == "0.60"
    after = platform.get("/api/invoices/preview?organization=acme")
    assert after["lines"] == before["lines"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "acme/mock-chatt", "prices": {"input": "1"}}, 404, "model"),
        ({"model": MODEL, "prices": {"inputs": "1"}}, 422, "prices.inputs"),
        ({"model": MODEL, "prices": {"input": "-1"}}, 422, "prices.input"),
        ({"model": MODEL, "prices": {"input": "0.0000001"}}, 422, "prices.input"),
        ({"model": MODEL, "prices": {"audio_second": "1"}}, 422, "prices.audio_second"),
        ({"model": MODEL, "prices": {"input": "1"}, "starts_at": "2020-01-01T00:00:00Z"}, 422, "starts_at"),
        ({"model": MODEL, "prices": {"input": "1"}, "starts_at": "2090-01-01T00:00:01Z"}, 422, "starts_at"),
        ({"model": MODEL, "organization": "nobody", "prices": {"input": "1"}}, 404, "organization"),
        ({"model": MODEL, "organization": "acme", "ended": True}, 422, "ended"),
        ({"model": MODEL, "ended": True}, 422, "ended"),
        ({"model": MODEL, "terms": {"input": {"scheme": "graduated"}}}, 422, "terms.input.tiers"),
        (
            {"model": MODEL, "terms": {"input": {"scheme": "volume", "tiers": [{"price": "9"}]}}},
            422,
            "terms.input.tiers",
        ),
        ({"model": MODEL, "terms": {"input": {"scheme": "free"}}}, 422, "terms.input.scheme"),
        ({"model": MODEL, "price": {"input": "1"}}, 422, "price"),
    ],
)
def test_bad_proposals_name_the_field(
    platform: ConsolePlatform, body: dict[str, Any], status: int, param: str
) -> None:
    answer = platform.client.post("/api/price-proposals", json=body)
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text


def test_a_version_cannot_begin_before_one_that_was_decided(platform: ConsolePlatform) -> None:
    maria = _second(platform)
    late = platform.post(
        "/api/price-proposals", model=MODEL, prices={"input": "1"}, starts_at="2090-01-01T00:00:00Z"
    )
    assert platform.client.post(
        f"/api/price-proposals/{late['id']}/approve", json={}, headers=maria
    ).is_success
    answer = platform.client.post(
        "/api/price-proposals",
        json={"model": MODEL, "prices": {"input": "2"}, "starts_at": "2080-01-01T00:00:00Z"},
    )
    assert (answer.status_code, answer.json()["param"]) == (409, "starts_at")


def test_admin_keys_of_people(platform: ConsolePlatform) -> None:
    made = platform.post("/api/keys", admin=True, name="maria")
    assert (made["kind"], made["project_id"]) == ("admin", None)
    maria = platform.as_key(made["key"])
    assert {key["name"] for key in platform.get("/api/keys", **maria)["data"]} == {"admin", "maria"}
    own = platform.client.delete(f"/api/keys/{made['id']}", headers=maria)
    assert own.status_code == 409
    assert platform.client.delete(f"/api/keys/{made['id']}").json()["status"] == "revoked"
    assert platform.client.get("/api/keys", headers=maria).status_code == 401
    both = platform.client.post("/api/keys", json={"admin": True, "name": "x", "project": "web"})
    assert both.json()["param"] == "project"
    neither = platform.client.post("/api/keys", json={"name": "x"})
    assert neither.json()["param"] == "project"
