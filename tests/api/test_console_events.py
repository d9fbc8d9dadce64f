"""`POST /api/events` in its three modes, the quarantine and the audit log: over HTTP, the client and the command line."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from farebox.cli.events import audit, event, quarantine

from core.clock import iso
from functions.event_schemas import EVENT_TYPES, schema_of
from metering.model import Usage
from metering.store import list_alarms
from tests.api.console_platform import ConsolePlatform, open_platform
from tests.event_values import SOURCE, call_of, correction, usage_cloudevent
from wire.cloudevents_http import BATCHED, STRUCTURED

DOCS = Path(__file__).parents[2] / "docs"


class Town:
    """A console with an endpoint, and one of its project's keys."""

    def __init__(self, directory: Path) -> None:
        self.console: ConsolePlatform = open_platform(directory)
        self.console.project()
        self.console.add_model()
        self.endpoint = self.console.post("/api/serverless-endpoints", name="my-chat", model="acme/mock-chat")
        self.key = self.console.post("/api/keys", project="web", name="ci")
        self.now_ms = self.console.clock.now_ms()

    def call(self, request_id: str, **fields: Any) -> dict[str, Any]:
        return usage_cloudevent(call_of(self.endpoint, request_id, self.now_ms, **fields))

    def send(self, *events: Any, key: str = "") -> dict[str, Any]:
        answer = self.try_batch(list(events), key=key)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def try_batch(self, body: Any, kind: str = BATCHED, key: str = "") -> Any:
        headers = {"content-type": kind} | (self.console.as_key(key) if key else {})
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.console.client.post("/api/events", content=content, headers=headers)


@pytest.fixture
def town(tmp_path: Path) -> Town:
    return Town(tmp_path)


# --- the three modes ------------------------------------------------------------------------------


def test_one_event_in_structured_mode(town: Town) -> None:
    one = town.call("call-1")
    answer = town.try_batch(one, STRUCTURED + "; charset=utf-8").json()
    assert (answer["new"], answer["data"][0]["id"], answer["data"][0]["status"]) == (1, "call-1", "new")
    assert town.try_batch(one, STRUCTURED).json()["duplicate"] == 1
    assert town.console.get("/api/receipts/call-1")["billed"]["output"] == 50


def test_one_event_in_binary_mode_is_the_same_event(town: Town) -> None:
    one = town.call("call-1", usage=Usage(3, 0, 2))
    headers = {f"ce-{name}": one[name] for name in ("specversion", "id", "source", "type", "time")}
    headers |= {"content-type": "application/json; charset=utf-8", "ce-partitionkey": "a%20b"}
    post = town.console.client.post
    answer = post("/api/events", content=json.dumps(one["data"]), headers=headers)
    assert answer.json()["data"][0]["status"] == "new", answer.text
    assert town.send(one)["duplicate"] == 1
    del headers["ce-id"]
    refused = post("/api/events", content=json.dumps(one["data"]), headers=headers)
    assert (refused.status_code, refused.json()["param"]) == (422, "id")


