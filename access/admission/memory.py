"""Admission in one process: exact, a few microseconds, no locks, because one event loop makes all calls.

The limits per minute are an exact sliding window to the millisecond: one slot per millisecond with calls, the
sums beside it, so a decision looks at what left the window since the last one and at nothing else.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from itertools import count

from access.admission.book import PolicyBook
from access.admission.model import (
    DAY_MS,
    HELD_RETRY_MS,
    WINDOW_MS,
    AdmitRequest,
    Balance,
    Budget,
    BudgetUse,
    Decision,
    Figures,
    Grant,
    Limits,
    Outcome,
    Refusal,
    ScopePolicy,
    window_end,
    window_start,
)
from access.admission.refusals import hardest

_UNLIMITED = 1 << 62
_MAX_STATES = 200_000
_MAX_UNCONFIRMED = 100_000
_NO_LIMITS = Limits()


class _Slot:
    """What was admitted in one millisecond. It leaves the window as a whole."""

    __slots__ = ("at_ms", "gone", "requests", "tokens")

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        self.requests = 0
        self.tokens = 0
        self.gone = False


class _Purse:
    """One budget: what is on record, what this gateway settled beyond that, what calls in flight hold."""

    __slots__ = (
        "budget",
        "end_ms",
        "held",
        "recorded",
        "through",
        "unconfirmed",
        "unrecorded",
        "version",
        "window_ms",
    )

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.window_ms = 0
        self.end_ms = 1  # so that the first look opens the window
        self.recorded = 0
        self.unrecorded = 0
        self.held = 0  # of no window: a call ends, and costs, in whichever window that is
        self.through = 0
        self.version = -1
        self.unconfirmed: list[tuple[int, int]] = []  # heap of (event number, cost)

    def roll(self, now_ms: int) -> None:
        """Open the window that holds the instant, unless a later one is open already."""
        if self.end_ms and now_ms >= self.end_ms:
            self._open(window_start(self.budget.window, now_ms))

    def _open(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.end_ms = window_end(self.budget.window, window_ms)
        self.recorded = self.unrecorded = 0
        self.version = -1
        self.unconfirmed = []

    def spent(self) -> int:
        return self.recorded + self.unrecorded

    def charge(self, outcome: Outcome) -> None:
        """Count a settled call, unless the record has it already or its window is over."""
        self.roll(outcome.ended_ms)
        if outcome.ended_ms < self.window_ms or not outcome.cost_pico or outcome.sequence <= self.through:
            return
        self.unrecorded += outcome.cost_pico
        heapq.heappush(self.unconfirmed, (outcome.sequence, outcome.cost_pico))
        if len(self.unconfirmed) > _MAX_UNCONFIRMED:
            # The record has not moved for long. Two become one that is confirmed with the later of them.
            _, first = heapq.heappop(self.unconfirmed)
            sequence, second = heapq.heappop(self.unconfirmed)
            heapq.heappush(self.unconfirmed, (sequence, first + second))

    def record(self, balance: Balance, through: int) -> None:
        """Take over what is on record; what of ours it includes is not counted twice."""
        if balance.window_ms > self.window_ms or self.end_ms == 1:
            self._open(balance.window_ms)
        if balance.window_ms < self.window_ms or balance.version <= self.version:
            return
        self.recorded, self.version, self.through = balance.spent_pico, balance.version, through
        while self.unconfirmed and self.unconfirmed[0][0] <= through:
            self.unrecorded -= heapq.heappop(self.unconfirmed)[1]


class _Scope:
    """The counters of one key, project, organization or endpoint."""

    __slots__ = (
        "day",
        "day_requests",
        "parallel",
        "parallel_limit",
        "policy",
        "purses",
        "requests",
        "rpd",
        "rpm",
        "slots",
        "tokens",
        "tpm",
        "windowed",
    )  # fmt: skip

    def __init__(self, policy: ScopePolicy) -> None:
        self.slots: deque[_Slot] = deque()
        self.requests = 0
        self.tokens = 0
        self.day = 0
        self.day_requests = 0
        self.parallel = 0
        self.purses: tuple[_Purse, ...] = ()
        self.apply(policy)

    def apply(self, policy: ScopePolicy) -> None:
        """Other limits from now on; the counters stay."""
        limits = policy.limits or _NO_LIMITS
        self.policy = policy
        self.rpm = _or_unlimited(limits.requests_per_minute)
        self.rpd = _or_unlimited(limits.requests_per_day)
        self.tpm = _or_unlimited(limits.tokens_per_minute)
        self.parallel_limit = _or_unlimited(limits.parallel_requests)
        self.windowed = self.rpm != _UNLIMITED or self.tpm != _UNLIMITED
        known = {purse.budget.id: purse for purse in self.purses}
        purses = []
        for budget in policy.budgets:
            purse = known.get(budget.id) or _Purse(budget)
            purse.budget = budget
            purses.append(purse)
        self.purses = tuple(purses)

    def move_to(self, now_ms: int) -> None:
        """Let go of what is out of the windows."""
        slots, edge = self.slots, now_ms - WINDOW_MS
        while slots and slots[0].at_ms <= edge:
            slot = slots.popleft()
            slot.gone = True
            self.requests -= slot.requests
            self.tokens -= slot.tokens
        if slots and slots[-1].at_ms > now_ms:
            # The clock was set back: nothing may count for longer than a window from now.
            for slot in slots:
                slot.at_ms = min(slot.at_ms, now_ms)
        if self.rpd != _UNLIMITED and now_ms // DAY_MS != self.day:
            self.day, self.day_requests = now_ms // DAY_MS, 0

    def has_room(self, now_ms: int, tokens: int, cost_pico: int | None) -> bool:
        """Whether the call fits every limit and budget of this scope."""
        self.move_to(now_ms)
        if (
            self.requests >= self.rpm
            or self.tokens + tokens > self.tpm
            or self.parallel >= self.parallel_limit
            or self.day_requests >= self.rpd
        ):
            return False
        for purse in self.purses:
            purse.roll(now_ms)
            if purse.budget.hard and (
                cost_pico is None
                or purse.recorded + purse.unrecorded + purse.held + cost_pico > purse.budget.amount_pico
            ):
                return False
        return True

    def take(self, now_ms: int, tokens: int, cost_pico: int) -> _Slot | None:
        """Reserve; the slot is where the tokens are corrected later."""
        self.parallel += 1
        self.day_requests += 1
        for purse in self.purses:
            purse.held += cost_pico
        if not self.windowed:
            return None
        self.requests += 1
        self.tokens += tokens
        slots = self.slots
        if slots and slots[-1].at_ms == now_ms:
            slot = slots[-1]
        else:
            slot = _Slot(now_ms)
            slots.append(slot)
        slot.requests += 1
        slot.tokens += tokens
        return slot

    @property
    def idle(self) -> bool:
        return not self.slots and not self.parallel and not self.purses


class _Hold:
    """What one call has reserved."""

    __slots__ = ("cost_pico", "expires_ms", "held", "purses", "scopes", "settled", "slots", "tokens")

    def __init__(self, request: AdmitRequest, scopes: tuple[_Scope, ...]) -> None:
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico or 0
        self.expires_ms = request.expires_ms
        self.tokens = tokens
        self.cost_pico = cost_pico
        self.scopes = scopes
        self.slots: list[_Slot | None] = []
        self.purses: list[_Purse] = []  # as they are now: a budget made later holds nothing of this call
        for scope in scopes:
            self.slots.append(scope.take(now_ms, tokens, cost_pico))
            if scope.purses:
                self.purses += scope.purses
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
        self._states: dict[str, _Scope] = {}
        self._paths: dict[tuple[ScopePolicy, ...], tuple[_Scope, ...]] = {}
        self._by_call: dict[tuple[str, str], tuple[_Scope, ...]] = {}
        self._expiries: list[tuple[int, int, _Hold]] = []  # a heap; settled holds in it are passed over
        self._numbers = count()
        self._settled = 0  # of those in the heap

    def admit(self, request: AdmitRequest) -> Decision:
        """See `Admission`."""
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico
        if self._expiries and self._expiries[0][0] <= now_ms:
            self._expire(now_ms)
        scopes = self._scopes(request)
        for scope in scopes:
            if not scope.has_room(now_ms, tokens, cost_pico):
                return self._refuse(request, scopes)
        hold = _Hold(request, scopes)
        heapq.heappush(self._expiries, (hold.expires_ms, next(self._numbers), hold))
        requests, given = _figures(scopes, now_ms)
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
        for scope, slot in zip(hold.scopes, hold.slots, strict=True):
            if slot is not None and not slot.gone:
                slot.tokens += difference
                scope.tokens += difference
            for purse in scope.purses:
                purse.charge(outcome)

    def exchange(self, balances: Iterable[Balance], now_ms: int) -> Mapping[str, BudgetUse]:
        """See `Admission`."""
        self._expire(now_ms)
        purses: dict[str, _Purse] = {}
        for policy in self._book.policies():
            if policy.budgets:
                purses |= {purse.budget.id: purse for purse in self._state(policy).purses}
        for balance in balances:
            if purse := purses.get(balance.budget_id):
                purse.record(balance, balance.through.get(self._gateway, 0))
        for purse in purses.values():
            purse.roll(now_ms)
        return {name: BudgetUse(purse.spent(), purse.held) for name, purse in purses.items()}

    def holds(self) -> int:
        """Calls in flight, for the metrics."""
        return len(self._expiries) - self._settled

    # -- below: nothing that a warm call pays for more than once --

    def _scopes(self, request: AdmitRequest) -> tuple[_Scope, ...]:
        if self._generation != self._book.generation:
            self._generation = self._book.generation
            self._paths.clear()
            self._by_call.clear()
        # A key and an endpoint each have one project for life, and that one organization.
        call = (request.key_id, request.endpoint_id)
        scopes = self._by_call.get(call)
        if scopes is None:
            if len(self._by_call) > _MAX_STATES:
                self._by_call.clear()
            scopes = tuple(self._state(policy) for policy in self._book.of(request))
            self._by_call[call] = scopes
        return scopes

    def _state(self, policy: ScopePolicy) -> _Scope:
        state = self._states.get(policy.id)
        if state is None:
            if len(self._states) > _MAX_STATES:
                self._states = {name: kept for name, kept in self._states.items() if not kept.idle}
                self._by_call.clear()
            state = self._states[policy.id] = _Scope(policy)
        elif state.policy is not policy:
            state.apply(policy)
        return state

    def _expire(self, now_ms: int) -> None:
        heap = self._expiries
        while heap and heap[0][0] <= now_ms:
            _, _, hold = heapq.heappop(heap)
            if not hold.held:
                self._settled -= 1
            elif hold.expires_ms > now_ms:
                heapq.heappush(heap, (hold.expires_ms, next(self._numbers), hold))
            else:
                hold.release()

    def _compact(self) -> None:
        self._expiries = [entry for entry in self._expiries if entry[2].held]
        heapq.heapify(self._expiries)
        self._settled = 0

    def _refuse(self, request: AdmitRequest, scopes: tuple[_Scope, ...]) -> Refusal:
        found = [refusal for scope in scopes for refusal in _obstacles(scope, request)]
        requests, tokens = _figures(scopes, request.now_ms)
        return hardest(found, requests, tokens)


def _or_unlimited(limit: int | None) -> int:
    return _UNLIMITED if limit is None else limit


def _figures(scopes: tuple[_Scope, ...], now_ms: int) -> tuple[Figures | None, Figures | None]:
    """For the headers: of the requests and of the tokens, the limit with the least left."""
    requests = tokens = None
    least_requests = least_tokens = _UNLIMITED
    for scope in scopes:
        if scope.windowed:
            reset_ms = scope.slots[-1].at_ms + WINDOW_MS - now_ms if scope.slots else 0
            left = scope.rpm - scope.requests
            if left < least_requests and scope.rpm != _UNLIMITED:
                least_requests, requests = left, Figures(scope.rpm, left if left > 0 else 0, reset_ms)
            left = scope.tpm - scope.tokens
            if left < least_tokens and scope.tpm != _UNLIMITED:
                least_tokens, tokens = left, Figures(scope.tpm, left if left > 0 else 0, reset_ms)
        if scope.rpd != _UNLIMITED and scope.rpd - scope.day_requests < least_requests:
            least_requests = scope.rpd - scope.day_requests
            requests = Figures(scope.rpd, max(0, least_requests), DAY_MS - now_ms % DAY_MS)
    return requests, tokens


def _obstacles(scope: _Scope, request: AdmitRequest) -> Iterable[Refusal]:
    """Everything of this scope that is in the way."""
    kind, name, now_ms = scope.policy.kind, scope.policy.id, request.now_ms
    wanted = request.estimated_tokens
    if wanted > scope.tpm:
        yield Refusal("too_large", kind, name, "tokens_per_minute", scope.tpm, scope.tokens, wanted)
    elif scope.tokens + wanted > scope.tpm:
        wait = _wait(scope, now_ms, scope.tokens + wanted - scope.tpm, tokens=True)
        yield Refusal("rate", kind, name, "tokens_per_minute", scope.tpm, scope.tokens, wanted, wait)
    if scope.requests >= scope.rpm:
        wait = _wait(scope, now_ms, scope.requests + 1 - scope.rpm, tokens=False)
        yield Refusal("rate", kind, name, "requests_per_minute", scope.rpm, scope.requests, 1, wait)
    if scope.day_requests >= scope.rpd:
        wait = DAY_MS - now_ms % DAY_MS
        yield Refusal("rate", kind, name, "requests_per_day", scope.rpd, scope.day_requests, 1, wait)
    if scope.parallel >= scope.parallel_limit:
        used, limit = scope.parallel, scope.parallel_limit
        yield Refusal("parallel", kind, name, "parallel_requests", limit, used, 1, HELD_RETRY_MS)
    for purse in scope.purses:
        yield from _money_obstacles(purse, request)


def _money_obstacles(purse: _Purse, request: AdmitRequest) -> Iterable[Refusal]:
    budget, cost_pico, spent = purse.budget, request.estimated_cost_pico, purse.spent()
    purse.roll(request.now_ms)
    if not budget.hard:
        return
    facts = (budget.scope, budget.scope_id, budget.id, budget.amount_pico)
    if cost_pico is None:
        yield Refusal("no_price", *facts, spent, 0)
    elif spent + cost_pico > budget.amount_pico:
        yield Refusal("budget", *facts, spent, cost_pico, resets_ms=purse.end_ms)
    elif spent + purse.held + cost_pico > budget.amount_pico:
        yield Refusal("budget_held", *facts, spent + purse.held, cost_pico, HELD_RETRY_MS)


def _wait(scope: _Scope, now_ms: int, excess: int, *, tokens: bool) -> int:
    """When enough has left the window for the call to fit, if nobody else calls."""
    for slot in scope.slots:
        excess -= slot.tokens if tokens else slot.requests
        if excess <= 0:
            return slot.at_ms + WINDOW_MS - now_ms
    return WINDOW_MS
