"""Units of work: a reading one is a snapshot on both databases."""

import pytest
from sqlalchemy import insert, select
from sqlalchemy.exc import DBAPIError

from core.database import Database
from metering.store import first_open_minute, set_first_open_minute
from metering.tables import FIRST_OPEN_MINUTE, metering_state


def _put(db: Database, value: int) -> None:
    with db.begin() as connection:
        set_first_open_minute(connection, value)


@pytest.fixture
def counted(db: Database) -> Database:
    with db.begin() as connection:
        connection.execute(insert(metering_state).values(name=FIRST_OPEN_MINUTE, value=1))
    return db


def test_a_reader_sees_one_instant_however_many_statements_it_needs(counted: Database) -> None:
    with counted.read() as reader:
        assert first_open_minute(reader) == 1
        _put(counted, 2)
        assert first_open_minute(reader) == 1, "what is committed meanwhile is not seen"
    with counted.read() as reader:
        assert first_open_minute(reader) == 2, "a connection from the pool begins anew"


def test_a_writer_after_a_reader_on_the_same_connection_may_write(counted: Database) -> None:
    for value in range(2, 20):  # more than there are connections in the pool
        with counted.read() as reader:
            reader.execute(select(metering_state)).all()
        _put(counted, value)
    with counted.read() as reader:
        assert first_open_minute(reader) == 19


def test_a_reader_writes_nothing(counted: Database) -> None:
    with counted.read() as reader:
        try:
            set_first_open_minute(reader, 9)
        except DBAPIError:
            assert counted.engine.dialect.name == "postgresql"
    with counted.read() as reader:
        assert first_open_minute(reader) == 1
