"""The relay: from the gateways' journals to usage rows, each event once.

Rows and cursor move in one transaction, so a crash at any instant repeats nothing and skips nothing. Segments
are deleted once they are consumed and have a successor; the newest of each gateway always stays, because the
gateway goes on from the numbers in it.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from sqlalchemy import Connection

from core.clock import Clock
from core.database import Database
from core.log import get_logger
from metering import segment, store
from metering.ingest import Accepted, Poison, accept, digest, payload_hash
from metering.journal import source_of
from metering.model import UsageEvent
from metering.records import Alarm, QuarantineKind
from metering.segment import Record, SegmentId
from metering.store import Cursor, QuarantineRow

# In one transaction, which is also what is held in memory, however long the backlog. The second bound is passed by
# less than one read.
MAX_RECORDS = 4000
MAX_BYTES = 4 * 1024 * 1024

OnUsage = Callable[[Connection, Sequence[UsageEvent], int], None]

_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Records of one epoch, and the cursor after them."""

    records: list[Record]
    cursor: Cursor
    new_epoch: bool
    more: bool  # there are further ones


class _Intake:
    """What one batch comes to, before SQL: pure."""

    def __init__(self, source: str, last_seq: int) -> None:
        self.source = source
        self.last_seq = last_seq
        self.usage: dict[str, tuple[Accepted, int, bytes]] = {}
        self.progress: dict[str, str] = {}
        self.quarantined: list[QuarantineRow] = []
        self.alarms: list[Alarm] = []

    def take(self, record: Record) -> None:
        if record.kind == segment.USAGE:
            if record.seq == self.last_seq + 1:
                self.last_seq = record.seq
            else:
                self._note_seq(record.seq)
            self._take_usage(record)
        elif record.kind == segment.PROGRESS:
            self._take_progress(record)
        elif record.kind == segment.HEADER:
            self._note_seq(record.seq - 1, may_repeat=True)
        else:
            reason = (
                "checksum does not match"
                if record.kind == segment.CORRUPT
                else f"kind {record.kind} is unknown"
            )
            self.refuse("corrupt", "", digest(record.payload), reason, record.payload)

    def _note_seq(self, seq: int, may_repeat: bool = False) -> None:
        if seq > self.last_seq + (0 if may_repeat else 1):
            first = self.last_seq + 1
            missing = seq - self.last_seq - (0 if may_repeat else 1)
            detail = f"{missing} events from number {first} on are missing"
            self.alarms.append(Alarm("sequence_gap", self.source, detail))
        self.last_seq = seq

    def _take_usage(self, record: Record) -> None:
        found = accept(record.payload, self.source)
        if isinstance(found, Poison):
            self.refuse("poison", found.event_id, found.payload_hash, found.reason, record.payload)
            return
        event_id = found.event.event_id
        if self.progress:
            self.progress.pop(event_id, None)
        earlier = self.usage.setdefault(event_id, (found, record.seq, record.payload))
        if earlier[0] is not found and earlier[0].payload_hash != found.payload_hash:
            self.conflict(event_id, found.payload_hash, record.payload)

    def _take_progress(self, record: Record) -> None:
        found = accept(record.payload, self.source)
        if isinstance(found, Poison):
            self.refuse("poison", found.event_id, found.payload_hash, found.reason, record.payload)
        elif found.event.event_id not in self.usage:
            self.progress[found.event.event_id] = record.payload.decode()

    def conflict(self, event_id: str, hash_: str, payload: bytes) -> None:
        self.refuse("conflict", event_id, hash_, "another event with this id is stored already", payload)

    def refuse(self, kind: QuarantineKind, event_id: str, hash_: str, reason: str, payload: bytes) -> None:
        text = payload.decode(errors="replace")
        self.quarantined.append(QuarantineRow(kind, self.source, event_id, hash_, reason, text))
        self.alarms.append(Alarm(kind, self.source, f"{event_id or 'a record'}: {reason}"))


