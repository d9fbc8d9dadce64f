"""All records compared, on both databases: a day without a fault is clean, and each fault is named with its ids."""

from dataclasses import dataclass, field

import pytest
from msgspec.structs import replace
from sqlalchemy import delete, insert, select, update

from access.tables import organizations
from billing.tables import invoice_lines, invoices, ledger_postings, ledger_transactions
from core.clock import ManualClock
from core.database import Database
from functions.reconcile import HOUR_MS, Reconciler
from functions.reconcile_hourly import HourlyReconciliation, kept_hours
from functions.reconcile_report import HourRow, Report
from metering.alarms import raised_alarms
from metering.corrections import lock_standing, record_correction
from metering.engine_counters import Reading, store_readings
from metering.model import Correction, Usage, UsageEvent
from metering.records import Alarm
from metering.store import QuarantineRow, insert_usage, note_gateway_start, note_progress, put_in_quarantine
from metering.tables import engine_counters, usage_events, usage_minutes
from tests.metering_values import MINUTE, T0, accepted, event
from tests.store.billing_values import CHAT, World, life

END = T0 + HOUR_MS


@dataclass(frozen=True)
class ProviderAmount:
    provider_id: str
    due_cents: int


@dataclass
class Hour:
    """One hour from T0 on with ten calls at one endpoint, closed and posted, and an engine that counted them."""

    world: World
    clock: ManualClock
    readings: list[Reading] = field(default_factory=list)
    provider: dict[str, ProviderAmount] = field(default_factory=dict)

    @property
    def db(self) -> Database:
        return self.world.db

    def play(self, *events: UsageEvent, close: bool = True, now_ms: int = END + 10 * MINUTE) -> None:
        """Store these events, bill the endpoint's minutes, read the engine, close."""
        self.world.store(*events)
        self.world.sweep([life()], now_ms)
        with self.db.begin() as conn:
            store_readings(conn, [self.reading(at, events) for at in range(T0, now_ms + 1, MINUTE)])
        self.clock.step(now_ms - self.clock.now_ms())
        if close:
            self.world.close(now_ms)

    def reading(self, at_ms: int, events: tuple[UsageEvent, ...]) -> Reading:
        done = [e for e in events if e.ended_ms <= at_ms]
        return Reading(
            "dep_1", "rep_1", at_ms, at_ms, "minute", "read", T0 - HOUR_MS,
            sum(e.usage.input * e.usage.choices for e in done), sum(e.usage.cached_input for e in done),
            sum(e.usage.output for e in done), len(done), 0,
        )  # fmt: skip

    def report(self, org_id: str | None = None) -> Report:
        reconciler = Reconciler(
            self.db, self.clock, lambda: None, lambda _conn, invoice_id: self.provider.get(invoice_id)
        )
        return reconciler.report(T0, END, org_id)


@pytest.fixture
def hour(db: Database) -> Hour:
    with db.begin() as conn:
        conn.execute(insert(organizations).values(id="org_1", name="acme", created_ms=T0))
    return Hour(World(db), ManualClock(T0))


def calls(count: int = 10, **fields: object) -> list[UsageEvent]:
    """One every five minutes."""
    made = []
    for i in range(count):
        at = T0 + i * 5 * MINUTE + 10_000
        made.append(
            event(f"req_{i}", sent_ms=at, first_byte_ms=at + 100, ended_ms=at + 1_000, **fields)  # type: ignore[arg-type]
        )
    return made


def the_row(report: Report) -> HourRow:
    (row,) = (row for row in report.rows if row.scope == "endpoint")
    return row


def wrong(report: Report) -> set[tuple[str, str, int]]:
    return {
        (found.kind, found.sku, found.quantity)
        for row in report.rows
        for _, found in row.findings
        if not found.explained
    }


def ids_of(report: Report, kind: str) -> set[str]:
    return {i for row in report.rows for _, found in row.findings if found.kind == kind for i in found.ids}


def test_an_hour_without_a_fault_is_equal(hour: Hour) -> None:
    hour.play(*calls())
    report = hour.report()
    row = the_row(report)
    assert (report.verdict, row.findings, row.organization) == ("equal", [], "acme")
    figures = {sku: f.as_json() for sku, f in row.figures.items()}
    assert figures["input"] == {
        "engine": 800,
        "events": 800,
        "ledger": 800,
        "invoice": None,
        "provider": None,
    }
    assert figures["cached_input"]["engine"] == figures["cached_input"]["ledger"] == 200
    assert figures["output"]["engine"] == figures["output"]["ledger"] == 500
    assert (figures["endpoint_minute"]["events"], figures["endpoint_minute"]["ledger"]) == (60, 60)


