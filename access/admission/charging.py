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


_FIND = """
    SELECT id, scope_id, time_window, amount_pico, alerts, version, window_ms, spent_pico, alerted_percent
    FROM budgets WHERE scope_id
"""
# One parameter, however many ids. In PostgreSQL in order of id, so that two writers never wait for each other.
_FIND_SQLITE = text(f"{_FIND} IN (SELECT value FROM json_each(:ids))")
_FIND_POSTGRESQL = text(f"{_FIND} = ANY(:ids) ORDER BY id FOR UPDATE")
_MOVE = "UPDATE budgets SET window_ms = {0}, spent_pico = {0}, alerted_percent = {0}, version = {0} WHERE id = {0}"
_MOVE_SQLITE, _MOVE_POSTGRESQL = _MOVE.format("?"), _MOVE.format("%s")


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
    moves: list[tuple[object, ...]] = []
    crossed: list[tuple[str, list[int]]] = []
    for id_, scope_id, window, amount, alerts, version, *spent in _locked(connection, by_scope):
        before = _Spent(spent[0], int(spent[1]), spent[2])
        after = _charged(window, before, by_scope[scope_id])
        if after == before:
            continue
        window_ms, pico, told = after
        percents = _alerts(alerts)
        passed = highest_alert(percents, int(amount), pico)
        if passed > told:
            crossed.append((id_, [each for each in sorted(percents) if told < each <= passed]))
        moves.append((window_ms, pico, max(told, passed), max(version + 1, now_ms), id_))
    _move(connection, moves)
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
    """The budgets of these scopes, in the order of `_FIND`'s columns; nobody else moves them meanwhile."""
    if connection.dialect.name == "sqlite":
        result = connection.execute(_FIND_SQLITE, {"ids": json.dumps(list(scope_ids))})
    else:
        result = connection.execute(_FIND_POSTGRESQL, {"ids": list(scope_ids)})
    assert result.cursor is not None, "of a query"
    with result:
        return result.cursor.fetchall()


def _move(connection: Connection, moves: list[tuple[Any, ...]]) -> None:
    if not moves:
        return
    if connection.dialect.name == "sqlite":  # which keeps money as text: see `core/money_column.py`
        rows = [(window_ms, str(pico), *rest) for window_ms, pico, *rest in moves]
        connection.exec_driver_sql(_MOVE_SQLITE, rows)
    else:
        connection.exec_driver_sql(_MOVE_POSTGRESQL, moves)
