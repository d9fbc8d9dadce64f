"""INSERT … ON CONFLICT, which both databases spell alike but SQLAlchemy keeps per dialect."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_ignoring(conn: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    """Insert what is not there yet; rows that meet one with the same key change nothing."""
    if rows:
        conn.execute(_insert(conn, table).on_conflict_do_nothing(), rows)


def insert_adding(
    conn: Connection, table: Table, rows: Sequence[dict[str, Any]], counts: Sequence[str]
) -> None:
    """Insert; a row that meets one with the same primary key adds its `counts` to it.

    Rows in the order of their keys never let two writers in PostgreSQL wait for each other.
    """
    if rows:
        statement = _insert(conn, table)
        conn.execute(
            statement.on_conflict_do_update(
                index_elements=[column.name for column in table.primary_key],
                set_={name: table.c[name] + statement.excluded[name] for name in counts},
            ),
            rows,
        )


def _insert(conn: Connection, table: Table) -> Any:  # the two dialects' statements have no common type
    return (postgresql.insert if conn.dialect.name == "postgresql" else sqlite.insert)(table)
