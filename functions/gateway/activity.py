"""How busy each deployment is, told to the control process, which stops those that nobody calls."""

import asyncio
from typing import Final

from core.clock import Clock
from core.errors import Unavailable
from core.log import get_logger
from functions.gateway.control import ControlClient
from functions.gateway.traffic_figures import TrafficFigures

_log: Final = get_logger(__name__)

REPORT_EVERY_S: Final = 1.0


class Activity:
    """Counts calls in flight and reports changes once a second, and the busy ones always.

    The latter so that a control process that was restarted does not take a long stream for idleness.
    """

    def __init__(self, control: ControlClient, clock: Clock, traffic: TrafficFigures) -> None:
        """`traffic` knows how many calls of online deployments ended, and how long they took."""
        self._control, self._clock, self._traffic = control, clock, traffic
        self._in_flight: dict[str, int] = {}
        self._changed: dict[str, int] = {}  # deployment id to the end of its last call

    def begin(self, deployment_id: str) -> None:
        """A call for the deployment was admitted. Until it ends it counts as just called."""
        self._in_flight[deployment_id] = self._in_flight.get(deployment_id, 0) + 1

    def end(self, deployment_id: str) -> None:
        """It ended."""
        left = self._in_flight[deployment_id] - 1
        if left:
            self._in_flight[deployment_id] = left
        else:
            del self._in_flight[deployment_id]
        self._changed[deployment_id] = self._clock.now_ms()

    async def run(self) -> None:
        """Report until cancelled."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            await self.report()

    async def report(self) -> None:
        """Send what there is to say; kept for the next time when it cannot be said."""
        now_ms = self._clock.now_ms()
        ended = self._traffic.take_recent()
        last_calls = dict.fromkeys(ended, now_ms) | self._changed | dict.fromkeys(self._in_flight, now_ms)
        if not last_calls:
            return
        report = {
            deployment_id: {
                "in_flight": self._in_flight.get(deployment_id, 0),
                "last_ms": last_ms,
                **ended.get(deployment_id, {}),
            }
            for deployment_id, last_ms in last_calls.items()
        }
        told, self._changed = self._changed, {}
        try:
            await self._control.report_activity(report)
        except Unavailable:
            self._changed = told | self._changed
