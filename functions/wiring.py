"""Turns settings into the control process's dependencies; with `gateway/wiring.py` the only file naming adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from access.admin import ensure_admin_key
from access.keyring import Keyring
from access.sealer import Sealer, ensure_secret
from billing.close import close_and_post
from billing.invoicing.issue import Issuer
from billing.invoicing.model import Party
from billing.invoicing.run import run_invoicer
from billing.payments.context import Payments
from billing.payments.store import provider_amount
from catalog import price_book
from catalog.builtin import builtin_files, sync_builtin
from core.changes import forget_changes
from core.clock import Clock, SystemClock
from core.database import Database, open_database
from core.errors import Unavailable
from core.settings import Settings
from functions.budgets import BudgetKeeper
from functions.console.dependencies import ConsoleDependencies
from functions.identity import token_access
from functions.invoicer.handler import Invoicer
from functions.meter_sink.handler import MeterSink
from functions.minute_tick.handler import MinuteTick
from functions.minute_tick.sweeper import Sweeper
from functions.payments.handler import PaymentWorker
from functions.reconcile import Reconciler
from functions.reconcile_hourly import HourlyReconciliation
from functions.stored import open_stored
from functions.tokens import TokenCounter, token_counter
from functions.webhook_sender.handler import WebhookSender
from metering.relay import Relay
from migrations.migrate import migrate
from serving.local_runtime import LocalRuntime
from serving.online.opened import OpenedCopies

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Control:
    """Everything but the gateway, on one machine."""

    settings: Settings
    clock: Clock
    db: Database
    sink: MeterSink
    tick: MinuteTick
    invoicer: Invoicer
    webhooks: WebhookSender
    runtime: LocalRuntime
    reconciliation: HourlyReconciliation
    console: ConsoleDependencies
    payments: PaymentWorker
    tokens: TokenCounter


@contextmanager
def open_control(settings: Settings) -> Iterator[Control]:
    """Open (and on first start make) the database and the secrets; close the database at the end."""
    clock = SystemClock()
    keyring = open_stored(settings, clock)
    db = open_database(settings.sql_url)
    try:
        migrate(db)
        with db.begin() as connection:
            ensure_admin_key(connection, settings.admin_key_path, clock.now_ms())
            sync_builtin(connection, builtin_files(), clock.now_ms())
            forget_changes(connection, clock.now_ms() - _DAY_MS)
        yield _assemble(settings, clock, db, keyring)
    finally:
        db.close()


def _assemble(settings: Settings, clock: Clock, db: Database, keyring: Keyring | None) -> Control:
    keeper = BudgetKeeper(price_book)
    sink = MeterSink(Relay(settings.journal_path, db, clock, on_usage=keeper.charge_usage))
    tick = MinuteTick(
        clock,
        sweep=Sweeper(db, clock, keeper).sweep,
        close=lambda: close_and_post(db, price_book, clock.now_ms(), settings.minute_lateness_s * 1000),
    )
    issuer = issuer_of(settings)
    invoicer = Invoicer(
        lambda: run_invoicer(db, issuer, clock.now_ms(), automatic=settings.invoice_automatic > 0).invoices
    )
    opened = None if keyring is None else OpenedCopies(settings.home, settings.opened_path, keyring)
    runtime = LocalRuntime(settings, db, clock, opened=opened)
    sealer = Sealer(ensure_secret(settings.secret_path) if keyring is None else keyring.secret)

    def catch_up() -> None:
        sink.catch_up()
        tick.sweep()

    console = ConsoleDependencies(
        settings=settings,
        clock=clock,
        db=db,
        sealer=sealer,
        runtime=runtime,
        catch_up=catch_up,
        keeper=keeper,
        issuer=issuer,
        tokens=token_access(settings, clock),
        payments=open_payments(settings, clock, db),
        keyring=keyring,
        opened=opened,
    )
    reconciliation = HourlyReconciliation(Reconciler(db, clock, catch_up, provider_amount))
    tokens = token_counter(settings, db)
    webhooks = WebhookSender(db, clock, sealer, allow_private=settings.webhook_allow_private > 0)
    return Control(
        settings,
        clock,
        db,
        sink,
        tick,
        invoicer,
        webhooks,
        runtime,
        reconciliation,
        console,
        PaymentWorker(console.payments),
        tokens,
    )


def open_payments(settings: Settings, clock: Clock, db: Database) -> Payments | None:
    """The payment provider; None without a key. Unavailable when there is a key and no library for it."""
    if not settings.stripe_api_key:
        return None
    try:
        from billing.stripe_payments import StripePayments
    except ImportError:
        raise Unavailable(
            "FAREBOX_STRIPE_API_KEY is set, but Stripe's library is not installed: "
            "pip install 'farebox-platform[stripe]'"
        ) from None
    provider = StripePayments(
        settings.stripe_api_key,
        api_base=settings.stripe_api_base,
        webhook_secret=settings.stripe_webhook_secret,
    )
    return Payments(db, clock, provider)


def issuer_of(settings: Settings) -> Issuer:
    """Who makes the invoices, by the settings."""
    party = Party(
        settings.invoice_issuer,
        settings.invoice_issuer_address.replace("\\n", "\n"),
        settings.invoice_issuer_email,
        settings.invoice_issuer_tax_id,
    )
    return Issuer(price_book, party, settings.invoice_prefix)
