"""The instances of one online deployment: as many as wanted, of the wanted generation, replaced without a gap.

A new generation begins beside the old one: as each of its instances becomes ready, one of the old goes (`rolling`); where
there is no room for both the old ones go first (`recreate`). When it fails the old ones stay. Nothing is tried again
until the deployment is changed.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

from core.log import get_logger
from serving.launch import Launch
from serving.model import DeploymentState, LiveStatus, WakeStatus
from serving.online.autoscale import SAMPLE_EVERY_MS, Autoscaler, bounds
from serving.online.calls import Calls
from serving.online.gauge import Gauge
from serving.online.instance import Instance
from serving.online.model import DeploymentFigures, OnlineDeployment
from serving.online.spec import DeploymentSpec
from serving.run import Surroundings

_log = get_logger(__name__)
_SCALE_DOWN_AFTER_MS = 300_000  # fewer were enough for so long (Hugging Face's stabilisation)
_RETRY_FIRST_MS, _RETRY_AT_MOST_MS = 5_000, 300_000
_SURGE = 5  # at most every fifth instance more than wanted is starting during a roll-out, and at least one


class Provisioned(Protocol):
    """Told how a change came out; called in the event loop."""

    def __call__(self, deployment: OnlineDeployment, failure: tuple[str, str] | None) -> None: ...


class Fleet:
    """Of one deployment, on this machine."""

    def __init__(
        self,
        around: Surroundings,
        deployment: OnlineDeployment,
        make: Callable[[OnlineDeployment, int], Launch],
        provisioned: Provisioned,
    ) -> None:
        self.deployment = deployment
        self._around, self._make, self._provisioned = around, make, provisioned
        self._instances: list[Instance] = []
        self._told = -1  # the generation whose outcome was told
        self._failed_generation = -1
        self._retries = 0  # of instances that failed for good beside others, or after they had served
        self._retry_at = 0
        self._poke = asyncio.Event()
        self._changed = asyncio.Event()
        self._stop_reason = ""
        self._allowed: int | None = None  # instances that there is room for; None: as many as wanted
        self._in_flight = 0
        self._last_call_ms: int | None = None
        now = around.clock.monotonic_ms()
        self._active_at = self._enough_since = now
        self._awake = deployment.spec.scale.idle_to_zero_s == 0 or deployment.pending
        self._scaled = deployment.instance_count
        self._autoscaler, self._gauge, self._shown = Autoscaler(), Gauge(around.logs), Gauge(around.logs)
        self._calls = Calls(now)
        self._measured_at = -SAMPLE_EVERY_MS
        self._task = asyncio.create_task(self._run(), name=f"fleet of {deployment.id}")

    # --- what others ask ------------------------------------------------------------------------

    def follow(self, deployment: OnlineDeployment) -> None:
        """The row as it is now."""
        if deployment != self.deployment:
            if deployment.generation != self.deployment.generation:
                self._awake = True
                self._active_at = self._around.clock.monotonic_ms()
                self._retries = self._retry_at = 0
            if deployment.instance_count != self.deployment.instance_count:
                self._scaled = deployment.instance_count
            self._told = -1  # of the row before: a change can follow the end of another unseen
            self.deployment = deployment
            self._poke.set()

    def allow(self, instances: int | None) -> None:
        """For one of low priority: how many instances there is room for now."""
        if instances != self._allowed:
            self._allowed = instances
            self._poke.set()

    def report(self, in_flight: int, last_ms: int, ended: int, durations_ms: Sequence[int]) -> None:
        """The gateway's word on the calls to this deployment: how many ended since the last word, and what some took."""
        self._calls.add(ended, durations_ms)
        if in_flight > 0 or last_ms != self._last_call_ms:
            self._active_at = self._around.clock.monotonic_ms()
        self._in_flight, self._last_call_ms = in_flight, last_ms

    async def wake(self, wait_ms: int) -> WakeStatus:
        """Have an instance started if none is there; returns when one is ready or all have failed, or after `wait_ms`."""
        self._active_at = self._around.clock.monotonic_ms()
        if not self._awake:
            self._awake = True
            self._failed_generation = -1  # somebody calls: what failed while it slept is tried once more
            self._poke.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_ms / 1000):
                while self._url() is None and not self._gave_up():
                    self._changed.clear()
                    await self._changed.wait()
        return self._wake_status()

    async def stop(self, reason: str) -> None:
        """End every instance and start none again. Returns when their processes are gone."""
        self._stop_reason = reason
        self._poke.set()
        await asyncio.wait([self._task])

    def live_status(self) -> LiveStatus:
        """A snapshot, from any thread."""
        states = [each.state for each in list(self._instances)]
        state: DeploymentState = "stopped"
        for name, shown in (
            ("ready", "ready"),
            ("starting", "starting"),
            ("unready", "starting"),
            ("failed", "failed"),
        ):
            if name in states:
                state = shown  # type: ignore[assignment]  # one of them
                break
        phase = next((each.phase for each in list(self._instances) if each.phase), "")
        if self._allowed == 0 and not phase:
            phase = "waiting for room, which dedicated deployments hold"
        stops_ms = None
        idle_s = self.deployment.spec.scale.idle_to_zero_s
        if idle_s and state == "ready" and not self._in_flight:
            quiet = self._around.clock.monotonic_ms() - self._active_at
            stops_ms = self._around.clock.now_ms() + max(0, idle_s * 1000 - quiet)
        return LiveStatus(
            self.deployment.id, state, self._in_flight, self._last_call_ms, stops_ms, None, phase
        )

    def specs(self) -> list[DeploymentSpec]:
        """What its instances run from, those that are ending too."""
        return [each.deployment.spec for each in self._instances if each.state not in ("ended", "failed")]

    async def figures(self) -> DeploymentFigures:
        """For who watches: instances by state, and what they use; CPU since the last time that this was asked."""
        states = Counter(each.state for each in self._instances)
        asked = self.deployment.spec.resources.requests
        used = await asyncio.to_thread(self._shown.measure, self._leaders(), asked)
        return DeploymentFigures(
            self.deployment.endpoint_id,
            self.deployment.name,
            {str(state): count for state, count in states.items()},
            used.get("CpuUtilizationPercentage"),
            used.get("CpuMemoryUtilizationPercentage"),
            used.get("DiskUtilization"),
            used.get("GpuUtilizationPercentage"),
            used.get("GpuMemoryUtilizationPercentage"),
            self._shown.energy_j,
        )

    def _leaders(self) -> list[int]:
        return [each.pid for each in self._instances if each.state == "ready" and each.pid is not None]

    def _wake_status(self) -> WakeStatus:
        now_ms = self._around.clock.now_ms()
        url = self._url()
        if url is not None:
            return WakeStatus("ready", url, "", now_ms, now_ms, 0)
        if self._gave_up():
            failures = [each.failure for each in self._instances if each.failure]
            reason = failures[-1][1] if failures else "no instance could be started"
            return WakeStatus("failed", None, reason, now_ms, now_ms + 60_000, 60)
        phase = next((each.phase for each in self._instances if each.active and each.phase), "starting")
        return WakeStatus("starting", None, phase, now_ms, now_ms + 10_000, 5)

    def _url(self) -> str | None:
        return next((each.url for each in self._instances if each.url is not None), None)

    def _gave_up(self) -> bool:
        return self._failed_generation == self.deployment.generation and not any(
            each.active for each in self._instances
        )

    # --- the task -------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._stop_reason:
            try:
                await self._arrange()
                await self._measure()
            except Exception:
                _log.exception("a fleet cannot be arranged", extra={"deployment": self.deployment.id})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._around.timing.tick / 1000):
                    await self._poke.wait()
            self._poke.clear()
        for each in self._instances:
            each.stop(self._stop_reason)
        await asyncio.gather(*(each.ended() for each in self._instances))

    def _on_change(self) -> None:
        self._changed.set()
        self._poke.set()

    async def _arrange(self) -> None:
        """One step towards what is wanted."""
        self._instances = [each for each in self._instances if each.state != "ended"]
        deployment = self.deployment
        asked = self._wanted()
        wanted = asked if self._allowed is None else min(asked, self._allowed)
        new = [e for e in self._instances if e.generation == deployment.generation]
        old = [e for e in self._instances if e.generation != deployment.generation and e.active]
        failed = [each for each in new if each.state == "failed"]
        if failed and not self._goes_on(new, failed):
            return
        active = [each for each in new if each.active]
        if deployment.spec.strategy == "recreate" and len(self._instances) > len(new):
            _stop(old, "replaced by a newer generation")
            return  # until their processes are gone
        may_start = self._around.clock.monotonic_ms() >= self._retry_at
        if self._failed_generation != deployment.generation and may_start:
            self._start_missing(wanted, active, old)
        ready = [each for each in active if each.state == "ready"]
        _stop(old[: max(0, len(ready) + len(old) - wanted)], "replaced by a newer generation")
        surplus = sorted(active, key=lambda each: each.state == "ready")[: max(0, len(active) - wanted)]
        reason = "fewer instances are wanted" if wanted else "no calls"
        _stop(surplus, reason if wanted == asked else "preempted: dedicated deployments need the room")
        if len(ready) >= wanted and (wanted or not deployment.pending):
            self._retries = 0
            self._tell(None)

    def _start_missing(self, wanted: int, active: Sequence[Instance], old: Sequence[Instance]) -> None:
        missing = wanted - len(active)
        if old:
            starting = sum(each.state != "ready" for each in active)
            missing = min(missing, max(1, -(-wanted // _SURGE)) - starting)
        for _ in range(max(0, missing)):
            self._instances.append(Instance(self._around, self.deployment, self._make, self._on_change))

    def _goes_on(self, new: Sequence[Instance], failed: Sequence[Instance]) -> bool:
        """What has failed for good is told; what served before, or serves beside it, is tried again later."""
        serving = any(each.state in ("ready", "unready") for each in new)
        if not serving and self.deployment.provisioning_state != "Succeeded":
            self._give_up(new, failed[-1])
            return False
        self._tell(failed[-1].failure)
        self._instances = [each for each in self._instances if each not in failed]
        self._retries += 1
        pause = min(_RETRY_FIRST_MS << min(self._retries - 1, 10), _RETRY_AT_MOST_MS)
        self._retry_at = self._around.clock.monotonic_ms() + pause
        return True

    def _give_up(self, new: Sequence[Instance], failed: Instance) -> None:
        self._failed_generation = self.deployment.generation
        _stop([each for each in new if each.active], "another instance of this generation has failed")
        self._tell(failed.failure)

    def _tell(self, failure: tuple[str, str] | None) -> None:
        if self.deployment.pending and self._told != self.deployment.generation:
            self._told = self.deployment.generation
            self._provisioned(self.deployment, failure)
        elif not self.deployment.pending:
            self._told = -1

    # --- how many -------------------------------------------------------------------------------

    def _wanted(self) -> int:
        scale, now = self.deployment.spec.scale, self._around.clock.monotonic_ms()
        if scale.idle_to_zero_s and not self.deployment.pending:
            quiet = now - self._active_at
            if not self._in_flight and quiet >= scale.idle_to_zero_s * 1000:
                self._awake = False
            if not self._awake:
                return 0
        if scale.kind == "default":
            return self.deployment.instance_count
        if scale.kind == "rules":
            limits = bounds(scale, self._around.clock.now_ms())
            self._scaled = self._autoscaler.wanted(scale, self._scaled, limits, now)
        else:
            self._scaled = self._autoscaled(self._scaled, now)
        return self._scaled

    async def _measure(self) -> None:
        """For rules: what the instances use, every few seconds."""
        now = self._around.clock.monotonic_ms()
        if self.deployment.spec.scale.kind != "rules" or now - self._measured_at < SAMPLE_EVERY_MS:
            return
        self._measured_at = now
        leaders = self._leaders()
        asked = self.deployment.spec.resources.requests
        values = await asyncio.to_thread(self._gauge.measure, leaders, asked)
        calls = {"ConcurrentRequestsPerInstance": self._in_flight / max(1, len(leaders))}
        self._autoscaler.sample({**calls, **self._calls.take(now), **values}, now)

    def _autoscaled(self, current: int, now: int) -> int:
        """Enough for the calls in flight at the target utilisation; fewer only after that was enough for a while."""
        spec = self.deployment.spec
        scale, each = spec.scale, spec.request_settings.max_concurrent_requests_per_instance
        low, high = bounds(scale, self._around.clock.now_ms())
        needed = -(-self._in_flight * 100 // (each * scale.target_utilization_percentage))
        needed = min(max(needed, low), high)
        current = min(max(current, low), high)
        if needed >= current:
            self._enough_since = now
            return needed
        if now - self._enough_since >= _SCALE_DOWN_AFTER_MS:
            self._enough_since = now
            return needed
        return current


def _stop(instances: Sequence[Instance], reason: str) -> None:
    for each in instances:
        each.stop(reason)
