"""SQL of limits and budgets. Every function works in the caller's transaction; readers are told of each change.

In the change feed a policy's kind is `limit` and its ref the scope's id; a balance's kind is `budget`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, func, insert, select, update

from access.admission.model import (
    ALL_BALANCES,
    BUDGET_SCOPES,
    Budget,
    BudgetScope,
    BudgetWindow,
    Limits,
    ScopeKind,
    ScopePolicy,
    window_start,
)
from access.admission.values import Balance
from access.tables import budget_moves, budgets, limits
from core.changes import record_change
from core.errors import NotFound
from core.ids import new_id

DEFAULT_ALERTS = (50, 80, 100)
MAX_ALERTS, MAX_ALERT_PERCENT = 20, 1000

_LIMIT_NAMES = ("requests_per_minute", "requests_per_day", "tokens_per_minute", "parallel_requests")
_BUDGET_COLUMNS = [
    budgets.c[name]
    for name in ("id", "scope", "scope_id", "org_id", "amount_pico", "time_window", "hard", "created_ms")
]


@dataclass(frozen=True, slots=True)
class StoredLimits:
    """A scope's own limits."""

    scope: ScopeKind
    scope_id: str
    org_id: str
    limits: Limits
    open_on_outage: bool
    updated_ms: int


@dataclass(frozen=True, slots=True)
class StoredBudget:
    """A budget and what is on record as spent from it in the window that starts at `window_ms`."""

    budget: Budget
    window_ms: int
    spent_pico: int
    version: int
    alerts: tuple[int, ...] = DEFAULT_ALERTS
    alerted_percent: int = 0

    def passed(self) -> int:
        """The highest alert that spending has reached, 0: none."""
        return highest_alert(self.alerts, self.budget.amount_pico, self.spent_pico)

    def alerted_at(self, now_ms: int) -> int:
        """The highest alert of the window of `now_ms` that was told of, 0: none."""
        return self.alerted_percent if self.window_ms == window_start(self.budget.window, now_ms) else 0

    def spent_at(self, now_ms: int) -> int:
        """What is spent in the window of `now_ms`: nothing yet when the record is of an earlier one."""
        return self.spent_pico if self.window_ms == window_start(self.budget.window, now_ms) else 0


# --- limits ---------------------------------------------------------------------------------------


def put_limits(connection: Connection, stored: StoredLimits) -> None:
    """Set a scope's limits, in the place of those it had."""
    _delete_limits(connection, stored.scope_id)
    values = {name: getattr(stored.limits, name) for name in _LIMIT_NAMES}
    connection.execute(
        insert(limits).values(
            scope_id=stored.scope_id,
            scope=stored.scope,
            org_id=stored.org_id,
            open_on_outage=stored.open_on_outage,
            updated_ms=stored.updated_ms,
            **values,
        )
    )
    record_change(connection, "limit", stored.scope_id, stored.updated_ms)


def find_limits(connection: Connection, scope_id: str) -> StoredLimits | None:
    """The limits that were set for a scope, None: none were."""
    row = connection.execute(select(limits).where(limits.c.scope_id == scope_id)).first()
    return None if row is None else _stored_limits(row)


def remove_limits(connection: Connection, scope_id: str, now_ms: int) -> None:
    """From now on the scope has what scopes have by default."""
    if _delete_limits(connection, scope_id):
        record_change(connection, "limit", scope_id, now_ms)


def _delete_limits(connection: Connection, scope_id: str) -> bool:
    return connection.execute(delete(limits).where(limits.c.scope_id == scope_id)).rowcount > 0


def _stored_limits(row: Row[Any]) -> StoredLimits:
    values = Limits(**{name: getattr(row, name) for name in _LIMIT_NAMES})
    return StoredLimits(row.scope, row.scope_id, row.org_id, values, bool(row.open_on_outage), row.updated_ms)


# --- budgets --------------------------------------------------------------------------------------


