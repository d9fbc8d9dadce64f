"""From the journal to usage rows: each event once, whatever happens in between."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import func, select

from core.clock import ManualClock
from core.database import Database
from core.errors import Conflict
from metering import segment, store
from metering.journal import Journal
from metering.model import Usage, UsageEvent
from metering.records import Alarm
from metering.relay import Relay
from metering.segment import SegmentHeader
from metering.tables import journal_progress, quarantine, usage_events
from tests.metering_values import T0, event

GIB = 1 << 30


class Bench:
    """A journal folder, a relay on it, and what it raised."""

    def __init__(self, directory: Path, db: Database) -> None:
        self.directory = directory
        self.db = db
        self.clock = ManualClock(T0)
        self.alarms: list[Alarm] = []
        self.relay = Relay(directory, db, self.clock, self.alarms.append)

    def open(self, gateway: str = "gw-1", segment_bytes: int = 1 << 24) -> Journal:
        return Journal.open(self.directory, gateway, self.clock, GIB, segment_bytes=segment_bytes)

    async def write(self, *events: UsageEvent, gateway: str = "gw-1", segment_bytes: int = 1 << 24) -> None:
        """One life of a gateway: it starts, appends, ends."""
        journal = self.open(gateway, segment_bytes)
        for one in events:
            await journal.append(one)
        await journal.close()

    def ids(self) -> list[str]:
        with self.db.read() as conn:
            return list(
                conn.execute(select(usage_events.c.event_id).order_by(usage_events.c.row_id)).scalars()
            )

    def count(self, table: object) -> int:
        with self.db.read() as conn:
            return int(conn.execute(select(func.count()).select_from(table)).scalar_one())  # type: ignore[arg-type]

    def segments(self) -> list[Path]:
        return sorted(self.directory.glob("*.journal"))


@pytest.fixture
def bench(tmp_path: Path, db: Database) -> Bench:
    return Bench(tmp_path / "journal", db)


async def test_an_appended_event_becomes_one_row_with_all_its_fields(bench: Bench) -> None:
    await bench.write(event("req_1"))
    assert bench.relay.catch_up() == 1
    with bench.db.read() as conn:
        (row,) = store.receipt_row(conn, "req_1")
    found = event("req_1")
    assert (row.source, row.event_id, row.attempt) == ("/gateway/gw-1", "req_1", 1)
    for name in msgspec.structs.asdict(found):
        if name != "usage":
            assert getattr(row, name) == getattr(found, name), name
    assert (row.input, row.cached_input, row.output, row.reasoning) == (100, 20, 50, 10)
    assert row.service_minute_ms == row.billing_minute_ms == T0


async def test_catching_up_again_changes_nothing(bench: Bench) -> None:
    await bench.write(*[event(f"req_{i}") for i in range(10)])
    assert bench.relay.catch_up() == 10
    assert bench.relay.catch_up() == bench.relay.run_once() == 0
    fresh = Relay(bench.directory, bench.db, bench.clock, bench.alarms.append)
    assert fresh.catch_up() == 0
    assert len(bench.ids()) == 10
    assert not bench.alarms


async def test_events_are_taken_in_while_the_gateway_runs(bench: Bench) -> None:
    journal = bench.open()
    for i in range(3):
        await journal.append(event(f"req_{i}"))
        assert bench.relay.run_once() == 1
    await journal.close()
    assert bench.ids() == ["req_0", "req_1", "req_2"]


async def test_catching_up_ends_though_events_keep_coming(bench: Bench) -> None:
    """Else a busy gateway's events would be taken in a few at a time, and who waits for the end would wait for ever."""
    lives = 0

    def one_more(*_: object) -> None:
        nonlocal lives
        lives += 1
        if lives < 50:  # a relay that goes on and on fails here instead of hanging
            asyncio.run(bench.write(event(f"late_{lives}")))

    def in_a_loop_of_its_own(*arguments: object) -> None:
        thread = threading.Thread(target=one_more, args=arguments)
        thread.start()
        thread.join()

    await bench.write(event("req_1"))
    relay = Relay(bench.directory, bench.db, bench.clock, bench.alarms.append, in_a_loop_of_its_own)
    assert relay.catch_up() == 1
    assert (bench.ids(), lives) == (["req_1"], 1)
    assert relay.catch_up() == 1
    assert (bench.ids(), lives) == (["req_1", "late_1"], 2)


