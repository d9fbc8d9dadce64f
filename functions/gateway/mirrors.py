"""Copies of calls for a shadow deployment: sent aside, answered to nobody, metered apart, compared with the original.

A copy never touches the call that it is of: it has a task, a record and a usage event of its own, takes only free
places of the shadow, and there are at most `MAX_COPIES` at once; beyond, copies are left out and counted.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from core.errors import FareboxError
from core.ids import new_id
from core.log import get_logger
from functions.gateway.comparison import Comparison, Side
from functions.gateway.reading import record_of
from functions.gateway.record import CallRecord
from functions.gateway.scoring_record import new_record
from functions.gateway.upstream import Answer, ServerGone, read_answer
from metering.model import Status
from serving.route import Route
from wire.openai import ModelRequest

if TYPE_CHECKING:
    from functions.gateway.gateway import Gateway

_log = get_logger(__name__)

MAX_COPIES = 128  # at once
MAX_COMPARISONS = 1000
MAX_COMPARED_BYTES = 1024 * 1024

HeadFor = Callable[[str, str, str], bytes]


class Copy:
    """One call and its copy; compared when both are over."""

    __slots__ = ("_comparison", "_other", "answer", "done")

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self._other: Side | None = None
        self.answer = b""  # of the call itself, where it can be compared
        self.done = False

    def original_ended(self, status: int, ms: int) -> None:
        """The call itself is settled."""
        self._ended(Side(status, ms, self.answer), original=True)

    def copy_ended(self, status: int, ms: int, answer: bytes) -> None:
        """The copy is."""
        self._ended(Side(status, ms, answer), original=False)

    def _ended(self, side: Side, *, original: bool) -> None:
        if self.done:
            return
        if self._other is None:
            self._other = side
            return
        self.done = True
        pair = (side, self._other) if original else (self._other, side)
        self._comparison.note(*pair)


class Mirrors:
    """Of one gateway."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway
        self._tasks: set[asyncio.Task[None]] = set()
        self._comparisons: dict[tuple[str, str, str], Comparison] = {}
        self._waking: dict[str, asyncio.Task[str]] = {}  # by deployment

    def comparisons(self, endpoint_id: str = "") -> list[Comparison]:
        """Of an endpoint, or all of them."""
        return [each for each in self._comparisons.values() if endpoint_id in ("", each.endpoint_id)]

    def copy_scoring(self, record: CallRecord, shadow: Route, head_for: HeadFor, body: bytes) -> None:
        """Send a scoring call to the shadow too."""
        self._begin(record, shadow, lambda copy: self._score(copy, record, shadow, head_for, body))

    def copy_call(self, record: CallRecord, shadow: Route, request: ModelRequest) -> None:
        """Send one of OpenAI's calls to the shadow too; `request` is the copy's own."""
        self._begin(record, shadow, lambda copy: self._call(copy, record, shadow, request))

    async def close(self) -> None:
        """End what is under way."""
        tasks = {*self._tasks, *self._waking.values()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    # -- inside --

    def _begin(
        self, record: CallRecord, shadow: Route, make: Callable[[Copy], Coroutine[Any, Any, None]]
    ) -> None:
        comparison = self._comparison(record.route, shadow)
        servers = self._gateway.places.of(shadow)
        if comparison is None or len(self._tasks) >= MAX_COPIES or servers.free <= 0:
            if comparison is not None:
                comparison.left_out += 1
                if not shadow.urls:
                    self._wake(shadow.deployment_id)
            return
        record.copy = copy = Copy(comparison)
        task = asyncio.get_running_loop().create_task(make(copy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self, deployment_id: str) -> None:
        """Have the server of a sleeping shadow started, for copies to come."""
        if deployment_id in self._waking or len(self._waking) >= MAX_COPIES:
            return
        task = asyncio.get_running_loop().create_task(self._gateway.waiting.ready(deployment_id))
        self._waking[deployment_id] = task
        task.add_done_callback(lambda done: self._woken(deployment_id, done))

    def _woken(self, deployment_id: str, task: asyncio.Task[str]) -> None:
        del self._waking[deployment_id]
        if not task.cancelled() and task.exception() is not None:
            _log.warning("a shadow could not be started", extra={"deployment": deployment_id})

    def _comparison(self, route: Route, shadow: Route) -> Comparison | None:
        if route.scoring is None or shadow.scoring is None:
            return None
        key = (route.endpoint_id, route.scoring.deployment, shadow.scoring.deployment)
        found = self._comparisons.get(key)
        if found is None and len(self._comparisons) < MAX_COMPARISONS:
            found = self._comparisons[key] = Comparison(route.endpoint_id, route.endpoint_name, *key[1:])
        return found

    async def _score(
        self, copy: Copy, origin: CallRecord, shadow: Route, head_for: HeadFor, body: bytes
    ) -> None:
        scoring = shadow.scoring
        assert scoring is not None, "checked by _begin"
        now_s = asyncio.get_running_loop().time()
        self._gateway.bandwidth.take(shadow.endpoint_id, shadow.endpoint_name, len(body), now_s)  # R4.5
        request_id = new_id("req", self._gateway.clock.now_ms())
        record = new_record(request_id, origin.principal, shadow, self._gateway.clock.now_ms())

        async def send(url: str) -> Answer:
            return await self._gateway.upstream.send(url, head_for(url, scoring.path, request_id), body)

        async def take(answer: Answer) -> bytes:
            return await read_answer(answer, MAX_COMPARED_BYTES)

        await self._run(copy, record, send, take)

    async def _call(self, copy: Copy, origin: CallRecord, shadow: Route, request: ModelRequest) -> None:
        gateway = self._gateway
        now_ms = gateway.clock.now_ms()
        request_id = new_id("req", now_ms)
        record = record_of(request_id, origin.operation, origin.principal, request, shadow, now_ms)
        body = record.upstream_body()

        async def send(url: str) -> Answer:
            return await gateway.upstream.post(
                url,
                record.operation,
                body,
                route=shadow,
                attempt_id=request_id,
                caller_headers={},
                body_type=record.body_type,
            )

        async def take(answer: Answer) -> bytes:
            await _note_whole(record, answer)
            return b""  # texts of two models differ: there is nothing to compare but how they ended

        await self._run(copy, record, send, take)

    async def _run(
        self,
        copy: Copy,
        record: CallRecord,
        send: Callable[[str], Coroutine[Any, Any, Answer]],
        take: Callable[[Answer], Coroutine[Any, Any, bytes]],
    ) -> None:
        gateway, scoring = self._gateway, record.route.scoring
        assert scoring is not None, "checked by _begin"
        place = record.place = gateway.places.of(record.route).take()
        answer: Answer | None = None
        shown, status = b"", 502
        outcome: Status = "error"
        gateway.activity.begin(record.route.deployment_id)
        try:
            record.sent_ms, record.server = gateway.clock.now_ms(), place.url
            async with asyncio.timeout(scoring.timeout_ms / 1000):
                answer = await send(place.url)
                record.first_byte_ms, status = gateway.clock.now_ms(), answer.status
                shown = await take(answer)
            if 200 <= status < 300:
                outcome = "completed"
            else:
                record.refused = True
        except TimeoutError:
            status = 408
        except (ServerGone, FareboxError):
            status = 502
        except asyncio.CancelledError:
            outcome = "interrupted"
            raise
        except Exception:
            _log.exception("a mirrored call failed unexpectedly", extra={"request_id": record.request_id})
        finally:
            if answer is not None:
                answer.close()
            record.leave_place()
            gateway.activity.end(record.route.deployment_id)
            self._settle(copy, record, outcome, status, shown)

    def _settle(self, copy: Copy, record: CallRecord, outcome: Status, status: int, shown: bytes) -> None:
        event = record.event(outcome, status, self._gateway.clock.now_ms())
        copy.copy_ended(status, event.ended_ms - event.sent_ms, shown)

        def on_done(error: Exception | None) -> None:
            if error is None:
                self._gateway.metrics.settled(event, self._gateway.clock.now_ms())
            else:
                _log.error(
                    "a mirrored call's usage could not be recorded", extra={"request_id": record.request_id}
                )

        try:
            self._gateway.journal.append_nowait(event, on_done)
        except FareboxError as error:
            on_done(error)


async def _note_whole(record: CallRecord, answer: Answer) -> None:
    """Read an answer to its end and note what it counted."""
    if answer.status != 200:
        await read_answer(answer, MAX_COMPARED_BYTES)
    elif record.request.stream and answer.content_type == "text/event-stream":
        chunks = record.begin_stream()
        while data := await answer.read():
            chunks.feed(data)
            if chunks.done or chunks.error is not None:
                break
        chunks.end()
    else:
        record.note_answer(await read_answer(answer))
