"""What every step of a task has at hand, and the customer that most of them need."""

from collections.abc import Callable
from dataclasses import dataclass

from billing.invoicing.issue import customer_of as party_of
from billing.payments import mapping, outbox, store
from billing.payments.model import Customer, Provider, Task
from core.clock import Clock
from core.database import Database
from core.log import get_logger
from metering.records import Alarm
from metering.store import record_alarms

_log = get_logger(__name__)
FORGETS_MS = 23 * 3_600_000  # the provider keeps idempotency keys and meters' identifiers for a day, at least


def log_alarm(alarm: Alarm) -> None:
    """To the log, as other alarms."""
    _log.error("payments alarm", extra={"kind": alarm.kind, "source": alarm.source, "detail": alarm.detail})


@dataclass(frozen=True, slots=True)
class Payments:
    """The provider, and where our side of it is kept. No transaction is open while the provider is asked."""

    db: Database
    clock: Clock
    provider: Provider
    on_alarm: Callable[[Alarm], None] = log_alarm

    def alarm(self, kind: str, source: str, detail: str) -> None:
        """An operator must look: kept, and told."""
        raised = Alarm(kind, source, detail[:500])
        with self.db.begin() as conn:
            record_alarms(conn, [raised], self.clock.now_ms())
        self.on_alarm(raised)

    def fresh(self, task: Task) -> Task:
        """The task, with new idempotency keys when the provider may have forgotten the ones of its first try."""
        now_ms = self.clock.now_ms()
        if now_ms - task.first_ms < FORGETS_MS:
            return task
        with self.db.begin() as conn:
            return outbox.new_generation(conn, task, now_ms)


def ensure_customer(payments: Payments, task: Task) -> Customer:
    """The organization at the provider, made when it is not there."""
    with payments.db.read() as conn:
        known = store.customer_of(conn, task.org_id)
        party = party_of(conn, task.org_id)
    if known:
        return payments.provider.customer(known)
    found = payments.provider.find_customer(task.org_id) if task.again else None
    if found is None:
        # Two lanes of an organization that both make it get the same one: the key is the organization's.
        key = f"farebox-customer-{task.org_id}-{task.generation}"
        found = payments.provider.create_customer(mapping.customer_params(task.org_id, party), key)
    with payments.db.begin() as conn:
        store.put_customer(conn, task.org_id, found.id, payments.clock.now_ms())
        known = store.customer_of(conn, task.org_id)
    return found if known == found.id else payments.provider.customer(known)
