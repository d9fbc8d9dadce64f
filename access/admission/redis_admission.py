"""Admission of several gateways, exact across them: one Lua script per decision. The one file that knows Redis.

Redis holds only counters, holds and copies of balances: emptied, it is filled again from the record, and calls
under a budget are refused until it is. Every key of an organization has its hash tag, hence one node.
"""

from collections.abc import Awaitable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import msgspec
from redis.asyncio import BlockingConnectionPool, Redis
from redis.exceptions import RedisError

from access.admission.book import PolicyBook
from access.admission.model import (
    DAY_MS,
    HELD_RETRY_MS,
    WINDOW_MS,
    Budget,
    BudgetUse,
    Decision,
    Limits,
    Refusal,
    ScopePolicy,
    window_end,
    window_start,
)
from access.admission.refusals import hardest
from access.admission.values import AdmitRequest, Balance, Figures, Grant, Outcome
from core.log import get_logger
from core.money import PICO_PER_USD

_log = get_logger(__name__)
_CONNECTIONS = 16
_TIMEOUT_S = 1.0
_QUEUE_TIMEOUT_S = 5.0  # for one of the connections
_RETRY_MS = 1000
_NO_LIMITS = Limits()
_encode = msgspec.json.Encoder().encode
_FAILURES = (RedisError, OSError, TimeoutError)


