"""An organization that pays through the double of Stripe, and a worker that a test drives by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from billing.invoicing.issue import Issuer
from billing.invoicing.model import Invoice, Profile
from billing.invoicing.run import run_invoicer
from billing.invoicing.store import put_profile
from billing.payments import heard, outbox
from billing.payments.context import Payments
from billing.payments.model import ITEMS
from billing.stripe_payments import StripePayments
from core.clock import ManualClock
from core.database import Database
from functions.payments.handler import PaymentWorker
from metering.records import Alarm
from tests.store.billing_values import World
from tests.store.invoice_values import AFTER, DOLLAR_IN, call, made, read
from tests.stripe_double import SECRET, StripeDouble, serving

KEY = "sk_test_double"


@dataclass
class Paying:
    """Everything that a test of payments looks at."""

    db: Database
    clock: ManualClock
    double: StripeDouble
    payments: Payments
    worker: PaymentWorker
    world: World
    issuer: Issuer
    alarms: list[Alarm]
    address: str

    def work(self, *, hours: int = 0, step_ms: int = 60_000) -> None:
        """Let the worker do what is due; with `hours`, again and again while the clock moves."""
        end_ms = self.clock.now_ms() + hours * 3_600_000
        while True:
            while self.worker.run_once():
                pass
            if self.clock.now_ms() >= end_ms:
                return
            self.clock.advance(step_ms)

    def restarted(self) -> None:
        """The worker's process died: another begins when its claims are free again."""
        self.clock.advance(outbox.LEASE_MS + 1)
        self.worker = PaymentWorker(self.payments)

    def invoice(self, dollars: int = 3) -> Invoice:
        """A final invoice of last month, over some dollars in several lines."""
        calls = [call(number, tokens=DOLLAR_IN) for number in range(dollars)]
        self.world.store(*calls)
        self.world.close(AFTER)
        [invoice] = run_invoicer(self.db, self.issuer, self.clock.now_ms()).invoices
        return invoice

    def ours(self, invoice: Invoice) -> Invoice:
        return read(self.db, invoice.id)[0]

    def deliver(self, event: dict[str, object]) -> None:
        """A webhook arrives."""
        told = self.payments.provider.hear(*self.double.signed(event))
        with self.db.begin() as conn:
            heard.keep(conn, told, self.clock.now_ms())

    def deliver_all(self) -> None:
        while self.double.pending:
            self.deliver(self.double.pending.pop(0))


@contextmanager
def paying(db: Database, provider: str = ITEMS) -> Iterator[Paying]:
    """An organization with that provider, and the double behind it."""
    world, issuer = made(db)
    with db.begin() as conn:
        put_profile(conn, Profile("org_1", provider=provider, email="pay@acme.test"))
    clock = ManualClock(AFTER)
    alarms: list[Alarm] = []
    double = StripeDouble(now_s=lambda: clock.now_ms() // 1000)
    with serving(double) as address:
        provider_ = StripePayments(KEY, api_base=address, webhook_secret=SECRET)
        payments = Payments(db, clock, provider_, alarms.append)
        yield Paying(db, clock, double, payments, PaymentWorker(payments), world, issuer, alarms, address)
