"""The platform with a gateway that forgets its usage: only to see what durable metering costs.

It is not a setting of the product on purpose. `python -m bench.memory_gateway up …` is `farebox up …` with the
gateway's journal replaced; without arguments it is that gateway.
"""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from core.compiled import use
from functions.gateway.compiling import MODULES

use(MODULES)

# ruff: noqa: E402  after it was said where modules are found
from core.settings import Settings
from functions.gateway import main as gateway
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.wiring import open_gateway
from metering.model import UsageEvent


class MemoryJournal:
    """A journal that counts and keeps nothing."""

    def __init__(self) -> None:
        self.events = 0

    async def append(self, event: UsageEvent) -> None:
        self.events += 1

    def append_nowait(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None:
        self.events += 1
        asyncio.get_running_loop().call_soon(on_done, None)

    def owe(self, event: UsageEvent, on_done: Callable[[Exception | None], None]) -> None:
        on_done(None)

    def note_progress(self, event: UsageEvent) -> None:
        pass

    def depth(self) -> tuple[int, int]:
        return 0, 0

    def check(self) -> None:
        pass


@asynccontextmanager
async def open_forgetful(settings: Settings) -> AsyncIterator[GatewayDependencies]:
    """The gateway's real dependencies, but for the journal."""
    async with open_gateway(settings) as dependencies:
        yield replace(dependencies, journal=MemoryJournal())


def run_gateway() -> int:
    """As `functions.gateway.main`, with that journal."""
    module: Any = gateway
    assert module.open_gateway is open_gateway, "the gateway opens its dependencies in another way now"
    module.open_gateway = open_forgetful
    return gateway.main()


def run_platform(argv: list[str]) -> int:
    """As `farebox up`, with that gateway."""
    from functions import embedded  # the gateway must not load what the control process needs

    module: Any = embedded
    supervised = module.ChildProcess
    replaced: list[str] = []

    def supervise(module: str, *rest: Any, **named: Any) -> Any:
        replaced.append(module)
        return supervised("bench.memory_gateway", *rest, **named)

    module.ChildProcess = supervise
    status = embedded.main(argv)
    assert replaced == ["functions.gateway"], replaced
    return status


if __name__ == "__main__":
    sys.exit(run_platform(sys.argv[2:]) if sys.argv[1:2] == ["up"] else run_gateway())
