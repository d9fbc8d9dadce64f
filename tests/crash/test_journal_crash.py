"""`kill -9` at random moments, of gateway and control process: what was acknowledged is billed exactly once."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import func, select

from billing.close import close_and_post
from billing.tables import ledger_postings
from core.clock import SystemClock
from core.database import Database, metadata, open_database
from metering.journal import Journal
from metering.records import Alarm
from metering.relay import Relay
from metering.store import list_quarantine
from metering.tables import journal_progress, usage_events
from tests.crash.journal_child import PRICES, Book

REPO = Path(__file__).parents[2]
LIVES = 8


class Victim:
    """Starts a child, kills it after a while, starts it again: `LIVES` times."""

    def __init__(self, seed: int, *arguments: str) -> None:
        self._chance = random.Random(seed)
        self._arguments = arguments
        self.told: list[str] = []
        self.failures: list[str] = []
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        for life in range(LIVES):
            arguments = [a.replace("LIFE", f"life{life}") for a in self._arguments]
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.crash.journal_child", *arguments],
                cwd=REPO,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            assert child.stdout is not None
            assert child.stderr is not None
            child.stdout.readline()  # it has begun
            # The last life is long enough for the notes of its open stream (PROGRESS_EVERY_S) to be written.
            shortest = 0.7 if life == LIVES - 1 else 0.01
            threading.Timer(self._chance.uniform(shortest, 0.9), child.kill).start()
            told = child.stdout.read()
            if child.wait() != -9:
                self.failures.append(child.stderr.read().decode())
            child.stdout.close()
            child.stderr.close()
            # The last line may be cut: a cut id was told nobody.
            self.told += told.decode().split("\n")[:-1]


@pytest.mark.crash
def test_acknowledged_events_are_on_the_ledger_exactly_once(tmp_path: Path) -> None:
    seed = time.time_ns() % 2**32
    print(f"seed {seed}")  # shown when it fails
    directory = tmp_path / "journal"
    url = f"sqlite:///{tmp_path / 'crash.db'}"
    db = open_database(url)
    with db.begin() as conn:
        metadata.create_all(conn)
    gateway = Victim(seed, "gateway", str(directory), "LIFE")
    control = Victim(seed + 1, "control", str(directory), url)
    for victim in (gateway, control):
        victim.thread.start()
    for victim in (gateway, control):
        victim.thread.join()
    assert not gateway.failures + control.failures, gateway.failures + control.failures
    _check(db, directory, [line for line in gateway.told if line])
    db.close()


def _check(db: Database, directory: Path, acknowledged: list[str]) -> None:
    clock = SystemClock()
    alarms: list[Alarm] = []
    # One more start settles the streams that the last kill left open.
    journal = Journal.open(directory, "gw-1", clock, 1 << 30)
    relay = Relay(directory, db, clock, alarms.append)
    relay.catch_up()
    close_and_post(db, Book(), clock.now_ms() + 120_000, 0)
    with db.read() as conn:
        rows = conn.execute(select(usage_events)).all()
        assert conn.execute(select(func.count()).select_from(journal_progress)).scalar_one() == 0
        assert list_quarantine(conn) == []
        postings = conn.execute(select(ledger_postings)).all()
    stored = {row.event_id: row for row in rows}
    assert len(rows) == len(stored)
    assert len(acknowledged) > 1000
    assert len(set(acknowledged)) == len(acknowledged)
    missing = [event_id for event_id in acknowledged if event_id not in stored]
    assert not missing
    assert all(stored[event_id].status == "completed" for event_id in acknowledged)
    assert any(row.status == "interrupted" for row in rows)
    assert alarms == [], "no numbers are missing"
    # Nothing twice on the ledger either: it has the money of all rows, and balances.
    expected = sum(row.input * PRICES["input"] + row.output * PRICES["output"] for row in rows)
    assert sum(p.amount_pico for p in postings if not p.sku) == expected
    assert sum(p.amount_pico for p in postings) == 0
    assert journal.depth()[0] == 0
