"""Admission against a model that is slow and hard to get wrong."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from access.admission.model import (
    DAY_MS,
    Decision,
    Limits,
    Refusal,
    ScopePolicy,
)
from access.admission.values import Grant
from tests.contract.admission_values import NOW, Driver, NaiveCall, NaiveModel, budget

POLICIES = {
    "key_1": ScopePolicy("key", "key_1", Limits(4, 9, 100, 3), (budget(200, "key", "key_1", window="day"),)),
    "key_2": ScopePolicy("key", "key_2", Limits(tokens_per_minute=60)),
    "proj_1": ScopePolicy("project", "proj_1", Limits(parallel_requests=4)),
    "org_1": ScopePolicy("organization", "org_1", budgets=(budget(400), )),
    "ep_1": ScopePolicy("endpoint", "ep_1", Limits(6, None, 150)),
}  # fmt: skip


class AgainstNaive(RuleBasedStateMachine):
    """Any order of calls, settlements, renewals, balances and waiting: the same answers, the same figures."""

    kind = "memory"
    url = ""

    @initialize()
    def begin(self) -> None:
        self.driver = Driver(self.kind, self.url)
        self.driver.policies(*POLICIES.values())
        self.model = NaiveModel(POLICIES)
        self.now = NOW
        self.live: list[tuple[Decision, NaiveCall]] = []
        self.number = 0
        self.late = 0  # cost of calls whose hold had expired: nothing was reserved for it any more
        self.log: list[tuple[int, tuple[str, ...], int]] = []

    def teardown(self) -> None:
        if hasattr(self, "driver"):
            self.driver.close()

    @rule(ms=st.sampled_from([1, 500, 9_000, 30_000, 59_999, 60_000, 3_600_000, DAY_MS // 2]))
    def wait(self, ms: int) -> None:
        self.now += ms

    @rule(
        key=st.sampled_from(["key_1", "key_2"]),
        tokens=st.integers(0, 110),
        cost=st.integers(0, 120),
        life=st.sampled_from([1_000, 45_000, 90_000]),
    )
    def admit(self, key: str, tokens: int, cost: int, life: int) -> None:
        self.number += 1
        scopes = (key, "proj_1", "org_1", "ep_1")
        fits = self.model.fits(scopes, tokens, cost, self.now)
        expires = self.now + life
        decision = self.driver.admit(f"r{self.number}", self.now, tokens, cost, key=key, expires_ms=expires)
        assert isinstance(decision, Grant) is fits, decision
        if isinstance(decision, Refusal):
            self._check_retry(decision, scopes, tokens, cost)
            return
        call = NaiveCall(self.now, scopes, tokens, cost, expires)
        self.model.calls.append(call)
        self.live.append((decision, call))

    def _check_retry(self, refusal: Refusal, scopes: tuple[str, ...], tokens: int, cost: int) -> None:
        """Rate limits alone in the way: it fits when we said, and not a millisecond before."""
        if refusal.reason != "rate":
            return
        then = self.now + refusal.retry_after_ms
        live = [call.live for call in self.model.calls]
        assert not self.model.fits(scopes, tokens, cost, then - 1)
        for call, was in zip(self.model.calls, live, strict=True):
            call.live = was

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(0, 110), share=st.integers(0, 100))
    def settle(self, data: st.DataObject, tokens: int, share: int) -> None:
        grant, call = self.live.pop(data.draw(st.integers(0, len(self.live) - 1)))
        self.model.expire(self.now)
        cost = call.cost * share // 100
        self.late += 0 if call.live else cost
        call.live, call.tokens = False, tokens
        sequence = self.driver.settle(grant, tokens, cost, now_ms=self.now)
        self.model.spent.append((self.now, call.scopes, cost))
        self.log.append((sequence, call.scopes, cost))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), life=st.sampled_from([1_000, 90_000]))
    def renew(self, data: st.DataObject, life: int) -> None:
        grant, call = self.live[data.draw(st.integers(0, len(self.live) - 1))]
        self.model.expire(self.now)
        if call.live:
            call.expires_ms = max(call.expires_ms, self.now + life)  # never earlier
            self.driver.renew(grant, self.now + life)

    @rule(data=st.data())
    def record(self, data: st.DataObject) -> None:
        """The record catches up with some of what was settled."""
        through = data.draw(st.integers(0, len(self.log)))
        through = max(through, getattr(self, "through", 0))
        self.through = through
        each = POLICIES["org_1"].budgets[0]
        spent = sum(cost for _, _, cost in self.log[:through])
        self.driver.exchange([self.driver.balance(each, spent, now_ms=self.now, through=through)], self.now)

    @invariant()
    def figures_agree(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.model.expire(self.now)
        uses = self.driver.exchange(now_ms=self.now)
        for scope in ("key_1", "org_1"):
            each = POLICIES[scope].budgets[0]
            use = uses[each.id]
            assert use.spent_pico == self.model.spent_of(each, self.now)
            assert use.held_pico == self.model.held(scope)
            assert use.spent_pico <= each.amount_pico + self.late


@pytest.mark.parametrize("kind", ["memory", "redis"])
def test_any_sequence_agrees_with_a_naive_model(kind: str, request: pytest.FixtureRequest) -> None:
    machine: Any = type("Machine", (AgainstNaive,), {"kind": kind})
    if kind == "redis":
        machine.url = request.getfixturevalue("redis_url")
    examples = 150 if kind == "memory" else 40
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=40))
