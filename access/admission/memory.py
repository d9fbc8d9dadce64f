"""Admission in one process: exact, a few microseconds, no locks, because one event loop makes all calls.

`scope.py` counts what limits are about, `purse.py` what budgets are about.
"""

from collections.abc import Iterable, Mapping
from heapq import heapify, heappop, heappush
from typing import Final

from mypy_extensions import mypyc_attr

from access.admission.book import PolicyBook
from access.admission.model import DAY_MS, HELD_RETRY_MS, BudgetUse, Decision, Refusal, ScopePolicy
from access.admission.purse import Purse
from access.admission.refusals import hardest
from access.admission.scope import Scope
from access.admission.values import AdmitRequest, Balance, Figures, Grant, Outcome

_SEEMS_UNLIMITED: Final = 1 << 61  # less what was used of it
_MAX_STATES: Final = 200_000


@mypyc_attr(acyclic=True)
class _Path:
    """What the calls of one key to one endpoint are held to."""

    __slots__ = ("endpoint_id", "purses", "scopes")

    def __init__(self, endpoint_id: str, scopes: tuple[Scope, ...]) -> None:
        self.endpoint_id = endpoint_id
        self.scopes = scopes
        self.purses = tuple([purse for scope in scopes for purse in scope.purses])


@mypyc_attr(acyclic=True)
class _Hold:
    """What one call has reserved."""

    __slots__ = (
        "born_ms",
        "cost_pico",
        "expires_ms",
        "held",
        "purses",
        "scopes",
        "settled",
        "slots",
        "tokens",
    )

    def __init__(self, request: AdmitRequest, path: _Path) -> None:
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico or 0
        self.born_ms = now_ms
        self.expires_ms = request.expires_ms
        self.tokens = tokens
        self.cost_pico = cost_pico
        # The purses are those of now: a budget made later holds nothing of this call.
        self.scopes, self.purses = path.scopes, path.purses
        self.slots = [scope.take(now_ms, tokens) for scope in self.scopes]
        for purse in self.purses:
            purse.held += cost_pico
        self.held = True
        self.settled = False

    def release(self) -> None:
        self.held = False
        for scope in self.scopes:
            scope.parallel -= 1
        for purse in self.purses:
            purse.held -= self.cost_pico


class MemoryAdmission:
    """Answers at once; call it from one thread."""

    def __init__(self, book: PolicyBook, gateway: str) -> None:
        """`gateway`: by which name balances say how far they include this process's events."""
        self._book = book
        self._gateway = gateway
        self._generation = book.generation
        self._states: dict[str, Scope] = {}
        self._paths: dict[str, _Path] = {}  # by key: to its first endpoint, as a rule its only one
        self._further: dict[tuple[str, str], _Path] = {}  # by key and endpoint: to others
        self._purses: dict[str, Purse] = {}  # by budget, as far as somebody asked
        self._expiries: list[tuple[int, int, _Hold]] = []  # a heap; settled holds in it are passed over
        self._number = 0  # of the last entry: what is of the same time is told apart by it
        self._settled = 0  # of those in the heap

    def admit(self, request: AdmitRequest) -> Decision:
        """See `Admission`."""
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico
        if self._expiries and self._expiries[0][0] <= now_ms:
            self._expire(now_ms)
        path = self._path(request)
        for scope in path.scopes:
            if not scope.has_room(now_ms, tokens):
                return self._refuse(request, path.scopes)
        for purse in path.purses:
            if not purse.covers(now_ms, cost_pico):
                return self._refuse(request, path.scopes)
        hold = _Hold(request, path)
        self._watch(hold)
        requests, given = _figures(path.scopes, now_ms)
        return Grant(request, hold, requests, given)

    def renew(self, grant: Grant, expires_ms: int) -> None:
        """See `Admission`."""
        hold: _Hold = grant.hold
        if expires_ms > hold.expires_ms:
            hold.expires_ms = expires_ms  # the heap finds out when the old time has come

    def settle(self, grant: Grant, outcome: Outcome) -> None:
        """See `Admission`."""
        hold: _Hold = grant.hold
        if hold.settled:
            return
        hold.settled = True
        if hold.held:
            hold.release()
            self._settled += 1
            if self._settled > 1000 and self._settled * 2 > len(self._expiries):
                self._compact()
        difference = outcome.tokens - hold.tokens
        for index, scope in enumerate(hold.scopes):
            scope.correct(hold.slots[index], hold.born_ms, difference)
            if outcome.cost_pico:
                for purse in scope.purses:
                    purse.charge(outcome.cost_pico, outcome.sequence, outcome.ended_ms)

    def exchange(
        self, balances: Iterable[Balance], now_ms: int, *, every: bool = True
    ) -> Mapping[str, BudgetUse]:
        """See `Admission`."""
        self._expire(now_ms)
        self._keep_to_book()
        for balance in balances:
            purse = self._purses.get(balance.budget_id) or self._find_purse(balance.budget_id)
            if purse is not None:
                purse.record(balance, balance.through.get(self._gateway, 0))
        if every:
            budgeted = (policy for policy in self._book.policies() if policy.budgets)
            purses = {purse for policy in budgeted for purse in self._state(policy).purses}
        else:
            purses = {purse for _, _, hold in self._expiries if hold.held for purse in hold.purses}
        for purse in purses:
            purse.roll(now_ms)
        return {purse.budget.id: BudgetUse(purse.spent(), purse.held) for purse in purses}

    def holds(self) -> int:
        """Calls in flight, for the metrics."""
        return len(self._expiries) - self._settled

    # -- below: nothing that a warm call pays for more than once --

    def _keep_to_book(self) -> None:
        if self._generation != self._book.generation:
            self._generation = self._book.generation
            self._forget_paths()

    def _path(self, request: AdmitRequest) -> _Path:
        self._keep_to_book()
        # A key and an endpoint each have one project for life, and that one organization.
        path = self._paths.get(request.key_id)
        if path is None:
            path = self._paths[request.key_id] = self._new_path(request)
        elif path.endpoint_id != request.endpoint_id:
            call = (request.key_id, request.endpoint_id)
            path = self._further.get(call)
            if path is None:
                path = self._further[call] = self._new_path(request)
        return path

    def _new_path(self, request: AdmitRequest) -> _Path:
        if len(self._paths) + len(self._further) > _MAX_STATES:
            self._forget_paths()
        return _Path(request.endpoint_id, tuple([self._state(policy) for policy in self._book.of(request)]))

    def _forget_paths(self) -> None:
        self._paths.clear()
        self._further.clear()
        self._purses.clear()

    def _find_purse(self, budget_id: str) -> Purse | None:
        policy = self._book.owner(budget_id)
        for purse in self._state(policy).purses if policy is not None else ():
            if purse.budget.id == budget_id:
                self._purses[budget_id] = purse
                return purse
        return None

    def _state(self, policy: ScopePolicy) -> Scope:
        state = self._states.get(policy.id)
        if state is None:
            if len(self._states) > _MAX_STATES:
                self._states = {name: kept for name, kept in self._states.items() if not kept.idle}
                self._forget_paths()
            state = self._states[policy.id] = Scope(policy)
        elif state.policy is not policy:
            state.apply(policy)
        return state

    def _expire(self, now_ms: int) -> None:
        heap = self._expiries
        while heap and heap[0][0] <= now_ms:
            _, _, hold = heappop(heap)
            if not hold.held:
                self._settled -= 1
            elif hold.expires_ms > now_ms:
                self._watch(hold)
            else:
                hold.release()

    def _watch(self, hold: _Hold) -> None:
        self._number += 1
        heappush(self._expiries, (hold.expires_ms, self._number, hold))

    def _compact(self) -> None:
        self._expiries = [entry for entry in self._expiries if entry[2].held]
        heapify(self._expiries)
        self._settled = 0

    def _refuse(self, request: AdmitRequest, scopes: tuple[Scope, ...]) -> Refusal:
        found = [refusal for scope in scopes for refusal in _obstacles(scope, request)]
        requests, tokens = _figures(scopes, request.now_ms)
        return hardest(found, requests, tokens)


