"""Journal segments on disk: names, frames, reading back. No threads and no SQL here.

A segment is `GATEWAY.EPOCH.INDEX.journal`: frames (`frames.py`) one after the other, the first one a header.
Nothing is ever written after a failed write, so whatever does not check out at the end is a torn tail.
"""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec
from isal.isal_zlib import crc32

from metering.frames import CHECKED, CORRUPT, FRAME, HEADER, MAX_PAYLOAD, PROGRESS, USAGE, frame, write_all

__all__ = [
    "CORRUPT",
    "HEADER",
    "PROGRESS",
    "USAGE",
    "Record",
    "Scan",
    "SegmentHeader",
    "SegmentId",
    "create_segment",
    "folder_state",
    "frame",
    "list_segments",
    "next_seq",
    "scan",
    "sync_directory",
    "write_all",
]

READ_BYTES = 2 * 1024 * 1024

GATEWAY_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FILE_NAME = re.compile(r"([a-z0-9][a-z0-9-]{0,62})\.(\d{1,19})\.(\d{1,9})\.journal")


class SegmentHeader(msgspec.Struct, frozen=True):
    """The first frame of a segment. Each start of a gateway is an `epoch`; `seq` runs on through them."""

    gateway: str
    epoch: int
    index: int
    first_seq: int
    created_ms: int
    version: int = 1


@dataclass(frozen=True, slots=True, order=True)
class SegmentId:
    """Which segment; they sort in the order they were written (per gateway)."""

    gateway: str
    epoch: int
    index: int

    @property
    def file_name(self) -> str:
        return f"{self.gateway}.{self.epoch}.{self.index:06d}.journal"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One frame read back."""

    kind: int
    seq: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Scan:
    """What was read: whole records, where the next one starts, and whether something follows that is none."""

    records: list[Record]
    offset: int
    torn: bool
    at_end: bool  # nothing more in the file than what was looked at


def list_segments(directory: Path) -> list[SegmentId]:
    """All segments in `directory`, oldest first per gateway; other files are ignored."""
    found = []
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    for name in names:
        match = _FILE_NAME.fullmatch(name)
        if match:
            found.append(SegmentId(match.group(1), int(match.group(2)), int(match.group(3))))
    return sorted(found)


def folder_state(directory: Path) -> frozenset[tuple[str, int]]:
    """Names and sizes of all segments: (almost) any append changes it, at the price of a few microseconds."""
    try:
        with os.scandir(directory) as entries:
            return frozenset((e.name, e.stat().st_size) for e in entries if _FILE_NAME.fullmatch(e.name))
    except FileNotFoundError:  # the folder, or a segment deleted under our eyes: look again next time
        return frozenset({("", time.monotonic_ns())})


def create_segment(directory: Path, header: SegmentHeader) -> tuple[int, int]:
    """A new segment, durable with its header and its name; returns its file descriptor and its size.

    Written under another name first, so that no reader ever sees one without its header.
    """
    segment = SegmentId(header.gateway, header.epoch, header.index)
    temporary = directory / f".{segment.file_name}.new"
    data = frame(HEADER, header.first_seq, msgspec.json.encode(header))
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, data)
        os.fsync(fd)
        os.rename(temporary, directory / segment.file_name)
        sync_directory(directory)
    except OSError:
        os.close(fd)
        temporary.unlink(missing_ok=True)
        raise
    return fd, len(data)


def sync_directory(directory: Path) -> None:
    """Make names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def scan(path: Path, offset: int, at_most: int) -> Scan:
    """Up to `at_most` records of the segment from `offset` on. A file that is gone has nothing in it."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read(READ_BYTES)
    except FileNotFoundError:
        return Scan([], offset, False, True)
    records: list[Record] = []
    position = 0
    while len(records) < at_most:
        # Nearly all records are good, so that is seen first, without a call.
        start = position + FRAME.size
        if start <= len(data):
            length, checksum, seq, kind = FRAME.unpack_from(data, position)
            payload = data[start : start + length]
            checked = crc32(CHECKED.pack(length, seq, kind))
            if length <= MAX_PAYLOAD and len(payload) == length and checksum == crc32(payload, checked):
                records.append(Record(kind, seq, payload))
                position = start + length
                continue
        record, size = _damaged_at(data, position)
        if record is None:
            break
        records.append(record)
        position += size
    full_read = len(data) == READ_BYTES
    at_end = len(records) < at_most and not (full_read and position > 0)
    return Scan(records, offset + position, position < len(data), at_end)


def _damaged_at(data: bytes, position: int) -> tuple[Record | None, int]:
    """What is known of a record that is not good, and its size. None: nothing follows that is one."""
    if len(data) - position < FRAME.size:
        return None, 0
    length, _, seq, _ = FRAME.unpack_from(data, position)
    start = position + FRAME.size
    if length > MAX_PAYLOAD or start + length > len(data):
        return None, 0
    # A bit that flipped must not hide the good records behind it; a torn tail has none behind it.
    if not _is_good(data, start + length):
        return None, 0
    return Record(CORRUPT, seq, data[start : start + length]), FRAME.size + length


def _is_good(data: bytes, position: int) -> bool:
    if len(data) - position < FRAME.size:
        return False
    length, checksum, seq, kind = FRAME.unpack_from(data, position)
    payload = data[position + FRAME.size : position + FRAME.size + length]
    expected = crc32(payload, crc32(CHECKED.pack(length, seq, kind)))
    return len(payload) == length and int(checksum) == expected


def next_seq(directory: Path, newest_first: Iterable[SegmentId]) -> int:
    """The sequence number after the last good usage record; segments without one tell their header's."""
    for segment in newest_first:
        last = 0
        offset = 0
        while True:
            part = scan(directory / segment.file_name, offset, 10_000)
            for record in part.records:
                if record.kind == HEADER:
                    last = max(last, record.seq - 1)
                elif record.kind == USAGE:
                    last = max(last, record.seq)
            offset = part.offset
            if part.at_end:
                break
        if last or offset:
            return last + 1
    return 1
