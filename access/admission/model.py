"""Limits, budgets, what is asked of admission and what it answers. Amounts are integer pico-dollars.

What every call makes is in `values.py`.
"""

from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from access.admission.values import Figures, Grant
from core.clock import iso, month_bounds

ScopeKind = Literal["key", "project", "organization", "endpoint"]
BudgetScope = Literal["key", "project", "organization"]
BudgetWindow = Literal["day", "month", "total"]
LimitName = Literal["requests_per_minute", "requests_per_day", "tokens_per_minute", "parallel_requests"]
Reason = Literal["rate", "parallel", "too_large", "budget", "budget_held", "no_price", "unavailable"]

SCOPE_KINDS: Final[tuple[ScopeKind, ...]] = ("key", "project", "organization", "endpoint")
BUDGET_SCOPES: Final[tuple[BudgetScope, ...]] = ("key", "project", "organization")
BUDGET_WINDOWS: Final[tuple[BudgetWindow, ...]] = ("day", "month", "total")

DAY_MS: Final = 86_400_000
WINDOW_MS: Final = 60_000  # of the limits per minute
NEVER_MS: Final = -1  # as a retry time: waiting does not help
ALL_BALANCES: Final = -1  # as the number after which balances moved
HELD_RETRY_MS: Final = 1000  # when only calls in flight are in the way, whose end nobody knows

MAX_LIMIT: Final = 10**12
MAX_AMOUNT_PICO: Final = 10**21  # a billion dollars


@dataclass(frozen=True, slots=True)
class Limits:
    """What one scope may do; None: no limit."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    parallel_requests: int | None = None


SERVERLESS_DEFAULT: Final = Limits(requests_per_minute=1000, tokens_per_minute=200_000)
"""What a serverless endpoint has until somebody sets other limits (the reference platform's figures)."""
ONLINE_DEFAULT: Final = Limits(requests_per_minute=30_000)
"""What an online endpoint has: 500 requests a second (the same source)."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Money that one scope may spend in each window. Only a hard one refuses calls."""

    id: str
    scope: BudgetScope
    scope_id: str
    org_id: str
    amount_pico: int
    window: BudgetWindow
    hard: bool = True
    created_ms: int = 0


class BudgetUse(msgspec.Struct, frozen=True):
    """A budget as admission sees it now."""

    spent_pico: int
    held_pico: int


@dataclass(frozen=True, slots=True)
class ScopePolicy:
    """Everything that is configured for one key, project, organization or endpoint."""

    kind: ScopeKind
    id: str
    limits: Limits | None = None
    budgets: tuple[Budget, ...] = ()
    open_on_outage: bool = False  # an organization's choice: serve unlimited while the shared store is down


class Refusal(msgspec.Struct, frozen=True):
    """The call may not go on, and nothing was reserved. All scopes were looked at: the longest wait counts."""

    reason: Reason
    scope: ScopeKind
    scope_id: str
    limit: str  # name of the limit, or id of the budget
    allowed: int
    used: int
    wanted: int
    retry_after_ms: int = NEVER_MS
    resets_ms: int = 0  # a budget's window ends then; 0: it does not
    requests: Figures | None = None
    tokens: Figures | None = None


Decision = Grant | Refusal


def window_start(window: BudgetWindow, at_ms: int) -> int:
    """The start of the budget window that holds the instant, 0 for `total`: the window's id."""
    if window == "day":
        return at_ms - at_ms % DAY_MS
    return month_bounds(at_ms)[0] if window == "month" else 0


def window_end(window: BudgetWindow, at_ms: int) -> int:
    """The end (exclusive) of that window, 0 for `total`: never."""
    if window == "day":
        return at_ms - at_ms % DAY_MS + DAY_MS
    return month_bounds(at_ms)[1] if window == "month" else 0


def describe(refusal: Refusal) -> str:
    """One sentence for the caller: which limit of whom, what was asked, when it works again."""
    whose = f"this {refusal.scope}" if refusal.scope != "organization" else "this organization"
    name = refusal.limit.replace("_", " ")
    if refusal.reason == "too_large":
        return (
            f"Request too large: it may use up to {refusal.wanted} tokens, and the limit of {whose} is "
            f"{refusal.allowed} {name}. Waiting does not help: send less, or set a smaller max_tokens."
        )
    if refusal.reason == "rate":
        return (
            f"Rate limit reached for {whose}: limit {refusal.allowed} {name}, used {refusal.used}, "
            f"requested {refusal.wanted}. Please try again in {seconds(refusal.retry_after_ms)}."
        )
    if refusal.reason == "parallel":
        return (
            f"Rate limit reached for {whose}: {refusal.used} calls are in flight and {refusal.allowed} "
            "parallel requests are allowed. Please try again when one has ended."
        )
    if refusal.reason == "budget":
        until = f"; it starts anew at {iso(refusal.resets_ms)}" if refusal.resets_ms else ""
        return f"The budget of {whose} does not cover this call: you exceeded your current quota{until}."
    if refusal.reason == "budget_held":
        return (
            f"What is left of the budget of {whose} is reserved by calls in flight. "
            "Please try again when they have ended."
        )
    if refusal.reason == "no_price":
        return f"The model has no price, so the budget of {whose} cannot be kept. Tell the operator."
    return "Limits and budgets cannot be checked at the moment; try again."


def seconds(ms: int) -> str:
    """A duration as OpenAI writes it: `120ms`, `1s`, `1.5s`, `6m0s`, `2h3m0s`."""
    if ms < 1000:
        return f"{max(0, ms)}ms"
    whole, rest = divmod(ms, 1000)
    fraction = f".{rest:03d}".rstrip("0") if rest else ""
    minutes, secs = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    text = f"{secs}{fraction}s"
    if hours:
        return f"{hours}h{minutes}m{text}"
    return f"{minutes}m{text}" if minutes else text