def test_open_minutes_late_events_and_errors_are_explained(hour: Hour) -> None:
    failed = event(
        "req_f", status="error", http_status=502, sent_ms=T0 + 7 * MINUTE, first_byte_ms=T0 + 7 * MINUTE + 50,
        ended_ms=T0 + 7 * MINUTE + 900,
    )  # fmt: skip
    hour.play(*calls(), failed, close=False)
    hour.world.close(T0 + 32 * MINUTE)
    late = event("req_late", sent_ms=T0 + 2 * MINUTE, ended_ms=T0 + 2 * MINUTE + 500)
    hour.world.store(late)  # its own minute is closed: billed in the first open one
    with hour.db.begin() as conn:  # the engine had counted it, of course
        conn.exec_driver_sql(
            "UPDATE engine_counters SET input = input + 100, cached_input = cached_input + 20, "
            f"output = output + 50 WHERE at_ms > {late.ended_ms}"
        )
    report = hour.report()
    assert report.verdict == "explained"
    kinds = {found.kind for _, found in the_row(report).findings}
    assert kinds == {"open", "unbilled_error"}
    assert the_row(report).of("output").events == 550


def test_what_has_no_price_is_held_and_then_adjusted(hour: Hour) -> None:
    hour.world.versions["acme/chat"] = [(0, {k: v for k, v in CHAT.items() if k != "output"})]
    hour.play(*calls(3))
    assert {found.kind for _, found in the_row(hour.report()).findings} == {"held"}
    hour.world.versions["acme/chat"] = [(0, CHAT)]
    hour.world.close(END + 20 * MINUTE)
    hour.clock.advance(10 * MINUTE)
    report = hour.report()
    assert {(f.kind, f.quantity) for _, f in the_row(report).findings} == {("adjusted", 150)}
    next_hour = Reconciler(hour.db, hour.clock, lambda: None).report(END, END + HOUR_MS)
    assert {(f.kind, f.quantity) for _, f in the_row(next_hour).findings if f.kind != "open"} == {
        ("adjustment", -150)
    }
    assert next_hour.verdict == "explained"


def test_a_lost_event_is_missed_by_engine_ledger_and_numbers(hour: Hour) -> None:
    hour.play(*calls())
    with hour.db.begin() as conn:
        conn.execute(delete(usage_events).where(usage_events.c.event_id == "req_4"))
    report = hour.report()
    found = wrong(report)
    assert {
        ("unmetered", "output", 50),
        ("unmetered", "input", 80),
        ("unmetered", "cached_input", 20),
    } <= found
    assert ("posted_too_much", "output", -50) in found and ("minute_differs", "output", -50) in found
    assert ("number_missing", "", 0) in found
    assert ids_of(report, "number_missing") == {"req_3", "req_5"}


def test_an_event_that_never_came_leaves_a_number_and_a_count(hour: Hour) -> None:
    events = calls()
    hour.play(*events)
    with hour.db.begin() as conn:  # as if it had never been there: no minute, no ledger
        conn.execute(delete(usage_events).where(usage_events.c.event_id == "req_4"))
        lost = conn.execute(
            select(usage_minutes.c.id).where(usage_minutes.c.billing_minute_ms == T0 + 20 * MINUTE)
        ).scalar_one()
        for table, column in (
            (ledger_postings, ledger_postings.c.transaction_id),
            (ledger_transactions, ledger_transactions.c.id),
            (usage_minutes, usage_minutes.c.id),
        ):
            conn.execute(delete(table).where(column == lost))
    assert {kind for kind, _, _ in wrong(hour.report())} == {"unmetered", "number_missing"}


def test_a_doubled_posting_is_found(hour: Hour) -> None:
    hour.play(*calls())
    with hour.db.begin() as conn:
        row = conn.execute(
            select(ledger_transactions).where(ledger_transactions.c.kind == "usage").limit(1)
        ).mappings().one()  # fmt: skip
        conn.execute(insert(ledger_transactions).values({**row, "id": row["id"] + "/again", "seq": 10_000}))
        lines = conn.execute(
            select(ledger_postings).where(ledger_postings.c.transaction_id == row["id"])
        ).mappings()
        for line in list(lines):
            conn.execute(insert(ledger_postings).values({**line, "transaction_id": row["id"] + "/again"}))
    report = hour.report()
    assert ("posted_without_usage", "output", -50) in wrong(report)
    assert ids_of(report, "posted_without_usage") == {row["id"] + "/again"}


