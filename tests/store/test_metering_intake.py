"""Events of other meters on both databases: new, known, wrong; corrections down to the ledger."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import func, select

from billing.receipts import receipt
from core.database import Database
from metering.endpoint_minutes import EndpointLife
from metering.intake import MAX_AHEAD_MS, MAX_BEHIND_MS, Authority, Outcome, Taken, take_events
from metering.model import Usage
from metering.quarantine import count_open, quarantine_ids
from metering.store import QuarantineRow, usage_summary
from metering.tables import usage_corrections, usage_events
from tests.event_values import SOURCE, correction, received, usage_cloudevent
from tests.metering_values import MINUTE, NO_BATCH, T0, event
from tests.store.billing_values import World, life

NOW = T0 + 5_000


@dataclass
class Town:
    """A directory with one of everything."""

    lives: dict[str, EndpointLife] = field(default_factory=lambda: {"ep_1": life()})

    def project_org(self, project_id: str) -> str | None:
        return {"prj_1": "org_1", "prj_2": "org_2"}.get(project_id)

    def key_project(self, key_id: str) -> str | None:
        return {"key_1": "prj_1", "key_2": "prj_2"}.get(key_id)

    def knows_model(self, model_id: str) -> bool:
        return model_id == "acme/chat"

    def endpoint(self, endpoint_id: str) -> EndpointLife | None:
        return self.lives.get(endpoint_id)


def take(
    db: Database, *events: dict[str, Any], now_ms: int = NOW, authority: Authority | None = None
) -> list[Outcome]:
    return taken(db, *events, now_ms=now_ms, authority=authority).outcomes


def taken(
    db: Database, *events: dict[str, Any], now_ms: int = NOW, authority: Authority | None = None
) -> Taken:
    with db.begin() as conn:
        return take_events(conn, received(*events), authority or Authority(), Town(), now_ms)


def usage(request_id: str = "call-1", **fields: Any) -> dict[str, Any]:
    return usage_cloudevent(event(request_id, **fields))


def test_an_event_is_new_once_and_then_a_duplicate(db: Database) -> None:
    one = usage()
    assert [each.status for each in take(db, one, one)] == ["new", "duplicate"]
    assert [each.status for each in take(db, one)] == ["duplicate"]
    with db.read() as conn:
        assert conn.execute(select(func.count()).select_from(usage_events)).scalar_one() == 1


def test_the_same_id_with_other_content_is_a_conflict(db: Database) -> None:
    take(db, usage())
    (outcome,) = take(db, usage(usage=Usage(1, 0, 1)))
    assert (outcome.status, outcome.kind, outcome.param) == ("quarantined", "conflict", "id")
    batch = take(db, usage("call-2"), usage("call-2", usage=Usage(1, 0, 1)))
    assert [each.status for each in batch] == ["new", "quarantined"]


def changed(name: str, value: Any) -> dict[str, Any]:
    one = usage()
    one["data"][name] = value
    return one


WRONG = {
    "a time in the future": (usage(ended_ms=NOW + MAX_AHEAD_MS + 1), "time", "future"),
    "a time too long ago": (usage(ended_ms=NOW - MAX_BEHIND_MS - 1), "time", "too long ago"),
    "another type": (usage() | {"type": "ai.farebox.weather.v1"}, "type", "unknown event type"),
    "less than nothing": (usage(usage=Usage(-1)), "data.usage.input", "expected 0"),
    "more cached than sent": (usage(usage=Usage(1, 2)), "data.usage.cached_input", "more than input"),
    "a fraction": (changed("usage", {"input": 1.5}), "data", "float"),
    "a whole fraction": (changed("usage", {"input": 2.0}), "data", "float"),
    "a number as text": (changed("usage", {"input": "2"}), "data", "str"),
    "an unknown SKU": (changed("usage", {"imput": 2}), "data.usage.imput", "input"),
    "an unknown member": (changed("colour", "red"), "data.colour", "colour"),
    "another currency": (changed("currency", "eur"), "data.currency", "usd"),
    "an unknown organization": (usage(org_id="org_9"), "data.org_id", "org_9"),
    "an unknown project": (usage(project_id="prj_9"), "data.project_id", "prj_9"),
    "an unknown model": (usage(model_id="acme/none"), "data.model_id", "acme/none"),
    "an unknown endpoint": (usage(endpoint_id="ep_9"), "data.endpoint_id", "ep_9"),
    "another project's key": (usage(key_id="key_2"), "data.key_id", "key_2"),
    "another subject": (usage() | {"subject": "org_2"}, "subject", "org_2"),
    "an id of a gateway": (usage("req_01kafn3m8hzq4v6p9x2c7d5b1w"), "data.request_id", "gateways"),
    "another id than the data's": (usage() | {"id": "call-9"}, "id", "call-9"),
    "no data": ({k: v for k, v in usage().items() if k != "data"}, "data", "object"),
    "a NUL": (usage(finish_reason="st\x00p"), "data.finish_reason", "NUL"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_named_and_keeps_nobody_else_out(db: Database, wrong: str) -> None:
    bad, param, part = WRONG[wrong]
    outcomes = take(db, usage("call-a"), bad, usage("call-b"))
    assert [each.status for each in outcomes] == ["new", "quarantined", "new"]
    assert outcomes[1].param == param and part in outcomes[1].reason
    assert (
        take(db, usage_cloudevent(event("call-c")) | {"data": usage("call-c")["data"] | {"currency": "USD"}})[
            0
        ].status
        == "new"
    )


@pytest.mark.parametrize("missing", ["id", "source", "time", "type", "specversion"])
def test_nothing_is_invented_for_what_is_missing(db: Database, missing: str) -> None:
    one = usage()
    del one[missing]
    (outcome,) = take(db, one)
    assert (outcome.status, outcome.param) == ("refused", missing)


def test_gateways_sources_are_their_own(db: Database) -> None:
    found = usage_cloudevent(event(), source="/gateway/gw-1")
    assert [(each.status, each.param) for each in take(db, found)] == [("refused", "source")]
    assert [each.status for each in take(db, found, authority=Authority(replay=True))] == ["new"]


def test_a_project_sends_its_own_usage_from_its_own_sources(db: Database) -> None:
    own = Authority("org_1", "prj_1")
    mine = usage_cloudevent(event("call-1"), source="/projects/prj_1/m")
    outcomes = take(
        db,
        mine,
        usage("call-2"),
        usage_cloudevent(event("call-3", org_id="org_2", project_id="prj_2"), source="/projects/prj_1/m"),
        correction("org_1", "call-1", Usage(1), event_id="c", at_ms=T0) | {"source": "/projects/prj_1/m"},
        authority=own,
    )
    assert [each.status for each in outcomes] == ["new", "refused", "refused", "refused"]
    # Nobody's receipt can be mixed with another's by sending its request id.
    other = usage_cloudevent(
        event("call-1", org_id="org_2", project_id="prj_2", key_id="key_2", endpoint_id="", attempt=2),
        source="/projects/prj_2/m",
    )
    (outcome,) = take(db, other, authority=Authority("org_2", "prj_2"))
    assert (outcome.status, outcome.param) == ("quarantined", "data.request_id")


def test_a_late_event_can_be_replayed_though_it_is_old_by_now(db: Database) -> None:
    later = NOW + 2 * MAX_BEHIND_MS
    assert take(db, usage(), now_ms=later)[0].status == "quarantined"
    assert take(db, usage(), now_ms=later, authority=Authority(replay=True, seen_ms=NOW))[0].status == "new"


# --- endpoint minutes -----------------------------------------------------------------------------


def minute(start_ms: int, stamp: str, **changes: Any) -> dict[str, Any]:
    sku = changes.get("sku", "endpoint_minute")
    data = {
        "org_id": "org_1",
        "project_id": "prj_1",
        "endpoint_id": "ep_1",
        "model_id": "acme/chat",
        "sku": sku,
    }
    from core.clock import iso

    return {
        "specversion": "1.0",
        "id": f"ep_1/{stamp}/{sku}",
        "source": SOURCE,
        "type": "ai.farebox.endpoint.minute.v1",
        "time": iso(start_ms),
        "data": data | changes,
    }


def test_an_endpoint_minute_is_known_or_it_did_not_exist(db: Database) -> None:
    World(db).sweep([life()], T0 + 2 * MINUTE)
    good = minute(T0, "20251225T1200Z")
    outcomes = take(
        db,
        good,
        good | {"id": "ep_1/20251225T1201Z/endpoint_minute"},
        minute(T0, "20251225T1200Z", sku="gpu_minute"),
        minute(T0 - MINUTE, "20251225T1159Z"),
        minute(T0, "20251225T1200Z", model_id="acme/other"),
        now_ms=T0 + 2 * MINUTE,
    )
    assert [(each.status, each.param) for each in outcomes] == [
        ("duplicate", ""),
        ("quarantined", "id"),
        ("quarantined", "data.sku"),
        ("quarantined", "time"),
        ("quarantined", "data.model_id"),
    ]


# --- corrections ----------------------------------------------------------------------------------


def fix(right: Usage, event_id: str = "fix-1", **fields: Any) -> dict[str, Any]:
    return correction("org_1", "call-1", right, event_id=event_id, at_ms=NOW, **fields)


def test_a_correction_lowers_what_is_owed_in_the_first_open_minute(db: Database) -> None:
    world = World(db)
    take(db, usage())
    world.close(T0 + 5 * MINUTE)
    owed = world.check_ledger()
    before = world.preview()
    found = taken(db, fix(Usage(60, 20, 10, 1)))
    assert [each.status for each in found.outcomes] == ["new"]
    assert (
        found.corrections[0].quantities
        == {
            "input": -40,
            "cached_input": 0,
            "output": -40,
            "audio_second": 0,
        }
        | NO_BATCH
    )
    # The preview sees it before it is closed, and the same after.
    assert world.preview().total_pico == before.total_pico - 40 * 150_000 - 40 * 600_000
    opened = world.preview()
    world.close(T0 + 10 * MINUTE)
    assert world.preview().lines == opened.lines
    assert world.check_ledger() == owed - 40 * 150_000 - 40 * 600_000
    with db.read() as conn:
        row = conn.execute(select(usage_corrections)).one()
        assert (row.service_minute_ms, row.billing_minute_ms) == (T0, T0 + 4 * MINUTE)
        assert conn.execute(select(usage_events.c.output)).scalar_one() == 50  # never edited
        (total,) = usage_summary(conn, "org_1", None, 0, T0 * 2, [])
        shown = receipt(conn, "call-1", world)
    assert (total.quantities["output"], total.quantities["input"], total.reasoning) == (10, 40, 1)
    assert total.requests == 1
    assert shown.billed == {"input": 40, "cached_input": 20, "output": 10} | NO_BATCH
    assert [(each.event_id, each.reason) for each in shown.corrections] == [
        ("fix-1", "the tokenizer was another")
    ]


def test_corrections_are_absolute_and_a_repeat_changes_nothing(db: Database) -> None:
    take(db, usage())
    first, again = fix(Usage(200, 20, 50, 10)), fix(Usage(200, 20, 50, 10), "fix-2")
    assert [each.status for each in take(db, first, first, again)] == ["new", "duplicate", "duplicate"]
    assert "stands at this usage" in take(db, again)[0].reason
    assert take(db, fix(Usage(7), "fix-1"))[0].kind == "conflict"
    found = taken(db, fix(Usage(100, 20, 50, 10), "fix-3"))  # back to what was metered
    assert found.corrections[0].quantities["input"] == -100


def test_a_correction_is_priced_as_of_the_minute_it_corrects(db: Database) -> None:
    world = World(db)
    world.versions["acme/chat"].append((T0 + 2 * MINUTE, {"input": 10**9, "output": 10**9}))
    take(db, usage())
    world.close(T0 + 10 * MINUTE)
    owed = world.check_ledger()
    take(db, fix(Usage(101, 20, 50, 10)), now_ms=T0 + 10 * MINUTE)
    world.close(T0 + 20 * MINUTE)
    assert world.check_ledger() - owed == 150_000


def test_an_event_and_its_correction_may_come_in_one_batch_in_any_order(db: Database) -> None:
    assert [each.status for each in take(db, fix(Usage(1)), usage())] == ["new", "new"]


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (fix(Usage(1), corrects_source="/meters/other"), "data.corrects_id"),
        (correction("org_2", "call-1", Usage(1), event_id="x", at_ms=NOW), "data.corrects_id"),
        (correction("org_1", "call-9", Usage(1), event_id="x", at_ms=NOW), "data.corrects_id"),
        (correction("org_1", "failed", Usage(1), event_id="x", at_ms=NOW), "data.corrects_id"),
        (fix(Usage(1), reason="  "), "data.reason"),
        (fix(Usage(-1)), "data.usage.input"),
    ],
)
def test_a_correction_names_an_event_of_its_organization(
    db: Database, bad: dict[str, Any], param: str
) -> None:
    take(db, usage(), usage("failed", status="error"))
    (outcome,) = take(db, bad)
    assert (outcome.status, outcome.param) == ("quarantined", param)


# --- quarantine -----------------------------------------------------------------------------------


def test_the_same_nonsense_is_kept_once(db: Database) -> None:
    row = QuarantineRow("poison", SOURCE, "call-1", "hash", "why", "{}", "org_1")
    with db.begin() as conn:
        ids = quarantine_ids(conn, [row, row], NOW)
        assert ids[0] == ids[1] == quarantine_ids(conn, [row], NOW)[0]
        assert (count_open(conn, "org_1"), count_open(conn, "")) == (1, 0)
