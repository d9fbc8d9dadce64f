"""The life of one deployment's server: started once for all who wait, watched, stopped when idle, restarted.

    stopped ──wake──▶ starting ──well──▶ ready ──nobody calls──▶ stopping ──▶ stopped
                       ▲   │               │ ▲                      │
                       │   └─died─▶ wait ◀─┘ └───── a call ─────────┘
                       └────────────┘ │ too often, or refused
                                      ▼
                                    failed ──wake after the backoff──▶ starting

One task per deployment from the wake until the server is stopped or has failed; what blocks runs in threads.
"""

import asyncio
import contextlib
import statistics
from dataclasses import dataclass
from functools import partial

from sqlalchemy.exc import SQLAlchemyError

from catalog.model import ModelSpec
from catalog.store import find_model
from core.errors import FareboxError, NotFound, Unavailable
from core.ids import new_id
from core.log import get_logger
from serving import store
from serving.fine_tunes import adapters_of, fine_tunes_of
from serving.launch import Launch
from serving.model import DeploymentState, LiveStatus, Replica, WakeStatus
from serving.processes import Server
from serving.run import DiedError, Run, StopAskedError, Surroundings

_log = get_logger(__name__)
_MAX_RETRY_AFTER_S = 120  # the official clients do not retry at all when told to wait longer
_OVERDUE_MS = 5_000  # later than expected: nothing better is known than to look again soon
_ROTATE_EVERY_MS = 5_000
_LOOK_AGAIN_S = 0.02
_OUTDATED = "another one is to know a new fine-tune"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the database says is to be started."""

    spec: ModelSpec
    fine_tunes: list[ModelSpec]
    usual_start_ms: int


class Supervisor:
    """One deployment on this machine. For the event loop's thread alone, but for `live_status`."""

    def __init__(self, deployment_id: str, around: Surroundings) -> None:
        self.deployment_id = deployment_id
        self._around = around
        self._state: DeploymentState = "stopped"
        self._phase = ""
        self._reason = ""  # of the last failure
        self._run: Run | None = None  # the last one, also when it has ended
        self._task: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # the state is ready, failed or stopped
        self._poke = asyncio.Event()  # ends a pause of the task
        self._stop_reason = ""  # end now, whatever happens
        self._called = False  # somebody called since a stop began
        self._unused = False  # no endpoint stands before it
        self._outdated = False  # its server lacks something that an endpoint offers
        self._proven: frozenset[tuple[str, str]] = frozenset()  # fine-tunes that a server began with
        self._doubtful: frozenset[tuple[str, str]] = frozenset()  # those that one may have died of
        self._in_flight = 0
        self._reported_at = 0
        self._last_call_ms: int | None = None
        self._active_at = around.clock.monotonic_ms()
        self._ready_at = 0
        self._deaths = 0
        self._retry_at = 0
        self._usual_start = around.timing.usual_start

    # --- what others see ------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """True while there is a server, or one is being started."""
        return self._task is not None

    @property
    def ready_replica(self) -> Replica | None:
        """Its server, while that is ready."""
        run = self._run
        return run.replica if run is not None and run.replica.state == "ready" else None

    def live_status(self) -> LiveStatus:
        """A snapshot, from any thread."""
        timing, now_ms = self._around.timing, self._around.clock.now_ms()
        quiet = self._around.clock.monotonic_ms() - self._active_at
        state, stops_ms = self._state, None
        calls = self._calls()
        if state in ("ready", "idle") and not calls:
            stops_ms = now_ms + max(0, timing.scale_to_zero_after - quiet)
            if quiet >= min(timing.idle_after, timing.scale_to_zero_after):
                state = "idle"
        return LiveStatus(
            deployment_id=self.deployment_id,
            state=state,
            in_flight=calls,
            last_call_ms=self._last_call_ms,
            stops_ms=stops_ms,
            retry_ms=now_ms + self._until_retry() if state == "failed" else None,
            phase=self._phase,
        )

    def wake_status(self) -> WakeStatus:
        """What a caller who waits is told."""
        now_ms, replica = self._around.clock.now_ms(), self._run.replica if self._run else None
        started_ms = replica.started_ms if replica else now_ms
        if self._state == "ready" and replica is not None:
            return WakeStatus("ready", replica.url, "", started_ms, replica.ready_ms or now_ms, 0)
        if self._state == "failed":
            left = self._until_retry()
            return WakeStatus("failed", None, self._reason, started_ms, now_ms + left, _seconds(left))
        spawned_ms = replica.spawned_ms if replica is not None and replica.state == "starting" else None
        left = (spawned_ms or now_ms) + self._usual_start - now_ms
        left = left if left > 0 else _OVERDUE_MS
        return WakeStatus("starting", None, self._phase, started_ms, now_ms + left, _seconds(left))

    def _until_retry(self) -> int:
        return max(0, self._retry_at - self._around.clock.monotonic_ms())

    # --- what others ask ------------------------------------------------------------------------

    async def wake(self, wait_ms: int) -> WakeStatus:
        """Start the server unless it runs; returns when it is ready or failed, at most `wait_ms` later."""
        self._demand()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_ms / 1000):
                while self._state not in ("ready", "failed"):
                    await self._settled.wait()
                    self._demand()  # it may have been stopped meanwhile
        return self.wake_status()

    def _demand(self) -> None:
        self._touch()
        if self._task is not None:
            if self._state in ("idle", "stopped"):  # a stop is under way
                self._called = True
                self._settled.clear()
                self._poke.set()
        elif self._stop_reason:
            self._fail(self._stop_reason, self._around.timing.refusal_backoff)
        elif self._state != "failed" or not self._until_retry():
            self._begin(None)

    def _touch(self) -> None:
        self._active_at = self._around.clock.monotonic_ms()

    def report(self, in_flight: int, last_ms: int) -> None:
        """The gateway's word on the calls to this deployment."""
        if in_flight > 0 or last_ms != self._last_call_ms:
            self._touch()
            if self._state == "idle":
                self._called = True
                self._poke.set()
        self._in_flight, self._last_call_ms = in_flight, last_ms
        self._reported_at = self._around.clock.monotonic_ms()

    def _calls(self) -> int:
        """Calls in flight. Those of a gateway that died end with it, and nobody reports that."""
        fresh = self._around.clock.monotonic_ms() - self._reported_at < self._around.timing.report_lasts
        return self._in_flight if fresh else 0

    def set_unused(self, unused: bool) -> None:
        """Whether no endpoint stands before the deployment: then its server is stopped soon."""
        self._unused = unused

    def adopt(self, replica: Replica, server: Server, launch: Launch) -> None:
        """Go on with a server that was found running and is the wanted one."""
        run = Run(self._around, replica, server)
        run.launch = launch
        self._begin(run)

    def lacks(self, fine_tunes: frozenset[tuple[str, str]]) -> bool:
        """Whether there is a server, ready or starting, that does not know all of these."""
        launch = self._run.launch if self._run is not None else None
        if launch is None or self._state not in ("starting", "ready"):
            return False
        return not fine_tunes - self._doubtful <= launch.fine_tunes

    async def replace_server(self) -> None:
        """Have the server end, which lets its calls finish, and the next call start another.

        Returns when the gateway has been told to send nobody there any more.
        """
        if self._task is None:
            return
        self._outdated = True
        self._poke.set()
        while self._outdated and self.ready_replica is not None:  # noqa: ASYNC110  # rare, and soon over
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def stop(self, reason: str) -> None:
        """End the server now, whatever it is doing, and start none again."""
        self._stop_reason = reason
        self._poke.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    # --- the task -------------------------------------------------------------------------------

    def _begin(self, adopted: Run | None) -> None:
        self._set("starting", "checking")
        self._touch()
        name = f"deployment {self.deployment_id}"
        self._task = asyncio.create_task(self._live(adopted), name=name)

    def _set(self, state: DeploymentState, phase: str = "") -> None:
        self._state, self._phase = state, phase
        if state in ("ready", "failed") or (state == "stopped" and not phase):
            self._settled.set()
        else:
            self._settled.clear()

    def _fail(self, reason: str, backoff_ms: int) -> None:
        self._reason = reason
        self._retry_at = self._around.clock.monotonic_ms() + backoff_ms
        self._set("failed")

    async def _live(self, adopted: Run | None) -> None:
        try:
            again = await self._one_life(adopted)
            while again:
                self._set("starting", "checking")
                again = await self._one_life(None)
        except Exception as error:
            _log.exception("supervision broke", extra={"deployment": self.deployment_id})
            await self._after_bug(error)
        finally:
            self._task = None
            if self._state not in ("ready", "failed", "stopped"):
                self._set("stopped")

    async def _after_bug(self, error: Exception) -> None:
        # Nobody would watch the server any longer.
        reason = f"internal error: {type(error).__name__}"
        self._fail(reason, self._around.timing.refusal_backoff)
        if self._run is not None and self._run.replica.stopped_ms is None:
            await self._run.finish("failed", reason)

    async def _one_life(self, adopted: Run | None) -> bool:
        """From the start to the end of one server; True when another one is to be started at once."""
        self._called = self._outdated = False
        run = self._run = adopted or self._new_run()
        try:
            if adopted is None:
                await self._start(run)
            if run.replica.state != "ready":
                await run.wait_until_ready(self._rest)
            if self._outdated:  # nobody was told of it
                await run.finish("stopped", _OUTDATED)
                return True
            self._become_ready(run)
            await self._watch(run)
        except StopAskedError:
            await run.finish("stopped", self._stop_reason)
        except FareboxError as refusal:
            reason = " ".join(refusal.message.split())
            await run.finish("failed", reason)
            self._fail(reason, self._around.timing.refusal_backoff)
            return False
        except DiedError as death:
            return await self._after_death(run, death)
        # A caller who came while it ended waits for the next one.
        again = self._called and not self._stop_reason
        if not again:
            self._set("stopped")
        return again

    def _new_run(self) -> Run:
        now_ms = self._around.clock.now_ms()
        replica = Replica(new_id("rep", now_ms), self.deployment_id, "starting", "checking", now_ms)
        return Run(self._around, replica)

    async def _start(self, run: Run) -> None:
        await run.record()
        try:
            wanted = await asyncio.to_thread(self._read_wanted)
        except SQLAlchemyError as error:
            raise Unavailable(f"the database cannot be read: {error}"[:400]) from error
        self._usual_start = wanted.usual_start_ms
        make = partial(self._around.launcher, wanted.spec, fine_tunes=wanted.fine_tunes)
        await run.begin(make, self._show_phase, self._check_stop)

    def _read_wanted(self) -> _Wanted:
        with self._around.db.read() as connection:
            deployment = store.find_deployment(connection, self.deployment_id)
            if deployment is None:
                raise NotFound(f"there is no deployment {self.deployment_id!r}")
            model = find_model(connection, deployment.model_id)
            if model is None:
                raise Unavailable(f"the model {deployment.model_id!r} is no longer in the catalog")
            if not store.deployment_in_use(connection, self.deployment_id):
                raise Unavailable(f"no endpoint uses the model {deployment.model_id!r} any more")
            fine_tunes = [
                each
                for each in fine_tunes_of(connection, deployment)
                if not adapters_of([each]) <= self._doubtful
            ]
            starts = store.measured_starts(connection, self.deployment_id)
        self._unused = False
        usual = round(statistics.median(starts)) if starts else self._around.timing.usual_start
        return _Wanted(model.spec, fine_tunes, usual)

    def _show_phase(self, text: str) -> None:
        if self._state == "starting":
            self._phase = text

    def _check_stop(self) -> None:
        if self._stop_reason:
            raise StopAskedError

    async def _rest(self, ms: int) -> None:
        await self._pause(ms)
        self._check_stop()

    async def _pause(self, ms: int) -> None:
        """Sleep, until poked."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ms / 1000):
                await self._poke.wait()
        self._poke.clear()

    def _become_ready(self, run: Run) -> None:
        self._ready_at = self._around.clock.monotonic_ms()
        if run.launch is not None:
            self._proven |= run.launch.fine_tunes
        replica = run.replica
        if self._usual_start == self._around.timing.usual_start and replica.ready_ms and replica.spawned_ms:
            self._usual_start = max(0, replica.ready_ms - replica.spawned_ms)  # the first that was measured
        self._touch()
        self._set("ready")
        _log.info("a model server is ready", extra={"deployment": self.deployment_id, "url": run.replica.url})

    # --- while it is ready ----------------------------------------------------------------------

    async def _watch(self, run: Run) -> None:
        """Return when the server was stopped on purpose; DiedError otherwise."""
        timing, clock = self._around.timing, self._around.clock
        looked_at = rotated_at = well_at = clock.monotonic_ms()
        while True:
            if run.has_ended():
                raise DiedError(await run.reason_of_death())
            now = clock.monotonic_ms()
            if now - self._ready_at >= timing.steady_after:
                self._deaths = 0
            if self._should_stop(now) and await self._stop_server(run):
                return
            if now - looked_at >= timing.health_every:
                health = await run.health(timing.health_timeout)
                looked_at = clock.monotonic_ms()
                bound = timing.silent_for if health == "silent" else timing.unwell_for
                if health == "well":
                    well_at = looked_at
                elif looked_at - well_at >= bound and not run.has_ended():
                    unwell_s = (looked_at - well_at) // 1000
                    raise DiedError(f"the server lives but has not been well for {unwell_s} s")
            if now - rotated_at >= _ROTATE_EVERY_MS:
                rotated_at = now
                await run.rotate_log()
            await self._pause(timing.tick)

    def _should_stop(self, now: int) -> bool:
        quiet = now - self._active_at
        if self._stop_reason or self._outdated:
            return True
        if self._unused:
            return self._calls() == 0 or quiet >= self._around.timing.drain_grace
        return self._calls() == 0 and quiet >= self._around.timing.scale_to_zero_after

    async def _stop_server(self, run: Run) -> bool:
        """Stop it, unless somebody calls while the gateway is being told; True when it is stopped."""
        reason = self._stop_reason or ("no endpoint uses it" if self._unused else "no calls")
        if self._outdated:
            reason = _OUTDATED
        self._called = False
        self._set("idle", "stopping")
        await run.save(state="stopping", phase="telling the gateway")
        deadline = self._around.clock.monotonic_ms() + self._around.timing.notice
        while (self._outdated or not self._called) and not self._stop_reason:
            left = deadline - self._around.clock.monotonic_ms()
            if left <= 0:
                break
            await self._pause(min(left, self._around.timing.tick))
        back = (self._called or (self._calls() and not self._unused)) and not self._outdated
        if back and not self._stop_reason:
            await run.save(state="ready", phase="")
            self._called = False
            self._set("ready")
            return False
        self._set("stopped", "ending the server")
        await run.finish("stopped", self._stop_reason or reason)
        _log.info("a model server was stopped", extra={"deployment": self.deployment_id, "reason": reason})
        return True

    # --- when it dies ---------------------------------------------------------------------------

    async def _after_death(self, run: Run, death: DiedError) -> bool:
        """Clear up and wait a while; True to start another."""
        timing = self._around.timing
        self._set("starting", f"clearing up after: {death.reason}")
        self._deaths += 1
        if run.replica.ready_ms is None and run.launch is not None:
            self._doubt(run.launch.fine_tunes)
        if death.final:
            self._deaths = max(self._deaths, timing.max_quick_deaths)
        extra = {"deployment": self.deployment_id, "reason": death.reason, "deaths": self._deaths}
        _log.warning("a model server died", extra=extra)
        await run.finish("failed", death.reason)
        backoff = self._backoff()
        if self._deaths >= timing.max_quick_deaths or self._stop_reason or self._unused:
            self._fail(death.reason, backoff)
            return False
        self._reason = death.reason
        self._phase = f"starting again in {_seconds(backoff)} s after: {death.reason}"
        until = self._around.clock.monotonic_ms() + backoff
        while (left := until - self._around.clock.monotonic_ms()) > 0 and not self._stop_reason:
            await self._pause(min(left, timing.tick))
        return not self._stop_reason

    def _doubt(self, fine_tunes: frozenset[tuple[str, str]]) -> None:
        """A server died before it was ready: the next one is tried without what none has begun with yet.

        When that dies too, it was not their fault. A fine-tune that does not fit must not take its base down.
        """
        self._doubtful = fine_tunes - self._proven
        if self._doubtful:
            names = sorted(name for name, _ in self._doubtful)
            _log.warning(
                "fine-tunes are left out: the server died when it loaded them",
                extra={"deployment": self.deployment_id, "models": names},
            )

    def _backoff(self) -> int:
        timing = self._around.timing
        exponent = min(self._deaths - 1, 20)
        return round(min(timing.backoff_first << exponent, timing.backoff_cap) * self._around.jitter())


def _seconds(ms: int) -> int:
    return min(max(1, -(-ms // 1000)), _MAX_RETRY_AFTER_S)
