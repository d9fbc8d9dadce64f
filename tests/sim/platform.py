"""The platform of the simulation: its real parts, put together on the simulated loop, disk and clock."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy import event
from uvicorn.server import ServerState

from access import store as access_store
from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import Limits
from access.admission.store import StoredLimits, create_budget, put_limits
from billing.close import close_and_post
from billing.invoicing.credit import NewGrant, grant_credit
from billing.invoicing.issue import Issuer
from billing.invoicing.run import run_invoicer
from catalog import price_book
from catalog.load import parse_model
from catalog.store import put_model
from core.database import Database, metadata, open_database
from core.errors import Unavailable
from core.settings import Settings
from functions.budgets import BudgetKeeper
from functions.event_intake import EventIntake
from functions.gateway.control import ControlClient
from functions.gateway.dependencies import GatewayDependencies
from functions.gateway.handler import create_gateway, fast_protocol
from functions.gateway.limiter import Limiting
from functions.gateway.wiring import GATEWAY_NAME, _Reads
from functions.minute_tick.sweeper import Sweeper
from metering import journal as journal_module
from metering.journal import Journal
from metering.model import Usage, UsageEvent
from metering.records import Alarm
from metering.relay import Relay
from serving.endpoints import create_serverless, delete_endpoint
from serving.model import Endpoint, WakeStatus
from serving.store import list_endpoints
from tests.sim.caller import GATEWAY
from tests.sim.disk import SimDisk
from tests.sim.engine import ADDRESS
from tests.sim.loop import SimLoop
from tests.sim.network import Network

START_MS = 1_767_225_565_000  # 2025-12-31T23:59:25Z: the month ends while calls are under way
MODEL = "acme/chat"
PRICES = {"input": "0.15", "cached_input": "0.075", "output": "0.60", "endpoint_minute": "0.0005"}
LATENESS_MS = 60_000
CREDIT_CENTS = 1
_SYNC_S = 0.0005


class Killed(BaseException):
    """The control process dies here."""


class SimClock:
    """The wall clock follows the loop's time, and jumps."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.jumped_ms = 0

    def now_ms(self) -> int:
        return START_MS + int(self._loop.now * 1000) + self.jumped_ms

    def monotonic_ms(self) -> int:
        return int(self._loop.now * 1000)


