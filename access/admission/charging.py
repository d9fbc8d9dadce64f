"""Counting in budgets what was spent, in the caller's transaction.

With many keys there is a budget for every call, so rows come as the driver gives them and go back in one statement.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from access.admission.model import BudgetWindow, window_end, window_start
from access.admission.store import StoredBudget, get_budget, highest_alert, parse_alerts
from core.changes import number_in_order


class Charge(NamedTuple):
    """Money that was spent. The key is "" for what no key caused."""

    at_ms: int
    org_id: str
    project_id: str
    key_id: str
    amount_pico: int


OnCrossed = Callable[[StoredBudget, int], None]


class _Spent(NamedTuple):
    """What a budget has spent in the window that starts at `window_ms`, and the highest alert that was told of."""

    window_ms: int
    pico: int
    alerted_percent: int


_COLUMNS = "id, scope_id, time_window, amount_pico, alerts, version, window_ms, spent_pico, alerted_percent"
# One parameter, however many ids. SQLite's own number of a row spares it another look-up when the row moves.
_FIND_SQLITE = text(
    f"SELECT rowid, {_COLUMNS} FROM budgets WHERE scope_id IN (SELECT value FROM json_each(:ids))"
)
# In order of id, so that two writers never wait for each other.
_FIND_POSTGRESQL = text(
    f"SELECT id, {_COLUMNS} FROM budgets WHERE scope_id = ANY(:ids) ORDER BY id FOR UPDATE"
)
_MOVE = "UPDATE budgets SET window_ms = {0}, spent_pico = {0}, version = {0}, alerted_percent = {0} WHERE {1} = {0}"
_TELL = "INSERT INTO budget_moves (window_ms, spent_pico, version, budget_id) VALUES ({0}, {0}, {0}, {0})"


def charge(
    connection: Connection,
    charges: Sequence[Charge],
    now_ms: int,
    on_crossed: OnCrossed | None = None,
) -> int:
    """Count charges in the budgets of their key, project and organization; returns how many budgets moved.

    `on_crossed` is told of each alert that spending crosses, once in a window.
    """
    by_scope = _by_scope(charges)
    in_sqlite = connection.dialect.name == "sqlite"  # which keeps money as text: see `core/money_column.py`
    moves: list[tuple[object, ...]] = []
    told_of: list[tuple[object, ...]] = []
    crossed: list[tuple[str, list[int]]] = []
    for row, id_, scope_id, window, amount, alerts, version, *spent in _locked(connection, by_scope):
        before = _Spent(spent[0], int(spent[1]), spent[2])
        after = _charged(window, before, by_scope[scope_id])
        if after == before:
            continue
        window_ms, pico, told = after
        percents = _alerts(alerts)
        passed = highest_alert(percents, int(amount), pico)
        if passed > told:
            crossed.append((id_, [each for each in sorted(percents) if told < each <= passed]))
        now = (window_ms, str(pico) if in_sqlite else pico, max(version + 1, now_ms))
        moves.append((*now, max(told, passed), row))
        told_of.append((*now, id_))
    if moves:
        mark = "?" if in_sqlite else "%s"
        connection.exec_driver_sql(_MOVE.format(mark, "rowid" if in_sqlite else "id"), moves)
        number_in_order(connection)
        connection.exec_driver_sql(_TELL.format(mark), told_of)
    if on_crossed is not None:
        for id_, reached in crossed:
            stored = get_budget(connection, id_)
            for percent in reached:
                on_crossed(stored, percent)
    return len(moves)


_alerts = lru_cache(1024)(parse_alerts)


def _by_scope(charges: Iterable[Charge]) -> dict[str, list[Charge]]:
    found: dict[str, list[Charge]] = {}
    for each in charges:
        if each.amount_pico:
            for scope_id in {each.key_id, each.project_id, each.org_id} - {""}:
                found.setdefault(scope_id, []).append(each)
    return found


def _charged(window: BudgetWindow, spent: _Spent, charges: Iterable[Charge]) -> _Spent:
    """What is spent after charges to the budget's own scope."""
    window_ms, pico, alerted = spent
    end_ms = window_end(window, window_ms)  # 0: never
    for each in charges:
        if end_ms and each.at_ms >= end_ms:
            window_ms, pico, alerted = window_start(window, each.at_ms), 0, 0
            end_ms = window_end(window, window_ms)
        if each.at_ms >= window_ms:
            # A correction may lower what was charged before this budget began to count.
            pico = max(0, pico + each.amount_pico)
    return _Spent(window_ms, pico, alerted)


def _locked(connection: Connection, scope_ids: Iterable[str]) -> Sequence[Any]:
    """What moves a row, and `_COLUMNS` of the budgets of these scopes; nobody else moves them meanwhile."""
    if connection.dialect.name == "sqlite":
        result = connection.execute(_FIND_SQLITE, {"ids": json.dumps(list(scope_ids))})
    else:
        result = connection.execute(_FIND_POSTGRESQL, {"ids": list(scope_ids)})
    assert result.cursor is not None, "of a query"
    with result:
        return result.cursor.fetchall()
