"""Admission in one process: exact, a few microseconds, no locks, because one event loop makes all calls.

`scope.py` counts what limits are about, `purse.py` what budgets are about.
"""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Final, cast

from mypy_extensions import mypyc_attr

from access.admission.book import PolicyBook
from access.admission.model import DAY_MS, HELD_RETRY_MS, BudgetUse, Decision, Refusal, ScopePolicy
from access.admission.purse import Purse
from access.admission.refusals import hardest
from access.admission.scope import Scope
from access.admission.values import AdmitRequest, Balance, Figures, Grant, Outcome

_SEEMS_UNLIMITED: Final = 1 << 61  # less what was used of it
_MAX_STATES: Final = 200_000
_numbers: Final = count(1)  # for all admissions of the process: a key's last call is of one of them


@mypyc_attr(acyclic=True)
class _Path:
    """What the calls of one key to one endpoint are held to; a scope without limits where nothing is configured."""

    __slots__ = ("endpoint", "endpoint_id", "key", "organization", "project")

    def __init__(
        self, endpoint_id: str, key: Scope, project: Scope, organization: Scope, endpoint: Scope
    ) -> None:
        self.endpoint_id: Final = endpoint_id
        self.key: Final = key
        self.project: Final = project
        self.organization: Final = organization
        self.endpoint: Final = endpoint

    def scopes(self) -> tuple[Scope, Scope, Scope, Scope]:
        """For what is rarer than a call, which spells them out: loops and tuples cost more than the work."""
        return self.key, self.project, self.organization, self.endpoint


@mypyc_attr(acyclic=True)
class _Hold(Grant):
    """What one call has reserved."""

    __slots__ = (
        "after",
        "before",
        "born_ms",
        "cost_pico",
        "endpoint_slot",
        "expires_ms",
        "held",
        "key_slot",
        "organization_slot",
        "path",
        "project_slot",
        "reserved",
        "settled",
    )

    def __init__(self, request: AdmitRequest, path: _Path) -> None:
        super().__init__()
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico or 0
        self.path: Final = path
        self.born_ms: Final = now_ms
        self.reserved: Final = tokens
        self.cost_pico: Final = cost_pico
        self.expires_ms = request.expires_ms
        self.held = True
        self.settled = False
        self.key_slot: Final = path.key.take(now_ms, tokens, cost_pico)
        self.project_slot: Final = path.project.take(now_ms, tokens, cost_pico)
        self.organization_slot: Final = path.organization.take(now_ms, tokens, cost_pico)
        self.endpoint_slot: Final = path.endpoint.take(now_ms, tokens, cost_pico)
        self.before: _Hold | None = None  # in the order in which they expire
        self.after: _Hold | None = None

    def release(self) -> None:
        self.held = False
        path, cost_pico = self.path, self.cost_pico
        path.key.give_back(cost_pico)
        path.project.give_back(cost_pico)
        path.organization.give_back(cost_pico)
        path.endpoint.give_back(cost_pico)

    def correct(self, tokens: int) -> None:
        """The call came to so many tokens, not to what was reserved."""
        path, born_ms, difference = self.path, self.born_ms, tokens - self.reserved
        path.key.correct(self.key_slot, born_ms, difference)
        path.project.correct(self.project_slot, born_ms, difference)
        path.organization.correct(self.organization_slot, born_ms, difference)
        path.endpoint.correct(self.endpoint_slot, born_ms, difference)