async def test_many_segments_and_batches_over_several_lives(bench: Bench) -> None:
    for start in range(0, 5000, 2500):
        journal = bench.open(segment_bytes=1 << 16)
        await asyncio.gather(*[journal.append(event(f"req_{i}")) for i in range(start, start + 2500)])
        await journal.close()
    assert len(bench.segments()) > 2
    assert bench.relay.catch_up() == 5000
    assert sorted(bench.ids()) == sorted(f"req_{i}" for i in range(5000))
    assert len(bench.segments()) == 1, "consumed segments are deleted, but for the newest"
    assert not bench.alarms


async def test_numbers_go_on_after_everything_was_consumed_and_deleted(bench: Bench) -> None:
    for life in range(4):
        await bench.write(event(f"req_{life}"))
        bench.relay.catch_up()
    with bench.db.read() as conn:
        numbers = conn.execute(select(usage_events.c.sequence).order_by(usage_events.c.row_id)).scalars()
        assert list(numbers) == [1, 2, 3, 4]
    assert not bench.alarms


async def test_two_gateways_share_a_folder(bench: Bench) -> None:
    await bench.write(event("req_1"), gateway="gw-1")
    await bench.write(event("req_1"), event("req_2"), gateway="gw-2")
    assert bench.relay.catch_up() == 3
    assert sorted(bench.ids()) == ["req_1", "req_1", "req_2"], "ids are unique per source"


async def test_the_same_event_twice_is_one_row(bench: Bench) -> None:
    await bench.write(event("req_1"), event("req_1"))
    await bench.write(event("req_1"))
    bench.relay.catch_up()
    assert bench.ids() == ["req_1"]
    assert bench.count(quarantine) == 0


async def test_the_same_id_with_other_content_goes_to_quarantine_once(bench: Bench) -> None:
    other = event("req_1", Usage(output=9999))
    await bench.write(event("req_1"), other)
    await bench.write(other)
    bench.relay.catch_up()
    with bench.db.read() as conn:
        (row,) = store.receipt_row(conn, "req_1")
        (kept,) = store.list_quarantine(conn)
    assert row.output == 50
    assert (kept.kind, kept.event_id) == ("conflict", "req_1")
    assert "9999" in kept.payload
    assert {a.kind for a in bench.alarms} == {"conflict"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("usage", Usage(output=-1)),
        ("usage", Usage(input=5, cached_input=6)),
        ("usage", Usage(output=5, reasoning=6)),
        ("usage", Usage(input=10**12 + 1)),
        ("org_id", ""),
        ("model_id", "a\x00b"),
        ("sent_ms", -1),
        ("received_ms", 2**63),
        ("http_status", 2**40),
        ("attempt", 0),
        ("status", "lost"),
    ],
)
async def test_poison_is_kept_with_its_reason_and_does_not_stop_the_rest(
    bench: Bench, field: str, value: object
) -> None:
    await bench.write(event("req_1"), event("bad", **{field: value}), event("req_2"))
    assert bench.relay.catch_up() == 3
    assert bench.ids() == ["req_1", "req_2"]
    with bench.db.read() as conn:
        (kept,) = store.list_quarantine(conn)
    assert kept.kind == "poison"
    assert kept.reason
    assert [a.kind for a in bench.alarms] == ["poison"]


def write_segment(bench: Bench, epoch: int, index: int, first_seq: int, *frames: bytes) -> Path:
    bench.directory.mkdir(exist_ok=True)
    header = segment.frame(
        segment.HEADER, first_seq, msgspec.json.encode(SegmentHeader("gw-1", epoch, index, first_seq, T0))
    )
    path = bench.directory / f"gw-1.{epoch}.{index:06d}.journal"
    path.write_bytes(header + b"".join(frames))
    return path


def test_a_record_that_is_no_cloud_event_is_quarantined(bench: Bench) -> None:
    for i, payload in enumerate([b"", b"{}", b"\xff\xfe", b"[1]", b'{"id": 7}', b"\x00" * 50], start=1):
        write_segment(bench, i, 1, i, segment.frame(segment.USAGE, i, payload))
    bench.relay.catch_up()
    assert bench.count(quarantine) == 6
    assert bench.ids() == []