def create_budget(
    connection: Connection,
    *,
    scope: BudgetScope,
    scope_id: str,
    org_id: str,
    amount_pico: int,
    window: BudgetWindow,
    hard: bool,
    spent_pico: int,
    now_ms: int,
    alerts: Sequence[int] = DEFAULT_ALERTS,
) -> StoredBudget:
    """A new budget, of which `spent_pico` is spent already in the current window: of that nobody is alerted."""
    assert scope in BUDGET_SCOPES, scope
    budget = Budget(new_id("budget", now_ms), scope, scope_id, org_id, amount_pico, window, hard, now_ms)
    stored = StoredBudget(budget, window_start(window, now_ms), spent_pico, now_ms, tuple(alerts))
    stored = replace(stored, alerted_percent=stored.passed())
    connection.execute(
        insert(budgets).values(
            id=budget.id,
            scope=scope,
            scope_id=scope_id,
            org_id=org_id,
            amount_pico=amount_pico,
            time_window=window,
            hard=hard,
            created_ms=now_ms,
            window_ms=stored.window_ms,
            spent_pico=spent_pico,
            version=stored.version,
            alerts=_alerts_text(alerts),
            alerted_percent=stored.alerted_percent,
        )
    )
    record_change(connection, "limit", scope_id, now_ms)
    return stored


