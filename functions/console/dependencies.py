"""What the console is given by the wiring."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Protocol

from fastapi import Depends, Request

from access.keyring import Keyring
from access.principal import Principal
from access.sealer import Sealer
from billing.invoicing.issue import Issuer
from billing.payments.context import Payments
from catalog import price_book
from core.clock import Clock
from core.database import Database
from core.settings import Settings
from functions.budgets import BudgetKeeper, HeldReports
from functions.event_intake import EventIntake
from functions.identity import TokenAccess
from serving.model import LiveStatus
from serving.online.opened import OpenedCopies


class RuntimeView(Protocol):
    """What the console asks of the runtime that keeps the model servers."""

    def status(self) -> Mapping[str, LiveStatus]: ...

    def tail_log(self, deployment_id: str, lines: int) -> str: ...

    def offer(self, deployment_id: str) -> None: ...

    async def read_counters(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ConsoleDependencies:
    """Frozen for the life of the process.

    `catch_up` brings the ledger up to now (drains the journal, sweeps the endpoint minutes); it is called
    before usage, receipts and previews are read, so that a call shows as soon as it was answered.
    """

    settings: Settings
    clock: Clock
    db: Database
    sealer: Sealer
    runtime: RuntimeView
    catch_up: Callable[[], None]
    keeper: BudgetKeeper = field(default_factory=lambda: BudgetKeeper(price_book))
    issuer: Issuer = field(default_factory=lambda: Issuer(price_book))
    held: HeldReports = field(default_factory=HeldReports)
    tokens: TokenAccess | None = None  # None: no identity provider is configured
    payments: Payments | None = None  # None: no payment provider is configured
    keyring: Keyring | None = None  # None: there is no customer's key
    opened: OpenedCopies | None = None  # with a keyring

    @property
    def intake(self) -> EventIntake:
        """Where events of other meters go."""
        return EventIntake(self.db, self.keeper)

    def report_held(self, gateway: str, held: dict[str, int]) -> None:
        """From a gateway: what calls in flight hold of budgets."""
        self.held.report(gateway, held, self.clock.now_ms())


def _dependencies(request: Request) -> ConsoleDependencies:
    found = request.app.state.dependencies
    assert isinstance(found, ConsoleDependencies)
    return found


def _principal(request: Request) -> Principal:
    found = request.state.principal
    assert isinstance(found, Principal), "every route is an AuthorizedRoute"
    return found


Deps = Annotated[ConsoleDependencies, Depends(_dependencies)]
Caller = Annotated[Principal, Depends(_principal)]
