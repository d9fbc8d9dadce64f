"""Events of other meters and of operators: checked, stored and charged to budgets in one transaction."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from access.store import get_key, get_project
from catalog.store import find_model
from core.database import Database
from core.log import get_logger
from functions.budgets import BudgetKeeper
from metering.endpoint_minutes import EndpointLife
from metering.ingest import digest
from metering.intake import Authority, Outcome, Taken, take_events
from metering.quarantine import MAX_OPEN, count_open, quarantine_ids
from metering.records import Alarm
from metering.store import QuarantineRow, record_alarms
from serving.store import find_life
from wire.cloudevents_http import Received

_ATTEMPTS = 3
_log = get_logger(__name__)
T = TypeVar("T")


class EventIntake:
    """Takes events in. Its methods may be called from any thread."""

    def __init__(self, db: Database, keeper: BudgetKeeper) -> None:
        self._db, self._keeper = db, keeper

    def take(
        self, received: Sequence[Received], authority: Authority, now_ms: int
    ) -> list[tuple[Outcome, int | None]]:
        """What became of each event, with its id in quarantine where it went there."""

        def work(connection: Connection) -> list[tuple[Outcome, int | None]]:
            taken = self.take_in(connection, received, authority, now_ms)
            return _put_aside(connection, taken.outcomes, authority, now_ms)

        return self._retried(work)

    def take_in(
        self, connection: Connection, received: Sequence[Received], authority: Authority, now_ms: int
    ) -> Taken:
        """Store and charge what is new, in the caller's transaction; nothing is put in quarantine."""
        taken = take_events(connection, received, authority, PlatformDirectory(connection), now_ms)
        if taken.usage:
            self._keeper.charge_usage(connection, taken.usage, now_ms)
        self._keeper.charge_corrections(connection, taken.corrections, now_ms)
        return taken

    def _retried(self, work: Callable[[Connection], T]) -> T:
        """Two senders of the same event collide in PostgreSQL; the later one then finds it on record."""
        for attempt in range(_ATTEMPTS):
            try:
                with self._db.begin() as connection:
                    return work(connection)
            except IntegrityError:
                if attempt == _ATTEMPTS - 1:
                    raise
        raise AssertionError("unreachable")


def _put_aside(
    connection: Connection, outcomes: Sequence[Outcome], authority: Authority, now_ms: int
) -> list[tuple[Outcome, int | None]]:
    """Keep what could not be taken in, as long as there is room; the alarms name each source once."""
    room = None
    kept: list[Outcome] = []
    answers: list[Outcome] = []
    for outcome in outcomes:
        if outcome.status == "quarantined":
            if room is None:
                room = MAX_OPEN - count_open(connection, authority.org_id)
            if room - len(kept) <= 0:
                outcome = _no_room(outcome)
            else:
                kept.append(outcome)
        answers.append(outcome)
    ids = iter(quarantine_ids(connection, [_row(each, authority) for each in kept], now_ms))
    raised = _alarms(kept)
    record_alarms(connection, raised, now_ms)
    for alarm in raised:
        _log.error(
            "metering alarm", extra={"kind": alarm.kind, "source": alarm.source, "detail": alarm.detail}
        )
    return [(each, next(ids) if each.status == "quarantined" else None) for each in answers]


def _no_room(outcome: Outcome) -> Outcome:
    why = f"{outcome.reason} (and the quarantine is full: {MAX_OPEN} events wait there for a decision)"
    return Outcome("refused", outcome.event_id, outcome.source, why, outcome.param)


def _row(outcome: Outcome, authority: Authority) -> QuarantineRow:
    where = f"{outcome.param}: " if outcome.param else ""
    return QuarantineRow(
        outcome.kind,
        outcome.source,
        outcome.event_id,
        digest(outcome.raw),
        where + outcome.reason,
        outcome.raw.decode(errors="replace"),
        authority.org_id,
    )


def _alarms(kept: Sequence[Outcome]) -> list[Alarm]:
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for each in kept:
        groups.setdefault((each.kind, each.source), []).append(each)
    alarms = []
    for (kind, source), members in groups.items():
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        first = members[0]
        alarms.append(
            Alarm(kind, source, f"{first.event_id or 'an event'}{more}: {first.param} {first.reason}")
        )
    return alarms


class PlatformDirectory:
    """What the platform knows, looked up once per batch."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._projects: dict[str, str | None] = {}
        self._keys: dict[str, str | None] = {}
        self._models: dict[str, bool] = {}
        self._endpoints: dict[str, EndpointLife | None] = {}

    def project_org(self, project_id: str) -> str | None:
        """The organization of a project."""

        def look() -> str | None:
            found = get_project(self._connection, project_id)
            return found.org_id if found else None

        return _cached(self._projects, project_id, look)

    def key_project(self, key_id: str) -> str | None:
        """The project of a key, also of one that is revoked."""

        def look() -> str | None:
            found = get_key(self._connection, key_id)
            return found.project_id if found else None

        return _cached(self._keys, key_id, look)

    def knows_model(self, model_id: str) -> bool:
        """Whether the catalog has the model, or had it."""
        return _cached(
            self._models,
            model_id,
            lambda: find_model(self._connection, model_id, include_removed=True) is not None,
        )

    def endpoint(self, endpoint_id: str) -> EndpointLife | None:
        """When the endpoint existed, also one that is gone."""

        def look() -> EndpointLife | None:
            r = find_life(self._connection, endpoint_id)
            if r is None:
                return None
            return EndpointLife(
                r.endpoint_id, r.org_id, r.project_id, r.model_id, r.created_ms, r.deleted_ms, r.name
            )

        return _cached(self._endpoints, endpoint_id, look)


def _cached(cache: dict[str, T], key: str, look: Callable[[], T]) -> T:
    if key not in cache:
        cache[key] = look()
    return cache[key]
