"""Model servers as child processes of one machine: the runtime of `farebox up`.

It must be the only one on its home (the platform's lock sees to that): it ends what it does not adopt.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from catalog.model import ModelSpec
from catalog.store import find_model
from core.clock import Clock
from core.database import Database
from core.errors import NotFound, Unavailable
from core.log import get_logger
from core.settings import Settings
from metering.engine_counters import ReadingReason
from serving import store
from serving.counters import CountedServer, CounterReader
from serving.environments import VirtualEnvironments
from serving.fine_tunes import adapters_of, fine_tunes_of, usable
from serving.launch import Launcher
from serving.model import LiveStatus, Replica, WakeStatus
from serving.online.launch import Environments, OnlineLauncher
from serving.online.machine import capacity
from serving.online.opened import OpenedCopies
from serving.online.runtime import OnlineRuntime
from serving.recovery import recover
from serving.run import Recorder, Surroundings, Timing
from serving.supervision import Supervisor

_log = get_logger(__name__)
_LOOK_EVERY_S = 2.0
_OFFER_S = 5.0
_MAX_WAIT_MS = 3_600_000


class LocalRuntime:
    """Starts, watches and stops the servers of this machine's deployments.

    For one event loop; `status` and `tail_log` may be called from any thread.
    """

    def __init__(
        self,
        settings: Settings,
        db: Database,
        clock: Clock,
        *,
        launcher: Launcher | None = None,
        timing: Timing | None = None,
        environments: Environments | None = None,
        opened: OpenedCopies | None = None,
    ) -> None:
        """`launcher` makes the commands of catalog models (default: vLLM's), `environments` those that scripts run in.

        `timing` is made of the settings by default; `opened` decrypts copies, where they are stored encrypted.
        """
        if timing is None:
            timing = Timing(settings.start_timeout_s * 1000, settings.scale_to_zero_after_s * 1000)
        self._around = Surroundings(
            db,
            clock,
            launcher or _vllm(settings),
            timing,
            settings.logs_path / "replicas",
            Recorder(db, clock),
        )
        self.counters = CounterReader(db, clock, self.counted_servers)
        self._around.read_counters = self._read_counters
        online_launcher = OnlineLauncher(
            db, self._around.launcher, environments or VirtualEnvironments(settings), settings, opened
        )
        self._online = OnlineRuntime(
            self._around, online_launcher, lambda: capacity(settings.online_instances_max), opened
        )
        self._supervisors: dict[str, Supervisor] = {}
        self._recovery: asyncio.Task[None] | None = None
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None  # while `run` runs

    # --- asked by the gateway -------------------------------------------------------------------

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus:
        """Have the server started, once for all who ask; answers when it is ready or failed.

        At the latest after `wait_ms`, and then goes on without the caller. An attached server is always ready.
        NotFound for a deployment that does not exist.
        """
        await self.recovered()
        wait_ms = min(max(0, wait_ms), _MAX_WAIT_MS)
        online = await self._online.wake(deployment_id, wait_ms)
        if online is not None:
            return online
        found = self._supervisors.get(deployment_id)
        if found is None or not found.running:
            attached = await asyncio.to_thread(self._attached, deployment_id)
            if attached is not None:
                return attached
        return await self._supervisor(deployment_id).wake(wait_ms)

    def report_activity(self, activity: Mapping[str, Mapping[str, Any]]) -> None:
        """`{deployment id: {"in_flight": calls now, "last_ms": the newest call's instant}}`, of online deployments also
        `ended`, calls that ended since the last report, and `durations_ms` of some of them.

        Told of what changed, and every second of deployments with calls in flight.
        """
        for deployment_id, calls in activity.items():
            in_flight, last_ms = calls.get("in_flight", 0), calls.get("last_ms", 0)
            found = self._supervisors.get(deployment_id)
            if found is not None:
                found.report(in_flight, last_ms)
            else:
                ended, durations_ms = calls.get("ended", 0), calls.get("durations_ms", ())
                self._online.report(deployment_id, in_flight, last_ms, ended, durations_ms)

    # --- asked by the console -------------------------------------------------------------------

    def offer(self, deployment_id: str) -> None:
        """A new endpoint offers a model of this deployment. Afterwards no call gets a server that does not know it.

        From any thread but the loop's. What takes too long is seen to within `_LOOK_EVERY_S`.
        """
        if self._loop is None:
            return
        waiting = asyncio.run_coroutine_threadsafe(self._replace_outdated([deployment_id]), self._loop)
        with contextlib.suppress(TimeoutError, SQLAlchemyError, Unavailable):
            waiting.result(_OFFER_S)

    def status(self) -> dict[str, LiveStatus]:
        """Every deployment woken since the start; `serving.view` has the whole picture."""
        pools = {each.deployment_id: each.live_status() for each in list(self._supervisors.values())}
        return pools | self._online.status()

    async def online_figures(self) -> list[dict[str, Any]]:
        """What each online deployment's instances use, with its endpoint's name."""
        found = await self._online.figures()

        def names() -> dict[str, str]:
            with self._around.db.read() as connection:
                return store.endpoint_names(connection, [each.endpoint_id for each in found])

        known = await asyncio.to_thread(names)
        return [{**asdict(each), "endpoint": known.get(each.endpoint_id, each.endpoint_id)} for each in found]

    def tail_log(self, deployment_id: str, lines: int) -> str:
        """The last lines that the deployment's newest server wrote; of one that never began, why not."""
        with self._around.db.read() as connection:
            runs = store.list_replicas(connection, deployment_id)
        for run in runs:
            found = self._around.log_of(run.id).tail(lines)
            if found:
                return "\n".join(found) + "\n"
            supervisor = self._supervisors.get(deployment_id)
            phase = supervisor.live_status().phase if supervisor and run.state == "starting" else ""
            if run.reason or phase:
                return (run.reason or phase) + "\n"
        return ""

    # --- what engines count ---------------------------------------------------------------------

    async def counted_servers(self) -> list[CountedServer]:
        """Every engine that is up: our own, and attached ones that an endpoint uses."""
        with_replica = [each.ready_replica for each in self._supervisors.values()]
        own = [_counted(replica) for replica in with_replica if replica is not None]
        return own + await asyncio.to_thread(self._attached_servers)

    async def read_counters(self) -> None:
        """Read all of them now, and keep what they say."""
        await self.counters.read_all("asked")

    def _attached_servers(self) -> list[CountedServer]:
        with self._around.db.read() as connection:
            return [
                CountedServer(deployment_id, f"attached {url}", url)
                for deployment_id, url in store.attached_servers(connection)
            ]

    async def _read_counters(self, replica: Replica, reason: ReadingReason) -> None:
        await self.counters.read_one(_counted(replica), reason)

    # --- called by the process ------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled: adopt or end what an earlier life left, then see to servers that nobody needs."""
        self._loop = asyncio.get_running_loop()
        while True:
            try:
                await self.recovered()
                await self._look()
            except (SQLAlchemyError, OSError, Unavailable) as error:
                _log.warning("the runtime cannot use the database", extra={"reason": str(error)[:300]})
            except Exception:  # a bug here must not end the platform, and with it every server
                _log.exception("the runtime's look around failed")
            await asyncio.sleep(_LOOK_EVERY_S)

    async def recovered(self) -> None:
        """Return when the servers of an earlier life were adopted or ended. Unavailable: not known yet."""
        if self._recovery is None or (self._recovery.done() and self._recovery.exception() is not None):
            self._recovery = asyncio.create_task(self._recover(), name="recover model servers")
        try:
            await asyncio.shield(self._recovery)
        except SQLAlchemyError as error:
            raise Unavailable(f"the database cannot be read: {error}"[:400], retry_after_s=5) from error

    async def stop_all(self) -> None:
        """End every server and start none again. Returns when their processes are gone."""
        if self._recovery is not None and not self._recovery.done():
            await asyncio.wait([self._recovery])  # what it adopts would outlive us
        self._stopping = True
        stopping = [each.stop("the platform is stopping") for each in list(self._supervisors.values())]
        await asyncio.gather(*stopping, self._online.stop_all("the platform is stopping"))
        await self._around.recorder.flush()

    # --- inside ---------------------------------------------------------------------------------

    async def _recover(self) -> None:
        for found in await recover(self._around):
            self._supervisor(found.replica.deployment_id).adopt(found.replica, found.server, found.launch)

    def _supervisor(self, deployment_id: str) -> Supervisor:
        if self._stopping:
            raise Unavailable("the platform is stopping", retry_after_s=5)
        found = self._supervisors.get(deployment_id)
        if found is None:
            found = self._supervisors[deployment_id] = Supervisor(deployment_id, self._around)
        return found

    async def _look(self) -> None:
        await self._around.recorder.flush()
        await self._online.look()
        running = [each for each in self._supervisors.values() if each.running]
        if not running:
            return
        ids = [each.deployment_id for each in running]
        unused = await asyncio.to_thread(self._unused, ids)
        for supervisor in running:
            supervisor.set_unused(supervisor.deployment_id in unused)
        await self._replace_outdated(ids)

    async def _replace_outdated(self, ids: list[str]) -> None:
        """Have servers replaced that lack a fine-tune which an endpoint offers."""
        wanted = await asyncio.to_thread(
            self._fine_tunes, [each for each in ids if each in self._supervisors]
        )
        for deployment_id, fine_tunes in wanted.items():
            if self._supervisors[deployment_id].lacks(fine_tunes):
                await self._supervisors[deployment_id].replace_server()

    def _fine_tunes(self, ids: list[str]) -> dict[str, frozenset[tuple[str, str]]]:
        found = {}
        with self._around.db.read() as connection:
            for deployment_id in ids:
                pool = store.find_deployment(connection, deployment_id)
                if pool is not None and (wanted := fine_tunes_of(connection, pool)):
                    found[deployment_id] = adapters_of(usable(wanted))
        return found

    def _unused(self, ids: list[str]) -> set[str]:
        with self._around.db.read() as connection:
            return store.unused_deployments(connection, ids)

    def _attached(self, deployment_id: str) -> WakeStatus | None:
        """The answer for an attached server; None for one that we start. NotFound when there is none."""
        spec = self._spec(deployment_id)
        if spec is None or not spec.external:
            return None
        now_ms = self._around.clock.now_ms()
        return WakeStatus("ready", spec.engine.url, "", now_ms, now_ms, 0)

    def _spec(self, deployment_id: str) -> ModelSpec | None:
        try:
            with self._around.db.read() as connection:
                deployment = store.find_deployment(connection, deployment_id)
                if deployment is None:
                    raise NotFound(f"there is no deployment {deployment_id!r}", param="deployment")
                model = find_model(connection, deployment.model_id)
        except SQLAlchemyError as error:
            raise Unavailable(f"the database cannot be read: {error}"[:400], retry_after_s=5) from error
        return model.spec if model else None


def _counted(replica: Replica) -> CountedServer:
    assert replica.url is not None, "ready"
    return CountedServer(replica.deployment_id, replica.id, replica.url)


def _vllm(settings: Settings) -> Launcher:
    # Imported here: a test's launcher needs no engine code.
    from serving.vllm_launcher import VllmLauncher

    return VllmLauncher(settings)
