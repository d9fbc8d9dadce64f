"""Another meter of the simulation: it bills through `POST /api/events`'s intake, over a network that forgets."""

import asyncio
import random
from collections.abc import Callable

import msgspec

from functions.event_intake import EventIntake
from metering.intake import Authority
from metering.model import USAGE_EVENT_TYPE, Usage, UsageEvent
from tests.metering_values import cloudevent
from tests.sim.loop import SimLoop
from wire.cloudevents_http import Received, read_structured

SOURCE = "/meters/far-away"


class OtherMeter:
    """Sends each event until it is acknowledged: in any order, late, twice, and after answers that were lost."""

    def __init__(self, loop: SimLoop, now_ms: Callable[[], int], template: UsageEvent) -> None:
        self._loop, self._now_ms, self._template = loop, now_ms, template
        self._waiting: list[tuple[str, bytes]] = []
        self.sent: dict[str, Usage] = {}
        self.deliveries = 0
        self.trouble: list[str] = []

    async def run(
        self, step: Callable[[Callable[[], object]], bool], intake: Callable[[], EventIntake]
    ) -> None:
        """Make and send events until cancelled."""
        chance = self._loop.chance
        while True:
            await asyncio.sleep(chance.uniform(0.05, 1))
            self.make(chance.randint(0, 8))
            self.send(step, intake)

    def make(self, count: int) -> None:
        """New events, some of a minute that is long over."""
        chance = self._loop.chance
        for _ in range(count):
            event_id = f"m-{len(self.sent)}"
            given = chance.randint(1, 5000)
            cached, output = chance.randint(0, given), chance.randint(0, 500)
            usage = Usage(given, cached, output, batch=chance.random() < 0.3)
            late = chance.choice([0, 0, 0, 200_000])
            self.sent[event_id] = usage
            self._waiting.append((event_id, self._encode(event_id, usage, self._now_ms() - late)))

    def send(self, step: Callable[[Callable[[], object]], bool], intake: Callable[[], EventIntake]) -> None:
        """One request with some of what waits. What happened to it is not known for sure."""
        chance: random.Random = self._loop.chance
        if not self._waiting or chance.random() < 0.2:  # the request is lost
            return
        batch = chance.sample(self._waiting, min(len(self._waiting), chance.randint(1, 12)))
        batch += chance.sample(batch, chance.randint(0, len(batch)))  # some twice
        received: list[Received] = [read_structured(raw) for _, raw in batch]
        self.deliveries += len(batch)
        outcomes: list[str] = []

        def take() -> None:
            taken = intake().take(received, Authority(), self._now_ms())
            outcomes.extend(outcome.status for outcome, _ in taken)

        if not step(take) or chance.random() < 0.2:  # it died in it, or the answer is lost
            return
        for (event_id, raw), status in zip(batch, outcomes, strict=True):
            if status not in ("new", "duplicate"):
                self.trouble.append(f"{event_id}: {status}")
            if (event_id, raw) in self._waiting:
                self._waiting.remove((event_id, raw))

    def flush(self, step: Callable[[Callable[[], object]], bool], intake: Callable[[], EventIntake]) -> None:
        """Until everything is acknowledged."""
        while self._waiting:
            self.send(step, intake)

    def _encode(self, event_id: str, usage: Usage, ended_ms: int) -> bytes:
        made = msgspec.structs.replace(
            self._template,
            request_id=event_id,
            usage=usage,
            received_ms=ended_ms - 10,
            sent_ms=ended_ms - 9,
            first_byte_ms=ended_ms - 5,
            ended_ms=ended_ms,
        )
        return cloudevent(
            event_id=event_id,
            source=SOURCE,
            event_type=USAGE_EVENT_TYPE,
            time_ms=ended_ms,
            subject=made.org_id,
            sequence=0,
            data=made,
        )
