"""What a call asks of admission and gets from it. Nobody changes these values.

Plain classes, because these are compiled and every call makes them; what is rarer is in `model.py`.
"""

from collections.abc import Mapping
from typing import Any, Final

from mypy_extensions import mypyc_attr

from access.principal import LastCall


@mypyc_attr(acyclic=True)
class AdmitRequest:
    """One call at the door. Estimates are the worst case; no cost (None): the model has no price."""

    __slots__ = (
        "endpoint_id",
        "estimated_cost_pico",
        "estimated_tokens",
        "expires_ms",
        "key_id",
        "last_call",
        "now_ms",
        "online",
        "org_id",
        "project_id",
        "request_id",
    )

    def __init__(
        self,
        request_id: str,
        org_id: str,
        project_id: str,
        key_id: str,
        endpoint_id: str,
        estimated_tokens: int,
        estimated_cost_pico: int | None,
        now_ms: int,
        expires_ms: int,
        online: bool = False,
        last_call: LastCall | None = None,
    ) -> None:
        self.request_id: Final = request_id
        self.org_id: Final = org_id
        self.project_id: Final = project_id
        self.key_id: Final = key_id
        self.endpoint_id: Final = endpoint_id
        self.estimated_tokens: Final = estimated_tokens
        self.estimated_cost_pico: Final = estimated_cost_pico
        self.now_ms: Final = now_ms
        self.expires_ms: Final = expires_ms
        self.online: Final = online  # of an online endpoint: another default limit
        self.last_call: Final = last_call  # of that key


@mypyc_attr(acyclic=True)
class Figures:
    """What the rate-limit headers say of requests, or of tokens: of the scope that is nearest to its limit."""

    __slots__ = ("limit", "remaining", "reset_ms")

    def __init__(self, limit: int, remaining: int, reset_ms: int) -> None:
        self.limit: Final = limit
        self.remaining: Final = remaining
        self.reset_ms: Final = reset_ms  # until nothing of the limit is used, if nobody calls


@mypyc_attr(acyclic=True)
class Grant:
    """The call may go on; give the grant back with `settle`.

    What is reserved the implementation keeps in a class of its own that comes of this one, or in `hold`.
    """

    __slots__ = ("hold", "requests", "tokens")

    def __init__(
        self, requests: Figures | None = None, tokens: Figures | None = None, hold: Any = None
    ) -> None:
        self.requests = requests
        self.tokens = tokens
        self.hold: Final = hold


@mypyc_attr(acyclic=True)
class Outcome:
    """What a call came to. `sequence` is the number of its durable usage event, 0: there is none."""

    __slots__ = ("cost_pico", "ended_ms", "sequence", "tokens")

    def __init__(self, tokens: int, cost_pico: int, sequence: int, ended_ms: int) -> None:
        self.tokens: Final = tokens
        self.cost_pico: Final = cost_pico
        self.sequence: Final = sequence
        self.ended_ms: Final = ended_ms


@mypyc_attr(acyclic=True)
class Balance:
    """What is on record as spent from a budget in the window that starts at `window_ms`.

    `through` tells, for each gateway, the number of the last usage event that is included. Versions grow.
    """

    __slots__ = ("budget_id", "spent_pico", "through", "version", "window_ms")

    def __init__(
        self, budget_id: str, window_ms: int, spent_pico: int, version: int, through: Mapping[str, int]
    ) -> None:
        self.budget_id: Final = budget_id
        self.window_ms: Final = window_ms
        self.spent_pico: Final = spent_pico
        self.version: Final = version
        self.through: Final = through