@pytest.mark.parametrize("cut", [1, 10, 17, 18, 200])
async def test_a_torn_tail_is_the_end_of_a_segment_that_has_a_successor(bench: Bench, cut: int) -> None:
    await bench.write(event("req_1"))
    (path,) = bench.segments()
    whole = path.read_bytes()
    await bench.write(event("req_2"))
    first = sorted(bench.segments())[0]
    first.write_bytes(whole + segment.frame(segment.USAGE, 2, b'{"never acknowledged": 1}' * 20)[:cut])
    bench.relay.catch_up()
    assert bench.ids() == ["req_1", "req_2"]
    assert not bench.alarms
    assert len(bench.segments()) == 1


async def test_a_torn_tail_is_waited_for_while_it_may_still_be_written(bench: Bench) -> None:
    await bench.write(event("req_1"), event("req_2"))
    (path,) = bench.segments()
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert bench.relay.catch_up() == 1
    assert bench.relay.catch_up() == 0
    path.write_bytes(whole)
    assert bench.relay.catch_up() == 1
    assert bench.ids() == ["req_1", "req_2"]


async def test_a_flipped_bit_costs_one_record_and_is_noticed(bench: Bench) -> None:
    await bench.write(event("req_1"), event("req_2"), event("req_3"))
    (path,) = bench.segments()
    data = bytearray(path.read_bytes())
    data[data.index(b"req_2") + 2] ^= 1
    path.write_bytes(bytes(data))
    bench.relay.catch_up()
    assert bench.ids() == ["req_1", "req_3"]
    assert [a.kind for a in bench.alarms] == ["corrupt", "sequence_gap"]
    assert "1 events from number 2 on" in bench.alarms[1].detail
    with bench.db.read() as conn:
        assert {a.kind for a in store.list_alarms(conn)} == {"corrupt", "sequence_gap"}


async def test_a_lost_segment_is_noticed(bench: Bench) -> None:
    await bench.write(event("req_1"))
    bench.relay.catch_up()
    await bench.write(*[event(f"lost_{i}") for i in range(3)])
    await bench.write(event("req_2"))
    sorted(bench.segments())[1].unlink()
    bench.relay.catch_up()
    assert bench.ids() == ["req_1", "req_2"]
    assert [(a.kind, a.detail) for a in bench.alarms] == [
        ("sequence_gap", "3 events from number 2 on are missing")
    ]


@pytest.mark.parametrize("step_ms", [0, -86_400_000])
async def test_a_wiped_folder_does_not_hide_what_comes_after(bench: Bench, step_ms: int) -> None:
    await bench.write(event("req_1"), event("req_2"))
    bench.relay.catch_up()
    for path in bench.segments():
        path.unlink()
    bench.clock.step(step_ms + 1)
    await bench.write(event("req_3"))
    bench.relay.catch_up()
    assert bench.ids() == ["req_1", "req_2", "req_3"]
    assert [a.kind for a in bench.alarms] == ["sequence_reset"]


async def test_a_database_that_was_restored_from_before_takes_in_again_what_is_left(bench: Bench) -> None:
    await bench.write(event("req_1"))
    bench.relay.catch_up()
    await bench.write(event("req_2"))
    with bench.db.begin() as conn:
        conn.execute(usage_events.delete())
        conn.exec_driver_sql("DELETE FROM journal_cursors")
    Relay(bench.directory, bench.db, bench.clock, bench.alarms.append).catch_up()
    assert bench.ids() == ["req_1", "req_2"]


async def test_only_one_process_writes_a_gateways_journal(bench: Bench) -> None:
    journal = bench.open()
    with pytest.raises(Conflict):
        bench.open()
    await journal.close()
    await bench.open().close()


