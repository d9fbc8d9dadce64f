"""Reconciliation: engines' counters = gateway events = ledger = invoice lines = what the payment provider has.

Composes what metering, billing and serving know. One pass over the events of the period, a few minutes at a time, in
one snapshot of the database; nothing is written but the result of the hourly run.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select

from access.tables import organizations
from billing.invoice_check import InvoiceCheck, ProviderAmounts, check_invoices
from billing.ledger_check import check_ledger
from catalog.store import find_model
from core.clock import MINUTE_MS, Clock, minute_floor
from core.database import Database
from functions.reconcile_report import MAX_ROWS, HourRow, Report
from metering.engine_counters import Reading, readings_between
from metering.engine_match import CountedEvent, EngineMatcher
from metering.engine_spans import EngineSpan, engine_spans
from metering.recount import (
    Fact,
    Finding,
    Recount,
    corrections_between,
    counted,
    events_between,
    holes,
    in_quarantine,
    minutes_of_endpoints,
    open_calls,
    restarts_between,
)
from metering.store import first_open_minute
from serving.store import endpoint_names, find_deployment

HOUR_MS = 3_600_000
MAX_HOURS = 24 * 7
_SLICE_MS = 10 * MINUTE_MS
_LATE_MS = 2 * HOUR_MS  # a call that was under way at the end may be on record as late as this


@dataclass(frozen=True, slots=True)
class Reconciler:
    """Compares the records of a period. `catch_up` brings what is in the journals on record first."""

    db: Database
    clock: Clock
    catch_up: Callable[[], None]
    provider: ProviderAmounts | None = None

    def report(self, start_ms: int, end_ms: int, org_id: str | None = None) -> Report:
        """[start, end), by the hour, at most `MAX_HOURS` of them; all organizations, or one's endpoints."""
        self.catch_up()
        now_ms = self.clock.now_ms()
        end_ms = min(end_ms, now_ms + 1)
        start_ms = min(start_ms - start_ms % HOUR_MS, end_ms)
        with self.db.read() as conn:
            return _Comparison(conn, start_ms, end_ms, now_ms, self.provider).run(org_id)