class Relay:
    """Takes in all journals of a directory. `run_once` may be called from any thread; calls queue up."""

    def __init__(
        self,
        directory: Path,
        db: Database,
        clock: Clock,
        on_alarm: Callable[[Alarm], None] | None = None,
        on_usage: OnUsage | None = None,
    ) -> None:
        """`on_usage` is called in the transaction that stores new events."""
        self._directory = directory
        self._db = db
        self._clock = clock
        self._on_alarm = on_alarm or _log_alarm
        self._on_usage = on_usage
        self._cursors: dict[str, Cursor] = {}
        self._open: dict[str, bool] = {}  # gateways that may have progress noted: spares a DELETE per batch
        self._lock = threading.Lock()

    def look(self) -> object:
        """What the journals look like from outside; while it stays equal there is hardly anything to take in.

        Hardly: a batch that failed and was cut off again can be followed by one of the same size. Take it before
        `catch_up`, never after: what is appended meanwhile must look like a change.
        """
        return segment.folder_state(self._directory)

    def run_once(self) -> int:
        """Take in one batch of each journal; returns how many records. Cheap when there is nothing new."""
        with self._lock:
            return sum(taken for taken, _ in self._pass())

    def catch_up(self) -> int:
        """`run_once` until nothing is left of what was durable when it began.

        Not of what came meanwhile: under load that would be batch after batch of a few events, at the price of
        a transaction each.
        """
        total, more = 0, True
        while more:
            with self._lock:
                passed = self._pass()
            total += sum(taken for taken, _ in passed)
            more = any(left for _, left in passed)
        return total

    def _pass(self) -> list[tuple[int, bool]]:
        """Per gateway: records taken, and whether there are more."""
        journals: dict[str, list[SegmentId]] = {}
        for found in segment.list_segments(self._directory):
            journals.setdefault(found.gateway, []).append(found)
        return [self._relay(gateway, segments) for gateway, segments in journals.items()]

    def _relay(self, gateway: str, segments: list[SegmentId]) -> tuple[int, bool]:
        if gateway not in self._cursors:
            with self._db.read() as conn:
                self._cursors[gateway] = store.read_cursor(conn, gateway)
                self._open[gateway] = store.any_progress(conn, source_of(gateway))
        cursor = stored = self._cursors[gateway]
        newest = segments[-1]
        if (newest.epoch, newest.index) < (cursor.epoch, cursor.segment):
            # The folder was wiped and the clock went back: read all; what is known is recognized by its id.
            cursor = Cursor(gateway)
        batch = self._read(cursor, segments)
        if batch is None:
            self._delete_consumed(cursor, segments)
            return 0, False
        try:
            raised = self._write(stored, batch)
        except BaseException:
            self._cursors.pop(gateway, None)
            raise
        for alarm in raised:
            self._on_alarm(alarm)
        if gateway not in self._cursors:  # another relay was faster; look again
            return 0, True
        if not batch.more:
            self._delete_consumed(batch.cursor, segments)
        return sum(record.kind != segment.HEADER for record in batch.records), batch.more

    def _read(self, cursor: Cursor, segments: list[SegmentId]) -> _Batch | None:
        """The next records, of one epoch at most. None: there is nothing new."""
        left = [s for s in segments if (s.epoch, s.index) >= (cursor.epoch, cursor.segment)]
        records: list[Record] = []
        size, more = 0, False
        at = cursor
        for i, current in enumerate(left):
            if (current.epoch, current.index) != (at.epoch, at.segment):
                if records and current.epoch != at.epoch:
                    more = True
                    break
                at = replace(at, epoch=current.epoch, segment=current.index, position=0)
            path = self._directory / current.file_name
            while len(records) < MAX_RECORDS and size < MAX_BYTES:
                part = segment.scan(path, at.position, MAX_RECORDS - len(records))
                records += part.records
                size += part.offset - at.position
                at = replace(at, position=part.offset)
                if part.at_end:
                    if part.torn and i + 1 < len(left):
                        # Its writer died while writing: whatever is there was never acknowledged.
                        _log.info("torn tail of a journal segment", extra={"segment": current.file_name})
                    break
            if len(records) >= MAX_RECORDS or size >= MAX_BYTES:
                more = True
                break
        if not records and at == cursor:
            return None
        return _Batch(records, at, at.epoch != cursor.epoch, more)

    def _write(self, stored: Cursor, batch: _Batch) -> list[Alarm]:
        gateway = batch.cursor.gateway
        intake = _Intake(source_of(gateway), stored.last_seq)
        if batch.new_epoch and batch.records and batch.records[0].kind == segment.HEADER:
            header = batch.records[0].seq
            if header == 1 < stored.last_seq:
                detail = f"numbers start over at 1 after {stored.last_seq}: the journal folder was emptied"
                intake.alarms.append(Alarm("sequence_reset", intake.source, detail))
        for record in batch.records:
            intake.take(record)
        now_ms = self._clock.now_ms()
        with self._db.begin() as conn:
            if store.lock_cursor(conn, gateway) != stored:
                self._cursors.pop(gateway, None)  # another relay was faster
                return []
            if batch.new_epoch and self._open[gateway]:
                self._insert(conn, _settled(conn, intake, batch.cursor.epoch), now_ms)
            self._insert(conn, _without_known(conn, intake), now_ms)
            if self._open[gateway]:
                store.forget_progress(conn, intake.source, list(intake.usage))
            store.note_progress(conn, intake.source, batch.cursor.epoch, intake.progress, now_ms)
            still_open = bool(intake.progress) or (
                self._open[gateway] and store.any_progress(conn, intake.source)
            )
            if (
                batch.new_epoch and stored.epoch
            ):  # not the first one: another ended, perhaps with calls in flight
                store.note_gateway_start(conn, intake.source, batch.cursor.epoch)
            store.put_in_quarantine(conn, intake.quarantined, now_ms)
            store.record_alarms(conn, intake.alarms, now_ms)
            cursor = replace(batch.cursor, last_seq=intake.last_seq)
            store.write_cursor(conn, cursor, now_ms)
        self._cursors[gateway] = cursor
        self._open[gateway] = still_open
        return intake.alarms

    def _insert(self, conn: Connection, new: list[tuple[Accepted, int]], now_ms: int) -> None:
        store.insert_usage(conn, new, now_ms)
        if self._on_usage is not None and new:
            self._on_usage(conn, [accepted.event for accepted, _ in new], now_ms)

    def _delete_consumed(self, cursor: Cursor, segments: list[SegmentId]) -> None:
        for old in segments[:-1]:
            if (old.epoch, old.index) < (cursor.epoch, cursor.segment):
                (self._directory / old.file_name).unlink(missing_ok=True)


