"""Which minutes are due: those of every endpoint that has a fee, and of the instances that are paid by time."""

from collections.abc import Iterator

from sqlalchemy import Connection

from catalog import price_book
from catalog.model import INSTANCE_MODEL
from core.changes import last_seq
from core.clock import MINUTE_MS, Clock, minute_floor
from core.database import Database
from functions.budgets import BudgetKeeper
from metering.endpoint_minutes import MAX_PER_SWEEP, EndpointLife, sweep
from serving.online.lives import InstanceLife, instance_lives
from serving.store import endpoint_lives

_DAY_MS = 86_400_000
# An endpoint deleted this long ago was swept to its end, unless the platform stood still for longer than that.
_SWEEP_DELETED_MS = 400 * _DAY_MS


class Sweeper:
    """Sweeps the minutes, and knows when there cannot be any: same minute, nothing changed."""

    def __init__(self, db: Database, clock: Clock, keeper: BudgetKeeper) -> None:
        self._db, self._clock, self._keeper = db, clock, keeper
        self._swept: tuple[int, int] | None = None
        self._started_ms = clock.now_ms()

    def sweep(self) -> int:
        """Every endpoint minute that is due, in bounded transactions; returns how many."""
        with self._db.read() as connection:
            at = (minute_floor(self._clock.now_ms()), last_seq(connection))
        if at == self._swept:
            return 0
        total = 0
        while True:
            written = self._sweep_some()
            total += written
            if written < MAX_PER_SWEEP:
                self._swept = at
                return total

    def _sweep_some(self) -> int:
        now_ms = self._clock.now_ms()
        with self._db.begin() as connection:
            lives = [*_endpoints(connection, now_ms), *self._instances(connection, now_ms)]
            recorded: list[tuple[EndpointLife, range]] = []
            written = sweep(
                connection, lives, now_ms, on_minutes=lambda life, minutes: recorded.append((life, minutes))
            )
            self._keeper.charge_minutes(connection, recorded, now_ms)
            return written

    def _instances(self, connection: Connection, now_ms: int) -> Iterator[EndpointLife]:
        priced: dict[str, int | None] = {}  # since when a type has a price
        for each in instance_lives(connection, since_ms=self._started_ms, ended_after_ms=now_ms - _DAY_MS):
            kind = each.instance_type
            if kind not in priced:
                versions = price_book.price_versions(connection, INSTANCE_MODEL + kind)
                priced[kind] = versions[0].created_ms if versions else None
            since_ms = priced[kind]
            if since_ms is not None and (life := _paid_life(each, since_ms)) is not None:
                yield life


def _endpoints(connection: Connection, now_ms: int) -> Iterator[EndpointLife]:
    for r in endpoint_lives(connection, alive_after_ms=now_ms - _SWEEP_DELETED_MS):
        yield EndpointLife(
            r.endpoint_id, r.org_id, r.project_id, r.model_id, r.created_ms, r.deleted_ms, r.name
        )


def _paid_life(instance: InstanceLife, priced_ms: int) -> EndpointLife | None:
    """The instance's minutes from its type's first price on; None when there is none of them."""
    from_ms = max(instance.from_ms, -(-priced_ms // MINUTE_MS) * MINUTE_MS)
    if instance.until_ms is not None and instance.until_ms <= from_ms:
        return None
    return EndpointLife(
        instance.endpoint_id,
        instance.org_id,
        instance.project_id,
        INSTANCE_MODEL + instance.instance_type,
        from_ms,
        instance.until_ms,
        instance.endpoint_name,
        instance.id,
    )
