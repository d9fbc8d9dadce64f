"""What admission in one process counts for one key, project, organization or endpoint.

The limits per minute are an exact sliding window to the millisecond: one slot per millisecond with calls, the
sums beside it, so a decision looks at what left the window since the last one and at nothing else.

Compiled, and small: with many keys a call waits for each line of memory that it alone needs.
"""

from functools import lru_cache
from typing import Final

from mypy_extensions import mypyc_attr

from access.admission.model import DAY_MS, WINDOW_MS, Limits, ScopePolicy
from access.admission.purse import UNLIMITED, Purse
from access.admission.values import Outcome

_NO_LIMITS: Final = Limits()
_MAX_SPARE: Final = 10_000


@mypyc_attr(acyclic=True)
class Slot:
    """What was admitted in one millisecond. It leaves the window as a whole, and is used again then.

    Each knows the next younger one: a hundred thousand keys with a deque each would be 60 MB of empty room. And it
    knows from when that one counts, so that nobody need look.
    """

    __slots__ = ("born_ms", "next", "next_ms", "requests", "tokens")

    def __init__(self) -> None:
        # By this its calls know it; it counts from another instant if the clock was set back.
        self.born_ms = 0
        self.requests = 0
        self.tokens = 0
        self.next: Slot | None = None
        self.next_ms = UNLIMITED


class _Spares:
    """Slots that left their windows, used again by whichever scope needs one next: that memory was touched just now."""

    __slots__ = ("count", "first")

    def __init__(self) -> None:
        self.first: Slot | None = None
        self.count = 0

    def take(self) -> Slot:
        slot = self.first
        if slot is None:
            return Slot()
        self.first, slot.next = slot.next, None
        slot.next_ms = UNLIMITED
        slot.requests = slot.tokens = 0
        self.count -= 1
        return slot

    def give_back(self, slot: Slot) -> None:
        if self.count < _MAX_SPARE:
            slot.next, self.first = self.first, slot
            self.count += 1


_spares: Final = _Spares()


@mypyc_attr(acyclic=True)
class Bounds:
    """Limits to compare with: where there is none, a figure that nothing reaches. Scopes of equal limits share it."""

    __slots__ = ("parallel", "rpd", "rpm", "tpm", "windowed")

    def __init__(self, limits: Limits) -> None:
        self.rpm: Final = _or_unlimited(limits.requests_per_minute)
        self.tpm: Final = _or_unlimited(limits.tokens_per_minute)
        self.rpd: Final = _or_unlimited(limits.requests_per_day)
        self.parallel: Final = _or_unlimited(limits.parallel_requests)
        self.windowed: Final = self.rpm != UNLIMITED or self.tpm != UNLIMITED


