"""Usage, receipts and invoice previews over the management API: exact, and each key sees its own only."""

from decimal import Decimal
from pathlib import Path

import pytest

from core.clock import MINUTE_MS, iso
from metering.endpoint_minutes import EndpointLife, sweep
from serving.store import endpoint_lives
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.metering_values import NO_BATCH


@pytest.fixture
def console(tmp_path: Path) -> ConsolePlatform:
    console = open_platform(tmp_path)
    console.add_model()
    console.project()
    return console


def endpoint_of(console: ConsolePlatform, name: str = "my-chat", project: str = "acme/web"):
    return console.post("/api/serverless-endpoints", name=name, model="acme/mock-chat", project=project)


def test_a_receipt_is_exact_and_its_parts_are_disjoint(console: ConsolePlatform) -> None:
    key = console.post("/api/keys", project="web", name="ci")
    request_id = console.call(
        endpoint_of(console), key["id"], input=31, cached_input=10, output=9, reasoning=4
    )
    receipt = console.get(f"/api/receipts/{request_id}")
    expected = {"input": 31, "cached_input": 10, "output": 9, "reasoning": 4, "audio_ms": 0}
    assert receipt["usage"] == expected
    assert receipt["billed"] == {"input": 21, "cached_input": 10, "output": 9, "audio_second": 0} | NO_BATCH
    assert (
        Decimal(receipt["cost_usd"])
        == (21 * Decimal("0.15") + 10 * Decimal("0.075") + 9 * Decimal("0.6")) / 10**6
    )
    names = ("organization", "project", "endpoint", "model", "status", "operation", "stream", "usage_source")
    assert [receipt[name] for name in names] == [
        "acme",
        "web",
        "my-chat",
        "acme/mock-chat",
        "completed",
        "chat.completions",
        False,
        "engine",
    ]
    assert receipt["price_version"] == console.get("/api/model-prices/acme/mock-chat")["data"][0]["id"]
    assert receipt["time"] == iso(console.clock.now_ms())
    assert [a["attempt"] for a in receipt["attempts"]] == [1]
    assert console.caught_up  # the journal was drained first


def test_a_failed_call_costs_nothing(console: ConsolePlatform) -> None:
    request_id = console.call(endpoint_of(console), "key_x", status="error", input=31, output=9)
    receipt = console.get(f"/api/receipts/{request_id}")
    assert (receipt["status"], receipt["cost_usd"]) == ("error", "0")
    assert receipt["billed"] == {"input": 0, "cached_input": 0, "output": 0, "audio_second": 0} | NO_BATCH
    assert receipt["usage"]["input"] == 31


def test_receipts_are_listed_newest_first_and_paged(console: ConsolePlatform) -> None:
    endpoint = endpoint_of(console)
    made = []
    for _ in range(5):
        made.append(console.call(endpoint, "key_x", input=1, output=1))
        console.clock.advance(1000)
    shown, after, pages = [], "", 0
    while True:
        page = console.get(f"/api/receipts?limit=2&after={after}")
        shown += [receipt["request_id"] for receipt in page["data"]]
        pages += 1
        if page["next"] is None:
            break
        after = page["next"]
    assert (shown, pages) == (made[::-1], 3)
    now_ms = console.clock.now_ms()
    assert console.get(f"/api/receipts?start={iso(now_ms)}&end={iso(now_ms + 1000)}")["data"] == []
    older = console.get(f"/api/receipts?end={iso(now_ms - 4000)}")["data"]
    assert [receipt["request_id"] for receipt in older] == made[:1]


def test_each_key_sees_its_own_calls_only(console: ConsolePlatform) -> None:
    console.project("other", "app")
    mine = console.as_key(console.post("/api/keys", project="acme/web", name="ci")["key"])
    theirs = console.as_key(console.post("/api/keys", project="other/app", name="ci")["key"])
    endpoint = endpoint_of(console)
    endpoint_of(console, "their-chat", "other/app")
    ours = console.as_key(console.post("/api/serverless-endpoints/my-chat/list-keys")["primaryKey"])
    foreign = console.as_key(console.post("/api/serverless-endpoints/their-chat/list-keys")["primaryKey"])
    request_id = console.call(endpoint, "key_x", input=3, output=4)

    def get(path: str, headers: dict[str, str]) -> tuple[int, dict]:
        answer = console.client.get(path, headers=headers)
        return answer.status_code, answer.json()

    path = f"/api/receipts/{request_id}"
    assert get(path, mine)[0] == get(path, ours)[0] == 200
    unknown = get("/api/receipts/req_unknown", theirs)
    for headers in (theirs, foreign):
        status, body = get(path, headers)
        # Not even that it exists.
        assert (status, body["detail"]) == (404, unknown[1]["detail"].replace("req_unknown", request_id))
    assert [r["request_id"] for r in get("/api/receipts", mine)[1]["data"]] == [request_id]
    assert get("/api/receipts", theirs)[1]["data"] == []
    assert get("/api/usage", mine)[1]["data"][0]["input"] == 3
    assert get("/api/usage", theirs)[1]["data"] == []
    assert get("/api/usage?organization=acme", theirs)[0] == 403
    assert get("/api/receipts?project=acme/web", theirs)[0] == 403
    assert get("/api/usage?organization=acme&project=web", mine)[0] == 200