class MemoryAdmission:
    """Answers at once; call it from one thread."""

    def __init__(self, book: PolicyBook, gateway: str) -> None:
        """`gateway`: by which name balances say how far they include this process's events."""
        self._book = book
        self._gateway = gateway
        self._generation = book.generation
        self._states: dict[str, Scope] = {}
        self._states_bound = _MAX_STATES  # when there are more, the idle ones are forgotten
        self._open = Scope(ScopePolicy("key", ""))  # in the place of what has no policy
        self._paths_number = next(_numbers)  # of the paths since they were forgotten last
        self._paths: dict[str, _Path] = {}  # by key: to its first endpoint, as a rule its only one
        self._further: dict[tuple[str, str], _Path] = {}  # by key and endpoint: to others
        self._purses: dict[str, Purse] = {}  # by budget, as far as somebody asked
        # Calls in flight in the order in which they expire: nearly always that in which they came.
        self._first: _Hold | None = None
        self._last: _Hold | None = None
        self._holds = 0

    def admit(self, request: AdmitRequest) -> Decision:
        """See `Admission`."""
        now_ms, tokens, cost_pico = request.now_ms, request.estimated_tokens, request.estimated_cost_pico
        if self._first is not None and self._first.expires_ms <= now_ms:
            self._expire(now_ms)
        path = self._path(request)
        if not (
            path.key.has_room(now_ms, tokens, cost_pico)
            and path.project.has_room(now_ms, tokens, cost_pico)
            and path.organization.has_room(now_ms, tokens, cost_pico)
            and path.endpoint.has_room(now_ms, tokens, cost_pico)
        ):
            return self._refuse(request, path)
        hold = _Hold(request, path)
        self._watch(hold)
        hold.requests, hold.tokens = _figures(path, now_ms)
        return hold

    def renew(self, grant: Grant, expires_ms: int) -> None:
        """See `Admission`."""
        hold = cast(_Hold, grant)
        if hold.held and expires_ms > hold.expires_ms:
            self._unwatch(hold)
            hold.expires_ms = expires_ms
            self._watch(hold)

    def settle(self, grant: Grant, outcome: Outcome) -> None:
        """See `Admission`."""
        hold = cast(_Hold, grant)
        if hold.settled:
            return
        hold.settled = True
        if hold.held:
            self._unwatch(hold)
            hold.release()
        hold.correct(outcome.tokens)
        if outcome.cost_pico:
            path = hold.path
            path.key.charge(outcome)
            path.project.charge(outcome)
            path.organization.charge(outcome)

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
            scopes = {self._state(policy) for policy in self._book.policies() if policy.budgets}
        else:
            scopes = {scope for hold in self._watched() for scope in hold.path.scopes()}
        uses = {}
        for scope in scopes:
            for purse in scope.purses():
                purse.roll(now_ms)
                uses[purse.budget.id] = BudgetUse(purse.spent(), scope.held_pico)
        return uses

    def holds(self) -> int:
        """Calls in flight, for the metrics."""
        return self._holds

    # -- below: nothing that a warm call pays for more than once --

    def _keep_to_book(self) -> None:
        if self._generation != self._book.generation:
            self._generation = self._book.generation
            self._forget_paths()

    def _path(self, request: AdmitRequest) -> _Path:
        self._keep_to_book()
        last = request.last_call
        if last is not None and last.path_number == self._paths_number:
            path: _Path = last.path
            if path.endpoint_id == request.endpoint_id:
                return path
        path = self._look_up(request)
        if last is not None:
            last.path, last.path_number = path, self._paths_number
        return path

    def _look_up(self, request: AdmitRequest) -> _Path:
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
        if len(self._states) > self._states_bound:
            # Before the first of its scopes is found: a scope that a path has and this has not would count apart.
            self._states = {name: kept for name, kept in self._states.items() if not kept.idle}
            self._states_bound = max(_MAX_STATES, 2 * len(self._states))
            self._forget_paths()
        key = project = organization = endpoint = self._open
        for policy in self._book.of(request):
            state = self._state(policy)
            if policy.kind == "key":
                key = state
            elif policy.kind == "project":
                project = state
            elif policy.kind == "organization":
                organization = state
            else:
                endpoint = state
        return _Path(request.endpoint_id, key, project, organization, endpoint)

    def _forget_paths(self) -> None:
        self._paths_number = next(_numbers)
        self._paths.clear()
        self._further.clear()
        self._purses.clear()

    def _find_purse(self, budget_id: str) -> Purse | None:
        policy = self._book.owner(budget_id)
        for purse in self._state(policy).purses() if policy is not None else ():
            if purse.budget.id == budget_id:
                self._purses[budget_id] = purse
                return purse
        return None

    def _state(self, policy: ScopePolicy) -> Scope:
        state = self._states.get(policy.id)
        if state is None:
            state = self._states[policy.id] = Scope(policy)
        elif state.policy is not policy:
            state.apply(policy)
        return state

    def _expire(self, now_ms: int) -> None:
        hold = self._first
        while hold is not None and hold.expires_ms <= now_ms:
            self._unwatch(hold)
            hold.release()
            hold = self._first

    def _watch(self, hold: _Hold) -> None:
        before = self._last
        while before is not None and before.expires_ms > hold.expires_ms:
            before = before.before  # the clock was set back
        after = self._first if before is None else before.after
        hold.before, hold.after = before, after
        if before is None:
            self._first = hold
        else:
            before.after = hold
        if after is None:
            self._last = hold
        else:
            after.before = hold
        self._holds += 1

    def _unwatch(self, hold: _Hold) -> None:
        before, after = hold.before, hold.after
        hold.before = hold.after = None
        if before is None:
            self._first = after
        else:
            before.after = after
        if after is None:
            self._last = before
        else:
            after.before = before
        self._holds -= 1

    def _watched(self) -> list[_Hold]:
        found, hold = [], self._first
        while hold is not None:
            found.append(hold)
            hold = hold.after
        return found

    def _refuse(self, request: AdmitRequest, path: _Path) -> Refusal:
        found = [refusal for scope in path.scopes() for refusal in _obstacles(scope, request)]
        requests, tokens = _figures(path, request.now_ms)
        return hardest(found, requests, tokens)