def _figures(scopes: tuple[Scope, ...], now_ms: int) -> tuple[Figures | None, Figures | None]:
    """For the headers: of the requests and of the tokens, the limit with the least left."""
    nearest = of_day = scarcest = None
    least_requests = least_tokens = _SEEMS_UNLIMITED
    for scope in scopes:
        left = scope.rpm - scope.requests
        if left < least_requests:
            least_requests, nearest, of_day = left, scope, None
        left = scope.tpm - scope.tokens
        if left < least_tokens:
            least_tokens, scarcest = left, scope
        left = scope.rpd - scope.day_requests
        if left < least_requests:
            least_requests, of_day = left, scope
    requests = tokens = None
    if of_day is not None:
        requests = Figures(of_day.rpd, max(0, least_requests), DAY_MS - now_ms % DAY_MS)
    elif nearest is not None:
        requests = Figures(nearest.rpm, max(0, least_requests), nearest.reset_ms(now_ms))
    if scarcest is not None:
        tokens = Figures(scarcest.tpm, max(0, least_tokens), scarcest.reset_ms(now_ms))
    return requests, tokens


def _obstacles(scope: Scope, request: AdmitRequest) -> Iterable[Refusal]:
    """Everything of this scope that is in the way."""
    kind, name, now_ms = scope.policy.kind, scope.policy.id, request.now_ms
    wanted = request.estimated_tokens
    if wanted > scope.tpm:
        yield Refusal("too_large", kind, name, "tokens_per_minute", scope.tpm, scope.tokens, wanted)
    elif scope.tokens + wanted > scope.tpm:
        wait = scope.wait_ms(now_ms, scope.tokens + wanted - scope.tpm, tokens=True)
        yield Refusal("rate", kind, name, "tokens_per_minute", scope.tpm, scope.tokens, wanted, wait)
    if scope.requests >= scope.rpm:
        wait = scope.wait_ms(now_ms, scope.requests + 1 - scope.rpm, tokens=False)
        yield Refusal("rate", kind, name, "requests_per_minute", scope.rpm, scope.requests, 1, wait)
    if scope.day_requests >= scope.rpd:
        wait = DAY_MS - now_ms % DAY_MS
        yield Refusal("rate", kind, name, "requests_per_day", scope.rpd, scope.day_requests, 1, wait)
    if scope.parallel >= scope.parallel_limit:
        used, limit = scope.parallel, scope.parallel_limit
        yield Refusal("parallel", kind, name, "parallel_requests", limit, used, 1, HELD_RETRY_MS)
    for purse in scope.purses:
        yield from _money_obstacles(purse, request)


def _money_obstacles(purse: Purse, request: AdmitRequest) -> Iterable[Refusal]:
    purse.roll(request.now_ms)
    budget, cost_pico, spent = purse.budget, request.estimated_cost_pico, purse.spent()
    if not budget.hard:
        return
    facts = (budget.scope, budget.scope_id, budget.id, budget.amount_pico)
    if cost_pico is None:
        yield Refusal("no_price", *facts, spent, 0)
    elif spent + cost_pico > budget.amount_pico:
        yield Refusal("budget", *facts, spent, cost_pico, resets_ms=purse.resets_ms)
    elif spent + purse.held + cost_pico > budget.amount_pico:
        yield Refusal("budget_held", *facts, spent + purse.held, cost_pico, HELD_RETRY_MS)
