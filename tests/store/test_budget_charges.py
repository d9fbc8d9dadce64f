"""Charging budgets in SQL: each call to the budgets of its own scopes, all of a batch in a few statements."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event

from access.admission.charging import Charge, charge
from access.admission.model import ALL_BALANCES, BudgetScope, BudgetWindow
from access.admission.store import (
    StoredBudget,
    announce_balances,
    create_budget,
    forget_moves,
    list_budgets,
    read_balances,
)
from core.database import Database

NOW = 1_760_000_000_000
DAY = 86_400_000


def _budget(
    connection: Connection, scope: BudgetScope, scope_id: str, amount: int, window: BudgetWindow = "day"
) -> str:
    stored = create_budget(
        connection,
        scope=scope,
        scope_id=scope_id,
        org_id="org_1",
        amount_pico=amount,
        window=window,
        hard=True,
        spent_pico=0,
        now_ms=NOW,
    )
    return stored.budget.id


@contextmanager
def _statements(db: Database) -> Iterator[list[str]]:
    seen: list[str] = []

    def note(*arguments: Any) -> None:
        seen.append(arguments[2])

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def test_each_call_is_charged_to_its_key_project_and_organization_and_to_nobody_else(db: Database) -> None:
    with db.begin() as connection:
        for number in range(50):
            _budget(connection, "key", f"key_{number}", 1000)
        _budget(connection, "project", "proj_1", 10_000)
        _budget(connection, "organization", "org_1", 10_000)
        _budget(connection, "organization", "org_2", 10_000)
        calls = [Charge(NOW, "org_1", "proj_1", f"key_{number}", number) for number in range(50)]
        assert charge(connection, [*calls, Charge(NOW, "org_1", "proj_1", "key_7", 100)], NOW) == 51
        stored = {each.budget.scope_id: each.spent_pico for each in list_budgets(connection, limit=100)}
    everything = sum(range(50)) + 100
    assert stored == {f"key_{number}": number for number in range(50)} | {
        "key_7": 107, "proj_1": everything, "org_1": everything, "org_2": 0,
    }  # fmt: skip


def test_a_new_window_starts_at_nothing_and_each_alert_is_told_once(db: Database) -> None:
    told: list[tuple[str, int]] = []

    def crossed(budget: StoredBudget, percent: int) -> None:
        told.append((budget.budget.scope_id, percent))

    with db.begin() as connection:
        _budget(connection, "key", "key_1", 100)
        _budget(connection, "key", "key_2", 100)
        assert charge(connection, [Charge(NOW, "org_1", "p", "key_1", 60)], NOW, crossed) == 1
        assert charge(connection, [Charge(NOW, "org_1", "p", "key_1", 50)], NOW + 1, crossed) == 1
        late = Charge(NOW, "org_1", "p", "key_1", 40)
        assert charge(connection, [Charge(NOW + DAY, "org_1", "p", "key_1", 5), late], NOW + 2, crossed) == 1
        assert charge(connection, [late], NOW + 3, crossed) == 0, "its day is over"
        stored = {each.budget.scope_id: each for each in list_budgets(connection)}
    assert (stored["key_1"].spent_pico, stored["key_2"].spent_pico) == (5, 0)
    assert told == [("key_1", 50), ("key_1", 80), ("key_1", 100)]


def test_each_kind_of_window_counts_what_ended_in_it(db: Database) -> None:
    """From 9 October 2025 on: a month is over in November, a total never is."""
    november = 1_761_955_200_000
    instants = [NOW, NOW + DAY, NOW, november - 1, november, november - 1, november + DAY]
    windows: tuple[BudgetWindow, ...] = ("day", "month", "total")
    with db.begin() as connection:
        for window in windows:
            _budget(connection, "key", f"key_{window}", 10_000, window)
        for batches in ([instants[:3]], [instants[3:5], instants[5:]]):
            for batch in batches:
                calls = [
                    Charge(at_ms, "org_1", "p", f"key_{window}", 10 + instants.index(at_ms))
                    for at_ms in batch
                    for window in windows
                ]
                charge(connection, calls, NOW)
        stored = {each.budget.window: each for each in list_budgets(connection)}
    assert {window: each.spent_pico for window, each in stored.items()} == {
        "day": 16,
        "month": 14 + 16,
        "total": 10 + 11 + 10 + 13 + 14 + 13 + 16,
    }
    assert stored["day"].window_ms == november + DAY and stored["month"].window_ms == november


def test_a_batch_takes_a_few_statements_however_many_keys_it_is_of(db: Database) -> None:
    with db.begin() as connection:
        for number in range(300):
            _budget(connection, "key", f"key_{number}", 1000)
    with db.begin() as connection, _statements(db) as seen:
        charges = [Charge(NOW, "org_1", "proj_1", f"key_{number % 300}", 1) for number in range(900)]
        assert charge(connection, charges, NOW) == 300
    assert len(seen) <= 4, seen


def test_balances_are_whole_numbers_whatever_the_database_keeps_them_as(db: Database) -> None:
    much = 10**21 + 1  # neither 64 bits nor a float hold it
    with db.begin() as connection:
        _budget(connection, "key", "key_1", 100)
        _budget(connection, "key", "key_2", 100)
        assert charge(connection, [Charge(NOW, "org_1", "p", "key_1", much)], NOW + 5) == 1
        found, _ = read_balances(connection, {"gateway-1": 7})
        [moved], _ = read_balances(connection, {}, after=0)
    assert sorted(each.spent_pico for each in found) == [0, much]
    assert all(type(each.spent_pico) is int and each.through == {"gateway-1": 7} for each in found)
    assert (moved.spent_pico, moved.window_ms, moved.version) == (much, NOW - NOW % DAY, NOW + 5)


def test_a_gateway_reads_what_moved_since_it_read_last(db: Database) -> None:
    with db.begin() as connection:
        budgets = {name: _budget(connection, "key", name, 1000) for name in ("key_1", "key_2")}

    def spend(key_id: str, now_ms: int) -> None:
        with db.begin() as connection:
            charge(connection, [Charge(NOW, "org_1", "p", key_id, 1)], now_ms)

    def read(after: int = ALL_BALANCES) -> tuple[dict[str, int], int]:
        with db.read() as connection:
            found, last = read_balances(connection, {}, after)
        return {each.budget_id: each.spent_pico for each in found}, last

    found, last = read()
    assert found == {budgets["key_1"]: 0, budgets["key_2"]: 0}
    spend("key_1", NOW)
    found, last = read(last)
    assert found == {budgets["key_1"]: 1}
    assert read(last) == ({}, last)
    # Written later by a transaction whose clock is behind: a reader that went by times would never see it.
    spend("key_2", NOW - 5000)
    found, last = read(last)
    assert found == {budgets["key_2"]: 1}
    spend("key_1", NOW)
    spend("key_1", NOW)
    assert read(last)[0] == {budgets["key_1"]: 3}, "the newest of several"


def test_who_has_not_read_for_long_reads_every_balance(db: Database) -> None:
    with db.begin() as connection:
        budgets = [_budget(connection, "key", f"key_{number}", 1000) for number in range(3)]
    for number in range(3):
        with db.begin() as connection:
            charge(connection, [Charge(NOW, "org_1", "p", f"key_{number}", 1)], NOW)
            last = announce_balances(connection, NOW)
    with db.begin() as connection:
        forget_moves(connection, last)  # the newest stays: numbers go on from it
        assert [each.budget_id for each in read_balances(connection, {}, last - 1)[0]] == [budgets[2]]
        assert {each.budget_id for each in read_balances(connection, {}, last - 2)[0]} == set(budgets)
        assert read_balances(connection, {}, last) == ([], last)
