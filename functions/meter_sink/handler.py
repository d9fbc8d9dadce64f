"""Drains the gateway's journal into usage rows: on a short beat, and at once when somebody is about to read."""

import asyncio
import itertools
import threading

from core.log import get_logger
from metering.relay import Relay

_log = get_logger(__name__)
_BEAT_S = 0.1
_BEATS_BETWEEN_SURE_PASSES = 30
_BEAT_AFTER_FAILURE_S = 2.0


class MeterSink:
    """Runs one relay. `catch_up` may be called from any thread; passes never overlap."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._lock = threading.Lock()

    def catch_up(self) -> int:
        """Drain everything that is durable in the journal now; returns how many records were taken in."""
        with self._lock:
            return self._relay.catch_up()

    async def run(self) -> None:
        """Drain on every beat until cancelled. A failing database delays usage, it does not lose any."""
        seen: object = None
        for number in itertools.count():
            # A thread ten times a second would be most of what an idle platform costs; a look is a few microseconds.
            looked = self._relay.look()
            beat = _BEAT_S
            if looked != seen or number % _BEATS_BETWEEN_SURE_PASSES == 0:
                try:
                    await asyncio.to_thread(self.catch_up)
                    seen = looked
                except Exception:
                    _log.exception("draining the journal failed; it is kept and tried again")
                    beat = _BEAT_AFTER_FAILURE_S
            await asyncio.sleep(beat)