def _or_unlimited(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit


_bounds_of: Final = lru_cache(maxsize=4096)(Bounds)


@mypyc_attr(acyclic=True)
class Scope:
    """The counters. Of the first and the last slot the instants are kept here too, to be looked at each time."""

    __slots__ = (
        "bounds",
        "day_ends_ms",
        "day_requests",
        "held_pico",
        "newest",
        "newest_ms",
        "oldest",
        "oldest_ms",
        "parallel",
        "policy",
        "purse",
        "requests",
        "tokens",
    )

    def __init__(self, policy: ScopePolicy) -> None:
        self.oldest_ms = UNLIMITED
        self.newest_ms = 0
        self.requests = 0
        self.tokens = 0
        self.parallel = 0
        self.day_requests = 0
        self.day_ends_ms = 0
        self.held_pico = 0  # by calls in flight, under each of the budgets
        self.purse: Purse | None = None  # of the first budget; it knows the next one
        self.oldest: Slot | None = None  # in the window
        self.newest: Slot | None = None
        self.apply(policy)

    def __del__(self) -> None:
        # One after the other: compiled, a chain that is let go of as a whole would be freed by recursion.
        slot, self.oldest = self.oldest, None
        while slot is not None:
            following, slot.next = slot.next, None
            slot = following

    def apply(self, policy: ScopePolicy) -> None:
        """Other limits from now on; the counters stay."""
        self.policy = policy
        self.bounds: Bounds = _bounds_of(policy.limits or _NO_LIMITS)
        known = {purse.budget.id: purse for purse in self.purses()}
        self.purse = None
        for budget in reversed(policy.budgets):
            purse = known.get(budget.id) or Purse(budget)
            purse.apply(budget)
            purse.next, self.purse = self.purse, purse

    def purses(self) -> list[Purse]:
        """One for each budget."""
        found = []
        purse = self.purse
        while purse is not None:
            found.append(purse)
            purse = purse.next
        return found

    def has_room(self, now_ms: int, tokens: int, cost_pico: int | None) -> bool:
        """Whether the call fits every limit and budget of this scope."""
        bounds = self.bounds
        if self.oldest_ms <= now_ms - WINDOW_MS or self.newest_ms > now_ms:
            self._slide_to(now_ms)
        if not 0 < self.day_ends_ms - now_ms <= DAY_MS:
            self.day_ends_ms, self.day_requests = now_ms - now_ms % DAY_MS + DAY_MS, 0
        if (
            self.requests >= bounds.rpm
            or self.tokens + tokens > bounds.tpm
            or self.parallel >= bounds.parallel
            or self.day_requests >= bounds.rpd
        ):
            return False
        purse = self.purse
        while purse is not None:
            if not purse.covers(now_ms, self.held_pico, cost_pico):
                return False
            purse = purse.next
        return True

    def _slide_to(self, now_ms: int) -> None:
        """Let go of what is out of the window."""
        edge = now_ms - WINDOW_MS
        slot, at_ms = self.oldest, self.oldest_ms
        while slot is not None and at_ms <= edge:
            self.requests -= slot.requests
            self.tokens -= slot.tokens
            slot.born_ms = 0
            at_ms = slot.next_ms
            following, slot.next = slot.next, None  # not kept: see `__del__`
            _spares.give_back(slot)
            slot = following
        self.oldest = slot
        if slot is None:
            self.newest = None
            self.oldest_ms, self.newest_ms = UNLIMITED, 0
            return
        self.oldest_ms = at_ms
        if self.newest_ms > now_ms:
            self._set_back(now_ms)

    def _set_back(self, now_ms: int) -> None:
        """The clock was: nothing may count for longer than a window from now."""
        slot = self.oldest
        self.oldest_ms = min(self.oldest_ms, now_ms)
        while slot is not None:
            slot.next_ms = min(slot.next_ms, now_ms)
            slot = slot.next
        self._append(now_ms)  # those slots are of other instants

    def take(self, now_ms: int, tokens: int, cost_pico: int) -> Slot | None:
        """Reserve; the slot is where the tokens are corrected later."""
        self.parallel += 1
        self.day_requests += 1
        self.held_pico += cost_pico
        if not self.bounds.windowed:
            return None
        self.requests += 1
        self.tokens += tokens
        slot = self.newest
        if slot is None or self.newest_ms != now_ms:
            slot = self._append(now_ms)
        slot.requests += 1
        slot.tokens += tokens
        return slot

    def give_back(self, cost_pico: int) -> None:
        """The call is over, or nobody believes that it still lives."""
        self.parallel -= 1
        self.held_pico -= cost_pico

    def correct(self, slot: Slot | None, born_ms: int, tokens: int) -> None:
        """The slot's call came to so many tokens more or less; what left the window counts no longer."""
        if slot is not None and slot.born_ms == born_ms:
            slot.tokens += tokens
            self.tokens += tokens

    def charge(self, outcome: Outcome) -> None:
        """Count what a settled call cost."""
        purse = self.purse
        while purse is not None:
            purse.charge(outcome.cost_pico, outcome.sequence, outcome.ended_ms)
            purse = purse.next

    def _append(self, now_ms: int) -> Slot:
        slot = _spares.take()
        slot.born_ms = now_ms
        newest = self.newest
        if newest is None:
            self.oldest, self.oldest_ms = slot, now_ms
        else:
            newest.next, newest.next_ms = slot, now_ms
        self.newest, self.newest_ms = slot, now_ms
        return slot

    def reset_ms(self, now_ms: int) -> int:
        """Until nothing of the limits per minute is used, if nobody calls."""
        return self.newest_ms + WINDOW_MS - now_ms if self.newest_ms else 0

    def wait_ms(self, now_ms: int, excess: int, *, tokens: bool) -> int:
        """When enough has left the window for a call to fit, if nobody else calls."""
        slot, at_ms = self.oldest, self.oldest_ms
        while slot is not None:
            excess -= slot.tokens if tokens else slot.requests
            if excess <= 0:
                return at_ms + WINDOW_MS - now_ms
            at_ms = slot.next_ms
            slot = slot.next
        return WINDOW_MS

    @property
    def idle(self) -> bool:
        return self.oldest is None and not self.parallel and self.purse is None
