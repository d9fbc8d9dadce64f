"""Delivers what is in the outbox: signed, in bounded numbers, again and again for three days."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import msgspec

from core.clock import Clock
from core.database import Database
from core.log import get_logger
from metering.records import Alarm
from metering.store import record_alarms
from webhooks.model import Webhook
from webhooks.outbox import (
    SCHEDULE_S,
    Attempt,
    Claimed,
    any_due,
    claim,
    disable,
    forget_old,
    settle,
)
from webhooks.post import MAX_CONNECTIONS, Courier
from webhooks.sign import signature_headers
from webhooks.store import get_webhook
from wire.cloudevents_http import STRUCTURED, write_structured

PER_WEBHOOK = 4  # attempts at the same time at one endpoint
SOURCE = "/farebox"
JITTER = 0.1  # of each wait, either way
_BEAT_S = 1.0
_BEAT_AFTER_FAILURE_S = 5.0
_FORGET_EVERY_MS = 3_600_000

_log = get_logger(__name__)


class Opener(Protocol):
    """What opens sealed secrets."""

    def open(self, sealed: str, context: str) -> str: ...


class WebhookSender:
    """One loop. Any number of processes may run one: deliveries are claimed."""

    def __init__(
        self,
        db: Database,
        clock: Clock,
        sealer: Opener,
        *,
        allow_private: bool,
        jitter: Callable[[], float] = lambda: random.uniform(-JITTER, JITTER),
    ) -> None:
        self._db, self._clock, self._sealer = db, clock, sealer
        self._allow_private, self._jitter = allow_private, jitter
        self._under_way: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._forgot_ms = 0

    async def run(self) -> None:
        """Look every second until cancelled; attempts under way are then cut, and repeated after a restart."""
        async with Courier(self._clock, allow_private=self._allow_private) as courier:
            try:
                while True:
                    pause_s = await self._beat(courier)
                    await asyncio.sleep(pause_s)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    async def drain(self) -> int:
        """Attempt everything that is due now, and wait for it; returns how many attempts."""
        total = 0
        async with Courier(self._clock, allow_private=self._allow_private) as courier:
            while started := await self._start(courier):
                total += started
                await asyncio.gather(*self._tasks)
        return total

    async def _beat(self, courier: Courier) -> float:
        try:
            await self._start(courier)
            now_ms = self._clock.now_ms()
            if abs(now_ms - self._forgot_ms) >= _FORGET_EVERY_MS:
                self._forgot_ms = now_ms
                await asyncio.to_thread(self._forget, now_ms)
        except Exception:
            _log.exception("webhooks could not be sent; they stay in the outbox and are tried again")
            return _BEAT_AFTER_FAILURE_S
        return _BEAT_S

    async def _start(self, courier: Courier) -> int:
        """Begin what is due, as far as there is room; returns how many attempts."""
        room = MAX_CONNECTIONS - sum(self._under_way.values())
        if room <= 0:
            return 0
        full = {webhook_id for webhook_id, count in self._under_way.items() if count >= PER_WEBHOOK}
        claimed = await asyncio.to_thread(self._claim, room, full)
        for each in claimed:
            self._under_way[each.webhook.id] += 1
            task = asyncio.create_task(self._deliver(courier, each))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return len(claimed)

    def _claim(self, room: int, full: set[str]) -> list[Claimed]:
        now_ms = self._clock.now_ms()
        with self._db.read() as connection:  # nothing to do costs no write lock
            if not any_due(connection, now_ms, full):
                return []
        with self._db.begin() as connection:
            return claim(connection, now_ms, room, PER_WEBHOOK, self._under_way)

    async def _deliver(self, courier: Courier, claimed: Claimed) -> None:
        try:
            attempt = await self._attempt(courier, claimed)
            await asyncio.to_thread(self._settle, claimed, attempt)
        except Exception:
            _log.exception(
                "an attempt could not be recorded; it is repeated", extra={"id": claimed.message_id}
            )
        finally:
            self._under_way[claimed.webhook.id] -= 1
            if not self._under_way[claimed.webhook.id]:
                del self._under_way[claimed.webhook.id]

    async def _attempt(self, courier: Courier, claimed: Claimed) -> Attempt:
        body = write_structured(
            event_id=claimed.message_id,
            source=SOURCE,
            event_type=claimed.event_type,
            time_ms=claimed.occurred_ms,
            subject=claimed.subject,
            data=msgspec.json.decode(claimed.data),
        )
        now_ms = self._clock.now_ms()
        headers = signature_headers(
            self._secrets(claimed.webhook, now_ms), claimed.message_id, now_ms // 1000, body
        )
        headers |= {"content-type": f"{STRUCTURED}; charset=utf-8", "user-agent": "Farebox-Webhooks/1"}
        return await courier.post(claimed.webhook.url, headers, body)

    def _secrets(self, webhook: Webhook, now_ms: int) -> list[str]:
        sealed = [webhook.secret_sealed]
        if webhook.previous_sealed and now_ms < webhook.previous_until_ms:
            sealed.append(webhook.previous_sealed)
        return [self._sealer.open(each, webhook.id) for each in sealed]

    def _settle(self, claimed: Claimed, attempt: Attempt) -> None:
        now_ms = self._clock.now_ms()
        wait_ms = self._wait_ms(claimed.attempts + 1, attempt)
        alarm = None
        with self._db.begin() as connection:
            if settle(connection, claimed, attempt, wait_ms, now_ms):
                alarm = _gave_up(get_webhook(connection, claimed.webhook.id), claimed, attempt)
            if alarm is not None:
                disable(connection, claimed.webhook.id, alarm.detail)
                record_alarms(connection, [alarm], now_ms)
        if alarm is not None:
            _log.error(
                "webhook disabled", extra={"kind": alarm.kind, "source": alarm.source, "detail": alarm.detail}
            )

    def _wait_ms(self, attempts: int, attempt: Attempt) -> int:
        wait_s = SCHEDULE_S[min(attempts, len(SCHEDULE_S) - 1)]
        return max(int(wait_s * 1000 * (1 + self._jitter())), attempt.retry_after_s * 1000)

    def _forget(self, now_ms: int) -> None:
        with self._db.begin() as connection:
            forget_old(connection, now_ms)


def _gave_up(webhook: Webhook, claimed: Claimed, attempt: Attempt) -> Alarm | None:
    """Why an endpoint is to be disabled after a message was given up; None: it takes others."""
    if attempt.status == 410:
        why = "it answered 410: gone"
    elif webhook.last_success_ms < claimed.occurred_ms:
        why = f"it accepted nothing in {len(SCHEDULE_S)} attempts over three days; last: {attempt.error}"
    else:
        return None
    return Alarm("webhook_disabled", webhook.id, why)
