"""The journal: how a gateway makes a usage event durable before it ends the response.

One thread owns the file. It takes everything that is waiting, writes it in one go, syncs once, and tells the
callers with one call into the event loop: the cost of a sync is shared by all calls that ended meanwhile. Syncs
are at least `COMMIT_EVERY_S` apart, so that under load they are shared by many; the first one after a pause is
made at once.
`metering/relay.py` reads the segments and puts them on the ledger's side.
"""

import asyncio
import contextlib
import fcntl
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from core.clock import Clock
from core.errors import Conflict, FareboxError, Invalid, JournalFull
from core.log import get_logger
from metering import segment
from metering.model import USAGE_EVENT_TYPE, UsageEvent
from metering.segment import SegmentHeader
from wire.cloudevents import encode_event

SEGMENT_BYTES = 16 * 1024 * 1024
MAX_BATCH = 4096
COMMIT_EVERY_S = 0.004
MAX_OWED = 10_000
PROGRESS_EVERY_S = 0.25  # progress notes are gathered this long, so a thousand streams cost one write
PROBE_EVERY_S = 1.0
PROBE_BYTES = 1024 * 1024

_log = get_logger(__name__)

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
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()  # None only wakes the thread
        self._owed: deque[_Waiting] = deque()
        self._progress: dict[str, UsageEvent] = {}
        self._progress_lock = threading.Lock()
        self._progress_due_ms: int | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._not_durable = 0
        self._closing = False
        self._broken = ""  # why no call may be served
        self._probe_due_ms = 0
        self._measure_due_ms = 0
        self._bytes_on_disk = 0
        self._fd = -1
        self._size = 0
        self._index = 0
        self._seq = 1
        self._epoch = 0
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)

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
        journal._thread.start()
        return journal

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
            self._loop = asyncio.get_running_loop()
        if self._progress:
            with self._progress_lock:
                self._progress.pop(event.event_id, None)
        self._not_durable += 1
        self._queue.put((event, on_done))

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

        self._not_durable += 1
        self._owed.append((event, again))
        self._queue.put(None)

    def note_progress(self, event: UsageEvent) -> None:
        """Remember how far a stream has come: billed as `interrupted` if this process dies before `append`.

        Neither awaited nor synced: it survives the death of the process, not that of the machine.
        """
        with self._progress_lock:
            first = not self._progress
            self._progress[event.event_id] = event
        if first:
            self._queue.put(None)

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
        """Write what is waiting, end the thread, and let another process open the journal."""
        if self._closing:
            return
        self._closing = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._lock_fd)

    # Below: the writer thread only (and `open`, before the thread starts).

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

    def _run(self) -> None:
        while True:
            closing = self._closing  # read before taking: what was appended before close() is then taken
            waiting = self._take(wait=not closing)
            began = time.monotonic()
            try:
                self._turn(waiting, closing)
            except Exception as error:  # a bug here must refuse calls, not lose their usage in silence
                _log.exception("journal writer failed")
                self._give_up(f"internal error: {error}", [on_done for _, on_done in waiting])
            if closing and not waiting and self._queue.empty():
                break
            time.sleep(max(0.0, began + COMMIT_EVERY_S - time.monotonic()))
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take(self, wait: bool) -> list[_Waiting]:
        taken: list[_Waiting] = []
        try:
            item = self._queue.get(block=wait, timeout=self._wait_s() if wait else None)
            while True:
                if item is not None:
                    taken.append(item)
                    if len(taken) == MAX_BATCH:
                        break
                item = self._queue.get_nowait()
        except queue.Empty:
            pass
        return taken

    def _wait_s(self) -> float | None:
        if self._broken or self._bytes_on_disk > self._max_bytes:
            return PROBE_EVERY_S
        if self._progress:
            now_ms = _monotonic_ms()
            if self._progress_due_ms is None:
                self._progress_due_ms = now_ms + int(PROGRESS_EVERY_S * 1000)
            return max(0.001, (self._progress_due_ms - now_ms) / 1000)
        return None

    def _turn(self, waiting: list[_Waiting], closing: bool) -> None:
        now_ms = _monotonic_ms()
        if self._broken and now_ms >= self._probe_due_ms:
            self._probe_due_ms = now_ms + int(PROBE_EVERY_S * 1000)
            self._probe()
        progress_due = self._progress_due_ms is not None and now_ms >= self._progress_due_ms
        if not self._broken and self._owed:
            waiting = [*self._take_owed(), *waiting]
        if self._broken:
            self._resolve(
                [done for _, done in waiting], JournalFull(f"usage cannot be recorded: {self._broken}")
            )
        elif waiting or progress_due or closing:
            self._commit(waiting)
        if now_ms >= self._measure_due_ms:
            self._measure_due_ms = now_ms + 1000
            self._measure()

    def _take_owed(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        while self._owed and len(taken) < MAX_BATCH:
            taken.append(self._owed.popleft())
        return taken

    def _commit(self, waiting: list[_Waiting]) -> None:
        frames, seq = self._progress_frames(), self._seq
        told: list[OnDone] = []
        for event, on_done in waiting:
            try:
                frames.append(segment.frame(segment.USAGE, seq, self._encode(event, seq)))
            except (FareboxError, ValueError, TypeError, OverflowError) as error:
                self._resolve([on_done], error)
                continue
            seq += 1
            told.append(on_done)
        if not frames:
            return
        data = b"".join(frames)
        try:
            segment.write_all(self._fd, data)
            if told:
                os.fdatasync(self._fd)
        except OSError as error:
            self._give_up(f"{error.strerror or error}", told)
            return
        self._seq = seq
        self._size += len(data)
        self._bytes_on_disk += len(data)
        self._resolve(told, None)
        if self._size >= self._segment_bytes:
            try:
                self._begin_segment()
            except OSError as error:
                self._give_up(f"{error.strerror or error}", [])

    def _encode(self, event: UsageEvent, seq: int) -> bytes:
        payload = encode_event(
            event_id=event.event_id,
            source=self._source,
            event_type=USAGE_EVENT_TYPE,
            time_ms=event.ended_ms,
            subject=event.org_id,
            sequence=seq,
            data=event,
        )
        if len(payload) > segment.MAX_PAYLOAD:
            raise Invalid(f"usage event of {len(payload)} bytes", param="event")
        return payload

    def _progress_frames(self) -> list[bytes]:
        with self._progress_lock:
            notes, self._progress = self._progress, {}
        self._progress_due_ms = None
        frames = []
        for event in notes.values():
            with contextlib.suppress(FareboxError, ValueError, TypeError, OverflowError):
                frames.append(segment.frame(segment.PROGRESS, 0, self._encode(event, 0)))
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
        self._probe_due_ms = _monotonic_ms() + int(PROBE_EVERY_S * 1000)
        _log.error("journal cannot be written", extra={"reason": reason, "events": len(told)})
        self._resolve(told, JournalFull(f"usage cannot be recorded: {reason}", retry_after_s=5))

    def _probe(self) -> None:
        """Try whether there is room again for a good while, not just for one record."""
        path = self._directory / f".{self._gateway}.probe"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                segment.write_all(fd, bytes(PROBE_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
                path.unlink(missing_ok=True)
            self._begin_segment()
        except OSError as error:
            self._broken = f"{error.strerror or error}"
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

    def _resolve(self, told: list[OnDone], error: Exception | None) -> None:
        if told and self._loop is not None:
            # The loop may be closed already when the process is on its way out; nobody waits then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._tell, told, error)

    def _tell(self, told: list[OnDone], error: Exception | None) -> None:
        """In the event loop."""
        self._not_durable -= len(told)
        for on_done in told:
            try:
                on_done(error)
            except Exception:  # of one call; the others wait too
                _log.exception("an end could not be handled")


def _monotonic_ms() -> int:
    """Paces the thread's waits, which are real however the injected clock is moved."""
    return time.monotonic_ns() // 1_000_000


def _lock(directory: Path, gateway: str) -> int:
    fd = os.open(directory / f".{gateway}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Conflict(f"another process writes the journal of gateway {gateway!r} in {directory}") from None
    return fd
