"""The only file that turns settings into dependencies and names adapters."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from access.seal import Sealer, load_sealer
from access.store import ensure_admin_key
from billing.close import close_and_post
from catalog.load import load_builtin_models
from catalog.store import sync_builtin
from core.clock import Clock, SystemClock
from core.database import Database, open_database
from core.log import get_logger
from core.settings import Settings
from functions.console.dependencies import ConsoleDependencies
from functions.meter_sink.handler import MeterSink
from functions.minute_tick.handler import MinuteTick
from metering.relay import Relay
from migrations.migrate import migrate
from serving.local_runtime import LocalRuntime

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Control:
    """Everything but the gateway, on one machine."""

    settings: Settings
    clock: Clock
    db: Database
    sink: MeterSink
    tick: MinuteTick
    runtime: LocalRuntime
    console: ConsoleDependencies