@pytest.mark.parametrize(
    ("header", "value", "param"),
    [
        ("ce-time", "20261123T120000Z", "time"),  # ISO 8601, but not RFC 3339: the library would take it
        ("ce-time", "2026-11-23T12:00:00", "time"),
        ("ce-id", "%FF", "id"),
        ("ce-specversion", "0.3", "specversion"),
        ("ce-Not-A-Name", "x", "not-a-name"),
        ("content-type", "text/plain", "datacontenttype"),
        ("ce-datacontenttype", "application/json", "datacontenttype"),
    ],
)
def test_malformed_headers_are_refused(town: Town, header: str, value: str, param: str) -> None:
    one = town.call("call-1")
    headers = {f"ce-{name}": one[name] for name in ("specversion", "id", "source", "type", "time")}
    headers |= {"content-type": "application/json"} | {header: value}
    answer = town.console.client.post("/api/events", content=json.dumps(one["data"]), headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (422, param), answer.text


def test_broken_json_in_binary_mode_is_no_text(town: Town) -> None:
    one = town.call("call-1")
    headers = {f"ce-{name}": one[name] for name in ("specversion", "id", "source", "type", "time")}
    answer = town.console.client.post("/api/events", content=b'{"usage": ', headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (422, "data")


def test_what_is_no_cloudevent_is_told_how_to_be_one(town: Town) -> None:
    plain = town.try_batch(town.call("call-1"), "application/json")
    assert plain.status_code == 400 and STRUCTURED in plain.json()["detail"]
    assert town.try_batch(b"{", BATCHED).status_code == 400
    assert town.try_batch({}, BATCHED).status_code == 400
    assert town.try_batch(b"x", "application/cloudevents+avro").status_code == 400
    assert town.try_batch([], BATCHED).json()["data"] == []


def test_bounds(town: Town) -> None:
    assert town.try_batch([1] * 1001).status_code == 413
    assert town.try_batch(b" " * (1024 * 1024 + 1)).status_code == 413
    big = town.call("call-1") | {"filler": "x" * 70_000}
    answer = town.send(big, town.call("call-2"))
    assert [each["status"] for each in answer["data"]] == ["refused", "new"]
    assert "65536" in answer["data"][0]["reason"]


# --- who may send what ----------------------------------------------------------------------------


def test_a_projects_key_sends_its_own_usage(town: Town) -> None:
    source = f"/projects/{town.endpoint['project_id']}/batch"
    mine = town.call("call-1") | {"source": source}
    answer = town.send(mine, town.call("call-2"), key=town.key["key"])
    assert [each["status"] for each in answer["data"]] == ["new", "refused"]
    other = town.console.post("/api/projects", name="other", organization="acme")
    theirs = town.console.post("/api/keys", project=other["id"], name="ci")["key"]
    stolen = town.send(mine | {"id": "call-3"}, key=theirs)
    assert stolen["refused"] == 1 and stolen["data"][0]["quarantine_id"] is None
    endpoint_key = town.console.post("/api/serverless-endpoints/my-chat/list-keys")["primaryKey"]
    assert town.try_batch([mine], key=endpoint_key).status_code == 403


def test_usage_of_other_meters_reaches_budgets_and_corrections_give_back(town: Town) -> None:
    budget = town.console.post("/api/budgets", project="web", amount_usd="1", window="day")
    town.send(town.call("call-1", usage=Usage(0, 0, 1000)))
    path = f"/api/budgets/{budget['id']}"
    assert town.console.get(path)["spent_usd"] == "0.0006"
    right = correction(
        town.endpoint["organization_id"], "call-1", Usage(0, 0, 10), event_id="c1", at_ms=town.now_ms
    )
    assert town.send(right, right)["new"] == 1
    assert town.console.get(path)["spent_usd"] == "0.000006"
    # A budget made now counts the same from the records.
    later = town.console.post("/api/budgets", project="web", amount_usd="1", window="day")
    assert later["spent_usd"] == "0.000006"
    receipt = town.console.get("/api/receipts/call-1")
    assert (receipt["cost_usd"], receipt["corrections"][0]["cost_usd"]) == ("0.000006", "-0.000594")


# --- schemas --------------------------------------------------------------------------------------


def test_schemas_are_published_and_served(town: Town) -> None:
    listed = town.console.get("/api/events/schemas")["data"]
    assert {each["type"] for each in listed} == set(EVENT_TYPES)
    for each in listed:
        served = town.console.get(each["schema_url"])
        jsonschema.Draft202012Validator.check_schema(served)
        file = DOCS / "events" / f"{each['type']}.schema.json"
        message = "stale: python -m functions.event_schemas docs/events"
        assert json.loads(file.read_text()) == served == schema_of(EVENT_TYPES[each["type"]]), message
    assert {path.name.removesuffix(".schema.json") for path in (DOCS / "events").iterdir()} == set(
        EVENT_TYPES
    )
    unknown = town.console.client.get("/api/events/schemas/ai.farebox.usage.v2")
    assert unknown.status_code == 404 and "ai.farebox.usage.v1" in unknown.json()["detail"]


def test_what_the_schema_takes_is_taken_and_what_it_refuses_is_not(town: Town) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(EVENT_TYPES["ai.farebox.usage.v1"]))
    good = town.call("call-1")
    validator.validate(good)
    for path, value in (
        (("data", "usage", "input"), -1),
        (("data", "usage", "input"), 1.5),
        (("data", "usage", "images"), 1),
        (("data", "currency"), "eur"),
        (("data", "attempt"), 0),
        (("data", "status"), "fine"),
        (("data", "surprise"), "!"),
        (("time",), "yesterday"),
        (("id",), ""),
    ):
        bad = msgspec.json.decode(msgspec.json.encode(good))
        part = bad
        for name in path[:-1]:
            part = part[name]
        part[path[-1]] = value
        assert not validator.is_valid(bad), path
        assert town.send(bad)["new"] == 0, path
    assert town.send(good)["new"] == 1


# --- quarantine and audit -------------------------------------------------------------------------


def wrong_model(town: Town, request_id: str = "call-1") -> str:
    answer = town.send(town.call(request_id, model_id="acme/later", endpoint_id=""))
    assert answer["data"][0]["status"] == "quarantined" and "acme/later" in answer["data"][0]["reason"]
    return str(answer["data"][0]["quarantine_id"])


def test_replay_after_what_was_missing_is_there(town: Town) -> None:
    entry = wrong_model(town)
    assert wrong_model(town) == entry  # the same one is kept once
    path = f"/api/quarantine/{entry}"
    still = town.console.client.post(f"{path}/replay", json={})
    assert still.status_code == 409 and "acme/later" in still.json()["detail"]
    assert town.console.get(path)["state"] == "open"
    town.console.add_model(
        "id: acme/later\ntask: chat\ncontext_length: 8192\nengine: {kind: external, url: 'http://127.0.0.1:1'}\n"
        'prices: {input: "1", output: "1"}\n'
    )
    assert town.console.post(f"{path}/replay", note="added the model")["outcome"] == "new"
    assert town.console.get("/api/receipts/call-1")["model"] == "acme/later"
    assert town.console.client.post(f"{path}/replay", json={}).status_code == 409
    assert town.console.client.post(f"{path}/drop", json={}).status_code == 409
    (line,) = town.console.get("/api/audit?action=quarantine")["data"]
    assert (line["action"], line["object"], line["detail"]["note"]) == (
        "quarantine.replay",
        entry,
        "added the model",
    )
    assert line["actor"].startswith("key_")
    assert town.console.get("/api/quarantine")["data"] == []
    assert [each["id"] for each in town.console.get("/api/quarantine?state=replayed")["data"]] == [entry]


def test_conflicts_are_kept_and_alarmed(town: Town) -> None:
    town.send(town.call("call-1"))
    answer = town.send(town.call("call-1", usage=Usage(9, 0, 9)))
    entry = town.console.get(f"/api/quarantine/{answer['data'][0]['quarantine_id']}")
    assert (entry["kind"], entry["event"]["data"]["usage"]["input"]) == ("conflict", 9)
    with town.console.db.read() as connection:
        assert [(alarm.kind, alarm.source) for alarm in list_alarms(connection)] == [("conflict", SOURCE)]


def test_the_quarantine_is_bounded(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("functions.event_intake.MAX_OPEN", 2)
    wrong = [town.call(f"call-{i}", model_id="acme/none", endpoint_id="") for i in range(3)]
    answer = town.send(*wrong, town.call("good"))
    assert [each["status"] for each in answer["data"]] == ["quarantined", "quarantined", "refused", "new"]
    assert "quarantine is full" in answer["data"][2]["reason"]


def test_the_command_line_sends_lists_mends_and_drops(town: Town, tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    lines = [town.call("call-1"), town.call("call-2", model_id="acme/none", endpoint_id="")]
    file.write_text("\n".join(map(json.dumps, lines)))
    sent = town.console.cli(event, "send", "-f", str(file))
    assert sent.exit_code == 1 and isinstance(sent.exception, SystemExit), repr(sent.exception)
    answer = json.loads(sent.stdout)
    assert (answer["new"], answer["quarantined"]) == (1, 1)
    entry = answer["data"][1]["quarantine_id"]
    assert "acme/none" in town.console.cli(quarantine, "list", output="table").stdout
    shown = json.loads(town.console.cli(quarantine, "show", entry).stdout)
    mended = shown["event"] | {"data": shown["event"]["data"] | {"model_id": "acme/mock-chat"}}
    file.write_text(json.dumps(mended))
    fixed = town.console.cli(quarantine, "fix", entry, "-f", str(file), "--note", "a typo")
    assert json.loads(fixed.stdout)["outcome"] == "new", fixed.output
    file.write_text(json.dumps([town.call("call-3", org_id="org_none")]))
    town.console.cli(event, "send", "-f", str(file))
    waiting = json.loads(town.console.cli(quarantine, "list").stdout)["data"][0]["id"]
    refused = town.console.cli(quarantine, "replay", waiting)
    assert refused.exit_code == 1, refused.output
    assert "org_none" in str(refused.exception)
    other = json.loads(town.console.cli(quarantine, "list").stdout)["data"][0]["id"]
    still = town.console.cli(quarantine, "replay", other)
    assert still.exit_code == 1 and "org_none" in str(still.exception)
    assert (
        json.loads(town.console.cli(quarantine, "drop", other, "--note", "a test").stdout)["state"]
        == "dropped"
    )
    audited = json.loads(town.console.cli(audit, "list", "--action", "quarantine").stdout)["data"]
    assert [each["action"] for each in audited] == ["quarantine.drop", "quarantine.fix"]
    assert "a typo" in town.console.cli(audit, "list", output="tsv").stdout
    assert json.loads(town.console.cli(event, "types").stdout)["data"]
    assert (
        json.loads(town.console.cli(event, "schema", "ai.farebox.usage.v1").stdout)["title"]
        == "ai.farebox.usage.v1"
    )
    file.write_text("{}\nnonsense")
    assert "line 2" in town.console.cli(event, "send", "-f", str(file)).output


def test_the_client_sends_any_number_in_batches(town: Town) -> None:
    events = (town.call(f"call-{i}") for i in range(2100))
    answers = list(town.console.sdk().events.send_all(events))
    assert len(answers) >= 3 and sum(answer["new"] for answer in answers) == 2100


def test_the_examples_of_the_page_run(town: Town) -> None:
    page = (DOCS / "events.md").read_text(encoding="utf-8")
    blocks = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    assert len(blocks) >= 2
    names = {
        "client": town.console.sdk(),
        "now": iso(town.now_ms),
        "now_ms": town.now_ms,
        "endpoint": town.endpoint,
    }
    for block in blocks:
        exec(compile(block, "docs/events.md", "exec"), names)
