"""Webhooks over the console: made, changed, tested, replayed; alerts of budgets and states of endpoints reach them."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from farebox.cli.limits import budget
from farebox.cli.webhooks import webhook
from sqlalchemy import select
from standardwebhooks.webhooks import Webhook as Verifier

from core.errors import Invalid
from core.settings import Settings
from functions.console.dependencies import ConsoleDependencies
from functions.webhook_sender.handler import WebhookSender
from metering.model import Usage
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.event_values import call_of, correction, usage_cloudevent
from tests.webhook_receiver import receiver
from webhooks.address import check_url, is_public
from webhooks.tables import webhook_messages
from wire.cloudevents_http import BATCHED


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    found = open_platform(tmp_path, Settings(home=tmp_path, webhook_allow_private=1))
    found.clock.step(time.time_ns() // 1_000_000 - found.clock.now_ms())
    found.project()
    return found


def sender(console: ConsolePlatform) -> WebhookSender:
    deps: ConsoleDependencies = console.app.state.dependencies
    return WebhookSender(console.db, console.clock, deps.sealer, allow_private=True)


def messages(console: ConsolePlatform) -> list[tuple[str, dict[str, Any]]]:
    with console.db.read() as connection:
        query = select(webhook_messages.c.type, webhook_messages.c.data).order_by(webhook_messages.c.id)
        return [(kind.split(".", 2)[2], json.loads(data)) for kind, data in connection.execute(query)]


def send(console: ConsolePlatform, *events: Any) -> None:
    answer = console.client.post(
        "/api/events", content=json.dumps(events), headers={"content-type": BATCHED}
    ).json()
    assert answer["new"] == len(events), answer


async def test_the_life_of_a_webhook_by_the_command_line(console: ConsolePlatform) -> None:
    with receiver(500, 204) as server:
        made = json.loads(console.cli(webhook, "create", server.url, "--org", "acme").stdout)
        hook, secret = made["id"], made["secret"]
        assert secret.startswith("whsec_")
        shown = console.cli(webhook, "show", hook)
        assert "secret" not in json.loads(shown.stdout) and secret not in console.cli(webhook, "list").stdout
        sent = json.loads(console.cli(webhook, "test", hook).stdout)
        await sender(console).drain()
        detail = json.loads(console.cli(webhook, "delivery", hook, sent["message"]).stdout)
        assert (detail["state"], detail["last_status"], len(detail["log"])) == ("pending", 500, 1)
        again = console.cli(webhook, "replay", hook, "--message", sent["message"], output="table")
        assert again.stdout == "1 to be sent again.\n"
        await sender(console).drain()
        listed = json.loads(console.cli(webhook, "deliveries", hook, "--state", "delivered").stdout)
        assert [each["message"] for each in listed["data"]] == [sent["message"]]
        Verifier(secret).verify(server.got[1].body, server.got[1].headers)
        rotated = json.loads(console.cli(webhook, "rotate-secret", hook).stdout)["secret"]
        assert rotated != secret
    changed = console.cli(webhook, "change", hook, "--event", "ai.farebox.budget.threshold.v1", "--disable")
    assert json.loads(changed.stdout)["events"] == ["ai.farebox.budget.threshold.v1"]
    assert not json.loads(changed.stdout)["enabled"]
    assert json.loads(console.cli(webhook, "change", hook, "--all-events", "--enable").stdout)["events"] == []
    assert console.cli(webhook, "replay", hook, "--since", "2026-01-01").exit_code == 0
    assert console.cli(webhook, "replay", hook).exit_code == 2
    assert "Deleted" in console.cli(webhook, "delete", hook, output="table").stdout
    assert console.client.get(f"/api/webhooks/{hook}").status_code == 404
    actions = [line["action"] for line in console.get("/api/audit?action=webhook")["data"]]
    assert actions[0] == "webhook.delete" and actions[-1] == "webhook.create"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"url": "ftp://example.com"}, "url"),
        ({"url": "https://"}, "url"),
        ({"url": "https://user:word@example.com"}, "url"),
        ({"url": "https://example.com/#x"}, "url"),
        ({"url": "https://example.com:99999"}, "url"),
        ({"url": "https://example.com", "events": ["ai.farebox.budget.treshold.v1"]}, "events"),
        ({"url": "https://example.com", "organization": "none"}, "organization"),
    ],
)
def test_what_is_wrong_is_named(console: ConsolePlatform, body: dict[str, Any], param: str) -> None:
    answer = console.client.post("/api/webhooks", json={"organization": "acme"} | body)
    assert answer.status_code in (404, 422) and answer.json()["param"] == param, answer.text


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://localhost/x",
        "https://db.internal",
        "https://127.0.0.1",
        "https://10.0.0.8",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]",
        "https://[fd00::1]",
        "https://[::ffff:10.0.0.1]",
        "https://[64:ff9b::a00:1]",
        "https://0.0.0.0",
    ],
)
def test_addresses_inside_are_refused(url: str) -> None:
    with pytest.raises(Invalid):
        check_url(url, allow_private=False)
    assert check_url("https://example.com:8443/hooks?x=1", allow_private=False)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),
        ("100.64.0.1", False),
        ("192.168.1.1", False),
        ("2002:0a00:0001::", False),
        ("224.0.0.1", False),
        ("fe80::1%eth0", False),
        ("nonsense", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_endpoints_tell_their_states(console: ConsolePlatform) -> None:
    console.add_model()
    made = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    console.clock.advance(1)  # ids are ordered by the millisecond
    assert console.client.delete("/api/serverless-endpoints/my-chat").status_code == 200
    told = messages(console)
    assert [(kind, data["state"], data["previous_state"]) for kind, data in told] == [
        ("endpoint.state.v1", "Online", None),
        ("endpoint.state.v1", "Deleted", "Online"),
    ]
    assert told[0][1]["endpoint_id"] == made["id"]


def thresholds(console: ConsolePlatform) -> list[int]:
    """What was told, call by call; what one call crossed is told in one millisecond, in no order."""
    console.clock.advance(1)
    told = [
        (data["spent_usd"], data["threshold_percent"]) for kind, data in messages(console) if "budget" in kind
    ]
    order = list(dict.fromkeys(spent for spent, _ in told))
    return [percent for _, percent in sorted(told, key=lambda each: (order.index(each[0]), each[1]))]


def test_alerts_fire_once_per_window_hard_or_soft(console: ConsolePlatform) -> None:
    console.add_model()
    endpoint = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    numbers = iter(range(1000))

    def spend(output_tokens: int) -> None:  # 0.60 dollars a million
        event = call_of(
            endpoint, f"call-{next(numbers)}", console.clock.now_ms(), usage=Usage(0, 0, output_tokens)
        )
        send(console, usage_cloudevent(event))

    made = console.cli(budget, "create", "--project", "web", "--amount", "0.60", "--window", "day", "--soft")
    soft = json.loads(made.stdout)
    assert (soft["alerts"], soft["alerted_percent"]) == ([50, 80, 100], 0)
    spend(490_000)
    assert thresholds(console) == []
    spend(10_000)
    assert thresholds(console) == [50]
    spend(600_000)  # two at once
    assert thresholds(console) == [50, 80, 100]
    (_, last) = messages(console)[-1]
    assert (last["spent_usd"], last["amount_usd"], last["hard"], last["window"]) == (
        "0.66",
        "0.6",
        False,
        "day",
    )
    spend(600_000)
    assert thresholds(console) == [50, 80, 100]
    assert console.get(f"/api/budgets/{soft['id']}")["alerted_percent"] == 100
    table = console.cli(budget, "list", output="table").stdout
    assert "50, 80, 100" in table and "told" in table
    # A larger amount puts them ahead again; the next day all of them.
    console.cli(budget, "change", soft["id"], "--amount", "1.60")
    assert console.get(f"/api/budgets/{soft['id']}")["alerted_percent"] == 50
    spend(500_000)
    assert thresholds(console)[3:] == [80]
    console.clock.advance(86_400_000)
    assert console.get(f"/api/budgets/{soft['id']}")["alerted_percent"] == 0
    spend(3_000_000)
    assert thresholds(console)[4:] == [50, 80, 100]


def test_a_correction_does_not_alert_twice_and_choice_is_free(console: ConsolePlatform) -> None:
    console.add_model()
    endpoint = console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
    made = console.cli(
        budget, "create", "--org", "acme", "--amount", "0.60", "--window", "total", "--alerts", "10,120%"
    )
    assert json.loads(made.stdout)["alerts"] == [10, 120]
    now_ms = console.clock.now_ms()
    send(console, usage_cloudevent(call_of(endpoint, "a", now_ms, usage=Usage(0, 0, 100_000))))
    org_id = endpoint["organization_id"]
    send(console, correction(org_id, "a", Usage(0, 0, 1), event_id="c1", at_ms=now_ms))
    send(console, correction(org_id, "a", Usage(0, 0, 200_000), event_id="c2", at_ms=now_ms))
    assert thresholds(console) == [10]
    console.cli(budget, "change", json.loads(made.stdout)["id"], "--alerts", "none")
    send(console, usage_cloudevent(call_of(endpoint, "b", now_ms, usage=Usage(0, 0, 2_000_000))))
    assert thresholds(console) == [10]
    for wrong in ("0", "half", "1001", "50,,80"):
        refused = console.cli(
            budget, "create", "--org", "acme", "--amount", "1", "--window", "day", "--alerts", wrong
        )
        assert refused.exit_code != 0, wrong