def _figures(path: _Path, now_ms: int) -> tuple[Figures | None, Figures | None]:
    """For the headers: of the requests and of the tokens, the limit with the least left."""
    nearest = of_day = scarcest = None
    least_requests = least_tokens = _SEEMS_UNLIMITED
    for scope in path.scopes():
        bounds = scope.bounds
        left = bounds.rpm - scope.requests
        if left < least_requests:
            least_requests, nearest, of_day = left, scope, None
        left = bounds.tpm - scope.tokens
        if left < least_tokens:
            least_tokens, scarcest = left, scope
        left = bounds.rpd - scope.day_requests
        if left < least_requests:
            least_requests, of_day = left, scope
    requests = tokens = None
    if of_day is not None:
        requests = Figures(of_day.bounds.rpd, max(0, least_requests), DAY_MS - now_ms % DAY_MS)
    elif nearest is not None:
        requests = Figures(nearest.bounds.rpm, max(0, least_requests), nearest.reset_ms(now_ms))
    if scarcest is not None:
        tokens = Figures(scarcest.bounds.tpm, max(0, least_tokens), scarcest.reset_ms(now_ms))
    return requests, tokens


def _obstacles(scope: Scope, request: AdmitRequest) -> Iterable[Refusal]:
    """Everything of this scope that is in the way."""
    kind, name, now_ms = scope.policy.kind, scope.policy.id, request.now_ms
    wanted, bounds = request.estimated_tokens, scope.bounds
    if wanted > bounds.tpm:
        yield Refusal("too_large", kind, name, "tokens_per_minute", bounds.tpm, scope.tokens, wanted)
    elif scope.tokens + wanted > bounds.tpm:
        wait = scope.wait_ms(now_ms, scope.tokens + wanted - bounds.tpm, tokens=True)
        yield Refusal("rate", kind, name, "tokens_per_minute", bounds.tpm, scope.tokens, wanted, wait)
    if scope.requests >= bounds.rpm:
        wait = scope.wait_ms(now_ms, scope.requests + 1 - bounds.rpm, tokens=False)
        yield Refusal("rate", kind, name, "requests_per_minute", bounds.rpm, scope.requests, 1, wait)
    if scope.day_requests >= bounds.rpd:
        wait = DAY_MS - now_ms % DAY_MS
        yield Refusal("rate", kind, name, "requests_per_day", bounds.rpd, scope.day_requests, 1, wait)
    if scope.parallel >= bounds.parallel:
        used, limit = scope.parallel, bounds.parallel
        yield Refusal("parallel", kind, name, "parallel_requests", limit, used, 1, HELD_RETRY_MS)
    for purse in scope.purses():
        yield from _money_obstacles(purse, scope.held_pico, request)


def _money_obstacles(purse: Purse, held_pico: int, request: AdmitRequest) -> Iterable[Refusal]:
    purse.roll(request.now_ms)
    budget, cost_pico, spent = purse.budget, request.estimated_cost_pico, purse.spent()
    if not budget.hard:
        return
    facts = (budget.scope, budget.scope_id, budget.id, budget.amount_pico)
    if cost_pico is None:
        yield Refusal("no_price", *facts, spent, 0)
    elif spent + cost_pico > budget.amount_pico:
        yield Refusal("budget", *facts, spent, cost_pico, resets_ms=purse.resets_ms)
    elif spent + held_pico + cost_pico > budget.amount_pico:
        yield Refusal("budget_held", *facts, spent + held_pico, cost_pico, HELD_RETRY_MS)
