"""What budgets have spent, kept by the control process: usage is rated and charged as it is recorded.

A charge is in the transaction that records the usage, so the balance includes exactly the events before the
journal's cursor, and a gateway knows which of its own calls it must still add.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy import Connection, Row, func, or_, select

from access.admission.charging import Charge, OnCrossed, charge
from access.admission.model import BudgetWindow, window_end, window_start
from access.admission.store import StoredBudget, announce_balances, any_budget, forget_moves
from billing.model import PriceBook
from billing.rate import Prices, cost_pico
from billing.receipts import UNBILLED
from core.changes import forget_changes
from core.clock import iso
from core.money import format_pico
from metering.endpoint_minutes import EndpointLife
from metering.intake import Corrected
from metering.model import CALL_SKUS, UsageEvent
from metering.records import ENDPOINT_MINUTE_SKU
from metering.tables import call_quantities, endpoint_minutes, usage_corrections, usage_events
from webhooks.model import BUDGET_THRESHOLD
from webhooks.outbox import enqueue_event

_ANNOUNCE_EVERY_MS = 1000
_KEEP_MOVES_MS, _KEPT_ANNOUNCEMENTS = 60_000, 1000
_FORGET_EVERY_MS = 3_600_000
_DAY_MS = 86_400_000
_SILENT_MS = 10_000


class BudgetKeeper:
    """Charges budgets. Its methods work in the transaction of what they charge for."""

    def __init__(self, book: PriceBook) -> None:
        self._book = book
        self._announced_ms = 0
        self._announced: deque[tuple[int, int]] = deque(maxlen=_KEPT_ANNOUNCEMENTS)  # when, and the last move
        self._forgot_ms = 0

    def charge_usage(self, connection: Connection, events: Sequence[UsageEvent], now_ms: int) -> None:
        """These events are being recorded."""
        if not any_budget(connection):
            return
        prices = Prices(connection, self._book)
        charges = [self._charge_of(event, prices) for event in events if event.status != UNBILLED]
        moved = charge(connection, charges, now_ms, _alerting(connection, now_ms))
        # The gateway counts its own calls until it hears of them here, so nothing depends on haste, except for
        # those that it does not know: of a gateway that was killed.
        unknown = any(event.status == "interrupted" for event in events)
        if moved and (unknown or abs(now_ms - self._announced_ms) >= _ANNOUNCE_EVERY_MS):
            self._announce(connection, now_ms)

    def charge_corrections(
        self, connection: Connection, corrections: Sequence[Corrected], now_ms: int
    ) -> None:
        """These corrections are being recorded; they count where the corrected call did, and may lower what is spent."""
        if not corrections or not any_budget(connection):
            return
        prices = Prices(connection, self._book)
        charges = [
            Charge(
                each.at_ms,
                each.org_id,
                each.project_id,
                each.key_id,
                _cost(each.quantities, each.org_id, each.model_id, each.at_ms, prices),
            )
            for each in corrections
        ]
        if charge(connection, charges, now_ms, _alerting(connection, now_ms)):
            self._announce(connection, now_ms)

    def charge_minutes(
        self, connection: Connection, minutes: Iterable[tuple[EndpointLife, Sequence[int]]], now_ms: int
    ) -> None:
        """These minutes of endpoints are being recorded."""
        if not any_budget(connection):
            return
        prices = Prices(connection, self._book)
        charges = [
            Charge(
                at_ms,
                life.org_id,
                life.project_id,
                "",
                _minute_cost(prices, life.org_id, life.model_id, at_ms),
            )
            for life, recorded in minutes
            for at_ms in recorded
        ]
        if charge(connection, charges, now_ms, _alerting(connection, now_ms)):
            self._announce(connection, now_ms)

    def _charge_of(self, event: UsageEvent, prices: Prices) -> Charge:
        cost = _cost(event.usage.billable(), event.org_id, event.model_id, event.ended_ms, prices)
        return Charge(event.ended_ms, event.org_id, event.project_id, event.key_id, cost)

    def _announce(self, connection: Connection, now_ms: int) -> None:
        self._announced_ms = now_ms
        self._announced.append((now_ms, announce_balances(connection, now_ms)))
        old = 0
        while now_ms - self._announced[0][0] > _KEEP_MOVES_MS:
            old = self._announced.popleft()[1]
        if old:
            forget_moves(connection, old)
        if now_ms - self._forgot_ms >= _FORGET_EVERY_MS:
            self._forgot_ms = now_ms
            forget_changes(connection, now_ms - _DAY_MS)

    def spent_so_far(
        self, connection: Connection, scope_id: str, org_id: str, window: BudgetWindow, now_ms: int
    ) -> int:
        """What the scope spent in the current day or month; a budget without end begins with nothing spent.

        The caller holds the lock of the first open minute, so that nothing is recorded meanwhile.
        """
        if window == "total":
            return 0
        start_ms = window_start(window, now_ms)
        prices = Prices(connection, self._book)
        calls = sum(
            _cost(_by_sku(row), org_id, row.model_id, row.service_minute_ms, prices)
            for row in _usage_since(connection, scope_id, org_id, start_ms)
        )
        minutes = sum(
            int(row.minutes) * _minute_cost(prices, org_id, row.model_id, row.service_minute_ms)
            for row in _minutes_since(connection, scope_id, org_id, start_ms)
        )
        corrected = sum(
            _cost(_by_sku(row), org_id, row.model_id, row.service_minute_ms, prices)
            for row in _corrections_since(connection, scope_id, org_id, start_ms)
        )
        return max(0, calls + minutes + corrected)


def _alerting(connection: Connection, now_ms: int) -> OnCrossed:
    """Tells the organization's webhooks, in the transaction that charges."""

    def tell(stored: StoredBudget, percent: int) -> None:
        budget = stored.budget
        in_window = stored.window_ms or now_ms
        data = {
            "budget_id": budget.id,
            "scope": budget.scope,
            "scope_id": budget.scope_id,
            "threshold_percent": percent,
            "amount_usd": format_pico(budget.amount_pico),
            "spent_usd": format_pico(stored.spent_pico),
            "window": budget.window,
            "window_start": iso(stored.window_ms) if stored.window_ms else None,
            "resets_at": iso(end) if (end := window_end(budget.window, in_window)) else None,
            "hard": budget.hard,
        }
        enqueue_event(connection, budget.org_id, BUDGET_THRESHOLD, budget.id, data, now_ms)

    return tell


