"""One instance of an online deployment: started, probed, restarted when it dies, ended. `fleet` decides how many."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Literal, get_args

from core.errors import FareboxError
from core.ids import new_id
from core.log import get_logger
from serving.launch import Launch
from serving.model import Replica
from serving.online.model import FailureCode, OnlineDeployment
from serving.online.spec import Probe
from serving.run import DiedError, Run, StopAskedError, Surroundings

_log = get_logger(__name__)
_CODES = get_args(FailureCode)
_ROTATE_EVERY_MS = 5_000

State = Literal["starting", "ready", "unready", "stopping", "ended", "failed"]


class Instance:
    """From its start until it was stopped, or has failed for good. For the event loop's thread alone."""

    def __init__(
        self,
        around: Surroundings,
        deployment: OnlineDeployment,
        make: Callable[[OnlineDeployment, int], Launch],
        changed: Callable[[], None],
    ) -> None:
        """`changed` is called whenever `state` or `phase` is another."""
        self.deployment = deployment
        self.state: State = "starting"
        self.phase = "checking"
        self.failure: tuple[str, str] | None = None  # code, message: of one that has failed for good
        self.run: Run | None = None
        self._around, self._make, self._changed = around, make, changed
        self._deaths = 0
        self._was_ready = False
        self._stop_reason = ""
        self._poke = asyncio.Event()
        self._task = asyncio.create_task(self._live(), name=f"instance of {deployment.id}")

    @property
    def generation(self) -> int:
        return self.deployment.generation

    @property
    def active(self) -> bool:
        """Neither ended nor about to be."""
        return self.state in ("starting", "ready", "unready")

    @property
    def pid(self) -> int | None:
        """Its first process."""
        return None if self.run is None else self.run.replica.pid

    @property
    def url(self) -> str | None:
        """Where it serves now."""
        return self.run.replica.url if self.run is not None and self.state == "ready" else None

    def stop(self, reason: str) -> None:
        """End it: calls that it has are finished, new ones go elsewhere."""
        if not self._stop_reason:
            self._stop_reason = reason
            self._poke.set()

    async def ended(self) -> None:
        """Return when its process is gone."""
        await asyncio.wait([self._task])

    def _tell(self, name: str, message: str) -> None:
        """A line of the log, with the fields of Azure's table of events (R7.2)."""
        extra = {
            "Name": name,
            "EndpointId": self.deployment.endpoint_id,
            "DeploymentName": self.deployment.name,
            "InstanceId": "" if self.run is None else self.run.replica.id,
            "Message": message,
        }
        _log.info("deployment event", extra=extra)

    # --- the task -------------------------------------------------------------------------------

    def _set(self, state: State, phase: str = "") -> None:
        self.state, self.phase = state, phase
        self._changed()

    async def _live(self) -> None:
        try:
            while not self._stop_reason and await self._one_run():
                await self._pause(self._backoff())
        except Exception as error:
            _log.exception("an instance's supervision broke", extra={"deployment": self.deployment.id})
            self._fail("InternalServerError", f"internal error: {type(error).__name__}")
            if self.run is not None and self.run.replica.stopped_ms is None:
                await self.run.finish("failed", "internal error")
        finally:
            if self.state != "failed":
                self._set("ended")

    async def _one_run(self) -> bool:
        """From the start to the end of one process; True when another one is to be started."""
        now_ms = self._around.clock.now_ms()
        replica = Replica(new_id("rep", now_ms), self.deployment.id, "starting", "checking", now_ms)
        run = self.run = Run(self._around, replica)
        self._set("starting", "checking")
        try:
            await self._start(run)
            await self._watch(run)
        except StopAskedError:
            await self._end(run)
        except FareboxError as refusal:
            reason = " ".join(refusal.message.split())
            await run.finish("failed", reason)
            self._fail(_code_of(refusal.code), reason)
        except DiedError as death:
            return await self._after_death(run, death)
        return False

    async def _start(self, run: Run) -> None:
        await run.record()
        self._tell("Created", "an instance is being started")
        await run.begin(lambda port: self._make(self.deployment, port), self._show, self._check_stop)
        probe = self.deployment.spec.readiness_probe
        patience_ms = 1000 * (probe.initial_delay + probe.period * probe.failure_threshold)
        if self.deployment.spec.kind == "catalog":
            # Weights of many gigabytes take as long as they do for a serverless endpoint.
            patience_ms = max(patience_ms, self._around.timing.start_timeout)
        await run.wait_until_ready(self._rest, patience_ms)
        self._was_ready = True
        self._set("ready")
        self._tell("Started", f"ready at {run.replica.url}")

    async def _end(self, run: Run) -> None:
        self._tell("Killing", self._stop_reason)
        self._set("stopping", "telling the gateway")
        if run.replica.state == "ready":
            await run.save(state="stopping", phase="telling the gateway")
            await asyncio.sleep(self._around.timing.notice / 1000)
        await run.finish("stopped", self._stop_reason)

    async def _after_death(self, run: Run, death: DiedError) -> bool:
        await run.finish("failed", death.reason)
        self._deaths += 1
        timing = self._around.timing
        self._tell("BackOff", f"died, {self._deaths} times in a row now: {death.reason}")
        final = death.final or self._deaths >= timing.max_quick_deaths or _is_scripts_fault(death.reason)
        if final and not self._was_ready:
            self._fail(_code_in(death.reason), death.reason)
            return False
        self._set("starting", f"starting again after: {death.reason}")
        return not self._stop_reason

    def _fail(self, code: str, message: str) -> None:
        self.failure = code, message
        self._set("failed", message)

    def _backoff(self) -> int:
        timing = self._around.timing
        exponent = min(self._deaths - 1, 20)
        return round(min(timing.backoff_first << exponent, timing.backoff_cap) * self._around.jitter())

    def _show(self, text: str) -> None:
        if self.state == "starting" and text != self.phase:
            self._set("starting", text)

    def _check_stop(self) -> None:
        if self._stop_reason:
            raise StopAskedError

    async def _rest(self, ms: int) -> None:
        await self._pause(ms)
        self._check_stop()

    async def _pause(self, ms: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ms / 1000):
                await self._poke.wait()
        if not self._stop_reason:
            self._poke.clear()

    # --- while it runs --------------------------------------------------------------------------

    async def _watch(self, run: Run) -> None:
        """Probe it until it is to be stopped (StopAskedError) or has died (DiedError)."""
        clock, spec = self._around.clock, self.deployment.spec
        ready_at = rotated_at = clock.monotonic_ms()
        alive, ready = _Probing(spec.liveness_probe, ready_at), _Probing(spec.readiness_probe, ready_at)
        while True:
            self._check_stop()
            if run.has_ended():
                raise DiedError(await run.reason_of_death())
            now = clock.monotonic_ms()
            if now - ready_at >= self._around.timing.steady_after:
                self._deaths = 0
            if alive.due(now):
                alive.note(await self._passes(run, spec.liveness_probe, alive_only=True), now)
                if alive.failed:
                    count = spec.liveness_probe.failure_threshold
                    self._tell("LivenessProbeFailed", f"{count} times in a row")
                    raise DiedError(f"the liveness probe failed {count} times in a row")
            if ready.due(now):
                ready.note(await self._passes(run, spec.readiness_probe, alive_only=False), now)
                await self._note_readiness(run, ready)
            if now - rotated_at >= _ROTATE_EVERY_MS:
                rotated_at = now
                await run.rotate_log()
            await self._pause(self._around.timing.tick)

    async def _passes(self, run: Run, probe: Probe, *, alive_only: bool) -> bool:
        routes = self.deployment.spec.routes
        if self.deployment.spec.kind == "command":
            path = (routes.liveness if alive_only else routes.readiness).path
        else:
            path = probe.path if self.deployment.spec.kind != "catalog" else "/health"
        return await run.health(probe.timeout * 1000, path) == "well"

    async def _note_readiness(self, run: Run, ready: "_Probing") -> None:
        """Without readiness no calls, and with it calls again."""
        if ready.failed and self.state == "ready":
            self._tell("ReadinessProbeFailed", "no calls until it passes again")
            self._set("unready", "the readiness probe fails")
            await run.save(state="starting", phase="the readiness probe fails")
        elif not ready.failed and self.state == "unready" and ready.passes:
            self._set("ready")
            await run.save(state="ready", phase="")


class _Probing:
    """One probe's results."""

    def __init__(self, probe: Probe, since_ms: int) -> None:
        self._probe = probe
        self._next_ms = since_ms + probe.initial_delay * 1000
        self._failures = self._successes = 0
        self.failed = False

    def due(self, now_ms: int) -> bool:
        return now_ms >= self._next_ms

    @property
    def passes(self) -> bool:
        return self._successes >= self._probe.success_threshold

    def note(self, passed: bool, now_ms: int) -> None:
        self._next_ms = now_ms + self._probe.period * 1000
        if passed:
            self._successes, self._failures = self._successes + 1, 0
            if self.passes:
                self.failed = False
        else:
            self._successes, self._failures = 0, self._failures + 1
            self.failed = self.failed or self._failures >= self._probe.failure_threshold


def _is_scripts_fault(reason: str) -> bool:
    """The scorer says so in its last line; another start would end the same way."""
    return "UserScript" in reason or "EgressNotRestricted" in reason


def _code_in(reason: str) -> str:
    return next((code for code in _CODES if code in reason), "ResourceNotReady")


def _code_of(code: str) -> str:
    if code == "no_room":
        return "OutOfQuota"
    return code if code in _CODES else "BadArgument"
