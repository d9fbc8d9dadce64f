"""Both implementations of Admission behind one synchronous face, and a naive model to compare them with."""

import asyncio
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import Budget, BudgetUse, Decision, Limits, Refusal, ScopePolicy, window_start
from access.admission.port import Admission, answered
from access.admission.values import AdmitRequest, Balance, Grant, Outcome
from access.principal import LastCall

NOW = 1_760_000_000_000
GATEWAY = "gateway-1"
MINUTE = 60_000
DAY = 86_400_000


# Of all tests of the process: what one admission found is nothing to another.
_LAST_CALLS: dict[str, LastCall] = {}


def request(
    request_id: str,
    now_ms: int,
    tokens: int = 10,
    cost: int | None = 0,
    *,
    key: str = "key_1",
    endpoint: str = "ep_1",
    expires_ms: int = 0,
) -> AdmitRequest:
    """A call of organization org_1, project proj_1."""
    expires = expires_ms or now_ms + 600_000
    last = _LAST_CALLS.setdefault(key, LastCall())
    return AdmitRequest(
        request_id, "org_1", "proj_1", key, endpoint, tokens, cost, now_ms, expires, last_call=last
    )


def budget(amount: int, scope: str = "organization", scope_id: str = "org_1", **changes: Any) -> Budget:
    """A hard budget without end."""
    values: dict[str, Any] = {"window": "total", "hard": True} | changes
    return Budget(f"budget_{scope_id}", scope, scope_id, "org_1", amount, **values)  # type: ignore[arg-type]


def refused(decision: Decision) -> Refusal:
    assert isinstance(decision, Refusal), decision
    return decision


def granted(decision: Decision) -> Grant:
    assert isinstance(decision, Grant), decision
    return decision


class Driver:
    """One admission under test. The book starts empty: no default for endpoints."""

    def __init__(self, kind: str, redis_url: str = "") -> None:
        self.book = PolicyBook(endpoint_default=None)
        self.loop = asyncio.new_event_loop()
        self.client: Any = None
        self._sequence = 0
        self._versions = 0
        self.admission: Admission
        if kind == "memory":
            self.admission = MemoryAdmission(self.book, GATEWAY)
        else:
            from access.admission.redis_admission import RedisAdmission, connect

            # Patient: on a busy machine a slow answer must not pass for an outage, which is another test's subject.
            self.client = connect(redis_url, timeout_s=60, queue_timeout_s=60)
            self.admission = RedisAdmission(self.book, GATEWAY, self.client)
            self.run(self.client.flushall())

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def close(self) -> None:
        if self.client is not None:
            self.run(self.client.aclose())
        self.loop.close()

    def policies(self, *policies: ScopePolicy) -> None:
        """In force from now on; their budgets start with what is on record: nothing."""
        self.book.replace(policies)
        budgets = [each for policy in policies for each in policy.budgets]
        self.exchange([self.balance(each, 0) for each in budgets])

    def limits(self, kind: Any = "key", scope_id: str = "key_1", **limits: int) -> None:
        self.policies(ScopePolicy(kind, scope_id, Limits(**limits)))

    def budgets(self, *budgets: Budget) -> None:
        self.policies(*(ScopePolicy(each.scope, each.scope_id, budgets=(each,)) for each in budgets))

    def balance(self, of: Budget, spent: int, *, now_ms: int = NOW, through: int = 0) -> Balance:
        """The next version of what is on record."""
        self._versions += 1
        return Balance(of.id, window_start(of.window, now_ms), spent, self._versions, {GATEWAY: through})

    def admit(self, *arguments: Any, **named: Any) -> Decision:
        decision: Decision = self.run(answered(self.admission.admit(request(*arguments, **named))))
        return decision

    def settle(
        self,
        grant: Decision,
        tokens: int = 0,
        cost: int = 0,
        *,
        now_ms: int = NOW,
        sequence: int | None = None,
    ) -> int:
        """Settle with the next event number; returns it."""
        assert isinstance(grant, Grant), grant
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        self.run(answered(self.admission.settle(grant, Outcome(tokens, cost, sequence, now_ms))))
        return sequence

    def renew(self, grant: Decision, expires_ms: int) -> None:
        assert isinstance(grant, Grant), grant
        self.run(answered(self.admission.renew(grant, expires_ms)))

    def exchange(self, balances: Iterable[Balance] = (), now_ms: int = NOW) -> Mapping[str, BudgetUse]:
        uses: Mapping[str, BudgetUse] = self.run(answered(self.admission.exchange(balances, now_ms)))
        return uses


@dataclass
class NaiveCall:
    """One admitted call, as the naive model remembers it."""

    at_ms: int
    scopes: tuple[str, ...]
    tokens: int
    cost: int
    expires_ms: int
    live: bool = True


@dataclass
class NaiveModel:
    """Remembers every call and counts from the beginning each time: slow, and hard to get wrong."""

    policies: dict[str, ScopePolicy]
    calls: list[NaiveCall] = field(default_factory=list)
    spent: list[tuple[int, tuple[str, ...], int]] = field(default_factory=list)

    def expire(self, now_ms: int) -> None:
        for call in self.calls:
            call.live = call.live and call.expires_ms > now_ms

    def spent_of(self, budget: Budget, now_ms: int) -> int:
        window = window_start(budget.window, now_ms)
        return sum(
            cost
            for at_ms, scopes, cost in self.spent
            if budget.scope_id in scopes and window_start(budget.window, at_ms) == window
        )

    def held(self, scope: str) -> int:
        return sum(call.cost for call in self.calls if call.live and scope in call.scopes)

    def fits(self, scopes: tuple[str, ...], tokens: int, cost: int, now_ms: int) -> bool:
        self.expire(now_ms)
        return all(self._fits(self.policies[scope], tokens, cost, now_ms) for scope in scopes)

    def _fits(self, policy: ScopePolicy, tokens: int, cost: int, now_ms: int) -> bool:
        limits = policy.limits or Limits()
        mine = [call for call in self.calls if policy.id in call.scopes]
        minute = [call for call in mine if call.at_ms > now_ms - MINUTE]
        today = [call for call in mine if call.at_ms // DAY == now_ms // DAY]
        counts = (
            (limits.requests_per_minute, len(minute) + 1),
            (limits.tokens_per_minute, sum(call.tokens for call in minute) + tokens),
            (limits.requests_per_day, len(today) + 1),
            (limits.parallel_requests, sum(call.live for call in mine) + 1),
        )
        money = all(
            not each.hard or self.spent_of(each, now_ms) + self.held(policy.id) + cost <= each.amount_pico
            for each in policy.budgets
        )
        return money and all(limit is None or count <= limit for limit, count in counts)
