"""What must hold in the end, worked out naively from what the engine did, what callers saw, and raw rows.

Nothing here uses the platform's own arithmetic: prices are a table, sums are loops.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, text

from billing.preview import invoice_preview
from billing.tables import invoices, ledger_postings, ledger_transactions
from billing.verify import verify_chain
from catalog import price_book
from functions.reconcile import Reconciler
from metering.tables import endpoint_minutes, quarantine, usage_events
from tests.sim.caller import Seen
from tests.sim.engine import Engine, Work
from tests.sim.meter import SOURCE, OtherMeter
from tests.sim.platform import CREDIT_CENTS, Control, Installation

PICO_PER_TOKEN = {"input": 150_000, "cached_input": 75_000, "output": 600_000}
NEW_PICO_PER_TOKEN = {"input": 100_000, "cached_input": 50_000, "output": 700_000}
NEW_BATCH_OUTPUT_PICO = 350_000  # before, and for what goes in, a batch call costs what any call costs
PICO_PER_MINUTE = 500_000_000
NOTED_WITHIN_S = (
    1.6  # a stream's progress: noted every second, gathered for a quarter, looked at now and then
)


@dataclass
class Facts:
    """What happened."""

    installation: Installation
    control: Control
    engine: Engine
    seen: list[Seen]
    price_change_ms: int
    power_cuts: int
    clock_jumps: int
    deaths: int
    disk_troubles: list[tuple[float, float]]
    meter: OtherMeter


class Auditor:
    """Collects what is wrong; `findings` is empty when nothing is."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.findings: list[str] = []
        with facts.installation.db.read() as connection:
            every = connection.execute(select(usage_events)).all()
            self.rows = {row.event_id: row for row in every if row.source != SOURCE}
            self.others = {row.event_id: row for row in every if row.source == SOURCE}
            self.all_rows = len(every)
            self.minutes = connection.execute(select(endpoint_minutes)).all()

    def audit(self) -> list[str]:
        """Every invariant."""
        self._each_attempt_is_billed_once()
        self._no_answered_call_is_lost()
        self._the_ledger_is_what_the_events_say()
        self._invoices_are_what_the_events_say()
        self._the_other_meter_is_billed_once()
        self._budgets_and_limits_hold()
        self._reconciliation_is_clean()
        self._nothing_was_put_aside()
        return self.findings

    def _wrong(self, what: str) -> None:
        if len(self.findings) < 20:
            self.findings.append(what)

    # -- events against the engine --

    def _each_attempt_is_billed_once(self) -> None:
        if self.all_rows != len(self.rows) + len(self.others):
            self._wrong(f"{self.all_rows} rows for {len(self.rows)} + {len(self.others)} events")
        for work in self.facts.engine.work.values():
            row = self.rows.get(work.attempt_id)
            if row is None:
                self._excuse_missing(work)
            elif row.status == "completed":
                self._check_completed(work, row)
            elif row.status != "error":
                # What the engine had not told yet is estimated, as the policy says; never more output than there was.
                known = row.usage_source == "engine"
                if row.output > work.produced or (known and row.input != work.prompt):
                    self._wrong(
                        f"{row.event_id} ({row.status}) billed {row.input}+{row.output}, engine: {work}"
                    )
        for row in self.rows.values():
            unknown = row.event_id not in self.facts.engine.work
            if unknown and row.sent_ms and row.status != "error" and (row.input or row.output):
                self._wrong(f"{row.event_id} ({row.status}) is billed, but no engine worked for it")

    def _check_completed(self, work: Work, row: Any) -> None:
        billed = (row.input, row.cached_input, row.output)
        if not work.finished or billed != (work.prompt, work.cached, work.produced):
            self._wrong(f"{row.event_id} billed {billed}, the engine: {work}")

    def _excuse_missing(self, work: Work) -> None:
        """Only a gateway that died may leave none, and only of what was not yet noted or answered."""
        last = work.history[-1][0] if work.history else work.began
        if (work.failed or not work.history) and any(
            start <= last + 1 and work.began <= end for start, end in self.facts.disk_troubles
        ):
            return  # it could not be written down, and the caller was told so instead of getting the answer
        kills = [at for at in self.facts.installation.killed_at if at >= work.began]
        if not kills:
            self._wrong(f"no event for {work}, and no gateway died")
            return
        noted = [told for at, told in work.history if at < kills[0] - NOTED_WITHIN_S]
        if noted and not self.facts.power_cuts:
            self._wrong(f"no event for {work}, though {noted[-1]} tokens were delivered long before the kill")

    # -- events against the callers --

    def _no_answered_call_is_lost(self) -> None:
        by_request: dict[str, list[Any]] = defaultdict(list)
        for row in self.rows.values():
            by_request[row.request_id].append(row)
        for seen in self.facts.seen:
            if not seen.request_id:
                continue
            rows = by_request[seen.request_id]
            last = max(rows, key=lambda row: row.attempt, default=None)
            if seen.complete and (last is None or last.status != "completed"):
                self._wrong(f"{seen.request_id} was answered, but its event is {last}")
            if seen.complete and seen.usage is not None and last is not None:
                told = (seen.usage["prompt_tokens"], seen.usage["completion_tokens"])
                if told != (last.input, last.output):
                    self._wrong(f"{seen.request_id}: the caller was told {told}, billed is {last}")
            cut = seen.left and last is not None and last.status == "client_disconnect"
            # One chunk of the engine is one token; what the caller has, it pays for.
            if cut and last is not None and last.output < seen.chunks:
                self._wrong(f"{seen.request_id}: {seen.chunks} chunks were delivered, {last.output} billed")
            if seen.status in (401, 402, 404, 429) and rows:
                self._wrong(f"{seen.request_id} was refused with {seen.status} and has events")

    # -- money --

    def _the_ledger_is_what_the_events_say(self) -> None:
        expected: dict[str, int] = defaultdict(int)
        for row in (*self.rows.values(), *self.others.values()):
            expected[row.org_id] += self.cost(row)
        for minute in self.minutes:
            expected[minute.org_id] += PICO_PER_MINUTE
        self._check_minutes()
        with self.facts.installation.db.read() as connection:
            postings = connection.execute(
                select(ledger_postings, ledger_transactions.c.org_id, ledger_transactions.c.kind).join(
                    ledger_transactions, ledger_transactions.c.id == ledger_postings.c.transaction_id
                )
            ).all()
            sums: dict[str, int] = defaultdict(int)
            owed: dict[str, int] = defaultdict(int)
            for posting in postings:
                sums[posting.transaction_id] += posting.amount_pico
                charged = posting.kind in ("usage", "endpoint_minute", "adjustment")
                if charged and posting.account == f"receivable:{posting.org_id}":
                    owed[posting.org_id] += posting.amount_pico
            for org_id in self.facts.installation.org_ids:
                preview = invoice_preview(connection, org_id, 0, 2**45, 0, price_book)
                chain = verify_chain(connection, org_id)
                if chain.faults:
                    self._wrong(f"chain of {org_id}: {chain.faults}")
                if not owed[org_id] == preview.total_pico == expected[org_id]:
                    self._wrong(
                        f"{org_id}: events say {expected[org_id]}, ledger {owed[org_id]}, preview {preview.total_pico}"
                    )
        if any(sums.values()):
            self._wrong("transactions that do not sum to zero")

    # -- invoices --

    def _invoices_are_what_the_events_say(self) -> None:
        """By organization and month of billing: one invoice, of lines that are rounded once."""
        quantities: dict[tuple[str, str], dict[tuple[str, ...], int]] = defaultdict(lambda: defaultdict(int))
        for row in (*self.rows.values(), *self.others.values()):
            if row.status != "error":
                line = quantities[row.org_id, _month(row.billing_minute_ms)]
                table = self.prices(row)
                fresh = row.input - row.cached_input
                parts = {"input": fresh, "cached_input": row.cached_input, "output": row.output}
                tier = "batch" if row.batch else ""
                for sku, quantity in parts.items():
                    line[tier + sku, str(table[sku])] += quantity
        for minute in self.minutes:
            line = quantities[minute.org_id, _month(minute.billing_minute_ms)]
            line[minute.endpoint_id, str(PICO_PER_MINUTE)] += 1
        expected = {
            of: sum(_cents(quantity * int(price)) for (_, price), quantity in lines.items())
            for of, lines in quantities.items()
        }
        with self.facts.installation.db.read() as connection:
            found = connection.execute(select(invoices)).all()
        by_month = {(row.org_id, _month(row.start_ms)): row for row in found}
        if len(by_month) != len(found):
            self._wrong(f"{len(found)} invoices of {len(by_month)} months")
        for of, cents in expected.items():
            made = by_month.get(of)
            if made is None or made.total_cents != cents or made.state not in ("finalized", "paid"):
                self._wrong(f"invoice of {of}: expected {cents} cents, is {made}")
        for org_id in self.facts.installation.org_ids:
            used = sum(row.credit_cents for row in found if row.org_id == org_id)
            total = sum(row.total_cents for row in found if row.org_id == org_id)
            if abs(used) != min(CREDIT_CENTS, total):
                self._wrong(f"{org_id} was credited {used} cents of {CREDIT_CENTS}, for {total}")
        numbers = sorted(row.number for row in found)
        by_year: dict[str, list[int]] = defaultdict(list)
        for number in numbers:
            prefix, _, last = number.rpartition("-")
            by_year[prefix].append(int(last))
        if any(each != list(range(1, len(each) + 1)) for each in by_year.values()):
            self._wrong(f"invoice numbers have gaps: {numbers}")

    def _the_other_meter_is_billed_once(self) -> None:
        meter = self.facts.meter
        for trouble in meter.trouble[:3]:
            self._wrong(f"other meter: {trouble}")
        for event_id, usage in meter.sent.items():
            row = self.others.get(event_id)
            if row is None or (row.input, row.cached_input, row.output, row.batch) != (
                usage.input,
                usage.cached_input,
                usage.output,
                usage.batch,
            ):
                self._wrong(f"other meter: {event_id} sent {usage}, on record {row}")

    def _reconciliation_is_clean(self) -> None:
        installation = self.facts.installation
        reconciler = Reconciler(installation.db, installation.clock, lambda: None)
        start_ms = min((row.received_ms for row in self.rows.values()), default=0) - 3_600_000
        report = reconciler.report(start_ms, start_ms + 4 * 3_600_000)
        if report.unexplained:
            found = [row.as_json() for row in report.rows if row.verdict == "unexplained"]
            self._wrong(f"reconcile: {str(found)[:1500]} {str(report.invoices)[:300]}")

    def prices(self, row: Any) -> dict[str, int]:
        """The price table of the minute in which it ended."""
        minute = row.ended_ms - row.ended_ms % 60_000
        if minute < self.facts.price_change_ms:
            return PICO_PER_TOKEN
        return NEW_PICO_PER_TOKEN | ({"output": NEW_BATCH_OUTPUT_PICO} if row.batch else {})

    def cost(self, row: Any) -> int:
        """One event, by the price table of the minute in which it ended."""
        if row.status == "error":
            return 0
        table = self.prices(row)
        fresh = (row.input - row.cached_input) * table["input"]
        return fresh + row.cached_input * table["cached_input"] + row.output * table["output"]

    def _check_minutes(self) -> None:
        by_endpoint: dict[str, list[int]] = defaultdict(list)
        for row in self.minutes:
            by_endpoint[row.endpoint_id].append(row.service_minute_ms)
        for endpoint_id, minutes in by_endpoint.items():
            minutes.sort()
            if minutes != list(range(minutes[0], minutes[-1] + 60_000, 60_000)):
                self._wrong(f"minutes of {endpoint_id} have gaps or doubles")

    # -- admission --

    def _budgets_and_limits_hold(self) -> None:
        for key_id, amount in self.facts.installation.budgets.items():
            spent = sum(self.cost(row) for row in self.rows.values() if row.key_id == key_id)
            if spent > amount:
                self._wrong(f"budget of {key_id}: {spent} of {amount} spent")
        if self.facts.clock_jumps or self.facts.installation.lives > 1:
            return  # a window does not survive its process, and follows the clock
        for key_id, per_minute in self.facts.installation.limited.items():
            times = sorted(
                row.received_ms for row in self.rows.values() if row.key_id == key_id and row.attempt == 1
            )
            for index, at_ms in enumerate(times):
                inside = sum(1 for other in times[index:] if other < at_ms + 60_000)
                if inside > per_minute:
                    self._wrong(
                        f"{inside} calls of {key_id} within a minute from {at_ms}, {per_minute} allowed"
                    )
                    break

    def _nothing_was_put_aside(self) -> None:
        with self.facts.installation.db.read() as connection:
            for row in connection.execute(select(quarantine)):
                if row.kind != "corrupt" or not self.facts.power_cuts:
                    self._wrong(f"quarantine: {row.kind} {row.event_id} {row.reason}")
        kinds = {alarm.kind for alarm in self.facts.control.alarms}
        if kinds - {"corrupt"}:
            self._wrong(f"alarms: {[a for a in self.facts.control.alarms if a.kind != 'corrupt'][:3]}")


def _month(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m")


def _cents(pico: int) -> int:
    """Half away from zero; nothing here is negative."""
    return (pico + 5 * 10**9) // 10**10


def fingerprint(installation: Installation) -> list[Any]:
    """Everything that money depends on, to compare before and after a replay."""
    found: list[Any] = []
    with installation.db.read() as connection:
        for table, order in (
            ("usage_events", "event_id"),
            ("usage_minutes", "id"),
            ("endpoint_minutes", "id"),
            ("ledger_transactions", "id"),
            ("ledger_postings", "transaction_id, line"),
            ("ledger_days", "org_id, day_ms, endpoint_id, sku, price_version"),
            ("budgets", "id"),
            ("invoices", "id"),
            ("invoice_lines", "invoice_id, line"),
            ("credit_grants", "id"),
        ):
            rows = connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}"))
            found.append([tuple(row) for row in rows])
    return found
