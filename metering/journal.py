"""The journal: how a gateway makes a usage event durable before it ends the response.

Everything happens in the gateway's event loop: what is waiting is written in one go, one sync is begun (`disk_sync`
has it done in the kernel or in a thread), and when it is through all its callers are told: the cost of a sync
is shared by all calls that ended meanwhile. While several calls share them, syncs are at least `COMMIT_EVERY_S`
apart, so that under load many do; one caller alone is never made to wait for others.
`metering/relay.py` reads the segments and puts them on the ledger's side.
"""

import asyncio
import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from core.clock import Clock
from core.errors import Conflict, FareboxError, Invalid, JournalFull
from core.log import get_logger
from metering import segment
from metering.disk_sync import DiskWork, open_disk_work
from metering.frames import MAX_PAYLOAD, PROGRESS, USAGE, add_frame, write_all
from metering.model import USAGE_EVENT_TYPE, UsageEvent
from metering.segment import SegmentHeader
from wire.cloudevents import encode_event_into

SEGMENT_BYTES: Final = 16 * 1024 * 1024
MAX_BATCH: Final = 4096
COMMIT_EVERY_S: Final = 0.001
MAX_OWED: Final = 10_000
PROGRESS_EVERY_S: Final = 0.25  # progress notes are gathered this long, so a thousand streams cost one write
PROBE_EVERY_S: Final = 1.0
PROBE_BYTES: Final = 1024 * 1024

_log: Final = get_logger(__name__)

OnDone = Callable[[Exception | None], None]
"""Called in the event loop: None when the event is on disk, else why it is not (JournalFull as a rule)."""

_Waiting = tuple[UsageEvent, OnDone]


def source_of(gateway: str) -> str:
    """CloudEvents `source` of a gateway's events: stable over restarts."""
    return f"/gateway/{gateway}"


