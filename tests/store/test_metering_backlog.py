"""A backlog of any length is taken in with little memory: in a process of its own, so that nothing else is counted."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys
from pathlib import Path
from core.clock import ManualClock
from core.database import metadata, open_database
from metering import segment, tables
from metering.journal import source_of
from metering.model import USAGE_EVENT_TYPE
from metering.relay import MAX_BYTES, MAX_RECORDS, Relay
from metering.segment import SegmentHeader
from tests.metering_values import T0, cloudevent, event

folder, kb = Path(sys.argv[1]), int(sys.argv[2])
db = open_database(f"sqlite:///{folder / 'a.db'}")
with db.begin() as connection:
    metadata.create_all(connection)

def write(index, first, count):
    with (folder / f"gw-1.1.{index:06d}.journal").open("wb") as file:
        header = SegmentHeader("gw-1", 1, index, first, T0)
        file.write(segment.frame(segment.HEADER, first, __import__("msgspec").json.encode(header)))
        for seq in range(first, first + count):
            one = event(f"req_{seq}", engine_request_id="x" * (kb * 1024))
            payload = cloudevent(
                event_id=one.event_id, source=source_of("gw-1"), event_type=USAGE_EVENT_TYPE,
                time_ms=one.ended_ms, subject=one.org_id, sequence=seq, data=one)
            file.write(segment.frame(segment.USAGE, seq, payload))

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

relay = Relay(folder, db, ManualClock(T0))
count = 2 * MAX_BYTES // (1024 * (kb + 1))  # more than one batch
write(1, 1, count)
assert relay.catch_up() == count
before, size = peak(), 0
for index in range(2, 12):
    write(index, 1 + (index - 1) * count, count)
    size += (folder / f"gw-1.1.{index:06d}.journal").stat().st_size
assert size > 10 * MAX_BYTES
assert relay.catch_up() == 10 * count
assert len(list(folder.glob("*.journal"))) == 1
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    # Records of 20 KB: a bound on their number alone would hold all of the 80 MB at once.
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), "20"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 24, f"{run.stdout.strip()} MB more for a backlog of 80 MB"
