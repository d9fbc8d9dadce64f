"""Places for calls on servers, for both lanes: taken at once while there are free ones, waited for in a fair queue.

A deployment has as many places as its ready servers take calls at once. When all are taken, or no server is ready,
callers wait in its queue; a place that becomes free goes to the next of them in the same instant, so nobody who comes
later overtakes. A call gives its place back once, when its answer is over.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

from core.clock import Clock
from core.errors import FareboxError, Unavailable
from core.log import get_logger
from functions.gateway.balancing import Server, Servers
from functions.gateway.fair_queue import FairQueue, Ticket
from functions.gateway.lookups import RouteName
from functions.gateway.metrics import Metrics
from functions.gateway.record import CallRecord
from serving.route import Route

_log: Final = get_logger(__name__)

_LOOK_EVERY_S: Final = 0.5  # whether the servers of a deployment with a queue are still the same
_RETRY_AFTER_MAX_S: Final = 60.0
_MAX_DEPLOYMENTS: Final = 10_000  # remembered; then those without calls are forgotten


class Starts(Protocol):
    """What is needed of `waking.WaitingRoom`."""

    def ready(self, deployment_id: str) -> Awaitable[str]: ...

    def starting_error(self, deployment_id: str, waited_s: float) -> Unavailable: ...


class QueueRefused(Exception):  # carries the error that the caller is told
    """The call found no room in the queue, or no place in time: nothing was done for it."""

    def __init__(self, error: FareboxError) -> None:
        super().__init__(error.message)
        self.error = error


class _Waiter(Ticket):
    """A ticket and the call that holds it."""

    __slots__ = ("granted", "route")

    def __init__(self, record: CallRecord, since_ms: int) -> None:
        route = record.route
        super().__init__(route.org_id, route.project_id, max(1, record.reserved_tokens), since_ms)
        self.route = route
        self.granted: asyncio.Future[Server] = asyncio.get_running_loop().create_future()


class _Deployment:
    __slots__ = ("keeper", "max_parallel", "queue", "servers")

    def __init__(self, servers: Servers, queue: FairQueue[_Waiter]) -> None:
        self.servers = servers
        self.queue = queue
        self.max_parallel = -1  # of the route that was followed last
        self.keeper: asyncio.Task[None] | None = None  # while somebody waits


class Places:
    """Of all deployments of one gateway process."""

    def __init__(
        self,
        starts: Starts,
        find_route: Callable[[RouteName], Awaitable[Route | None]],
        clock: Clock,
        metrics: Metrics,
        *,
        each: int,
        max_waiting: int,
        max_waiting_per_org: int,
    ) -> None:
        """`each`: places of a server whose model does not say how many it has."""
        self._starts = starts
        self._find_route = find_route
        self._clock = clock
        self._metrics = metrics
        self._each = each
        self._bounds = max_waiting, max_waiting_per_org
        self._deployments: dict[str, _Deployment] = {}

    # -- what a call does --

    def of(self, route: Route) -> Servers:
        """The servers of a route that was found just now."""
        deployment = self._deployments.get(route.deployment_id)
        if (
            deployment is None
            or deployment.servers.urls != route.urls
            or deployment.max_parallel != route.max_parallel
        ):
            deployment = self._follow(route)
        return deployment.servers

    def check_room(self, route: Route) -> None:
        """Refuse now what would find all places taken and the queue full."""
        if self.of(route).free <= 0:
            self._check_queue(self._deployments[route.deployment_id], route)

    async def take(self, record: CallRecord, patience_s: float) -> None:
        """Return when the call has a place; it may wait so long. QueueRefused, or why no server can be started."""
        route = record.route
        servers = self.of(route)
        if servers.free > 0:
            record.place = servers.take()
            return
        deployment = self._deployments[route.deployment_id]
        try:
            self._check_queue(deployment, route)
        except FareboxError as error:
            raise QueueRefused(error) from None
        record.place = await self._wait(deployment, _Waiter(record, self._clock.monotonic_ms()), patience_s)

    def move(self, record: CallRecord) -> bool:
        """Let a call whose server failed it go to another one of the deployment; False: there is no other."""
        held = record.place
        assert held is not None, "a call that was sent has a place"
        other = held.group.another(held)
        if other is not None:
            record.place = held.group.move(held, other.url)
        return other is not None

    # -- the queue --

    def waiting(self) -> dict[str, int]:
        """How many calls wait for which deployment."""
        return {name: len(each.queue) for name, each in self._deployments.items() if each.queue}

    def servers(self) -> list[tuple[str, Servers]]:
        """Of every deployment that was called."""
        return [(name, each.servers) for name, each in self._deployments.items()]

    def _check_queue(self, deployment: _Deployment, route: Route) -> None:
        error = deployment.queue.full_for(route.org_id)
        if error is not None:
            error.retry_after_s = self._retry_after_s(deployment, route)
            raise error

    async def _wait(self, deployment: _Deployment, waiter: _Waiter, patience_s: float) -> Server:
        deployment.queue.push(waiter)
        if deployment.keeper is None:
            deployment.servers.on_free = partial(self._let_in, deployment)
            deployment.keeper = asyncio.get_running_loop().create_task(self._keep(deployment))
        granted = waiter.granted
        try:
            async with asyncio.timeout(patience_s):
                return await granted
        except BaseException as error:
            if granted.done() and not granted.cancelled() and granted.exception() is None:
                granted.result().give_back()  # it came just as the caller left
            if isinstance(error, TimeoutError):
                raise self._too_late(deployment, waiter.route, patience_s) from None
            raise
        finally:
            deployment.queue.remove(waiter)
            self._rest(deployment)
            self._metrics.queue.note((self._clock.monotonic_ms() - waiter.since_ms) * 1000)

    def _let_in(self, deployment: _Deployment) -> None:
        """As many as there are places, the next first."""
        servers, queue = deployment.servers, deployment.queue
        while servers.free > 0 and queue:
            waiter = queue.pop()
            if not waiter.granted.done():
                waiter.granted.set_result(servers.take())
        self._rest(deployment)

    def _rest(self, deployment: _Deployment) -> None:
        if not deployment.queue and deployment.keeper is not None:
            deployment.servers.on_free = None
            deployment.keeper.cancel()
            deployment.keeper = None

    async def _keep(self, deployment: _Deployment) -> None:
        """While somebody waits: start a server where there is none, else see whether others came or left."""
        try:
            while (oldest := deployment.queue.oldest()) is not None:
                route = oldest.route
                if not deployment.servers.urls:
                    url = await self._starts.ready(route.deployment_id)
                    deployment.servers.follow((url,), route.max_parallel or self._each)
                    continue
                await asyncio.sleep(_LOOK_EVERY_S)
                name = RouteName("", route.endpoint_id, "", route.endpoint_name)
                newest = await self._find_route(name)
                if newest is not None and newest.split is not None:
                    newest = newest.split.of(route.deployment_id)
                if newest is not None and newest.deployment_id == route.deployment_id:
                    self.of(newest)
        except FareboxError as error:
            self._send_away(deployment, error)
        except Exception:
            _log.exception("a queue cannot be served")
            self._send_away(deployment, Unavailable("The model cannot be served now.", retry_after_s=5))

    def _send_away(self, deployment: _Deployment, error: FareboxError) -> None:
        while deployment.queue:
            granted = deployment.queue.pop().granted
            if not granted.done():
                granted.set_exception(error)
        self._rest(deployment)

    def _too_late(self, deployment: _Deployment, route: Route, waited_s: float) -> Exception:
        if not deployment.servers.urls:
            return self._starts.starting_error(route.deployment_id, waited_s)
        return QueueRefused(
            Unavailable(
                f"This model is busy: no place became free within {waited_s:.0f} s; try again in a moment.",
                code="queue_full",
                retry_after_s=self._retry_after_s(deployment, route),
            )
        )

    def _retry_after_s(self, deployment: _Deployment, route: Route) -> float:
        """As long as who waits longest has waited: nobody knows when calls end."""
        oldest = deployment.queue.oldest()
        if not deployment.servers.urls:
            starting_s = self._starts.starting_error(route.deployment_id, 0).retry_after_s
            if starting_s is not None:
                return starting_s
        waited_s = 0.0 if oldest is None else (self._clock.monotonic_ms() - oldest.since_ms) / 1000
        return min(max(1.0, waited_s), _RETRY_AFTER_MAX_S)

    async def close(self) -> None:
        """Let every waiting caller go."""
        keepers = [each.keeper for each in self._deployments.values() if each.keeper is not None]
        for deployment in self._deployments.values():
            self._send_away(deployment, Unavailable("The gateway is stopping.", retry_after_s=1))
        if keepers:
            await asyncio.wait(keepers)

    # -- what is known --

    def _follow(self, route: Route) -> _Deployment:
        deployment = self._deployments.get(route.deployment_id)
        if deployment is None:
            if len(self._deployments) >= _MAX_DEPLOYMENTS:
                self._forget()
            deployment = self._deployments[route.deployment_id] = _Deployment(
                Servers(asyncio.get_running_loop().time), FairQueue(*self._bounds)
            )
        deployment.max_parallel = route.max_parallel
        deployment.servers.follow(route.urls, route.max_parallel or self._each)
        return deployment

    def _forget(self) -> None:
        for name, each in list(self._deployments.items()):
            if not each.queue and not each.servers.in_flight:
                del self._deployments[name]
