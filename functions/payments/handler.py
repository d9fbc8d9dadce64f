"""Does the outbox's tasks in threads of its own: whatever the payment provider is like, nothing else waits for it."""

import asyncio
import random
import threading
from collections.abc import Callable

from billing.payments import heard, meters, outbox, push
from billing.payments.context import Payments
from billing.payments.model import ProviderError, Task, TaskKind, TryLater
from core.errors import FareboxError
from core.log import get_logger

_log = get_logger(__name__)
_EVERY_S = 2.0
_WORKERS = 4
_FIRST_MS, _LONGEST_MS = 2_000, 600_000
_FORBIDDEN_MS = 600_000
_ALARM_AT = 5  # tries, a minute or so
_HOUR_MS = 3_600_000  # between two alarms of one outage
_KEPT_MS = 40 * 24 * _HOUR_MS

_STEPS: dict[TaskKind, Callable[[Payments, Task], str]] = {
    "invoice": push.push_invoice,
    "void": push.void_invoice,
    "paid": push.pay_elsewhere,
    "credit_note": push.push_credit_note,
    "meter_event": meters.deliver,
    "event": heard.process,
}


class PaymentWorker:
    """Claims tasks that are due, a few at a time, one of each lane, and does them."""

    def __init__(self, payments: Payments | None, workers: int = _WORKERS) -> None:
        self._payments = payments
        self._workers = workers
        self._alarmed_ms = self._cleaned_ms = -_HOUR_MS
        self._stopped = threading.Event()

    def run_once(self) -> int:
        """Make events of meters, then do one round of what is due; returns how many tasks were tried."""
        payments = self._payments
        if payments is None:
            return 0
        now_ms = payments.clock.now_ms()
        meters.plan(payments)
        with payments.db.read() as conn:
            if not outbox.is_due(conn, now_ms):
                return 0
        with payments.db.begin() as conn:
            claimed = outbox.claim(conn, now_ms, self._workers)
        threads = [threading.Thread(target=self._do, args=(payments, task), daemon=True) for task in claimed]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(claimed)

    async def run(self) -> None:
        """Look every two seconds, and at once while there is something to do. Nobody waits for its threads at the end:
        what they were about is claimed again later."""
        thread = threading.Thread(target=self._forever, name="payments", daemon=True)
        thread.start()
        try:
            await asyncio.Event().wait()  # until it is cancelled
        finally:
            self._stopped.set()

    def _forever(self) -> None:
        while not self._stopped.is_set():
            tried = 0
            try:
                tried = self.run_once()
                self._clean()
            except Exception:
                if not self._stopped.is_set():
                    _log.exception("payments failed; what was not done is tried again")
            self._stopped.wait(0 if tried else _EVERY_S)

    def _clean(self) -> None:
        """Once an hour: rows of events that were delivered long ago, too old to be sent again."""
        if self._payments is None or self._payments.clock.now_ms() - self._cleaned_ms < _HOUR_MS:
            return
        now_ms = self._cleaned_ms = self._payments.clock.now_ms()
        while True:
            with self._payments.db.begin() as conn:
                if not outbox.forget_delivered(conn, now_ms - _KEPT_MS):
                    return

    def _do(self, payments: Payments, task: Task) -> None:
        try:
            provider_id = _STEPS[task.kind](payments, payments.fresh(task))
            with payments.db.begin() as conn:
                outbox.done(conn, task.id, payments.clock.now_ms(), provider_id)
        except TryLater as later:
            self._postpone(payments, task, later)
        except (ProviderError, FareboxError) as error:
            with payments.db.begin() as conn:
                outbox.failed(conn, task.id, error.message)
            payments.alarm("provider_refused", task.id, error.message)
        except Exception as error:  # a bug: it must not keep the others from being done
            _log.exception("a task of payments failed", extra={"task": task.id})
            self._postpone(payments, task, TryLater(f"an unexpected {type(error).__name__}; see the log"))

    def _postpone(self, payments: Payments, task: Task, later: TryLater) -> None:
        """Exponential backoff with full jitter, not before the provider wants to be asked again."""
        longest = min(_LONGEST_MS, _FIRST_MS << min(task.attempts, 12))
        # Full jitter: any time up to it, so that many who wait do not come back together.
        delay_ms = max(random.randrange(longest) + 1, later.retry_after_ms)
        if later.forbidden:
            delay_ms = _FORBIDDEN_MS
        now_ms = payments.clock.now_ms()
        with payments.db.begin() as conn:
            outbox.postpone(conn, task.id, now_ms + delay_ms, later.message, new_keys=later.spent)
        if (task.attempts >= _ALARM_AT or later.forbidden) and now_ms - self._alarmed_ms >= _HOUR_MS:
            self._alarmed_ms = now_ms
            payments.alarm("provider_unavailable", task.id, f"tried {task.attempts} times: {later.message}")