class _Comparison:
    """One report in the making."""

    def __init__(
        self, conn: Connection, start_ms: int, end_ms: int, now_ms: int, provider: ProviderAmounts | None
    ) -> None:
        self._conn, self._start, self._end, self._now = conn, start_ms, end_ms, now_ms
        self._provider = provider
        self._first_open = first_open_minute(conn)
        self._rows: dict[tuple[int, str], HourRow] = {}
        self._sharing: dict[tuple[int, str], set[str]] = {}  # hour and deployment: endpoints with calls
        self._hours = [*range(start_ms, end_ms, HOUR_MS)]
        self._engines = _Engines(conn, [*self._hours, end_ms])

    def run(self, org_id: str | None) -> Report:
        conn, engines = self._conn, self._engines
        org_ids = list(conn.execute(select(organizations.c.id)).scalars())
        for event in events_between(conn, minute_floor(engines.earliest_ms), self._start):
            engines.feed(counted(event), None)
        for start in range(self._start, self._end, _SLICE_MS):
            self._compare_slice(start, min(start + _SLICE_MS, self._end), org_ids)
        for event in events_between(conn, self._end, min(self._now + 1, self._end + _LATE_MS)):
            engines.feed(counted(event), None)
        for call in open_calls(conn):
            engines.feed(call, None)
        self._add_engines()
        if org_id is None:
            self._add_platform()
        invoices = check_invoices(conn, self._start, self._end, org_id, self._provider)
        self._name_rows()
        self._add_invoices(invoices)
        rows = [row for row in self._rows.values() if org_id is None or row.org_id in ("", org_id)]
        rows.sort(key=lambda row: (row.hour_ms, row.scope, row.name, row.id))
        shown = sorted(rows, key=lambda row: row.verdict != "unexplained")[:MAX_ROWS]
        kept = {id(row) for row in shown}
        return Report(
            self._start,
            self._end,
            self._now,
            [row for row in rows if id(row) in kept],
            invoices,
            truncated=len(rows) > MAX_ROWS,
        )

    def _row(self, at_ms: int, endpoint_id: str) -> HourRow:
        hour = at_ms - at_ms % HOUR_MS
        found = self._rows.get((hour, endpoint_id))
        if found is None:
            found = self._rows[hour, endpoint_id] = HourRow(hour, "endpoint", endpoint_id)
        return found

    def _compare_slice(self, start: int, end: int, org_ids: Sequence[str]) -> None:
        recount = Recount()
        for event in events_between(self._conn, start, end):
            recount.add(event)
            self._engines.feed(counted(event), event.billing_minute_ms)
        facts, findings = recount.compare(self._conn, start, end, self._first_open)
        for key, minute in recount.minutes.items():
            row = self._row(key[0], key[5])
            row.org_id, row.model_id = key[2], key[6]
            for sku, quantity in minute.quantities.items():
                if quantity:
                    row.of(sku).events = (row.of(sku).events or 0) + quantity
            for deployment_id in minute.deployments:
                row.deployment_id = deployment_id
                self._sharing.setdefault((row.hour_ms, deployment_id), set()).add(key[5])
        more_facts, more = minutes_of_endpoints(self._conn, start, end, self._first_open)
        for fact in more_facts:
            row = self._row(fact.billing_minute_ms, fact.endpoint_id)
            row.org_id, row.model_id = fact.org_id, fact.model_id
            for sku, quantity in fact.quantities.items():
                row.of(sku).events = (row.of(sku).events or 0) + quantity
        corrections = corrections_between(self._conn, start, end, self._first_open)
        for fact in corrections:
            self._add_correction(fact)
        ledger = check_ledger(self._conn, start, end, [*facts, *more_facts, *corrections], org_ids)
        for posted in ledger.posted.values():
            row = self._row(posted.minute_ms, posted.endpoint_id)
            row.org_id = row.org_id or posted.org_id
            for sku, quantity in posted.quantities.items():
                row.of(sku).ledger = (row.of(sku).ledger or 0) + quantity
        for stage, found in (("events", [*findings, *more]), ("ledger", ledger.findings)):
            for endpoint_id, minute_ms, finding in found:
                _merge(self._row(minute_ms, endpoint_id).findings, stage, finding)

    def _add_correction(self, fact: Fact) -> None:
        row = self._row(fact.billing_minute_ms, fact.endpoint_id)
        row.org_id, row.model_id = fact.org_id, fact.model_id
        for sku, quantity in fact.quantities.items():
            row.of(sku).events = (row.of(sku).events or 0) + quantity
            text = "corrections: what events should have said"
            _merge(row.findings, "engine", Finding("correction", True, text, sku, -quantity, 1, fact.ids))

    def _add_engines(self) -> None:
        for deployment_id, hour, match in self._engines.results(self._now):
            sharing = self._sharing.get((hour, deployment_id), set())
            if len(sharing) == 1:
                row = self._row(hour, *sharing)
            elif match.engine is None or not (any(match.engine) or match.causes or any(match.events)):
                continue
            else:
                row = self._rows[hour, deployment_id] = HourRow(
                    hour, "deployment", deployment_id, name=f"all {len(sharing)} endpoints on it"
                )
                row.model_id = self._engines.model_of(deployment_id)
                total, cached, output = match.events
                for sku, count in (("input", total - cached), ("cached_input", cached), ("output", output)):
                    row.of(sku).events = count
            row.deployment_id = deployment_id
            row.add_engine(match)

    def _add_platform(self) -> None:
        for hour in self._hours:
            end = min(hour + HOUR_MS, self._end)
            found = [*holes(self._conn, hour, end), *in_quarantine(self._conn, hour, end)]
            if found:
                row = self._rows[hour, ""] = HourRow(hour, "platform", "", name="journals of the gateways")
                row.findings += [("events", finding) for finding in found]

    def _name_rows(self) -> None:
        names = endpoint_names(self._conn, {row.id for row in self._rows.values() if row.scope == "endpoint"})
        table = organizations
        orgs = {each.id: each.name for each in self._conn.execute(select(table.c.id, table.c.name))}
        for row in self._rows.values():
            row.name = row.name or names.get(row.id, row.id)
            row.organization = orgs.get(row.org_id, "")

    def _add_invoices(self, checks: Sequence[InvoiceCheck]) -> None:
        """An hour is on an invoice when the whole period's lines equal the ledger: then so does its part."""
        for check in checks:
            for row in self._rows.values():
                if row.org_id != check.org_id or not check.start_ms <= row.hour_ms < check.end_ms:
                    continue
                row.invoice = check.number
                if check.equal:
                    for figures in row.figures.values():
                        figures.invoice = figures.ledger
                        figures.provider = figures.ledger if check.provider is not None else None