def connect(url: str, *, timeout_s: float = _TIMEOUT_S, queue_timeout_s: float = _QUEUE_TIMEOUT_S) -> "Redis":
    """A client of `redis://…` or `unix://…`: few connections, because Redis does one thing at a time anyway.

    An answer, or a new connection, that takes longer than `timeout_s` seconds is an outage, and so is a wait of
    `queue_timeout_s` for one of the connections.
    """
    pool = BlockingConnectionPool.from_url(
        url,
        max_connections=_CONNECTIONS,
        timeout=queue_timeout_s,
        decode_responses=True,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
    return Redis.from_pool(pool)


class RedisAdmission:
    """Answers with awaitables. Redis down: refused with `unavailable`, or let through where the organization chose so."""

    def __init__(self, book: PolicyBook, gateway: str, client: "Redis") -> None:
        self._book = book
        self._gateway = gateway
        self._client = client
        self._admit = client.register_script(_script("admit"))
        self._settle = client.register_script(_script("settle"))
        self._exchange = client.register_script(_script("exchange"))
        self._untold: dict[str, Balance] = {}  # newest balances, until Redis has taken them

    async def admit(self, request: AdmitRequest) -> Decision:
        """See `Admission`."""
        policies = self._book.of(request)
        if not any(policy.limits or policy.budgets for policy in policies):
            return Grant()
        asked = {
            "id": request.request_id,
            "now": request.now_ms,
            "expires": request.expires_ms,
            "tokens": request.estimated_tokens,
            "priced": request.estimated_cost_pico is not None,
            "cost": _pair(request.estimated_cost_pico or 0),
            "held_retry": HELD_RETRY_MS,
            "scopes": [_scope(policy) for policy in policies],
            "budgets": [_budget(budget, request.now_ms) for budget in _budgets(policies)],
        }
        hold = {
            "scopes": [policy.id for policy in policies],
            "budgets": [budget.id for budget in _budgets(policies)],
            "cost": asked["cost"],
        }
        try:
            granted, obstacles, counts = await self._admit(
                keys=[_prefix(request.org_id)], args=[_encode(asked), _encode(hold)]
            )
        except _FAILURES as error:
            return self._outage(request, policies, error)
        requests, tokens = _figures(policies, counts, request.now_ms)
        if granted:
            slots = [int(count[4]) for count in counts]
            return Grant(requests, tokens, (request, policies, slots))
        found = [_refusal(fields, policies, request) for fields in obstacles]
        return hardest(found, requests, tokens)

    def _outage(
        self, request: AdmitRequest, policies: Sequence[ScopePolicy], error: BaseException
    ) -> Decision:
        organization = self._book.scope(request.org_id)
        is_open = organization is not None and organization.open_on_outage
        _log.error("admission cannot reach Redis", extra={"reason": str(error), "served": is_open})
        if is_open:
            return Grant(hold=(request, tuple(policies), [0] * len(policies)))
        return Refusal("unavailable", "organization", request.org_id, "", 0, 0, 0, _RETRY_MS)

    async def renew(self, grant: Grant, expires_ms: int) -> None:
        """See `Admission`."""
        if grant.hold is None:
            return
        request, _, _ = grant.hold
        try:
            holds = f"{_prefix(request.org_id)}:holds"
            await _awaitable(self._client.zadd(holds, {request.request_id: expires_ms}, xx=True, gt=True))
        except _FAILURES as error:
            _log.warning("a hold could not be renewed", extra={"reason": str(error)})

    async def settle(self, grant: Grant, outcome: Outcome) -> None:
        """See `Admission`. When Redis is down the hold expires, and the cost arrives with the next balance."""
        if grant.hold is None:
            return
        request, policies, slots = grant.hold
        # The budgets of now: one that was deleted meanwhile has no say, a new one counts the call.
        budgets = _budgets(self._book.of(request))
        asked = {
            "id": request.request_id,
            "gateway": self._gateway,
            "sequence": outcome.sequence,
            "ended": outcome.ended_ms,
            "difference": outcome.tokens - request.estimated_tokens,
            "cost": _pair(outcome.cost_pico),
            "scopes": [{"id": policy.id, "slot": slot} for policy, slot in zip(policies, slots, strict=True)],
            "budgets": [_budget(budget, outcome.ended_ms) for budget in budgets],
        }
        try:
            await self._settle(keys=[_prefix(request.org_id)], args=[_encode(asked)])
        except _FAILURES as error:
            _log.error("a call could not be settled in Redis", extra={"reason": str(error)})

    async def exchange(
        self, balances: Iterable[Balance], now_ms: int, *, every: bool = True
    ) -> Mapping[str, BudgetUse]:
        """See `Admission`. An empty answer where Redis is down."""
        by_org: dict[str, list[Budget]] = {}
        for policy in self._book.policies():
            for budget in policy.budgets:
                by_org.setdefault(budget.org_id, []).append(budget)
        self._untold.update((balance.budget_id, balance) for balance in balances)
        new, self._untold = self._untold, {}
        uses: dict[str, BudgetUse] = {}
        for org_id, budgets in by_org.items():
            told = [_balance(new[b.id], b, now_ms) for b in budgets if b.id in new]
            asked = [_budget(budget, now_ms) for budget in budgets]
            try:
                found = await self._exchange(
                    keys=[_prefix(org_id)], args=[_encode(told), _encode(asked), now_ms]
                )
            except _FAILURES as error:
                _log.error("balances could not be exchanged", extra={"reason": str(error)})
                self._untold = new | self._untold  # told twice does no harm: older versions are ignored
                return {}
            for budget, (spent, held) in zip(budgets, found, strict=True):
                uses[budget.id] = BudgetUse(_amount(spent), _amount(held))
        return uses

    async def close(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _script(name: str) -> str:
    folder = files("access.admission") / "lua"
    return (folder / "prelude.lua").read_text() + (folder / f"{name}.lua").read_text()


async def _awaitable(value: Awaitable[Any] | Any) -> Any:
    """The client's types say that a command may also answer at once; the asynchronous client never does."""
    return await value


def _prefix(org_id: str) -> str:
    return f"fb:{{{org_id}}}"


def _pair(amount_pico: int) -> list[int]:
    """Whole dollars and the pico-dollars below one: see `lua/prelude.lua`."""
    return list(divmod(amount_pico, PICO_PER_USD))


def _amount(written: str) -> int:
    dollars, pico = written.split(":")
    return int(dollars) * PICO_PER_USD + int(pico)


def _scope(policy: ScopePolicy) -> dict[str, Any]:
    limits = policy.limits or _NO_LIMITS
    named = {
        "rpm": limits.requests_per_minute,
        "rpd": limits.requests_per_day,
        "tpm": limits.tokens_per_minute,
        "parallel": limits.parallel_requests,
    }
    return {"id": policy.id} | {name: limit for name, limit in named.items() if limit is not None}


def _budgets(policies: Iterable[ScopePolicy]) -> list[Budget]:
    return [budget for policy in policies for budget in policy.budgets]


def _budget(budget: Budget, at_ms: int) -> dict[str, Any]:
    return {
        "id": budget.id,
        "window": window_start(budget.window, at_ms),
        "hard": budget.hard,
        "amount": _pair(budget.amount_pico),
        "keep": _keep_ms(budget, at_ms),
    }


def _balance(balance: Balance, budget: Budget, now_ms: int) -> dict[str, Any]:
    return {
        "id": balance.budget_id,
        "window": balance.window_ms,
        "spent": _pair(balance.spent_pico),
        "version": balance.version,
        "through": dict(balance.through),
        "keep": _keep_ms(budget, now_ms),
    }


def _keep_ms(budget: Budget, at_ms: int) -> int:
    """How long Redis keeps the window's figures: a day beyond its end, 0: for good."""
    end_ms = window_end(budget.window, at_ms)
    return end_ms - at_ms + DAY_MS if end_ms else 0


def _refusal(fields: list[str], policies: Sequence[ScopePolicy], request: AdmitRequest) -> Refusal:
    reason, index, limit, allowed, used, wanted, retry = fields
    at = int(index) - 1
    if ":" not in allowed:
        scope = policies[at]
        figures = int(allowed), int(used), int(wanted)
        return Refusal(reason, scope.kind, scope.id, limit, *figures, int(retry))  # type: ignore[arg-type]  # the script's own words
    budget = _budgets(policies)[at]
    resets_ms = window_end(budget.window, request.now_ms) if reason == "budget" else 0
    return Refusal(
        reason,  # type: ignore[arg-type]  # the script's own words
        budget.scope,
        budget.scope_id,
        limit,
        _amount(allowed),
        _amount(used),
        _amount(wanted),
        int(retry),
        resets_ms,
    )


def _figures(
    policies: Sequence[ScopePolicy], counts: Sequence[Sequence[str]], now_ms: int
) -> tuple[Figures | None, Figures | None]:
    requests: list[Figures] = []
    tokens: list[Figures] = []
    for policy, (in_minute, tokens_in_minute, in_day, newest, _) in zip(policies, counts, strict=True):
        limits = policy.limits or _NO_LIMITS
        reset_ms = max(0, int(newest) + WINDOW_MS - now_ms)
        if limits.requests_per_minute is not None:
            requests.append(_figure(limits.requests_per_minute, int(in_minute), reset_ms))
        if limits.tokens_per_minute is not None:
            tokens.append(_figure(limits.tokens_per_minute, int(tokens_in_minute), reset_ms))
        if limits.requests_per_day is not None:
            requests.append(_figure(limits.requests_per_day, int(in_day), DAY_MS - now_ms % DAY_MS))
    return _least(requests), _least(tokens)


def _figure(limit: int, used: int, reset_ms: int) -> Figures:
    return Figures(limit, max(0, limit - used), reset_ms)


def _least(figures: list[Figures]) -> Figures | None:
    return min(figures, key=lambda each: each.remaining, default=None)
