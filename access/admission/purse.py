"""What admission in one process knows of one budget.

Compiled, and small: with many keys a call waits for each line of memory that it alone needs.
"""

from typing import Final

from mypy_extensions import mypyc_attr

from access.admission.model import Budget, window_end, window_start
from access.admission.values import Balance

UNLIMITED: Final = (1 << 62) - 1  # the largest integer that compiled code keeps without an object
_MAX_UNCONFIRMED: Final = 10_000  # commits of the journal, not calls
_NO_CEILING: Final = 10**30  # pico-dollars: more than there is money
_UNOPENED: Final = 1  # as the end of a window: so that the first look opens one


@mypyc_attr(acyclic=True)
class _Earlier:
    """What calls cost that were settled when the newest durable event was of that number."""

    __slots__ = ("cost_pico", "next", "sequence")

    def __init__(self, sequence: int, cost_pico: int) -> None:
        self.sequence = sequence
        self.cost_pico = cost_pico
        self.next: _Earlier | None = None


@mypyc_attr(acyclic=True)
class Purse:
    """One budget: what is on record, and what this gateway settled beyond that."""

    __slots__ = (
        "budget",
        "ceiling_pico",
        "earlier",
        "end_ms",
        "last_earlier",
        "latest",
        "latest_pico",
        "next",
        "recorded",
        "through",
        "unrecorded",
        "version",
        "waiting",
        "window_ms",
    )

    def __init__(self, budget: Budget) -> None:
        self.recorded = 0
        self.unrecorded = 0
        self.end_ms = _UNOPENED
        self.window_ms = 0
        self.through = 0
        self.apply(budget)
        self.next: Purse | None = None  # of the same key, project or organization
        # What of `unrecorded` came with which event number; calls of one commit share it. As a rule there is no
        # earlier one: a key seldom ends two calls a second.
        self.latest = 0
        self.latest_pico = 0
        self.earlier: _Earlier | None = None  # the first of a chain
        self.last_earlier: _Earlier | None = None
        self.waiting = 0  # how many they are
        self.version = -1

    def apply(self, budget: Budget) -> None:
        """Another amount from now on; what was spent stays."""
        self.budget = budget
        self.ceiling_pico = budget.amount_pico if budget.hard else _NO_CEILING

    def covers(self, now_ms: int, held_pico: int, cost_pico: int | None) -> bool:
        """Whether a call of that cost fits; None, which cannot be known, fits only where nothing is refused."""
        if now_ms >= self.end_ms:
            self.roll(now_ms)
        if cost_pico is None:
            return not self.budget.hard
        return self.recorded + self.unrecorded + held_pico + cost_pico <= self.ceiling_pico

    def roll(self, now_ms: int) -> None:
        """Open the window that holds the instant, unless a later one is open already."""
        if now_ms >= self.end_ms:
            self._open(window_start(self.budget.window, now_ms))

    def _open(self, window_ms: int) -> None:
        self.window_ms = window_ms
        self.end_ms = window_end(self.budget.window, window_ms) or UNLIMITED
        self.recorded = self.unrecorded = self.latest_pico = 0
        self.version = -1
        while self.earlier is not None:
            self._take_earlier()

    @property
    def resets_ms(self) -> int:
        """When the window ends, 0: never."""
        return 0 if self.end_ms == UNLIMITED else self.end_ms

    def spent(self) -> int:
        return self.recorded + self.unrecorded

    def charge(self, cost_pico: int, sequence: int, ended_ms: int) -> None:
        """Count a settled call, unless the record has it already or its window is over."""
        if ended_ms >= self.end_ms:
            self.roll(ended_ms)
        if ended_ms < self.window_ms or sequence <= self.through:
            return
        self.unrecorded += cost_pico
        if sequence > self.latest:
            if self.latest_pico:
                self._set_aside()
            self.latest = sequence
        self.latest_pico += cost_pico

    def _set_aside(self) -> None:
        last = self.last_earlier
        if last is not None and self.waiting >= _MAX_UNCONFIRMED:
            # The record has not moved for long. Two become one that is confirmed with the later of them.
            last.sequence = self.latest
            last.cost_pico += self.latest_pico
        else:
            self.last_earlier = _Earlier(self.latest, self.latest_pico)
            if last is None:
                self.earlier = self.last_earlier
            else:
                last.next = self.last_earlier
            self.waiting += 1
        self.latest_pico = 0

    def _take_earlier(self) -> int:
        """What the first of the chain came to, which is no more in it. Pico-dollars."""
        first = self.earlier
        assert first is not None, "the callers looked"
        self.earlier, first.next = first.next, None
        if self.earlier is None:
            self.last_earlier = None
        self.waiting -= 1
        return first.cost_pico

    def record(self, balance: Balance, through: int) -> None:
        """Take over what is on record; what of ours it includes is not counted twice."""
        if balance.window_ms > self.window_ms or self.end_ms == _UNOPENED:
            self._open(balance.window_ms)
        if balance.window_ms < self.window_ms or balance.version <= self.version:
            return
        self.recorded, self.version, self.through = balance.spent_pico, balance.version, through
        if self.latest <= through:
            self.unrecorded -= self.latest_pico
            self.latest_pico = 0
        while self.earlier is not None and self.earlier.sequence <= through:
            self.unrecorded -= self._take_earlier()

    def __del__(self) -> None:
        # One after the other: compiled, a chain that is let go of as a whole would be freed by recursion.
        while self.earlier is not None:
            self._take_earlier()
