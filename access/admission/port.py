"""The port: one decision over all scopes. Memory answers at once; Redis answers with an awaitable.

    decision = admission.admit(request)
    if isawaitable(decision):
        decision = await decision

`await` of a plain value would cost the one-machine path a trip through the event loop; so callers look first
(`answered` does it), and write the code once for both.
"""

from collections.abc import Awaitable, Iterable, Mapping
from inspect import isawaitable
from typing import Protocol, TypeVar

from access.admission.model import BudgetUse, Decision
from access.admission.values import AdmitRequest, Balance, Grant, Outcome

T = TypeVar("T")


class Admission(Protocol):
    """Exact over all scopes: the limits and budgets are those of the `PolicyBook` it was made with."""

    def admit(self, request: AdmitRequest) -> Decision | Awaitable[Decision]:
        """Check every limit and budget and reserve the worst case, or reserve nothing and say why."""

    def renew(self, grant: Grant, expires_ms: int) -> Awaitable[None] | None:
        """The call still lives: its hold expires later. A hold that expired already does not come back."""

    def settle(self, grant: Grant, outcome: Outcome) -> Awaitable[None] | None:
        """Release the hold and count what was really used. Only the first settlement of a grant counts."""

    def exchange(
        self, balances: Iterable[Balance], now_ms: int, *, every: bool = True
    ) -> Mapping[str, BudgetUse] | Awaitable[Mapping[str, BudgetUse]]:
        """Take over balances from the record (older versions are ignored); returns every budget's use.

        Not `every`: of those under which calls are held at least, as that is cheap however many there are.
        """


async def answered(value: T | Awaitable[T]) -> T:
    """The value, waited for where that is needed."""
    if isawaitable(value):
        return await value
    return value
