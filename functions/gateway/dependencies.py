"""What a gateway is made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from access.principal import Principal
from core.changes import Change
from core.clock import Clock
from core.settings import Settings
from functions.gateway.control import ControlClient
from functions.gateway.limiter import Limiting
from functions.gateway.lookups import KeyAnswer, RouteName
from metering.model import UsageEvent
from serving.route import Route


class UsageJournal(Protocol):
    """What a gateway needs of `metering.journal.Journal`."""

    async def append(self, event: UsageEvent) -> None: ...

    def append_nowait(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None: ...

    def owe(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None: ...

    def note_progress(self, event: UsageEvent) -> None: ...

    def check(self) -> None: ...

    def depth(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class GatewayDependencies:
    """Everything a gateway is made of. The callables do SQL and are called in threads."""

    settings: Settings
    clock: Clock
    journal: UsageJournal
    control: ControlClient
    find_principal: Callable[[str], KeyAnswer]  # by key hash: who holds it, or unknown | expired | revoked
    resolve_route: Callable[[RouteName], Route | None]
    list_routes: Callable[[RouteName], list[Route]]  # of a key; the model name is not looked at
    poll_changes: Callable[[int], list[Change]]  # the change feed after a sequence number
    last_seq: Callable[[], int]  # the newest sequence number of the change feed
    # By an identity provider's token and an endpoint's name; raises what the caller is refused with. None: no provider.
    find_bearer: Callable[[str, str], Principal] | None = None
    limiting: Limiting | None = None  # None: no limits and no budgets