def _cost(quantities: Mapping[str, int], org_id: str, model_id: str, at_ms: int, prices: Prices) -> int:
    """Exact; what has no price costs nothing until it has one (billing holds it, with an alarm)."""
    return cost_pico(quantities, prices.at(org_id, model_id, at_ms))


def _minute_cost(prices: Prices, org_id: str, model_id: str, at_ms: int) -> int:
    return _cost({ENDPOINT_MINUTE_SKU: 1}, org_id, model_id, at_ms, prices)


def _usage_since(
    connection: Connection, scope_id: str, org_id: str, start_ms: int
) -> Iterable[Row[tuple[object, ...]]]:
    table = usage_events
    billed = (
        table.c.org_id == org_id,
        table.c.ended_ms >= start_ms,
        table.c.status != UNBILLED,
        or_(table.c.org_id == scope_id, table.c.project_id == scope_id, table.c.key_id == scope_id),
    )
    return connection.execute(
        select(
            table.c.model_id,
            table.c.service_minute_ms,
            *(func.sum(quantity).label(sku) for sku, quantity in call_quantities().items()),
        )
        .where(*billed)
        .group_by(table.c.model_id, table.c.service_minute_ms)
    )


def _corrections_since(
    connection: Connection, scope_id: str, org_id: str, start_ms: int
) -> Iterable[Row[tuple[object, ...]]]:
    table = usage_corrections
    return connection.execute(
        select(
            table.c.model_id,
            table.c.service_minute_ms,
            *(func.sum(table.c[sku]).label(sku) for sku in CALL_SKUS),
        )
        .where(
            table.c.org_id == org_id,
            table.c.service_minute_ms >= start_ms,
            or_(table.c.org_id == scope_id, table.c.project_id == scope_id, table.c.key_id == scope_id),
        )
        .group_by(table.c.model_id, table.c.service_minute_ms)
    )


def _by_sku(row: Row[tuple[object, ...]]) -> dict[str, int]:
    return {sku: int(getattr(row, sku)) for sku in CALL_SKUS}


def _minutes_since(
    connection: Connection, scope_id: str, org_id: str, start_ms: int
) -> Iterable[Row[tuple[object, ...]]]:
    table = endpoint_minutes
    return connection.execute(
        select(table.c.model_id, table.c.service_minute_ms, func.count().label("minutes"))
        .where(
            table.c.org_id == org_id,
            table.c.service_minute_ms >= start_ms,
            or_(table.c.org_id == scope_id, table.c.project_id == scope_id),
        )
        .group_by(table.c.model_id, table.c.service_minute_ms)
    )


class HeldReports:
    """What calls in flight hold of budgets, as the gateways last told; forgotten when they fall silent."""

    def __init__(self) -> None:
        self._by_gateway: dict[str, tuple[int, Mapping[str, int]]] = {}

    def report(self, gateway: str, held: Mapping[str, int], at_ms: int) -> None:
        """The gateway's holds are these, by budget id."""
        self._by_gateway[gateway] = (at_ms, held)

    def held(self, budget_id: str, now_ms: int) -> int:
        """The sum over the gateways that reported lately."""
        return sum(
            held.get(budget_id, 0) for at_ms, held in self._by_gateway.values() if now_ms - at_ms < _SILENT_MS
        )