class Journal:
    """Opened once by a gateway process and used from one event loop."""

    def __init__(
        self, directory: Path, gateway: str, clock: Clock, max_bytes: int, segment_bytes: int, lock_fd: int
    ) -> None:
        """Use `Journal.open`."""
        self._directory = directory
        self._gateway = gateway
        self._source = source_of(gateway)
        self._clock = clock
        self._max_bytes = max_bytes
        # A consumed segment is deleted whole: with few large ones a small bound could never be met again.
        self._segment_bytes = min(segment_bytes, max(64 * 1024, max_bytes // 8))
        self._lock_fd = lock_fd
        self._waiting: deque[_Waiting] = deque()
        self._owed: deque[_Waiting] = deque()
        self._progress: dict[str, UsageEvent] = {}
        self._not_durable = 0
        self._closing = False
        self._broken = ""  # why no call may be served
        self._bytes_on_disk = 0
        self._payload = bytearray()  # of one event after the other
        self._fd = -1
        self._size = 0
        self._index = 0
        self._seq = 1
        self._epoch = 0
        # Of the event loop, from `attach` on.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._disk: DiskWork | None = None
        self._busy = False  # the file is being synced or changed: nothing may be written
        self._turn_timer: asyncio.Handle | None = None
        self._progress_timer: asyncio.TimerHandle | None = None
        self._watch_timer: asyncio.TimerHandle | None = None
        self._commit_not_before = 0.0
        self._quiet: asyncio.Event | None = None  # set when nothing is on its way; for close()

    @classmethod
    def open(
        cls,
        directory: Path,
        gateway: str,
        clock: Clock,
        max_bytes: int,
        *,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> "Journal":
        """Start a new epoch of `gateway` in a new segment.

        Conflict: another process has this gateway's journal open. JournalFull: it cannot be written.
        """
        if not segment.GATEWAY_NAME.fullmatch(gateway):
            message = f"gateway name {gateway!r}: expected small letters, digits and dashes"
            raise Invalid(message, param="gateway")
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock_fd = _lock(directory, gateway)
        except OSError as error:
            raise JournalFull(f"the journal {directory} cannot be opened: {error}") from error
        journal = cls(directory, gateway, clock, max_bytes, segment_bytes, lock_fd)
        try:
            journal._begin_epoch()
        except OSError as error:
            os.close(lock_fd)
            raise JournalFull(f"the journal {directory} cannot be written: {error}") from error
        return journal

    def attach(self, disk: DiskWork | None = None) -> None:
        """Work in the running event loop from now on; the first append would do it, but a full journal has none."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._disk = disk or open_disk_work(self._loop)
            self._watch_timer = self._loop.call_later(PROBE_EVERY_S, self._watch)

    async def append(self, event: UsageEvent) -> None:
        """Return when the event is on disk. JournalFull: it is not, and nothing was acknowledged."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_done(error: Exception | None) -> None:
            if future.done():  # its caller was cancelled; the event is on disk all the same
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.append_nowait(event, on_done)
        await future

    def append_nowait(self, event: UsageEvent, on_done: OnDone) -> None:
        """`append` for who has no task to wait in. JournalFull, and `on_done` is not called: the journal is closed."""
        if self._closing:
            raise JournalFull("the journal is closed")
        if self._loop is None:
            self.attach()
        if self._progress:
            self._progress.pop(event.event_id, None)
        self._not_durable += 1
        self._waiting.append((event, on_done))
        if self._turn_timer is None and not self._busy:
            self._turn_soon()

    def owe(self, event: UsageEvent, on_done: OnDone) -> None:
        """What a caller has already, though its event could not be written: it is, when the disk takes it again.

        In memory until then, at most `MAX_OWED`: beyond, `on_done` is told that it is lost.
        """
        if len(self._owed) >= MAX_OWED or self._closing:
            _log.error("usage is lost", extra={"event": event.event_id})
            on_done(JournalFull("too much usage waits for the disk"))
            return

        def again(error: Exception | None) -> None:
            if error is None:
                on_done(None)
            else:
                self.owe(event, on_done)

        self.attach()
        self._not_durable += 1
        self._owed.append((event, again))
        if self._turn_timer is None and not self._busy and not self._broken:
            self._turn_soon()

    def note_progress(self, event: UsageEvent) -> None:
        """Remember how far a stream has come: billed as `interrupted` if this process dies before `append`.

        Neither awaited nor synced: it survives the death of the process, not that of the machine.
        """
        self._progress[event.event_id] = event
        if self._progress_timer is None and not self._closing:
            self.attach()
            assert self._loop is not None, "attached"
            self._progress_timer = self._loop.call_later(PROGRESS_EVERY_S, self._progress_due)

    def check(self) -> None:
        """Raise JournalFull while usage cannot be made durable; call it before a call is admitted."""
        if self._broken:
            raise JournalFull(f"usage cannot be recorded: {self._broken}", retry_after_s=5)
        if self._bytes_on_disk > self._max_bytes:
            raise JournalFull(
                f"{self._bytes_on_disk} bytes of usage wait for the ledger; the bound is {self._max_bytes}",
                retry_after_s=5,
            )

    @property
    def last_sequence(self) -> int:
        """Number of the newest event that is on disk; asked when an event is durable: its own number or a later one."""
        return self._seq - 1

    def depth(self) -> tuple[int, int]:
        """Events not yet durable, and bytes of journal on disk (measured every second)."""
        return self._not_durable, self._bytes_on_disk

    async def close(self) -> None:
        """Write what is waiting, and let another process open the journal."""
        if self._closing:
            return
        self._closing = True
        for timer in (self._turn_timer, self._progress_timer, self._watch_timer):
            if timer is not None:
                timer.cancel()
        self._turn_timer = self._progress_timer = self._watch_timer = None
        if self._disk is not None:
            self._quiet = asyncio.Event()
            if not self._busy:
                self._turn()
            await self._quiet.wait()
            self._disk.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        os.close(self._lock_fd)

    # -- turns: one at a time, `_busy` until its work is done --

    def _turn_soon(self) -> None:
        loop = self._loop
        assert loop is not None, "attached"
        if self._closing:
            self._turn_timer = loop.call_soon(self._turn)
            return
        wait_s = self._commit_not_before - loop.time()
        # Not at once: what else this round of the loop ends shares the sync.
        self._turn_timer = loop.call_later(wait_s, self._turn) if wait_s > 0 else loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_timer = None
        if self._broken:
            waiting = list(self._waiting)
            self._waiting.clear()
            error = JournalFull(f"usage cannot be recorded: {self._broken}")
            self._resolve([on_done for _, on_done in waiting], error)
        else:
            waiting = self._take()
            try:
                self._commit(waiting)
            except Exception as error:  # a bug here must refuse calls, not lose their usage in silence
                _log.exception("journal writer failed")
                self._give_up(f"internal error: {error}", [on_done for _, on_done in waiting])
        if not self._busy:
            self._free()

    def _free(self) -> None:
        """The file may be written again: go on with what waits."""
        if self._waiting or (self._owed and not self._broken and not self._closing):
            if self._turn_timer is None:
                self._turn_soon()
        elif self._quiet is not None:
            self._quiet.set()

    def _take(self) -> list[_Waiting]:
        if not self._owed and len(self._waiting) <= MAX_BATCH:
            taken = list(self._waiting)
            self._waiting.clear()
            return taken
        taken = []
        for source in (self._owed, self._waiting):
            while source and len(taken) < MAX_BATCH:
                taken.append(source.popleft())
        return taken

    def _commit(self, waiting: list[_Waiting]) -> None:
        data, seq = self._progress_frames(), self._seq
        told: list[OnDone] = []
        for event, on_done in waiting:
            try:
                self._add(data, USAGE, event, seq)
            except (FareboxError, ValueError, TypeError, OverflowError) as error:
                self._resolve([on_done], error)
                continue
            seq += 1
            told.append(on_done)
        if not data:
            return
        try:
            write_all(self._fd, data)
        except OSError as error:
            self._give_up(f"{error.strerror or error}", told)
            return
        if not told:
            self._written(len(data))
            return
        loop, disk = self._loop, self._disk
        assert loop is not None and disk is not None, "attached"
        self._busy = True
        self._commit_not_before = loop.time() + COMMIT_EVERY_S if len(told) > 1 else 0.0
        disk.sync(self._fd, partial(self._synced, told, seq, len(data)))

    def _synced(self, told: list[OnDone], seq: int, size: int, error: OSError | None) -> None:
        self._busy = False
        if error is not None:
            self._give_up(f"{error.strerror or error}", told)
        else:
            self._seq = seq
            self._written(size)
            self._resolve(told, None)
        if not self._busy:
            self._free()

    def _written(self, size: int) -> None:
        self._size += size
        self._bytes_on_disk += size
        if self._size >= self._segment_bytes:
            self._offload(self._begin_segment, self._segment_begun)

    def _segment_begun(self, error: BaseException | None) -> None:
        if error is not None:
            self._give_up(_reason(error), [])

    def _add(self, data: bytearray, kind: int, event: UsageEvent, seq: int) -> None:
        payload = self._payload
        encode_event_into(
            payload, event.event_id, self._source, USAGE_EVENT_TYPE, event.ended_ms, event.org_id, seq, event
        )
        if len(payload) > MAX_PAYLOAD:
            raise Invalid(f"usage event of {len(payload)} bytes", param="event")
        add_frame(data, kind, seq, payload)

    def _progress_due(self) -> None:
        self._progress_timer = None
        if not self._busy and self._turn_timer is None:
            self._turn()  # else the turn that comes takes them along

    def _progress_frames(self) -> bytearray:
        frames = bytearray()
        if not self._progress or self._progress_timer is not None:
            return frames
        notes, self._progress = self._progress, {}
        for event in notes.values():
            with contextlib.suppress(FareboxError, ValueError, TypeError, OverflowError):
                self._add(frames, PROGRESS, event, 0)
        return frames

    def _give_up(self, reason: str, told: list[OnDone]) -> None:
        """Nothing of a failed batch may stay: cut it off, and never write to this segment again.

        After a failed sync the kernel may have dropped pages of it, so a later sync would prove nothing.
        """
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        self._broken = reason
        _log.error("journal cannot be written", extra={"reason": reason, "events": len(told)})
        self._resolve(told, JournalFull(f"usage cannot be recorded: {reason}", retry_after_s=5))

    def _resolve(self, told: list[OnDone], error: Exception | None) -> None:
        self._not_durable -= len(told)
        for on_done in told:
            try:
                on_done(error)
            except Exception:  # of one call; the others wait too
                _log.exception("an end could not be handled")

    # -- what may block --

    def _offload(self, work: Callable[[], None], then: Callable[[BaseException | None], None]) -> None:
        assert self._disk is not None, "attached"

        def done(error: BaseException | None) -> None:
            self._busy = False
            then(error)
            self._free()

        self._busy = True
        self._disk.offload(work, done)

    def _watch(self) -> None:
        """Every `PROBE_EVERY_S`: how much is on disk, and whether it can be written again."""
        assert self._loop is not None and self._disk is not None, "attached"
        self._watch_timer = self._loop.call_later(PROBE_EVERY_S, self._watch)
        if not self._broken:
            self._disk.offload(self._measure, _measured)
        elif not self._busy:
            self._offload(self._probe, self._probed)

    def _begin_epoch(self) -> None:
        own = [s for s in segment.list_segments(self._directory) if s.gateway == self._gateway]
        self._seq = segment.next_seq(self._directory, reversed(own))
        # From the clock, so that a folder that was wiped does not start over with numbers the relay knows;
        # after the last one, so that a clock that stepped back does not either.
        self._epoch = max([self._clock.now_ms(), *(s.epoch + 1 for s in own)])
        self._begin_segment()
        self._measure()

    def _begin_segment(self) -> None:
        header = SegmentHeader(self._gateway, self._epoch, self._index + 1, self._seq, self._clock.now_ms())
        fd, size = segment.create_segment(self._directory, header)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size, self._index = fd, size, self._index + 1
        self._bytes_on_disk += size

    def _probe(self) -> None:
        """Try whether there is room again for a good while, not just for one record."""
        path = self._directory / f".{self._gateway}.probe"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, bytes(PROBE_BYTES))
            os.fsync(fd)
        finally:
            os.close(fd)
            path.unlink(missing_ok=True)
        self._begin_segment()

    def _probed(self, error: BaseException | None) -> None:
        if error is not None:
            self._broken = _reason(error)
            return
        self._broken = ""
        _log.warning("journal can be written again")

    def _measure(self) -> None:
        total = 0
        for found in segment.list_segments(self._directory):
            if found.gateway == self._gateway:
                with contextlib.suppress(OSError):
                    total += os.stat(self._directory / found.file_name).st_size
        self._bytes_on_disk = total


def _measured(error: BaseException | None) -> None:
    if error is not None:
        _log.warning("the journal cannot be measured", extra={"reason": _reason(error)})


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def _lock(directory: Path, gateway: str) -> int:
    fd = os.open(directory / f".{gateway}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"another process writes the journal of gateway {gateway!r} in {directory}") from None
    return fd
