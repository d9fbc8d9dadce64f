"""Slots are used again and clocks are set back: each settlement still corrects its own call and no other."""

import pytest

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import WINDOW_MS, Budget, Limits, ScopePolicy
from access.admission.purse import Purse
from access.admission.scope import Scope
from access.admission.values import AdmitRequest, Balance, Grant, Outcome

NOW = 1_760_000_000_000


def _scope(tokens: int = 100) -> Scope:
    return Scope(ScopePolicy("key", "key_1", Limits(tokens_per_minute=tokens)))


def test_a_slot_that_is_used_again_is_not_that_of_its_former_calls() -> None:
    scope = _scope()
    old = scope.take(NOW, 60, 0)
    assert scope.has_room(NOW + WINDOW_MS, 100, 0)
    new = scope.take(NOW + WINDOW_MS, 70, 0)
    assert new is old, "a window that goes on needs no new slots"
    scope.correct(old, NOW, -60)
    assert scope.tokens == 70
    scope.correct(new, NOW + WINDOW_MS, -20)
    assert scope.tokens == 50


def test_after_a_clock_set_back_each_settlement_finds_its_own_call() -> None:
    scope, back = _scope(), NOW - 3_600_000
    first, second = scope.take(NOW, 30, 0), scope.take(NOW + 5, 30, 0)
    assert scope.has_room(back, 40, 0) and not scope.has_room(back, 41, 0)
    third = scope.take(back, 40, 0)
    scope.correct(first, NOW, -20)
    scope.correct(third, back, -10)
    scope.correct(second, NOW + 5, -25)
    assert scope.tokens == 45
    assert scope.wait_ms(back, 45, tokens=True) == WINDOW_MS, "none counts for longer than a window from now"
    assert not scope.has_room(back + WINDOW_MS - 1, 56, 0)
    assert scope.has_room(back + WINDOW_MS, 100, 0) and scope.tokens == 0


def test_scopes_take_the_slots_that_others_left() -> None:
    one, other = _scope(), _scope()
    for at_ms in range(NOW, NOW + 5):
        one.take(at_ms, 1, 0)
    assert one.has_room(NOW + WINDOW_MS + 5, 100, 0) and one.oldest is None
    for at_ms in range(NOW, NOW + 8):
        other.take(at_ms, 3, 0)
    assert (other.tokens, other.requests, one.tokens, one.requests) == (24, 8, 0, 0)
    assert other.has_room(NOW + WINDOW_MS + 3, 88, 0) and not other.has_room(NOW + WINDOW_MS + 3, 89, 0)
    assert other.tokens == 12


def _call(number: int, expires_ms: int) -> AdmitRequest:
    return AdmitRequest(f"r{number}", "org_1", "proj_1", "key_1", "ep_1", 10, 5, NOW, expires_ms)


def test_holds_expire_in_their_order_whatever_order_they_came_or_were_renewed_in() -> None:
    book = PolicyBook(endpoint_default=None)
    budget = Budget("budget_1", "key", "key_1", "org_1", 10**6, "total")
    book.replace([ScopePolicy("key", "key_1", Limits(parallel_requests=10), (budget,))])
    admission = MemoryAdmission(book, "gw_1")
    grants = []
    for number, lasts_ms in enumerate((500, 300, 400, 100, 200)):  # as after the clock was set back
        grant = admission.admit(_call(number, NOW + lasts_ms))
        assert isinstance(grant, Grant)
        grants.append(grant)
    admission.renew(grants[3], NOW + 450)
    admission.renew(grants[1], NOW + 1)  # shorter than it has: nothing
    admission.settle(grants[2], Outcome(0, 0, 0, NOW))
    for at_ms, left in ((199, 4), (200, 3), (299, 3), (300, 2), (449, 2), (450, 1), (500, 0)):
        held = admission.exchange((), NOW + at_ms)["budget_1"].held_pico
        assert (admission.holds(), held) == (left, 5 * left), at_ms
    admission.renew(grants[0], NOW + 900)  # it expired: that does not come back
    assert admission.holds() == 0


def test_what_is_spent_is_let_go_of_as_the_record_comes_to_it() -> None:
    purse = Purse(Budget("budget_1", "key", "key_1", "org_1", 10**6, "total"))
    for sequence, cost in ((1, 1), (1, 2), (2, 10), (4, 100), (4, 200), (7, 1000)):
        purse.charge(cost, sequence, NOW)
    assert purse.spent() == 1313
    for version, (through, recorded) in enumerate(((0, 0), (1, 3), (3, 13), (6, 313), (7, 1313)), start=1):
        purse.record(Balance("budget_1", 0, recorded, version, {}), through)
        assert purse.spent() == 1313, through
    assert purse.unrecorded == 0
    purse.charge(5, 7, NOW)
    assert purse.spent() == 1313, "the record has it"


def test_a_record_that_stands_still_costs_no_more_than_so_much_memory(monkeypatch) -> None:
    monkeypatch.setattr("access.admission.purse._MAX_UNCONFIRMED", 3)
    purse = Purse(Budget("budget_1", "key", "key_1", "org_1", 10**6, "total"))
    for sequence in range(1, 101):
        purse.charge(1, sequence, NOW)
    assert purse.waiting == 3 and purse.spent() == 100
    purse.record(Balance("budget_1", 0, 2, 1, {}), 2)
    assert purse.spent() == 100
    purse.record(Balance("budget_1", 0, 50, 2, {}), 50)
    assert purse.spent() == 50 + 98, "what became one is confirmed with the last of it, never before"
    purse.record(Balance("budget_1", 0, 100, 3, {}), 100)
    assert purse.spent() == 100 and purse.waiting == 0


def _crowded(monkeypatch: pytest.MonkeyPatch, budgets: tuple[Budget, ...] = ()) -> MemoryAdmission:
    """An admission that remembers four scopes at first, of keys 0 to 19 with one request a minute, and endpoints."""
    monkeypatch.setattr("access.admission.memory._MAX_STATES", 4)
    book = PolicyBook(endpoint_default=Limits(requests_per_minute=100))
    limits = Limits(requests_per_minute=1)
    book.replace([ScopePolicy("key", f"key_{n}", limits, budgets) for n in range(20)])
    return MemoryAdmission(book, "gw_1")


def _asked(key: int, endpoint: int, at_ms: int = NOW) -> AdmitRequest:
    return AdmitRequest("r", "org_1", "prj_1", f"key_{key}", f"ep_{endpoint}", 1, 1, at_ms, at_ms + 1000)


def test_limits_hold_while_scopes_are_forgotten(monkeypatch) -> None:
    admission = _crowded(monkeypatch)
    for at_ms in (NOW, NOW + WINDOW_MS):
        for key in range(20):
            assert isinstance(admission.admit(_asked(key, key, at_ms)), Grant)
            assert not isinstance(admission.admit(_asked(key, key + 100, at_ms)), Grant), "another endpoint"
        for key in range(20):
            assert not isinstance(admission.admit(_asked(key, key + 200, at_ms)), Grant)


def test_what_cannot_be_forgotten_is_not_looked_through_for_each_call(monkeypatch) -> None:
    admission = _crowded(monkeypatch, (Budget("budget_1", "key", "key_1", "org_1", 10**6, "total"),))
    looked: list[Scope] = []

    def idle(scope: Scope) -> bool:
        looked.append(scope)
        return False

    monkeypatch.setattr(Scope, "idle", property(idle))
    for _ in range(50):
        for key in range(20):
            admission.admit(_asked(key, key))
    assert 0 < len(looked) < 100
