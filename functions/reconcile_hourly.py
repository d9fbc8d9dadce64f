"""Reconciles the last hours by itself, keeps what came of it, and raises an alarm where nothing explains a difference."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from core.clock import MINUTE_MS, iso
from core.log import get_logger
from functions.reconcile import HOUR_MS, Reconciler
from functions.reconcile_report import HourRow, Report
from metering.records import Alarm
from metering.store import record_alarms
from metering.tables import gateway_starts, reconciliations

LOOK_BACK_HOURS = 3  # an hour is looked at this often: late events and closed minutes come in meanwhile
KEEP_MS = 400 * 86_400_000
MAX_KEPT_ROWS = 200
MAX_NAMED = 3  # differences in an alarm's text
_AFTER_THE_HOUR_MS = 5 * MINUTE_MS

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class KeptHour:
    """What the hourly run found out about an hour, at its newest look."""

    hour_ms: int
    made_ms: int
    verdict: str
    unexplained: int


class HourlyReconciliation:
    """Runs in the control process. `run_once` may be called at any time, any number of times."""

    def __init__(self, reconciler: Reconciler, on_alarm: Callable[[Alarm], None] | None = None) -> None:
        self._reconciler = reconciler
        self._on_alarm = on_alarm or _log_alarm

    async def run(self) -> None:
        """Five minutes after each hour, until cancelled."""
        clock = self._reconciler.clock
        while True:
            to_next = HOUR_MS - (clock.now_ms() - _AFTER_THE_HOUR_MS) % HOUR_MS
            await asyncio.sleep(min(to_next, HOUR_MS) / 1000)
            try:
                await asyncio.to_thread(self.run_once)
            except Exception:
                _log.exception("reconciliation failed; the next run looks at the same hours again")

    def run_once(self) -> Report:
        """Look at the last full hours."""
        now_ms = self._reconciler.clock.now_ms()
        end_ms = now_ms - now_ms % HOUR_MS
        report = self._reconciler.report(end_ms - LOOK_BACK_HOURS * HOUR_MS, end_ms)
        with self._reconciler.db.begin() as connection:
            raised = _keep(connection, report, now_ms)
            record_alarms(connection, raised, now_ms)
            _forget(connection, now_ms - KEEP_MS)
        for alarm in raised:
            self._on_alarm(alarm)
        return report


def kept_hours(connection: Connection, limit: int) -> list[KeptHour]:
    """The newest hours that were looked at."""
    table = reconciliations
    query = select(table.c.hour_ms, table.c.made_ms, table.c.verdict, table.c.unexplained)
    return [KeptHour(*row) for row in connection.execute(query.order_by(table.c.hour_ms.desc()).limit(limit))]


def _keep(connection: Connection, report: Report, now_ms: int) -> list[Alarm]:
    raised = []
    for hour_ms in range(report.start_ms, report.end_ms, HOUR_MS):
        hour = replace(report, rows=[row for row in report.rows if row.hour_ms == hour_ms], invoices=())
        table = reconciliations
        before = connection.execute(select(table.c.unexplained).where(table.c.hour_ms == hour_ms)).scalar()
        connection.execute(delete(table).where(table.c.hour_ms == hour_ms))
        connection.execute(
            insert(table).values(
                hour_ms=hour_ms,
                made_ms=now_ms,
                verdict=hour.verdict,
                unexplained=hour.unexplained,
                report=json.dumps(_shortened(hour.rows)),
            )
        )
        if hour.unexplained and hour.unexplained != before:
            raised.append(Alarm("reconciliation", iso(hour_ms), _summary(hour.rows, hour.unexplained)))
    if report.invoices and any(not check.equal for check in report.invoices):
        wrong = [check.number or check.invoice_id for check in report.invoices if not check.equal]
        raised.append(Alarm("reconciliation", "invoices", f"differ from the ledger: {', '.join(wrong[:10])}"))
    return raised


def _shortened(rows: Sequence[HourRow]) -> list[dict[str, Any]]:
    worst = sorted(rows, key=lambda row: row.verdict != "unexplained")
    return [row.as_json() for row in worst[:MAX_KEPT_ROWS]]


def _summary(rows: Sequence[HourRow], unexplained: int) -> str:
    found = [
        f"{row.name or row.id}: {finding.quantity or finding.count} {finding.sku or 'events'}: {finding.detail}"
        for row in rows
        for _, finding in row.findings
        if not finding.explained
    ]
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    return f"{unexplained} unexplained: " + "; ".join(found[:MAX_NAMED]) + more


def _forget(connection: Connection, before_ms: int) -> None:
    connection.execute(delete(reconciliations).where(reconciliations.c.hour_ms < before_ms))
    connection.execute(delete(gateway_starts).where(gateway_starts.c.started_ms < before_ms))


def _log_alarm(alarm: Alarm) -> None:
    _log.error("reconciliation alarm", extra={"hour": alarm.source, "detail": alarm.detail})
