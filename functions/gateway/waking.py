"""Starting a deployment that has no server: one request to the control process, however many callers wait."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from core.clock import Clock
from core.errors import Unavailable
from functions.gateway.metrics import Metrics
from serving.model import WakeStatus

_ASK_FOR_MS = 10_000  # one question to the control process is held this long
_ASK_AGAIN_S = 0.5  # when the control process could not be asked or answered at once
_UNREACHABLE_FOR_S = 10.0  # then the waiting callers are told
_RETRY_AFTER_DEFAULT_S = 5.0
_RETRY_AFTER_MAX_S = 120.0  # the official clients do not wait longer


class Waker(Protocol):
    """What is needed of the control process."""

    async def wake(self, deployment_id: str, wait_ms: int) -> WakeStatus: ...


class _Start:
    """One start under way."""

    def __init__(self) -> None:
        self.waiters = 0
        self.ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None
        self.retry_after_s = _RETRY_AFTER_DEFAULT_S


class WaitingRoom:
    """Callers who wait for a deployment, bounded per deployment."""

    def __init__(
        self,
        control: Waker,
        clock: Clock,
        *,
        max_waiting: int,
        on_ready: Callable[[str], None],
        metrics: Metrics,
    ) -> None:
        """`on_ready(deployment id)`: what was known of its servers is out of date."""
        self._control = control
        self._clock = clock
        self._max_waiting = max_waiting
        self._on_ready = on_ready
        self._metrics = metrics
        self._starts: dict[str, _Start] = {}

    def waiters(self) -> dict[str, int]:
        """How many callers wait for which deployment."""
        return {name: start.waiters for name, start in self._starts.items()}

    def check_room(self, deployment_id: str) -> None:
        """Unavailable when as many callers wait for this deployment as may."""
        start = self._starts.get(deployment_id)
        if start is not None and start.waiters >= self._max_waiting:
            raise Unavailable(
                f"{start.waiters} callers already wait for this model to start; try again in a moment.",
                code="queue_full",
                retry_after_s=start.retry_after_s,
            )

    async def wait(self, deployment_id: str, timeout_s: float) -> str:
        """The URL of a ready server. Unavailable: too many wait, the start failed or takes too long."""
        self.check_room(deployment_id)
        began_ms = self._clock.monotonic_ms()
        try:
            async with asyncio.timeout(timeout_s):
                return await self.ready(deployment_id)
        except TimeoutError:
            raise self.starting_error(deployment_id, timeout_s) from None
        finally:
            self._metrics.queue.note((self._clock.monotonic_ms() - began_ms) * 1000)

    async def ready(self, deployment_id: str) -> str:
        """The same however long it takes, for one who waits on behalf of all (`places.py`)."""
        start = self._starts.get(deployment_id)
        if start is None:
            start = self._starts[deployment_id] = _Start()
            # The start goes on when the caller who began it leaves.
            start.task = asyncio.get_running_loop().create_task(self._run(deployment_id, start))
        start.waiters += 1
        try:
            return await asyncio.shield(start.ready)
        finally:
            start.waiters -= 1

    def starting_error(self, deployment_id: str, waited_s: float) -> Unavailable:
        """For a caller whose patience ended before the start did."""
        start = self._starts.get(deployment_id)
        retry_after_s = _RETRY_AFTER_DEFAULT_S if start is None else start.retry_after_s
        return Unavailable(
            f"The model is being started and was not ready within {waited_s:.0f} s; try again in "
            f"{retry_after_s:.0f} s.",
            code="model_starting",
            retry_after_s=retry_after_s,
        )

    async def _run(self, deployment_id: str, start: _Start) -> None:
        began_ms = self._clock.monotonic_ms()
        try:
            url = await self._until_ready(deployment_id, start)
        except Exception as error:
            self._metrics.failed_starts += 1
            if not isinstance(error, Unavailable):
                error = Unavailable("The model could not be started.", retry_after_s=_RETRY_AFTER_DEFAULT_S)
            self._starts.pop(deployment_id, None)
            start.ready.set_exception(error)
            start.ready.exception()  # seen, even when every waiter has left
            return
        self._starts.pop(deployment_id, None)
        self._metrics.cold_start.note((self._clock.monotonic_ms() - began_ms) * 1000)
        self._on_ready(deployment_id)
        start.ready.set_result(url)

    async def _until_ready(self, deployment_id: str, start: _Start) -> str:
        answered = self._clock.monotonic_ms()
        while True:
            asked = self._clock.monotonic_ms()
            try:
                status = await self._control.wake(deployment_id, _ASK_FOR_MS)
            except Unavailable:
                if asked - answered > _UNREACHABLE_FOR_S * 1000 or not start.waiters:
                    raise
                await asyncio.sleep(_ASK_AGAIN_S)
                continue
            answered = self._clock.monotonic_ms()
            start.retry_after_s = self._retry_after(status)
            if status.state == "ready" and status.url:
                return status.url
            if status.state == "failed" or not start.waiters:
                raise Unavailable(
                    f"The model could not be started: {status.reason or 'no reason was given'}",
                    code="model_start_failed",
                    retry_after_s=start.retry_after_s,
                )
            if answered - asked < _ASK_AGAIN_S * 1000:
                await asyncio.sleep(_ASK_AGAIN_S)

    def _retry_after(self, status: WakeStatus) -> float:
        wanted = float(status.retry_after_s)
        if wanted <= 0 and status.expected_ready_ms > 0:
            wanted = (status.expected_ready_ms - self._clock.now_ms()) / 1000
        return min(max(wanted, 1.0), _RETRY_AFTER_MAX_S) if wanted > 0 else _RETRY_AFTER_DEFAULT_S

    async def close(self) -> None:
        """Let every waiting caller go."""
        tasks = {start.task for start in self._starts.values() if start.task is not None}
        for start in list(self._starts.values()):
            if not start.ready.done():
                start.ready.set_exception(Unavailable("The gateway is stopping.", retry_after_s=1))
                start.ready.exception()
        self._starts.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
