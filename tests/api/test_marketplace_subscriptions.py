"""Offers of others: no endpoint without accepted terms, and no call either."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from farebox.cli import subscriptions
from sqlalchemy import select

from core.changes import last_seq, read_changes
from serving.routes import resolve
from tests.api.console_platform import ConsolePlatform
from tests.api.online_calls import endpoint, refused
from webhooks.model import ENDPOINT_STATE
from webhooks.tables import webhook_messages

SUBSCRIPTIONS = "/api/marketplace-subscriptions"


def model(name: str = "large", offer: str = "large-offer", **more: Any) -> dict[str, Any]:
    return {
        "id": f"acme/{name}",
        "task": "chat",
        "context_length": 8192,
        "publisher": "Acme",
        "engine": {"kind": "external", "url": "http://127.0.0.1:9"},
        "prices": {"input": "1", "output": "2"},
        "marketplace": {"offer": offer, "terms_url": f"https://acme.example/{offer}", **more},
    }


@pytest.fixture
def offers(console: ConsolePlatform) -> ConsolePlatform:
    for each in (model(), model("larger"), model("other", "other-offer", publisher="acme-ai", plan="payg")):
        assert console.client.post("/api/models", json=each).status_code == 201
    return console


def create(console: ConsolePlatform, name: str, model_id: str) -> Any:
    return console.client.post("/api/serverless-endpoints", json={"name": name, "model": model_id})


def suspended(console: ConsolePlatform, name: str) -> str:
    with console.db.read() as connection:
        route = resolve(connection, None, endpoint_name=name)
    assert route is not None
    return route.suspended


def test_terms_are_accepted_first(offers: ConsolePlatform) -> None:
    shown = offers.get("/api/models/acme/other")["marketplace"]
    assert shown == {
        "offer": "other-offer",
        "terms_url": "https://acme.example/other-offer",
        "publisher": "acme-ai",
        "plan": "payg",
    }
    problem = refused(create(offers, "chat", "acme/large"), 403, "model", "https://acme.example/large-offer")
    assert problem["code"] == "subscription_required"
    assert offers.get("/api/serverless-endpoints")["data"] == []
    made = offers.post(SUBSCRIPTIONS, name="large", model="acme/large")
    assert (made["offer"], made["terms_url"]) == ("large-offer", "https://acme.example/large-offer")
    assert made["endpoints"] == [] and made["accepted_by"].startswith("key_")
    assert create(offers, "chat", "acme/large").json()["state"] == "Online"
    assert create(offers, "chat-2", "acme/larger").status_code == 201, "the same offer"
    refused(create(offers, "chat-3", "acme/other"), 403, "model", "other-offer")
    assert sorted(offers.get(f"{SUBSCRIPTIONS}/large")["endpoints"]) == ["chat", "chat-2"]
    assert [each["name"] for each in offers.get(SUBSCRIPTIONS)["data"]] == ["large"]
    [entry] = [e for e in offers.get("/api/audit")["data"] if e["action"] == "subscription.accept"]
    assert entry["detail"]["terms_url"] == "https://acme.example/large-offer"


def test_withdrawn_terms_leave_endpoints_unusable(offers: ConsolePlatform) -> None:
    offers.post(SUBSCRIPTIONS, name="large", model="acme/large")
    create(offers, "chat", "acme/large")
    assert suspended(offers, "chat") == ""
    with offers.db.read() as connection:
        seen = last_seq(connection)
    assert offers.client.delete(f"{SUBSCRIPTIONS}/large").json()["endpoints"] == ["chat"]
    with offers.db.read() as connection:
        told = read_changes(connection, seen)
    made = offers.get("/api/serverless-endpoints/chat")
    assert made["state"] == "Unhealthy" and suspended(offers, "chat") == "subscription_missing"
    assert made["id"] in [each.ref for each in told], "gateways forget what they knew"
    refused(offers.client.get(f"{SUBSCRIPTIONS}/large"), 404, "name", "no subscription")
    refused(offers.client.delete(f"{SUBSCRIPTIONS}/large"), 404, "name", "no subscription")
    offers.post(SUBSCRIPTIONS, name="large", model="acme/larger")
    assert offers.get("/api/serverless-endpoints/chat")["state"] == "Online"
    assert suspended(offers, "chat") == ""


def test_webhooks_hear_of_it(offers: ConsolePlatform) -> None:
    """Of what can be called no more, and can again; not of others, nor of one that was suspended anyway."""
    offers.post(SUBSCRIPTIONS, name="large", model="acme/large")
    offers.post(SUBSCRIPTIONS, name="other", model="acme/other")
    for name, model in (("chat", "acme/large"), ("still", "acme/large"), ("else", "acme/other")):
        create(offers, name, model)
    offers.post("/api/serverless-endpoints/still/suspend")
    before = told(offers)
    assert offers.client.delete(f"{SUBSCRIPTIONS}/large").is_success
    offers.post(SUBSCRIPTIONS, name="large", model="acme/larger")
    new = told(offers) - before
    assert new == Counter({("chat", "Online", "Unhealthy"): 1, ("chat", "Unhealthy", "Online"): 1})


def told(console: ConsolePlatform) -> Counter[tuple[str, str | None, str]]:
    """Endpoint, previous state and state of each message."""
    with console.db.read() as connection:
        rows = connection.execute(select(webhook_messages)).all()
    data = [json.loads(row.data) for row in rows if row.type == ENDPOINT_STATE]
    return Counter((each["name"], each["previous_state"], each["state"]) for each in data)


def test_one_per_project_and_offer(offers: ConsolePlatform) -> None:
    offers.post(SUBSCRIPTIONS, name="large", model="acme/large")
    post = offers.client.post
    refused(post(SUBSCRIPTIONS, json={"name": "again", "model": "acme/larger"}), 409, "model", "'large'")
    refused(post(SUBSCRIPTIONS, json={"name": "large", "model": "acme/other"}), 409, "name", "exists")
    refused(post(SUBSCRIPTIONS, json={"name": "x y", "model": "acme/other"}), 422, "name")
    refused(post(SUBSCRIPTIONS, json={"name": "none", "model": "acme/nothing"}), 404, "model")
    body = {"name": "none", "model": "acme/mock-chat"}
    offers.add_model()
    refused(post(SUBSCRIPTIONS, json=body), 422, "model", "needs no subscription")
    offers.post("/api/projects", name="second", organization="acme")
    body = {"name": "second-large", "model": "acme/large", "project": "second"}
    assert post(SUBSCRIPTIONS, json=body).status_code == 201, "each project for itself"
    assert len(offers.get(f"{SUBSCRIPTIONS}?project=second")["data"]) == 1


def test_an_online_deployment_of_an_offer_needs_the_terms_too(offers: ConsolePlatform) -> None:
    own = model("own", "own-offer") | {"engine": {"kind": "vllm"}, "source": {"repository": "acme/own"}}
    assert offers.client.post("/api/models", json=own).status_code == 201
    endpoint(offers)
    document = {"name": "blue", "model": "acme/own"}
    post = offers.client.post
    refused(post("/api/online-endpoints/shop/deployments", json=document), 403, "model", "own-offer")
    offers.post(SUBSCRIPTIONS, name="own", model="acme/own")
    assert post("/api/online-endpoints/shop/deployments", json=document).status_code == 202
    assert offers.get(f"{SUBSCRIPTIONS}/own")["endpoints"] == ["shop/blue"]
    for code in ("", "subscription_missing"):
        with offers.db.read() as connection:
            route = resolve(connection, None, endpoint_name="shop")
        assert route is not None and route.split is not None
        assert route.split.routes["blue"].suspended == code
        offers.client.delete(f"{SUBSCRIPTIONS}/own")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"terms_url": "see the contract"}, "marketplace.terms_url"),
        ({"offer": "not an id"}, "marketplace.offer"),
        ({"terms": "x"}, "marketplace.terms"),
    ],
)
def test_an_offer_with_mistakes(console: ConsolePlatform, fields: dict[str, str], param: str) -> None:
    refused(console.client.post("/api/models", json=model(**fields)), 422, param)


def test_the_command_line(offers: ConsolePlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cli(_: str, *arguments: str) -> Result:
        return offers.cli(subscriptions.marketplace_subscription, *arguments)

    path = tmp_path / "subscription.yaml"
    path.write_text(
        "$schema: https://azuremlschemas.azureedge.net/latest/marketplaceSubscription.schema.json\n"
        "name: large-chat\nmodel_id: azureml://registries/azureml-acme/models/acme/large\n"
    )
    assert "--yes" in cli("marketplace-subscription", "create", "-f", str(path)).stderr, (
        "nobody is there who could accept"
    )
    made = json.loads(cli("marketplace-subscription", "create", "-f", str(path), "--yes").stdout)
    assert (made["name"], made["model"]) == ("large-chat", "acme/large")
    create(offers, "chat", "acme/larger")
    assert json.loads(cli("marketplace-subscription", "show", "large-chat").stdout)["endpoints"] == ["chat"]
    rows = json.loads(cli("marketplace-subscription", "list", "--project", "web").stdout)["data"]
    assert [each["name"] for each in rows] == ["large-chat"]
    asked: list[str] = []
    monkeypatch.setattr(subscriptions, "confirm", asked.append)
    json.loads(cli("marketplace-subscription", "create", "other", "--model", "acme/other").stdout)
    json.loads(cli("marketplace-subscription", "delete", "large-chat").stdout)
    assert asked == [
        "Accept the terms of acme/other, https://acme.example/other-offer?",
        "Delete subscription large-chat? 1 endpoint will answer no more calls.",
    ]
    path.write_text("name: large-chat\nmodel: acme/large\n")
    assert "unknown field 'model'" in cli("marketplace-subscription", "create", "-f", str(path)).stderr
    assert "a name and a model are needed" in cli("marketplace-subscription", "create", "large-chat").stderr