def test_usage_is_grouped_with_names(console: ConsolePlatform) -> None:
    key = console.post("/api/keys", project="web", name="ci")
    endpoint = endpoint_of(console)
    console.call(endpoint, key["id"], input=31, cached_input=10, output=9, reasoning=2)
    console.call(endpoint, key["id"], status="error", input=5)
    total = console.get("/api/usage")
    assert total["data"] == [
        {
            "input": 21,
            "cached_input": 10,
            "output": 9,
            "audio_second": 0,
            "reasoning": 2,
            "endpoint_minute": 0,
            "requests": 2,
            "errors": 1,
        }
        | NO_BATCH
    ]
    grouped = console.get("/api/usage?group_by=day,model,endpoint,key,project")["data"][0]
    assert grouped["day"] == iso(console.clock.now_ms())[:10]
    assert (grouped["model"], grouped["endpoint"], grouped["endpoint_id"]) == (
        "acme/mock-chat",
        "my-chat",
        endpoint["id"],
    )
    assert (grouped["key"], grouped["key_id"], grouped["project"]) == ("ci", key["id"], "web")
    by_sku = console.get("/api/usage?group_by=sku")["data"]
    assert {row["sku"]: row["quantity"] for row in by_sku} == {"input": 21, "cached_input": 10, "output": 9}


@pytest.mark.parametrize(
    ("query", "status", "param", "says"),
    [
        ("usage?group_by=modle", 422, "group_by", "did you mean 'model'?"),
        ("usage?start=yesterday", 422, "start", "2026-11-23"),
        ("usage?start=2026-01-02&end=2026-01-01", 422, "end", "after the start"),
        ("usage?organization=nobody", 404, "organization", "no organization 'nobody'"),
        ("usage?project=nobody", 404, "project", "no project"),
        ("usage?start=0001-01-01", 422, "start", "expected a time"),
        ("receipts?limit=1000", 422, "limit", "200"),
        ("receipts?project=other/app&organization=acme", 422, "project", "not a project of 'acme'"),
        ("receipts", 422, "organization", "acme, other"),
        ("receipts/req_none", 404, "request_id", "no request 'req_none'"),
        ("invoices/preview?period=2026", 422, "period", "2026-11"),
        ("invoices/preview?period=2026-13", 422, "period", "2026-11"),
        ("invoices/preview", 422, "organization", "acme, other"),
    ],
)
def test_a_wrong_query_names_the_parameter(console, query, status, param, says) -> None:
    console.project("other", "app")
    answer = console.client.get(f"/api/{query}")
    assert (answer.status_code, answer.json()["param"]) == (status, param), answer.text
    assert says in answer.json()["detail"]


def test_without_an_organization_there_is_nothing_to_preview(tmp_path: Path) -> None:
    answer = open_platform(tmp_path).client.get("/api/invoices/preview")
    assert (answer.status_code, answer.json()["param"]) == (422, "organization")
    assert "create one first" in answer.json()["detail"]


def test_a_preview_adds_up_to_the_last_digit(console: ConsolePlatform) -> None:
    endpoint = endpoint_of(console)
    for i in range(3):
        console.call(endpoint, "key_x", input=1000 + i, cached_input=i, output=77)
    console.clock.advance(2 * MINUTE_MS)
    with console.db.begin() as connection:
        lives = [
            EndpointLife(
                r.endpoint_id, r.org_id, r.project_id, r.model_id, r.created_ms, r.deleted_ms, r.name
            )
            for r in endpoint_lives(connection)
        ]
        sweep(connection, lives, console.clock.now_ms())
    preview = console.get("/api/invoices/preview?organization=acme")
    lines = {line["sku"]: line for line in preview["lines"]}
    assert {sku: line["quantity"] for sku, line in lines.items()} == {
        "input": 3000,
        "cached_input": 3,
        "output": 231,
        "endpoint_minute": 3,
    }
    for sku, line in lines.items():
        assert Decimal(line["unit_price_usd"]) * line["quantity"] == Decimal(line["amount_usd"])
        assert Decimal(line["rounded_usd"]) == round(Decimal(line["amount_usd"]), 2)
        assert ("model" in line) is (sku != "endpoint_minute")
    assert lines["input"]["price_per_million_usd"] == "0.15"
    assert lines["endpoint_minute"]["endpoint"] == "my-chat"
    assert "price_per_million_usd" not in lines["endpoint_minute"]
    assert Decimal(preview["total_exact_usd"]) == sum(Decimal(line["amount_usd"]) for line in lines.values())
    assert Decimal(preview["total_usd"]) == sum(Decimal(line["rounded_usd"]) for line in lines.values())
    assert (preview["currency"], preview["status"], preview["held"]) == ("usd", "preview", [])
    assert preview["period_start"] == "2025-10-01T00:00:00.000Z"
    assert preview["period_end"] == "2025-11-01T00:00:00.000Z"
    earlier = console.get("/api/invoices/preview?organization=acme&period=2025-09")
    assert (earlier["lines"], earlier["total_exact_usd"], earlier["total_usd"]) == ([], "0", "0.00")
