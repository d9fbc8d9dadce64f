"""The online deployments of this machine: a fleet for each that lives; the table is read every few seconds."""

import asyncio
from collections.abc import Callable, Sequence

from core.log import get_logger
from serving.launch import Launch
from serving.model import LiveStatus, WakeStatus
from serving.online import store
from serving.online.fleet import Fleet
from serving.online.model import DeploymentFigures, OnlineDeployment
from serving.online.opened import OpenedCopies
from serving.online.rules import Capacity, yielding
from serving.run import Surroundings

_log = get_logger(__name__)


class OnlineRuntime:
    """For one event loop; `status` may be called from any thread."""

    def __init__(
        self,
        around: Surroundings,
        make: Callable[[OnlineDeployment, int], Launch],
        room: Callable[[], Capacity],
        opened: OpenedCopies | None = None,
    ) -> None:
        """`room`: what the machine has; `opened`: the decrypted copies, which go when no instance runs from them."""
        self._around, self._make, self._room, self._opened = around, make, room, opened
        self._fleets: dict[str, Fleet] = {}
        self._ending: dict[asyncio.Task[None], Fleet] = {}
        self._telling: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Follow the table: begin, change and end fleets."""
        rows, allowed = await asyncio.to_thread(self._read)
        for deployment_id, row in rows.items():
            fleet = self._fleets.get(deployment_id)
            if fleet is None:
                self._fleets[deployment_id] = Fleet(self._around, row, self._make, self._provisioned)
            else:
                fleet.follow(row)
            self._fleets[deployment_id].allow(allowed.get(deployment_id))
        for deployment_id in [each for each in self._fleets if each not in rows]:
            fleet = self._fleets.pop(deployment_id)
            task = asyncio.create_task(fleet.stop("the deployment was deleted"))
            self._ending[task] = fleet
            task.add_done_callback(self._ending.pop)
        await self._forget_opened()

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus | None:
        """See `LocalRuntime.wake`; None: it is no online deployment."""
        fleet = self._fleets.get(deployment_id)
        if fleet is None:
            await self.look()  # it may be new
            fleet = self._fleets.get(deployment_id)
        return None if fleet is None else await fleet.wake(wait_ms)

    def report(
        self,
        deployment_id: str,
        in_flight: int,
        last_ms: int,
        ended: int = 0,
        durations_ms: Sequence[int] = (),
    ) -> None:
        """The gateway's word on the calls to a deployment; see `Fleet.report`."""
        fleet = self._fleets.get(deployment_id)
        if fleet is not None:
            fleet.report(in_flight, last_ms, ended, durations_ms)

    def status(self) -> dict[str, LiveStatus]:
        """Of every fleet."""
        return {name: fleet.live_status() for name, fleet in list(self._fleets.items())}

    async def figures(self) -> list[DeploymentFigures]:
        """Of every fleet."""
        return [await fleet.figures() for fleet in list(self._fleets.values())]

    async def stop_all(self, reason: str) -> None:
        """End every instance. Returns when their processes are gone."""
        stopping = [fleet.stop(reason) for fleet in self._fleets.values()]
        await asyncio.gather(*stopping, *self._ending, *self._telling)
        if self._opened is not None:
            await asyncio.to_thread(self._opened.forget, (), 0)

    # --- inside ---------------------------------------------------------------------------------

    async def _forget_opened(self) -> None:
        if self._opened is None:
            return
        used = {
            name
            for fleet in (*self._fleets.values(), *self._ending.values())
            for spec in fleet.specs()
            for name in self._opened.generations(spec)
        }
        await asyncio.to_thread(self._opened.forget, used)

    def _read(self) -> tuple[dict[str, OnlineDeployment], dict[str, int]]:
        """Every deployment, and of those of low priority how many instances each may have."""
        with self._around.db.read() as connection:
            rows = {row.id: row for row in store.list_online_deployments(connection)}
        if not any(row.spec.low_priority for row in rows.values()):
            return rows, {}
        ids = sorted(rows, key=lambda each: (rows[each].created_ms, each))
        return rows, yielding({each: rows[each].spec for each in ids}, self._room())

    def _provisioned(self, deployment: OnlineDeployment, failure: tuple[str, str] | None) -> None:
        task = asyncio.create_task(self._tell(deployment, failure))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, deployment: OnlineDeployment, failure: tuple[str, str] | None) -> None:
        def write() -> None:
            with self._around.db.begin() as connection:
                store.finish_provisioning(
                    connection, deployment.id, deployment.generation, failure, self._around.clock.now_ms()
                )

        while True:
            try:
                await asyncio.to_thread(write)
                await self.look()
                return
            except Exception as error:
                _log.warning("an outcome cannot be written yet", extra={"reason": str(error)[:300]})
                await asyncio.sleep(2)
