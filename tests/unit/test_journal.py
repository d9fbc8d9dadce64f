"""The journal: durable before it answers, and nothing half-acknowledged."""

import asyncio
import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from core.clock import SystemClock
from core.errors import Invalid, JournalFull
from metering import journal as journal_module
from metering import segment
from metering.disk_sync import DiskWork, KernelSync, OnSynced, ThreadSync
from metering.journal import Journal
from metering.model import UsageEvent
from metering.segment import Record, list_segments
from tests.metering_values import event
from wire.cloudevents import decode_event

GIB = 1 << 30


def read_all(directory: Path) -> list[Record]:
    records: list[Record] = []
    for found in list_segments(directory):
        offset = 0
        while True:
            part = segment.scan(directory / found.file_name, offset, 10_000)
            records += part.records
            offset = part.offset
            if part.at_end:
                break
    return records


def usage_ids(directory: Path) -> list[str]:
    return [decode_event(r.payload).id for r in read_all(directory) if r.kind == segment.USAGE]


class WatchedDisk:
    """A disk that counts its syncs, and fails them when asked."""

    def __init__(self, real: DiskWork) -> None:
        self._real = real
        self.syncs = 0
        self.fails = False

    def sync(self, fd: int, done: OnSynced) -> None:
        self.syncs += 1
        if self.fails:
            asyncio.get_running_loop().call_soon(done, OSError(28, "No space left on device"))
        else:
            self._real.sync(fd, done)

    def offload(self, work: Callable[[], None], done: Callable[[BaseException | None], None]) -> None:
        self._real.offload(work, done)

    def close(self) -> None:
        self._real.close()


@pytest.fixture(params=[KernelSync, ThreadSync])
async def disk(request: pytest.FixtureRequest) -> WatchedDisk:
    return WatchedDisk(request.param(asyncio.get_running_loop()))


@pytest.fixture
async def opened(tmp_path: Path, disk: WatchedDisk) -> Journal:
    journal = Journal.open(tmp_path, "gw-1", SystemClock(), GIB)
    journal.attach(disk)
    return journal


async def test_one_caller_alone_does_not_wait_for_others(opened: Journal, disk: WatchedDisk) -> None:
    began = time.monotonic()
    for number in range(50):
        await opened.append(event(f"req_{number}"))
    assert disk.syncs == 50
    assert opened._commit_not_before == 0.0, "no pause was kept"
    assert time.monotonic() - began < 5
    await opened.close()


async def test_a_full_journal_is_measured_again_though_nobody_appends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PROBE_EVERY_S", 0.05)
    first = Journal.open(tmp_path, "gw-1", SystemClock(), GIB)
    await asyncio.gather(*[first.append(event(f"req_{i}")) for i in range(600)])
    await first.close()
    full = Journal.open(tmp_path, "gw-1", SystemClock(), 100_000)
    full.attach()
    with pytest.raises(JournalFull, match="the bound is 100000"):
        full.check()
    for consumed in list_segments(tmp_path)[:-1]:
        (tmp_path / consumed.file_name).unlink()
    for _ in range(500):
        await asyncio.sleep(0.02)
        if full.depth()[1] < 100_000:
            break
    full.check()
    await full.close()


async def test_the_kernel_tells_what_it_cannot_sync() -> None:
    loop = asyncio.get_running_loop()
    disk = KernelSync(loop)
    told: asyncio.Future[OSError | None] = loop.create_future()
    reader, writer = os.pipe()  # no file, so nothing that could be made durable
    disk.sync(writer, told.set_result)
    error = await told
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL
    for fd in (reader, writer):
        os.close(fd)
    disk.close()


async def test_what_append_returned_from_is_in_the_file_as_a_cloud_event(
    tmp_path: Path, opened: Journal
) -> None:
    await opened.append(event("req_1"))
    header, record = read_all(tmp_path)
    assert (header.kind, header.seq, record.kind, record.seq) == (segment.HEADER, 1, segment.USAGE, 1)
    envelope = decode_event(record.payload)
    assert (envelope.id, envelope.source, envelope.type) == ("req_1", "/gateway/gw-1", "ai.farebox.usage.v1")
    assert (envelope.subject, envelope.partitionkey, envelope.sequence) == ("org_1", "org_1", 1)
    assert envelope.time_ms == event().ended_ms
    assert msgspec.json.decode(envelope.data, type=UsageEvent) == event("req_1")
    assert opened.depth()[0] == 0
    await opened.close()


