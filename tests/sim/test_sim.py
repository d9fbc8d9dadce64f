"""A few seeds in every test run, and whether the auditor would notice; `make sim ARGS="--seeds 1000"` for more."""

import logging
import shutil
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from tests.sim.auditor import Auditor
from tests.sim.run import finished, simulate

CALLERS = 14


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What breaks is meant to."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("seed", [1, 3, 4, 6])
def test_every_invariant_holds_whatever_breaks(seed: int) -> None:
    result = simulate(seed, CALLERS)
    assert result.findings == [], f'again: make sim ARGS="--seed {seed} --callers {CALLERS}"'
    assert result.calls > 1000
    assert result.statuses[200] > 500


def test_the_same_seed_is_the_same_run() -> None:
    assert simulate(5, 6) == simulate(5, 6)


SABOTAGE = {
    "a lost event": "DELETE FROM usage_events WHERE row_id = (SELECT max(row_id) FROM usage_events WHERE output > 0)",
    "a token more": "UPDATE usage_events SET output = output + 1 WHERE row_id = (SELECT max(row_id) FROM usage_events)",
    "a lost minute": "DELETE FROM endpoint_minutes WHERE id = (SELECT max(id) FROM endpoint_minutes)",
    "a posting less": "DELETE FROM ledger_postings WHERE line = 1 AND transaction_id = "
    "(SELECT max(id) FROM ledger_transactions WHERE kind = 'usage')",
    "a pico-dollar": "UPDATE ledger_transactions SET minute_ms = minute_ms + 60000 WHERE seq = 2",
    "a cent": "UPDATE invoices SET total_cents = total_cents + 1",
    "an invoice less": "UPDATE invoices SET state = 'void', voided_ms = 1, org_id = 'x' WHERE number = "
    "(SELECT max(number) FROM invoices)",
    "something put aside": "INSERT INTO quarantine (kind, source, event_id, payload_hash, reason, payload, "
    "recorded_ms) VALUES ('poison', 's', 'e', 'h', 'r', 'p', 1)",
}


def test_the_auditor_notices_what_is_done_behind_its_back() -> None:
    with finished(2, 6) as world:
        db, path = world.installation.db, world.installation.settings.home / "sim.db"
        assert Auditor(world.facts()).audit() == []
        with db.begin() as connection:
            connection.exec_driver_sql("SELECT 1")
        with db.engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        db.close()
        shutil.copy(path, path.with_suffix(".good"))
        for what, statement in SABOTAGE.items():
            with db.begin() as connection:
                connection.execute(text("PRAGMA foreign_keys = OFF"))
                assert connection.execute(text(statement)).rowcount, what
            assert Auditor(world.facts()).audit(), what
            db.close()
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            shutil.copy(path.with_suffix(".good"), path)
        assert Auditor(world.facts()).audit() == []