def test_a_changed_posting_is_found(hour: Hour) -> None:
    hour.play(*calls())
    with hour.db.begin() as conn:
        one = select(ledger_postings.c.transaction_id).where(ledger_postings.c.sku == "output").limit(1)
        conn.execute(
            update(ledger_postings)
            .where(
                ledger_postings.c.transaction_id == one.scalar_subquery(), ledger_postings.c.sku == "output"
            )
            .values(quantity=51)
        )
    assert {("posted_too_much", "output", -1), ("unbalanced", "", 0)} == wrong(hour.report())


def test_calls_past_the_gateway_are_found_and_those_of_n_answers_are_not(hour: Hour) -> None:
    events = calls(usage=Usage(100, 20, 50, choices=2))
    direct = event("direct", sent_ms=T0 + 3 * MINUTE, ended_ms=T0 + 3 * MINUTE + 500)
    hour.play(*events)
    assert {found.kind for _, found in the_row(hour.report()).findings} == {"repeated_prompt"}
    with hour.db.begin() as conn:
        conn.execute(delete(engine_counters))
        store_readings(conn, [hour.reading(at, (*events, direct)) for at in range(T0, END + MINUTE, MINUTE)])
    assert wrong(hour.report()) == {
        ("unmetered", "input", 100), ("unmetered", "output", 50),  # how much of it n answers had cached, none can tell
    }  # fmt: skip


def test_what_is_in_quarantine_waits_for_a_person(hour: Hour) -> None:
    hour.play(*calls())
    with hour.db.begin() as conn:
        put_in_quarantine(
            conn, [QuarantineRow("poison", "gateway/gw-1", "req_x", "h", "no", "{}")], T0 + 5 * MINUTE
        )
    report = hour.report()
    assert wrong(report) == {("quarantined", "", 0)} and ids_of(report, "quarantined") == {"req_x"}
    assert hour.report("org_1").verdict == "equal", "it is of no organization"


def test_two_endpoints_on_one_deployment_are_compared_together(hour: Hour) -> None:
    first, second = calls(4), calls(8, endpoint_id="ep_2", org_id="org_2")[4:]
    hour.play(*first, *second)
    rows = {
        row.scope: row
        for row in hour.report().rows
        if row.deployment_id == "dep_1" and row.scope != "endpoint"
    }
    shared = rows["deployment"]
    assert (shared.verdict, shared.of("output").engine, shared.of("output").events) == ("equal", 400, 400)
    assert {row.id for row in hour.report("org_1").rows} == {"ep_1", "dep_1"}


def test_a_stream_under_way_and_a_gateway_that_was_killed(hour: Hour) -> None:
    hour.play(*calls())
    with hour.db.begin() as conn:
        note_gateway_start(conn, "gateway/gw-1", T0 + 30 * MINUTE)
    assert hour.report().verdict == "equal"
    with hour.db.begin() as conn:
        note_progress(conn, "gateway/gw-1", 1, {"bad": "{}"}, T0)
    assert hour.report().verdict == "equal", "a note that cannot be read is passed over"


def test_corrections_and_other_meters_are_accounted_for(hour: Hour) -> None:
    events = calls()
    hour.play(*events, close=False)
    with hour.db.begin() as conn:
        standing = lock_standing(conn, "/gateway/gw-1", "req_3")
        assert standing is not None
        correction = Correction("org_1", "/gateway/gw-1", "req_3", Usage(100, 20, 10), "the answer was cut")
        record_correction(
            conn, standing, correction, source="/meters/m", event_id="c_1", payload_hash="h", now_ms=END
        )
        other = event("req_o", sent_ms=T0 + 3 * MINUTE, ended_ms=T0 + 3 * MINUTE + 500)
        insert_usage(conn, [(replace(accepted(other), source="/meters/m"), 0)], END)
    hour.world.close(END + 10 * MINUTE)
    report = hour.report()
    figures = the_row(report).of("output")
    assert (figures.engine, figures.events, figures.ledger) == (500, 510, 510)
    assert {(f.kind, f.quantity) for _, f in the_row(report).findings if f.sku == "output"} == {
        ("other_meter", -50), ("correction", 40),
    }  # fmt: skip
    assert report.verdict == "explained"