def get_budget(connection: Connection, budget_id: str, *, lock: bool = False) -> StoredBudget:
    """The budget with that id; NotFound when there is none. Locked, nothing is charged meanwhile."""
    query = select(budgets).where(budgets.c.id == budget_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise NotFound(f"there is no budget {budget_id!r}; see `farebox budget list`", param="id")
    return _stored_budget(row)


def list_budgets(
    connection: Connection, *, org_id: str | None = None, limit: int = 50, after: str = ""
) -> list[StoredBudget]:
    """Budgets in order of creation: one organization's, or all (for the operator)."""
    query = select(budgets).where(budgets.c.id > after).order_by(budgets.c.id).limit(limit)
    if org_id is not None:
        query = query.where(budgets.c.org_id == org_id)
    return [_stored_budget(row) for row in connection.execute(query)]


def change_budget(
    connection: Connection,
    budget_id: str,
    now_ms: int,
    *,
    amount_pico: int | None,
    hard: bool | None,
    alerts: Sequence[int] | None = None,
) -> StoredBudget:
    """Another amount (a top-up is a larger one) or kind; what is spent stays spent."""
    found = get_budget(connection, budget_id, lock=True)
    changed = replace(
        found.budget,
        amount_pico=found.budget.amount_pico if amount_pico is None else amount_pico,
        hard=found.budget.hard if hard is None else hard,
    )
    after = replace(found, budget=changed, alerts=found.alerts if alerts is None else tuple(alerts))
    connection.execute(
        update(budgets)
        .where(budgets.c.id == budget_id)
        .values(
            amount_pico=changed.amount_pico,
            hard=changed.hard,
            alerts=_alerts_text(after.alerts),
            # What spending has reached by now is no news; of what a larger amount puts ahead again there will be.
            alerted_percent=after.passed(),
        )
    )
    record_change(connection, "limit", changed.scope_id, now_ms)
    return get_budget(connection, budget_id)


def delete_budget(connection: Connection, budget_id: str, now_ms: int) -> StoredBudget:
    """Take the budget away; the money that was spent stays on the ledger."""
    found = get_budget(connection, budget_id)
    connection.execute(delete(budgets).where(budgets.c.id == budget_id))
    record_change(connection, "limit", found.budget.scope_id, now_ms)
    return found


def _budget(row: Row[Any]) -> Budget:
    return Budget(
        row.id,
        row.scope,
        row.scope_id,
        row.org_id,
        row.amount_pico,
        row.time_window,
        bool(row.hard),
        row.created_ms,
    )


def _stored_budget(row: Row[Any]) -> StoredBudget:
    alerts = parse_alerts(row.alerts)
    return StoredBudget(_budget(row), row.window_ms, row.spent_pico, row.version, alerts, row.alerted_percent)


def highest_alert(alerts: Sequence[int], amount_pico: int, spent_pico: int) -> int:
    """The highest of `alerts` (per cent) that spending has reached, 0: none."""
    return max((each for each in alerts if spent_pico * 100 >= amount_pico * each), default=0)


def parse_alerts(text: str) -> tuple[int, ...]:
    """Alerts as they are stored: `50,80,100`."""
    return tuple(int(part) for part in text.split(",") if part)


def _alerts_text(alerts: Sequence[int]) -> str:
    return ",".join(str(each) for each in sorted(set(alerts)))


# --- what is spent --------------------------------------------------------------------------------


def any_budget(connection: Connection) -> bool:
    """Whether there is any; where there is none, nothing need be rated."""
    return connection.execute(select(budgets.c.id).limit(1)).first() is not None


def announce_balances(connection: Connection, now_ms: int) -> int:
    """Tell the gateways to read balances; returns the number of the last move."""
    record_change(connection, "budget", "*", now_ms)
    return connection.execute(select(func.max(budget_moves.c.seq))).scalar() or 0


def forget_moves(connection: Connection, through: int) -> None:
    """Delete moves up to that number, but for the last one: whoever has not read them yet reads all."""
    last = select(func.max(budget_moves.c.seq)).scalar_subquery()
    connection.execute(delete(budget_moves).where(budget_moves.c.seq <= through, budget_moves.c.seq < last))


# --- what a gateway reads -------------------------------------------------------------------------


def read_policies(connection: Connection) -> list[ScopePolicy]:
    """Everything that is configured."""
    found: dict[str, ScopePolicy] = {}
    for row in connection.execute(select(limits)):
        stored = _stored_limits(row)
        found[row.scope_id] = ScopePolicy(
            stored.scope, stored.scope_id, stored.limits, (), stored.open_on_outage
        )
    for row in connection.execute(select(*_BUDGET_COLUMNS).order_by(budgets.c.id)):
        budget = _budget(row)
        policy = found.get(budget.scope_id) or ScopePolicy(budget.scope, budget.scope_id)
        found[budget.scope_id] = replace(policy, budgets=(*policy.budgets, budget))
    return list(found.values())


def read_policy(connection: Connection, scope_id: str) -> ScopePolicy:
    """What is configured for one scope; without limits and budgets when nothing is."""
    stored = find_limits(connection, scope_id)
    rows = connection.execute(
        select(*_BUDGET_COLUMNS).where(budgets.c.scope_id == scope_id).order_by(budgets.c.id)
    )
    owned = tuple(_budget(row) for row in rows)
    kind: ScopeKind = stored.scope if stored else owned[0].scope if owned else "key"
    limits_of_it = stored.limits if stored else None
    return ScopePolicy(kind, scope_id, limits_of_it, owned, stored is not None and stored.open_on_outage)


def read_balances(
    connection: Connection, through: Mapping[str, int], after: int = ALL_BALANCES
) -> tuple[list[Balance], int]:
    """Balances that moved after the number `after` of the last one that was read, and the number of the last of these.

    `through` must have been read before: what is recorded in between is then counted twice for a moment, and
    never missed. What is no longer known by its number is found by reading all.
    """
    first, last = connection.execute(select(func.min(budget_moves.c.seq), func.max(budget_moves.c.seq))).one()
    known = first is not None and after >= first - 1
    table: Table = budget_moves if known else budgets
    ids = budget_moves.c.budget_id if known else budgets.c.id
    query = select(ids, table.c.window_ms, table.c.spent_pico, table.c.version)
    if known:
        query = query.where(budget_moves.c.seq > after).order_by(budget_moves.c.seq)
    with connection.execute(query) as result:
        assert result.cursor is not None, "of a query"
        # The driver's own rows: with many keys there are as many as calls, and SQLAlchemy's take half the time.
        rows = result.cursor.fetchall()
    found = [Balance(id_, window_ms, int(spent), version, through) for id_, window_ms, spent, version in rows]
    return found, last or 0
