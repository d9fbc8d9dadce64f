"""Slots are used again and clocks are set back: each settlement still corrects its own call and no other."""

from access.admission.model import WINDOW_MS, Limits, ScopePolicy
from access.admission.scope import Scope

NOW = 1_760_000_000_000


def _scope(tokens: int = 100) -> Scope:
    return Scope(ScopePolicy("key", "key_1", Limits(tokens_per_minute=tokens)))


def test_a_slot_that_is_used_again_is_not_that_of_its_former_calls() -> None:
    scope = _scope()
    old = scope.take(NOW, 60)
    assert scope.has_room(NOW + WINDOW_MS, 100)
    new = scope.take(NOW + WINDOW_MS, 70)
    assert new is old, "a window that goes on needs no new slots"
    scope.correct(old, NOW, -60)
    assert scope.tokens == 70
    scope.correct(new, NOW + WINDOW_MS, -20)
    assert scope.tokens == 50


def test_after_a_clock_set_back_each_settlement_finds_its_own_call() -> None:
    scope, back = _scope(), NOW - 3_600_000
    first, second = scope.take(NOW, 30), scope.take(NOW + 5, 30)
    assert scope.has_room(back, 40) and not scope.has_room(back, 41)
    third = scope.take(back, 40)
    scope.correct(first, NOW, -20)
    scope.correct(third, back, -10)
    scope.correct(second, NOW + 5, -25)
    assert scope.tokens == 45
    assert scope.wait_ms(back, 45, tokens=True) == WINDOW_MS, "none counts for longer than a window from now"
    assert not scope.has_room(back + WINDOW_MS - 1, 56)
    assert scope.has_room(back + WINDOW_MS, 100) and scope.tokens == 0


def test_a_long_window_is_let_go_of_without_recursion() -> None:
    scope = _scope(tokens=10**9)
    for at_ms in range(NOW, NOW + WINDOW_MS - 1):
        scope.take(at_ms, 1)
    slot = scope.oldest
    del scope
    assert slot is not None and slot.next is None