def _invoice(hour: Hour, output: int) -> None:
    """A final invoice over T0's day whose output line has this quantity."""
    with hour.db.begin() as conn:
        values: dict[str, object] = {column.name: 0 for column in invoices.c}
        values |= {
            "id": "inv_1", "org_id": "org_1", "number": "2025-0001", "kind": "monthly", "state": "finalized",
            "start_ms": T0 - HOUR_MS, "end_ms": END + HOUR_MS, "currency": "usd", "due_cents": 7,
            "lines_hash": "", "ledger_hash": "", "memo": "",
        }  # fmt: skip
        conn.execute(insert(invoices).values(values))
        minutes = 70  # the sweep went ten minutes beyond the hour, of which nine were closed
        for number, (sku, quantity) in enumerate(
            {"input": 800, "cached_input": 200, "output": output, "endpoint_minute": minutes - 1}.items()
        ):
            line: dict[str, object] = {column.name: 0 for column in invoice_lines.c}
            line |= {
                "invoice_id": "inv_1", "line": number, "org_id": "org_1", "kind": "charge", "sku": sku,
                "model_id": "acme/chat", "endpoint_id": "ep_1" if sku == "endpoint_minute" else "",
                "endpoint_name": "", "price_version": "", "quantity": quantity, "text": "",
            }  # fmt: skip
            conn.execute(insert(invoice_lines).values(line))


def test_an_invoice_equals_the_ledger_and_the_provider_the_invoice(hour: Hour) -> None:
    hour.play(*calls())
    _invoice(hour, 500)
    hour.provider["inv_1"] = ProviderAmount("in_77", 7)
    report = hour.report()
    (check,) = report.invoices
    assert check.findings == () and report.verdict == "equal"
    assert the_row(report).of("output").as_json() == dict.fromkeys(
        ("engine", "events", "ledger", "invoice", "provider"), 500
    )
    hour.provider["inv_1"] = ProviderAmount("in_77", 8)
    (check,) = hour.report().invoices
    assert [(f.kind, f.quantity) for f in check.findings] == [("provider_differs", -1)]


def test_an_invoice_that_charges_too_much_is_found(hour: Hour) -> None:
    hour.play(*calls())
    _invoice(hour, 501)
    report = hour.report()
    (check,) = report.invoices
    assert [(f.kind, f.sku, f.quantity) for f in check.findings] == [("invoice_differs", "output", -1)]
    assert report.unexplained == 1 and the_row(report).of("output").invoice is None


def test_the_hourly_run_keeps_its_result_and_raises_one_alarm(hour: Hour) -> None:
    hour.play(*calls())
    raised: list[Alarm] = []
    hourly = HourlyReconciliation(Reconciler(hour.db, hour.clock, lambda: None), raised.append)
    assert hourly.run_once().verdict == "equal" and not raised
    with hour.db.begin() as conn:
        conn.execute(delete(usage_events).where(usage_events.c.event_id == "req_4"))
    hourly.run_once()
    hourly.run_once()  # the same again is no news
    assert [alarm.kind for alarm in raised] == ["reconciliation"]
    with hour.db.read() as conn:
        kept = {each.hour_ms: each.verdict for each in kept_hours(conn, 10)}
        (listed,) = raised_alarms(conn, 10, kind="reconciliation")
    assert kept[T0] == "unexplained" and len(kept) == 3
    assert "unexplained" in listed.detail and listed.source.startswith("2025-12-25T12:00")


def test_days_of_many_hours_are_compared_in_one_go(hour: Hour) -> None:
    events = []
    for i in range(40):
        at = T0 + i * 23 * MINUTE + 30_000
        events.append(event(f"req_{i}", sent_ms=at, first_byte_ms=at + 9_000, ended_ms=at + 40_000))
    hour.play(*events, now_ms=T0 + 17 * HOUR_MS)
    report = Reconciler(hour.db, hour.clock, lambda: None).report(T0, T0 + 16 * HOUR_MS)
    assert report.unexplained == 0
    assert sum(row.of("output").ledger or 0 for row in report.rows) == 50 * 40
    assert sum(row.of("output").engine or 0 for row in report.rows) == 50 * 40
