"""Bills endpoint minutes and closes usage minutes. The tick only triggers; cursors decide what is due."""

import asyncio
from collections.abc import Callable

from core.clock import MINUTE_MS, Clock
from core.log import get_logger

_log = get_logger(__name__)
_LONGEST_SLEEP_MS = 15_000


class MinuteTick:
    """`sweep` bills begun endpoint minutes; `close` closes usage minutes past their lateness allowance."""

    def __init__(self, clock: Clock, sweep: Callable[[], int], close: Callable[[], int]) -> None:
        self._clock, self._sweep, self._close = clock, sweep, close

    def sweep(self) -> int:
        """Bill the endpoint minutes that have begun; returns how many."""
        return self._sweep()

    def tick(self) -> None:
        """Do what is due. Safe to call at any time, any number of times, from any thread."""
        self._sweep()
        self._close()

    async def run(self) -> None:
        """Tick just after each minute begins (and every 15 s, so that a stepped clock is noticed)."""
        while True:
            try:
                await asyncio.to_thread(self.tick)
            except Exception:
                _log.exception("the minute tick failed; its cursors did not move, it is tried again")
            to_next_minute_ms = MINUTE_MS - self._clock.now_ms() % MINUTE_MS
            await asyncio.sleep(min(to_next_minute_ms + 50, _LONGEST_SLEEP_MS) / 1000)
