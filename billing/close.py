"""Closing and posting together: what is closed is on the ledger, or held, in the same transaction."""

from collections.abc import Callable

from billing.ledger import post_held, post_minutes
from billing.model import PriceBook
from billing.store import held_minutes
from core.database import Database
from core.log import get_logger
from metering.close import close_minutes, is_due
from metering.records import Alarm

_log = get_logger(__name__)


def close_and_post(
    db: Database,
    book: PriceBook,
    now_ms: int,
    lateness_ms: int,
    on_alarm: Callable[[Alarm], None] | None = None,
) -> int:
    """Close all minutes that are due and post them, in bounded transactions; returns how many were closed.

    Safe at any time and any number of times, also from several processes at once.
    """
    closed = 0
    while True:
        with db.read() as conn:
            due = is_due(conn, now_ms, lateness_ms)
        if not due:
            break
        with db.begin() as conn:
            minutes = close_minutes(conn, now_ms, lateness_ms)
            alarms = post_minutes(conn, minutes, book, now_ms)
        closed += len(minutes)
        for alarm in alarms:
            (on_alarm or _log_alarm)(alarm)
    _post_what_was_held(db, book, now_ms)
    return closed


def _post_what_was_held(db: Database, book: PriceBook, now_ms: int) -> None:
    with db.read() as conn:
        waiting = bool(held_minutes(conn, 1))
    if waiting:
        with db.begin() as conn:
            post_held(conn, book, now_ms)


def _log_alarm(alarm: Alarm) -> None:
    _log.error("billing alarm", extra={"kind": alarm.kind, "source": alarm.source, "detail": alarm.detail})