def _settled(conn: Connection, intake: _Intake, epoch: int) -> list[tuple[Accepted, int]]:
    """The gateway started anew, so streams of earlier epochs are over: bill what had been delivered."""
    settled: dict[str, Accepted] = {}
    for payload in store.take_progress_before(conn, intake.source, epoch):
        found = accept(payload.encode(), intake.source)
        if isinstance(found, Accepted):
            event = msgspec.structs.replace(found.event, status="interrupted")
            settled[event.event_id] = Accepted(found.source, event, payload_hash(event))
    known = store.known_hashes(conn, intake.source, list(settled))
    return [(accepted, 0) for event_id, accepted in settled.items() if event_id not in known]


def _without_known(conn: Connection, intake: _Intake) -> list[tuple[Accepted, int]]:
    """The batch's new events; those stored already with other content go to quarantine."""
    known = store.known_hashes(conn, intake.source, list(intake.usage))
    new = []
    for event_id, (accepted, seq, payload) in intake.usage.items():
        if event_id not in known:
            new.append((accepted, seq))
        elif known[event_id] != accepted.payload_hash:
            intake.conflict(event_id, accepted.payload_hash, payload)
    return new


def _log_alarm(alarm: Alarm) -> None:
    _log.error("metering alarm", extra={"kind": alarm.kind, "source": alarm.source, "detail": alarm.detail})
