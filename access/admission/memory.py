"""Admission in one process: exact, a few microseconds, no locks, because one event loop makes all calls.

The limits per minute are an exact sliding window to the millisecond: one slot per millisecond with calls, the
sums beside it, so a decision looks at what left the window since the last one and at nothing else.
"""

import heapq
from collections.abc import Iterable, Mapping
from itertools import count
from typing import NamedTuple

from access.admission.book import PolicyBook
from access.admission.model import (
    DAY_MS,
    HELD_RETRY_MS,
    WINDOW_MS,
    Balance,
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
from access.admission.values import AdmitRequest, Figures, Grant, Outcome

_UNLIMITED = 1 << 62
_SEEMS_UNLIMITED = 1 << 61  # less what was used of it
_MAX_STATES = 200_000
_MAX_UNCONFIRMED = 10_000  # commits of the journal, not calls
_UNOPENED = 1  # as the end of a window: so that the first look opens one
_NO_LIMITS = Limits()


class _Slot:
    """What was admitted in one millisecond. It leaves the window as a whole.

    Each knows the next younger one: a hundred thousand keys with a deque each would be 60 MB of empty room.
    """

    __slots__ = ("at_ms", "gone", "next", "requests", "tokens")

    def __init__(self, at_ms: int) -> None:
        self.at_ms = at_ms
        self.requests = 0
        self.tokens = 0
        self.gone = False
        self.next: _Slot | None = None


class _Purse:
    """One budget: what is on record, what this gateway settled beyond that, what calls in flight hold."""

    __slots__ = (
        "budget",
        "ceiling_pico",
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
        self.apply(budget)
        self.window_ms = 0
        self.end_ms = _UNOPENED
        self.recorded = 0
        self.unrecorded = 0
        self.held = 0  # of no window: a call ends, and costs, in whichever window that is
        self.through = 0
        self.version = -1
        self.unconfirmed: dict[int, int] = {}  # cost by event number; calls of one commit share it

    def apply(self, budget: Budget) -> None:
        """Another amount from now on; what was spent stays."""
        self.budget = budget
        self.ceiling_pico = budget.amount_pico if budget.hard else _UNLIMITED

    def covers(self, now_ms: int, cost_pico: int | None) -> bool:
        """Whether a call of that cost fits; None, which cannot be known, fits only where nothing is refused."""
        if now_ms >= self.end_ms:
            self.roll(now_ms)
        if cost_pico is None:
            return not self.budget.hard
        return self.recorded + self.unrecorded + self.held + cost_pico <= self.ceiling_pico

    def roll(self, now_ms: int) -> None:
        """Open the window that holds the instant, unless a later one is open already."""
        if now_ms >= self.end_ms:
            self._open(window_start(self.budget.window, now_ms))

    def _open(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.end_ms = window_end(self.budget.window, window_ms) or _UNLIMITED
        self.recorded = self.unrecorded = 0
        self.version = -1
        self.unconfirmed = {}

    @property
    def resets_ms(self) -> int:
        """When the window ends, 0: never."""
        return 0 if self.end_ms == _UNLIMITED else self.end_ms

    def spent(self) -> int:
        return self.recorded + self.unrecorded

    def charge(self, cost_pico: int, sequence: int, ended_ms: int) -> None:
        """Count a settled call, unless the record has it already or its window is over."""
        if ended_ms >= self.end_ms:
            self.roll(ended_ms)
        if ended_ms < self.window_ms or sequence <= self.through:
            return
        self.unrecorded += cost_pico
        unconfirmed = self.unconfirmed
        if sequence in unconfirmed:
            unconfirmed[sequence] += cost_pico
            return
        if len(unconfirmed) >= _MAX_UNCONFIRMED:
            # The record has not moved for long. Two become one that is confirmed with the later of them.
            other, cost = unconfirmed.popitem()
            sequence, cost_pico = max(sequence, other), cost_pico + cost
        unconfirmed[sequence] = cost_pico

    def record(self, balance: Balance, through: int) -> None:
        """Take over what is on record; what of ours it includes is not counted twice."""
        if balance.window_ms > self.window_ms or self.end_ms == _UNOPENED:
            self._open(balance.window_ms)
        if balance.window_ms < self.window_ms or balance.version <= self.version:
            return
        self.recorded, self.version, self.through = balance.spent_pico, balance.version, through
        for sequence in [each for each in self.unconfirmed if each <= through]:
            self.unrecorded -= self.unconfirmed.pop(sequence)


class _Scope:
    """The counters of one key, project, organization or endpoint."""

    __slots__ = (
        "day",
        "day_requests",
        "newest",
        "oldest",
        "parallel",
        "parallel_limit",
        "policy",
        "purses",
        "requests",
        "rpd",
        "rpm",
        "tokens",
        "tpm",
        "windowed",
    )  # fmt: skip

    def __init__(self, policy: ScopePolicy) -> None:
        self.oldest: _Slot | None = None  # in the window
        self.newest: _Slot | None = None
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
            purse.apply(budget)
            purses.append(purse)
        self.purses = tuple(purses)

    def has_room(self, now_ms: int, tokens: int) -> bool:
        """Whether the call fits every limit of this scope."""
        oldest, newest = self.oldest, self.newest
        if (
            oldest is not None
            and newest is not None
            and (oldest.at_ms <= now_ms - WINDOW_MS or newest.at_ms > now_ms)
        ):
            self._slide_to(now_ms)
        if self.rpd != _UNLIMITED and now_ms // DAY_MS != self.day:
            self.day, self.day_requests = now_ms // DAY_MS, 0
        return (
            self.requests < self.rpm
            and self.tokens + tokens <= self.tpm
            and self.parallel < self.parallel_limit
            and self.day_requests < self.rpd
        )

    def _slide_to(self, now_ms: int) -> None:
        """Let go of what is out of the window."""
        edge = now_ms - WINDOW_MS
        slot = self.oldest
        while slot is not None and slot.at_ms <= edge:
            slot.gone = True
            self.requests -= slot.requests
            self.tokens -= slot.tokens
            following, slot.next = slot.next, None
            slot = following
        self.oldest = slot
        if slot is None:
            self.newest = None
        # Where the clock was set back: nothing may count for longer than a window from now.
        while slot is not None and self.newest is not None and self.newest.at_ms > now_ms:
            slot.at_ms = min(slot.at_ms, now_ms)
            slot = slot.next

    def take(self, now_ms: int, tokens: int) -> _Slot | None:
        """Reserve; the slot is where the tokens are corrected later."""
        self.parallel += 1
        self.day_requests += 1
        if not self.windowed:
            return None
        self.requests += 1
        self.tokens += tokens
        slot = self.newest
        if slot is None or slot.at_ms != now_ms:
            slot = _Slot(now_ms)
            if self.newest is None:
                self.oldest = slot
            else:
                self.newest.next = slot
            self.newest = slot
        slot.requests += 1
        slot.tokens += tokens
        return slot

    def reset_ms(self, now_ms: int) -> int:
        """Until nothing of the limits per minute is used, if nobody calls."""
        return self.newest.at_ms + WINDOW_MS - now_ms if self.newest is not None else 0

    @property
    def idle(self) -> bool:
        return self.oldest is None and not self.parallel and not self.purses


class _Path(NamedTuple):
    """What the calls of one key to one endpoint are held to."""

    scopes: tuple[_Scope, ...]
    purses: tuple[_Purse, ...]  # of all those scopes


class _Hold:
    """What one call has reserved."""

    __slots__ = ("cost_pico", "expires_ms", "held", "purses", "scopes", "settled", "slots", "tokens")

    def __init__(self, request: AdmitRequest, path: _Path) -> None:
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico or 0
        self.expires_ms = request.expires_ms
        self.tokens = tokens
        self.cost_pico = cost_pico
        # The purses are those of now: a budget made later holds nothing of this call.
        self.scopes, self.purses = path
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
        self._states: dict[str, _Scope] = {}
        self._paths: dict[tuple[str, str], _Path] = {}  # by key and endpoint
        self._expiries: list[tuple[int, int, _Hold]] = []  # a heap; settled holds in it are passed over
        self._numbers = count()
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
        heapq.heappush(self._expiries, (hold.expires_ms, next(self._numbers), hold))
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
        for scope, slot in zip(hold.scopes, hold.slots, strict=True):
            if slot is not None and not slot.gone:
                slot.tokens += difference
                scope.tokens += difference
            if outcome.cost_pico:
                for purse in scope.purses:
                    purse.charge(outcome.cost_pico, outcome.sequence, outcome.ended_ms)

    def exchange(
        self, balances: Iterable[Balance], now_ms: int, *, every: bool = True
    ) -> Mapping[str, BudgetUse]:
        """See `Admission`."""
        self._expire(now_ms)
        for balance in balances:
            policy = self._book.owner(balance.budget_id)
            for purse in self._state(policy).purses if policy is not None else ():
                if purse.budget.id == balance.budget_id:
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

    def _path(self, request: AdmitRequest) -> _Path:
        if self._generation != self._book.generation:
            self._generation = self._book.generation
            self._paths.clear()
        # A key and an endpoint each have one project for life, and that one organization.
        call = (request.key_id, request.endpoint_id)
        path = self._paths.get(call)
        if path is None:
            if len(self._paths) > _MAX_STATES:
                self._paths.clear()
            scopes = tuple([self._state(policy) for policy in self._book.of(request)])
            purses = tuple([purse for scope in scopes for purse in scope.purses])
            path = self._paths[call] = _Path(scopes, purses)
        return path

    def _state(self, policy: ScopePolicy) -> _Scope:
        state = self._states.get(policy.id)
        if state is None:
            if len(self._states) > _MAX_STATES:
                self._states = {name: kept for name, kept in self._states.items() if not kept.idle}
                self._paths.clear()
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


def _wait(scope: _Scope, now_ms: int, excess: int, *, tokens: bool) -> int:
    """When enough has left the window for the call to fit, if nobody else calls."""
    slot = scope.oldest
    while slot is not None:
        excess -= slot.tokens if tokens else slot.requests
        if excess <= 0:
            return slot.at_ms + WINDOW_MS - now_ms
        slot = slot.next
    return WINDOW_MS