class TestProgress:
    """A stream is billed for what was delivered when its gateway dies."""

    async def leave_open(self, bench: Bench, *events: UsageEvent) -> None:
        journal = bench.open()
        for one in events:
            journal.note_progress(one)
        await journal.close()

    async def test_an_open_stream_is_settled_when_its_gateway_starts_anew(self, bench: Bench) -> None:
        await self.leave_open(bench, event("req_1", Usage(output=5), status="interrupted"))
        await self.leave_open(bench)
        bench.relay.catch_up()
        with bench.db.read() as conn:
            (row,) = store.receipt_row(conn, "req_1")
        assert (row.status, row.output, row.event_id) == ("interrupted", 5, "req_1")
        assert bench.count(journal_progress) == 0
        assert not bench.alarms

    async def test_the_last_note_counts(self, bench: Bench) -> None:
        journal = bench.open()
        for output in (5, 9):
            journal.note_progress(event("req_1", Usage(output=output), status="interrupted"))
            await asyncio.sleep(0.3)
            bench.relay.run_once()
        assert bench.ids() == [], "nothing is settled while the gateway lives"
        await journal.close()
        await bench.write()
        bench.relay.catch_up()
        with bench.db.read() as conn:
            assert store.receipt_row(conn, "req_1")[0].output == 9

    async def test_a_stream_that_ended_is_not_settled(self, bench: Bench) -> None:
        journal = bench.open()
        journal.note_progress(event("req_1", Usage(output=5), status="interrupted"))
        async with asyncio.timeout(10):
            while bench.count(journal_progress) == 0:
                await asyncio.sleep(0.05)
                bench.relay.run_once()
        await journal.append(event("req_1"))
        await journal.close()
        await bench.write()
        bench.relay.catch_up()
        with bench.db.read() as conn:
            (row,) = store.receipt_row(conn, "req_1")
        assert (row.status, row.output) == ("completed", 50)
        assert bench.count(journal_progress) == bench.count(quarantine) == 0

    async def test_it_is_settled_by_a_relay_that_starts_later_too(self, bench: Bench) -> None:
        await self.leave_open(bench, event("req_1", status="interrupted"))
        bench.relay.catch_up()
        await bench.write(event("req_2"))
        Relay(bench.directory, bench.db, bench.clock).catch_up()
        assert sorted(bench.ids()) == ["req_1", "req_2"]
        await bench.write(event("req_3"))
        bench.relay.catch_up()
        assert sorted(bench.ids()) == ["req_1", "req_2", "req_3"]


async def test_two_relays_at_once_take_in_everything_once(bench: Bench) -> None:
    journal = bench.open(segment_bytes=1 << 16)
    relays = [Relay(bench.directory, bench.db, bench.clock, bench.alarms.append) for _ in range(2)]
    done = asyncio.Event()

    async def drain(run: Callable[[], int]) -> None:
        while not done.is_set():
            await asyncio.to_thread(run)

    drains = [asyncio.create_task(drain(relay.run_once)) for relay in relays]
    for start in range(0, 2000, 100):
        await asyncio.gather(*[journal.append(event(f"req_{i}")) for i in range(start, start + 100)])
    done.set()
    await asyncio.gather(*drains)
    await journal.close()
    for relay in relays:
        relay.catch_up()
    assert sorted(bench.ids()) == sorted(f"req_{i}" for i in range(2000))
    assert not bench.alarms


async def test_a_database_that_fails_loses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    await bench.write(*[event(f"req_{i}") for i in range(5)])

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("database is gone")

    with monkeypatch.context() as patched:
        patched.setattr(store, "write_cursor", fail)  # the last statement: everything before is rolled back
        with pytest.raises(RuntimeError):
            bench.relay.run_once()
    assert bench.ids() == []
    assert bench.relay.catch_up() == 5


async def test_an_event_that_was_read_before_its_failed_batch_was_cut_off_stays_single(bench: Bench) -> None:
    """Its append failed, but it happened; when the gateway says it again, under the number it then gets, it is known."""
    await bench.write(event("req_1"), event("req_2"))
    (path,) = bench.segments()
    bench.relay.catch_up()
    first = segment.scan(path, 0, 2)
    with path.open("r+b") as file:
        file.truncate(first.offset)
    journal = bench.open()
    await journal.append(event("req_2"))
    await journal.append(event("req_3"))
    await journal.close()
    bench.relay.catch_up()
    assert bench.ids() == ["req_1", "req_2", "req_3"]
    assert bench.count(quarantine) == 0
    assert not bench.alarms