class SimDiskWork:
    """The journal's disk: done a little later, in the loop, by the simulated disk."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def sync(self, fd: int, done: Any) -> None:
        """As the kernel would."""
        self._loop.call_later(_SYNC_S, self._run, lambda: journal_module.os.fdatasync(fd), done)

    def offload(self, work: Any, done: Any) -> None:
        """As a thread would."""
        self._loop.call_later(_SYNC_S, self._run, work, done)

    def close(self) -> None:
        """Nothing to close."""

    def _run(self, work: Any, done: Any) -> None:
        try:
            work()
        except OSError as error:
            done(error)
        else:
            done(None)


class SimControl(ControlClient):
    """The line to the control process, without a socket."""

    def __init__(self, control: "Control") -> None:
        super().__init__(Path("unused"))
        self._control = control

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus:
        raise Unavailable("attached servers are not started")

    async def report_activity(self, activity: Any) -> None:
        """Nobody stops an attached server."""

    async def report_held(self, gateway: str, held: Any) -> None:
        """Shown to operators only."""

    async def ping(self) -> None:
        """It answers."""

    async def catch_up(self) -> None:
        await asyncio.sleep(0.01)
        if not self._control.step(self._control.catch_up):
            raise Unavailable("the control process died")


class Control:
    """Everything but the gateway. It has no memory that its death could lose: dying makes it anew."""

    def __init__(self, loop: SimLoop, clock: SimClock, db: Database, journal: Path, kills: float) -> None:
        self._loop, self._clock, self._db, self._journal = loop, clock, db, journal
        self._kills = kills
        self._fuse = 0
        self.deaths = 0
        self.alarms: list[Alarm] = []
        event.listen(db.engine, "before_cursor_execute", self._on_statement)
        self._begin()

    def _begin(self) -> None:
        keeper = BudgetKeeper(price_book)
        # Two of them: each thinks that it is the only one.
        self._relays = [
            Relay(self._journal, self._db, self._clock, self.alarms.append, keeper.charge_usage)
            for _ in range(2)
        ]
        self._sweeper = Sweeper(self._db, self._clock, keeper)
        self.intake = EventIntake(self._db, keeper)

    def _on_statement(self, *_: Any) -> None:
        if self._fuse:
            self._fuse -= 1
            if not self._fuse:
                raise Killed

    def step(self, what: Callable[[], object], *, may_die: bool = True) -> bool:
        """Do something; False when the process died in it, between any two statements."""
        if may_die and self._loop.chance.random() < self._kills:
            self._fuse = self._loop.chance.randint(1, 12)
        try:
            what()
        except Killed:
            self.deaths += 1
            self._begin()
            return False
        finally:
            self._fuse = 0
        return True

    def catch_up(self) -> None:
        """What the meter sink does on each beat."""
        self._loop.chance.choice(self._relays).catch_up()

    def tick(self) -> None:
        """What the minute tick does."""
        self._sweeper.sweep()
        self.close()

    def close(self) -> None:
        """Close and post what is due."""
        close_and_post(self._db, price_book, self._clock.now_ms(), LATENESS_MS, self.alarms.append)

    def invoice(self) -> None:
        """What the invoicer does."""
        run_invoicer(self._db, Issuer(price_book), self._clock.now_ms())

    async def run(self) -> None:
        """Beat until cancelled."""
        beat = 0
        while True:
            await asyncio.sleep(0.25)
            beat += 1
            self.step(self.catch_up)
            if beat % 20 == 0:
                self.step(self.tick)
                self.step(self.invoice)


class Installation:
    """Database, keys, endpoints; and gateways that come and go."""

    def __init__(self, loop: SimLoop, network: Network, clock: SimClock, directory: Path) -> None:
        self.loop, self.network, self.clock = loop, network, clock
        self.settings = Settings(home=directory, scale_to_zero_after_s=3600)
        self.db = open_database(f"sqlite:///{directory / 'sim.db'}")
        event.listen(self.db.engine, "connect", _forget_to_sync)
        metadata.create_all(self.db.engine)
        self.keys: dict[str, str] = {}  # text to id
        self.limited: dict[str, int] = {}  # key id to requests per minute
        self.budgets: dict[str, int] = {}  # key id to pico-dollars in all
        self.org_ids: list[str] = []
        self.template: UsageEvent | None = None  # of what the other meter counts
        self.lives = 0
        self.process = ""
        self.journal: Journal | None = None
        self.killed_at: list[float] = []

    def set_up(self) -> None:
        """Two organizations with an endpoint and three keys each: free, limited, and with a budget."""
        now_ms = self.clock.now_ms()
        spec = parse_model(
            {
                "id": MODEL,
                "task": "chat",
                "context_length": 8192,
                "engine": {
                    "kind": "external",
                    "url": f"http://{ADDRESS[0]}:{ADDRESS[1]}",
                    "continuous_usage": True,
                },
                "prices": PRICES,
            }
        )
        with self.db.begin() as connection:
            put_model(connection, spec, now_ms)
            for name in ("one", "two"):
                organization = access_store.create_organization(connection, name, now_ms)
                self.org_ids.append(organization.id)
                grant_credit(connection, NewGrant(organization.id, "promotional", CREDIT_CENTS), now_ms)
                project = access_store.create_project(connection, organization, "p", now_ms)
                endpoint = create_serverless(
                    connection,
                    name=f"chat-{name}",
                    model_id=MODEL,
                    org_id=organization.id,
                    project_id=project.id,
                    now_ms=now_ms,
                )
                put_limits(
                    connection,
                    StoredLimits("endpoint", endpoint.id, organization.id, Limits(), False, now_ms),
                )
                self.template = self.template or other_usage(organization.id, project.id, endpoint)
                for kind in ("free", "limited", "budget"):
                    key, text = access_store.create_key(connection, project, kind, now_ms)
                    self.keys[text] = key.id
                    if kind == "limited":
                        self.limited[key.id] = 40
                        limits = Limits(requests_per_minute=40)
                        put_limits(
                            connection, StoredLimits("key", key.id, organization.id, limits, False, now_ms)
                        )
                    elif kind == "budget":
                        self.budgets[key.id] = 15_000_000_000  # 1.5 cents
                        create_budget(
                            connection,
                            scope="key",
                            scope_id=key.id,
                            org_id=organization.id,
                            amount_pico=self.budgets[key.id],
                            window="total",
                            hard=True,
                            spent_pico=0,
                            now_ms=now_ms,
                        )

    def close_down(self) -> None:
        """Every endpoint is deleted: no further minute is billed."""
        with self.db.begin() as connection:
            for org_id in self.org_ids:
                for endpoint in list_endpoints(connection, org_id=org_id):
                    delete_endpoint(connection, endpoint, self.clock.now_ms())

    def start_gateway(self, control: Control) -> None:
        """A new life of the gateway process."""
        self.lives += 1
        self.process = f"gateway-{self.lives}"
        with self.loop.run_as(self.process):
            self.loop.create_task(self._gateway(control, self.process))

    async def _gateway(self, control: Control, process: str) -> None:
        self.journal = journal = Journal.open(
            self.settings.journal_path, GATEWAY_NAME, self.clock, 1 << 30, segment_bytes=64 * 1024
        )
        journal.attach(SimDiskWork(self.loop))
        reads = _Reads(self.db, self.clock)  # type: ignore[arg-type]
        book = PolicyBook()
        app = create_gateway(
            GatewayDependencies(
                settings=self.settings,
                clock=self.clock,
                journal=journal,
                control=SimControl(control),
                find_principal=reads.find_principal,
                resolve_route=reads.resolve_route,
                list_routes=reads.list_routes,
                poll_changes=reads.poll_changes,
                last_seq=reads.last_seq,
                limiting=Limiting(
                    MemoryAdmission(book, GATEWAY_NAME),
                    book,
                    GATEWAY_NAME,
                    lambda: journal.last_sequence,
                    reads,
                ),
            )
        )
        config = uvicorn.Config(
            app, http=fast_protocol(app), lifespan="off", log_config=None, access_log=False
        )
        config.load()
        state = ServerState()
        state.default_headers = [(b"date", b"Thu, 25 Dec 2025 12:00:00 GMT")]
        await app.state.gateway.start()

        def accept() -> Any:
            return config.http_protocol_class(
                config=config, server_state=state, app_state={}, _loop=self.loop
            )  # type: ignore[call-arg]

        self.network.listen(GATEWAY, process, accept)

    def kill_gateway(self, disk: SimDisk | None = None) -> None:
        """`kill -9`; with a disk, the machine's power goes too."""
        self.network.kill(self.process)
        self.killed_at.append(self.loop.now)
        journal = self.journal
        if journal is not None:
            os.close(journal._lock_fd)  # the kernel's lock goes with the process
            if journal._fd >= 0:
                os.close(journal._fd)
            self.journal = None
        if disk is not None:
            disk.cut_power()


def _forget_to_sync(connection: Any, _record: Any) -> None:
    # What is committed is committed here: the database's own durability is not what is tested.
    connection.execute("PRAGMA synchronous = OFF")


def other_usage(org_id: str, project_id: str, endpoint: Endpoint) -> UsageEvent:
    """A call that another meter counted."""
    return UsageEvent(
        request_id="",
        org_id=org_id,
        project_id=project_id,
        key_id="",
        endpoint_id=endpoint.id,
        deployment_id=endpoint.deployment_id,
        model_id=MODEL,
        operation="chat.completions",
        stream=False,
        status="completed",
        http_status=200,
        usage=Usage(),
        usage_source="engine",
        received_ms=0,
        sent_ms=0,
        first_byte_ms=0,
        ended_ms=0,
    )
