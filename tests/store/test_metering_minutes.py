"""Endpoint minutes: each once, however often and wherever the sweep runs."""

import threading

from sqlalchemy import select

from core.database import Database
from metering.endpoint_minutes import endpoint_names, sweep
from metering.store import lock_first_open_minute, set_first_open_minute
from metering.tables import endpoint_minutes
from tests.metering_values import MINUTE, T0
from tests.store.billing_values import World, life


def minutes(db: Database, endpoint_id: str = "ep_1") -> list[int]:
    with db.read() as conn:
        rows = conn.execute(
            select(endpoint_minutes.c.service_minute_ms)
            .where(endpoint_minutes.c.endpoint_id == endpoint_id)
            .order_by(endpoint_minutes.c.service_minute_ms)
        )
        return [(row[0] - T0) // MINUTE for row in rows]


def test_a_tick_a_second_bills_each_minute_once(db: Database) -> None:
    world = World(db)
    for second in range(150):
        world.sweep([life()], T0 + second * 1000)
    assert minutes(db) == [0, 1, 2]


def test_a_month_of_downtime_is_caught_up_in_bounded_steps(db: Database) -> None:
    world = World(db)
    world.sweep([life()], T0)
    later = T0 + 5000 * MINUTE
    steps = []
    while (written := world.sweep([life(), life("ep_2", T0)], later, limit=3000)) == 3000:
        steps.append(written)
    assert len(steps) == 3
    assert minutes(db) == minutes(db, "ep_2") == list(range(5001))


def test_a_clock_that_steps_back_and_forth_changes_nothing(db: Database) -> None:
    world = World(db)
    for minute in (5, 0, 3, -60, 6, 6, 2, 7):
        world.sweep([life()], T0 + minute * MINUTE)
    assert minutes(db) == list(range(8))


def test_a_deleted_endpoint_is_billed_to_its_end_and_then_no_more(db: Database) -> None:
    world = World(db)
    gone = life(deleted_ms=T0 + 2 * MINUTE + 1)
    world.sweep([life()], T0)
    for minute in (1, 2, 3, 500):
        world.sweep([gone], T0 + minute * MINUTE)
    assert minutes(db) == [0, 1, 2]
    assert world.sweep([gone], T0 + 900 * MINUTE) == 0


def test_an_endpoint_that_came_and_went_during_downtime_is_billed(db: Database) -> None:
    world = World(db)
    world.sweep([life(created_ms=T0 + 70_000, deleted_ms=T0 + 100_000)], T0 + 10 * MINUTE)
    assert minutes(db) == [1]


def test_a_name_is_remembered_after_deletion(db: Database) -> None:
    world = World(db)
    world.sweep([life("ep_1"), life("ep_2", deleted_ms=T0 + 1)], T0 + MINUTE)
    with db.read() as conn:
        assert endpoint_names(conn, "org_1") == {"ep_1": "name-ep_1", "ep_2": "name-ep_2"}
        assert endpoint_names(conn, "org_2") == {}


def test_minutes_found_late_are_billed_in_the_first_open_minute(db: Database) -> None:
    with db.begin() as conn:
        lock_first_open_minute(conn, exclusive=True)
        set_first_open_minute(conn, T0 + 2 * MINUTE)
        sweep(conn, [life()], T0 + 3 * MINUTE)
        rows = conn.execute(
            select(endpoint_minutes.c.billing_minute_ms).order_by(endpoint_minutes.c.service_minute_ms)
        )
        assert [(row[0] - T0) // MINUTE for row in rows] == [2, 2, 2, 3]


def test_two_sweepers_at_once_bill_each_minute_once(db: Database) -> None:
    world = World(db)
    lives = [life(f"ep_{i}") for i in range(20)]
    failures: list[BaseException] = []

    def run() -> None:
        try:
            for minute in range(15):
                world.sweep(lives, T0 + minute * MINUTE)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for one in lives:
        assert minutes(db, one.endpoint_id) == list(range(15))