async def test_waiting_events_share_a_sync(tmp_path: Path, opened: Journal, disk: WatchedDisk) -> None:
    await asyncio.gather(*[opened.append(event(f"req_{i}")) for i in range(1000)])
    assert 0 < disk.syncs < 100
    assert usage_ids(tmp_path) == [f"req_{i}" for i in range(1000)]
    assert [r.seq for r in read_all(tmp_path) if r.kind == segment.USAGE] == list(range(1, 1001))
    await opened.close()


async def test_a_caller_that_is_cancelled_does_not_take_its_event_along(
    tmp_path: Path, opened: Journal
) -> None:
    task = asyncio.create_task(opened.append(event("req_1")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await opened.append(event("req_2"))
    assert usage_ids(tmp_path) == ["req_1", "req_2"]
    assert opened.depth()[0] == 0
    await opened.close()


async def test_close_writes_what_is_waiting(tmp_path: Path, opened: Journal) -> None:
    tasks = [asyncio.create_task(opened.append(event(f"req_{i}"))) for i in range(50)]
    await asyncio.sleep(0)
    await opened.close()
    await asyncio.gather(*tasks)
    assert len(usage_ids(tmp_path)) == 50
    with pytest.raises(JournalFull, match="closed"):
        await opened.append(event())
    await opened.close()


async def test_numbers_run_on_through_segments_and_restarts(tmp_path: Path) -> None:
    for life in range(3):
        journal = Journal.open(tmp_path, "gw-1", SystemClock(), GIB, segment_bytes=64 * 1024)
        await asyncio.gather(*[journal.append(event(f"req_{life}_{i}")) for i in range(300)])
        await journal.close()
    segments = list_segments(tmp_path)
    assert len({s.epoch for s in segments}) == 3
    assert len(segments) > 3
    assert [r.seq for r in read_all(tmp_path) if r.kind == segment.USAGE] == list(range(1, 901))


async def test_a_torn_tail_is_skipped_by_the_next_life(tmp_path: Path, opened: Journal) -> None:
    await opened.append(event("req_1"))
    await opened.close()
    (only,) = list_segments(tmp_path)
    with (tmp_path / only.file_name).open("ab") as file:
        file.write(segment.frame(segment.USAGE, 2, b"x" * 100)[:50])
    again = Journal.open(tmp_path, "gw-1", SystemClock(), GIB)
    await again.append(event("req_2"))
    await again.close()
    assert usage_ids(tmp_path) == ["req_1", "req_2"]
    assert [r.seq for r in read_all(tmp_path) if r.kind == segment.USAGE] == [1, 2]


@pytest.mark.parametrize("broken_call", ["write", "fsync", "short write"])
async def test_a_failing_disk_fails_the_batch_whole_and_recovers_by_itself(
    tmp_path: Path, opened: Journal, disk: WatchedDisk, monkeypatch: pytest.MonkeyPatch, broken_call: str
) -> None:
    monkeypatch.setattr(journal_module, "PROBE_EVERY_S", 0.05)
    await opened.append(event("req_1"))
    real_write = os.write
    writes = 0

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    def short(fd: int, data: memoryview) -> int:
        nonlocal writes
        writes += 1
        return real_write(fd, data[: len(data) // 2]) if writes == 1 else no_space()

    opened.check()
    with monkeypatch.context() as patched:
        patched.setattr(os, *{"short write": ("write", short)}.get(broken_call, (broken_call, no_space)))
        disk.fails = broken_call == "fsync"
        results = await asyncio.gather(
            *[opened.append(event(f"lost_{i}")) for i in range(5)], return_exceptions=True
        )
        assert all(isinstance(result, JournalFull) for result in results)
        with pytest.raises(JournalFull, match="No space left"):
            opened.check()
        with pytest.raises(JournalFull):
            await opened.append(event("lost_too"))
        await asyncio.sleep(0.2)
        with pytest.raises(JournalFull):
            opened.check()
    disk.fails = False
    for _ in range(100):
        await asyncio.sleep(0.05)
        try:
            opened.check()
            break
        except JournalFull:
            continue
    await opened.append(event("req_2"))
    await opened.close()
    assert usage_ids(tmp_path) == ["req_1", "req_2"]
    assert [r.seq for r in read_all(tmp_path) if r.kind == segment.USAGE] == [1, 2], "no gap is left behind"
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".probe", ".new"))]


async def test_what_was_delivered_is_written_when_the_disk_takes_it_again(
    tmp_path: Path, opened: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "PROBE_EVERY_S", 0.05)
    monkeypatch.setattr(journal_module, "MAX_OWED", 3)
    told: list[Exception | None] = []

    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", no_space)
        with pytest.raises(JournalFull):
            await opened.append(event("refused"))
        for number in range(4):
            opened.owe(event(f"owed_{number}"), told.append)
        assert [type(error) for error in told] == [JournalFull]  # the fourth: there is a bound
        await asyncio.sleep(0.2)
        assert len(told) == 1
    for _ in range(100):
        await asyncio.sleep(0.05)
        if len(told) == 4:
            break
    assert told[1:] == [None, None, None]
    opened.owe(event("late"), told.append)  # the disk is well already
    await opened.append(event("req_2"))
    await opened.close()
    assert sorted(usage_ids(tmp_path)) == ["late", "owed_0", "owed_1", "owed_2", "req_2"]
    assert [r.seq for r in read_all(tmp_path) if r.kind == segment.USAGE] == [1, 2, 3, 4, 5]


async def test_calls_are_refused_while_too_much_waits_for_the_ledger(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, "gw-1", SystemClock(), 300_000)
    journal.check()
    await asyncio.gather(*[journal.append(event(f"req_{i}")) for i in range(600)])
    with pytest.raises(JournalFull, match="the bound is 300000") as caught:
        journal.check()
    assert caught.value.retry_after_s
    await journal.append(event("in_flight"))  # a call that was admitted before is still metered
    for consumed in list_segments(tmp_path)[:-1]:
        (tmp_path / consumed.file_name).unlink()
    for _ in range(60):
        await asyncio.sleep(0.05)
        if journal.depth()[1] < 300_000:
            break
    journal.check()
    await journal.close()


async def test_an_event_that_cannot_be_encoded_fails_alone(tmp_path: Path, opened: Journal) -> None:
    bad = event("bad", engine_request_id="\ud800")
    huge = event("huge", finish_reason="x" * 70_000)
    results = await asyncio.gather(
        opened.append(event("req_1")),
        opened.append(bad),
        opened.append(huge),
        opened.append(event("req_2")),
        return_exceptions=True,
    )
    assert results[0] is None
    assert results[3] is None
    assert isinstance(results[1], Exception)
    assert isinstance(results[2], Invalid)
    opened.check()
    await opened.close()
    assert usage_ids(tmp_path) == ["req_1", "req_2"]


async def test_progress_is_gathered_and_dropped_when_the_call_ends(tmp_path: Path, opened: Journal) -> None:
    for i in range(100):
        for _ in range(3):
            opened.note_progress(event(f"req_{i}", status="interrupted"))
    await opened.append(event("req_0"))
    await asyncio.sleep(0.4)
    await opened.close()
    records = read_all(tmp_path)
    noted = [decode_event(r.payload).id for r in records if r.kind == segment.PROGRESS]
    assert len(noted) == len(set(noted)) == 99
    assert [r.seq for r in records if r.kind == segment.USAGE] == [1]


async def test_progress_alone_is_written_without_a_sync(
    tmp_path: Path, opened: Journal, disk: WatchedDisk
) -> None:
    opened.note_progress(event("req_1", status="interrupted"))
    await asyncio.sleep(0.5)
    assert [r.kind for r in read_all(tmp_path)] == [segment.HEADER, segment.PROGRESS]
    assert disk.syncs == 0
    opened.check()
    await opened.close()


@pytest.mark.parametrize("name", ["", "../x", "a.b", "A", "a b", "x" * 64])
def test_a_gateway_name_that_would_not_do_in_a_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        Journal.open(tmp_path, name, SystemClock(), GIB)


def test_a_folder_that_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalFull, match="cannot be opened"):
        Journal.open(tmp_path / "file" / "journal", "gw-1", SystemClock(), GIB)