class _Engines:
    """Each deployment's counters, and the matching of events with them."""

    def __init__(self, conn: Connection, boundaries: Sequence[int]) -> None:
        self._conn, self._boundaries = conn, boundaries
        start, end = boundaries[0], boundaries[-1]
        self._readings = readings_between(conn, start - HOUR_MS, end + HOUR_MS)
        self._restarts = restarts_between(conn, start - HOUR_MS, end + HOUR_MS)
        self._models: dict[str, str] = {}
        self._matchers: dict[str, list[EngineMatcher]] = {}
        self._spans: dict[str, list[EngineSpan]] = {}
        for deployment_id, readings in self._readings.items():
            self._open(deployment_id, readings)
        starts = [spans[0].start.at_ms for spans in self._spans.values() if spans and not spans[0].problem]
        self.earliest_ms = min([start, *starts])

    def _open(self, deployment_id: str, readings: Sequence[Reading]) -> None:
        deployment = find_deployment(self._conn, deployment_id)
        model = find_model(self._conn, deployment.model_id) if deployment else None
        context, external = (model.spec.context_length or 0, model.spec.external) if model else (0, False)
        self._models[deployment_id] = deployment.model_id if deployment else ""
        spans = engine_spans(readings, self._boundaries, self._restarts)
        self._spans[deployment_id] = spans
        self._matchers[deployment_id] = [
            EngineMatcher(deployment_id, span, context, external) for span in spans
        ]

    def model_of(self, deployment_id: str) -> str:
        return self._models.get(deployment_id, "")

    def feed(self, event: CountedEvent, billing_minute_ms: int | None) -> None:
        """`billing_minute_ms`: None for an event that is billed outside the period."""
        if event.deployment_id not in self._matchers:
            self._open(event.deployment_id, [])
        matchers = self._matchers[event.deployment_id]
        billed = None if billing_minute_ms is None else self._index(billing_minute_ms)
        for index in self._candidates(event, billed, len(matchers)):
            matchers[index].add(event, in_hour=index == billed)

    def _candidates(self, event: CountedEvent, billed: int | None, count: int) -> Iterator[int]:
        """The hours that an event may have been counted in: its own and its neighbours, and all it lasted."""
        last = self._index(event.ended_ms or self._boundaries[-1]) + 1
        first = self._index(event.sent_ms or event.ended_ms) - 1
        found = set(range(max(0, first), min(count, last + 1)))
        if billed is not None:
            found.add(billed)
        yield from sorted(found)

    def _index(self, at_ms: int) -> int:
        return bisect.bisect_right(self._boundaries, at_ms) - 1

    def results(self, now_ms: int) -> Iterator[tuple[str, int, Any]]:
        """Deployment, hour, what came of it."""
        for deployment_id, matchers in self._matchers.items():
            for hour, matcher in zip(self._boundaries, matchers, strict=False):
                yield deployment_id, hour, matcher.result(now_ms)


def _merge(findings: list[tuple[str, Finding]], stage: str, finding: Finding) -> None:
    """Explained differences of one kind are one finding; those that are not stay apart, with their ids."""
    if finding.explained:
        for i, (other_stage, other) in enumerate(findings):
            if (other_stage, other.kind, other.sku) == (stage, finding.kind, finding.sku):
                findings[i] = (stage, _sum(other, finding))
                return
    if len(findings) < 200:
        findings.append((stage, finding))


def _sum(a: Finding, b: Finding) -> Finding:
    ids = a.ids if len(a.ids) >= 20 else tuple(dict.fromkeys((*a.ids, *b.ids)))[:20]
    return Finding(a.kind, a.explained, a.detail, a.sku, a.quantity + b.quantity, a.count + b.count, ids)
