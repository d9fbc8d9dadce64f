"""What admission in one process counts for one key, project, organization or endpoint.

The limits per minute are an exact sliding window to the millisecond: one slot per millisecond with calls, the
sums beside it, so a decision looks at what left the window since the last one and at nothing else.

Compiled, and small: with many keys a call waits for each line of memory that it alone needs.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from access.admission.model import DAY_MS, WINDOW_MS, Limits, ScopePolicy
from access.admission.purse import UNLIMITED, Purse

_NO_LIMITS: Final = Limits()


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


@mypyc_attr(acyclic=True)
class Scope:
    """The counters. Of the first and the last slot the instants are kept here too, to be looked at each time."""

    __slots__ = (
        "day",
        "day_requests",
        "newest",
        "newest_ms",
        "oldest",
        "oldest_ms",
        "parallel",
        "parallel_limit",
        "policy",
        "purses",
        "requests",
        "rpd",
        "rpm",
        "spare",
        "tokens",
        "tpm",
        "windowed",
    )

    def __init__(self, policy: ScopePolicy) -> None:
        self.oldest: Slot | None = None  # in the window
        self.newest: Slot | None = None
        self.oldest_ms = UNLIMITED
        self.newest_ms = 0
        self.spare: Slot | None = None  # the last that left the window
        self.requests = 0
        self.tokens = 0
        self.day = 0
        self.day_requests = 0
        self.parallel = 0
        self.purses: tuple[Purse, ...] = ()
        self.apply(policy)

    def __del__(self) -> None:
        # One after the other: compiled, a chain that is let go of as a whole would be freed by recursion.
        slot, self.oldest = self.oldest, None
        while slot is not None:
            following, slot.next = slot.next, None
            slot = following

    def apply(self, policy: ScopePolicy) -> None:
        """Other limits from now on; the counters stay."""
        limits = policy.limits or _NO_LIMITS
        self.policy = policy
        self.rpm = _or_unlimited(limits.requests_per_minute)
        self.rpd = _or_unlimited(limits.requests_per_day)
        self.tpm = _or_unlimited(limits.tokens_per_minute)
        self.parallel_limit = _or_unlimited(limits.parallel_requests)
        self.windowed = self.rpm != UNLIMITED or self.tpm != UNLIMITED
        known = {purse.budget.id: purse for purse in self.purses}
        purses = []
        for budget in policy.budgets:
            purse = known.get(budget.id) or Purse(budget)
            purse.apply(budget)
            purses.append(purse)
        self.purses = tuple(purses)

    def has_room(self, now_ms: int, tokens: int) -> bool:
        """Whether the call fits every limit of this scope."""
        if self.oldest_ms <= now_ms - WINDOW_MS or self.newest_ms > now_ms:
            self._slide_to(now_ms)
        if self.rpd != UNLIMITED and now_ms // DAY_MS != self.day:
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
        slot, at_ms = self.oldest, self.oldest_ms
        while slot is not None and at_ms <= edge:
            self.requests -= slot.requests
            self.tokens -= slot.tokens
            slot.born_ms = 0
            at_ms = slot.next_ms
            following, slot.next = slot.next, None
            self.spare, slot = slot, following
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

    def take(self, now_ms: int, tokens: int) -> Slot | None:
        """Reserve; the slot is where the tokens are corrected later."""
        self.parallel += 1
        self.day_requests += 1
        if not self.windowed:
            return None
        self.requests += 1
        self.tokens += tokens
        slot = self.newest
        if slot is None or self.newest_ms != now_ms:
            slot = self._append(now_ms)
        slot.requests += 1
        slot.tokens += tokens
        return slot

    def correct(self, slot: Slot | None, born_ms: int, tokens: int) -> None:
        """The slot's call came to so many tokens more or less; what left the window counts no longer."""
        if slot is not None and slot.born_ms == born_ms:
            slot.tokens += tokens
            self.tokens += tokens

    def _append(self, now_ms: int) -> Slot:
        slot = self.spare
        if slot is None:
            slot = Slot()
        else:
            self.spare = None
        slot.born_ms = now_ms
        slot.requests = slot.tokens = 0
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
        return self.oldest is None and not self.parallel and not self.purses


def _or_unlimited(limit: int | None) -> int:
    return UNLIMITED if limit is None else limit
