"""A small world for store tests: a price book, shorthands for storing usage and closing minutes."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, select

from billing.close import close_and_post
from billing.model import Preview
from billing.preview import invoice_preview
from billing.tables import ledger_postings, ledger_transactions
from catalog.terms import SkuTerms
from core.database import Database
from metering.endpoint_minutes import EndpointLife, sweep
from metering.model import UsageEvent
from metering.records import Alarm
from metering.store import insert_usage
from tests.metering_values import MINUTE, T0, accepted

LATENESS = MINUTE
CHAT = {"input": 150_000, "cached_input": 75_000, "output": 600_000, "endpoint_minute": 500_000_000}


@dataclass(frozen=True)
class Version:
    id: str
    unit_prices: dict[str, int]
    terms: dict[str, SkuTerms] = field(default_factory=dict)


@dataclass
class World:
    """`versions`: per model, (start, prices), oldest first."""

    db: Database
    versions: dict[str, list[tuple[int, dict[str, int]]]] = field(
        default_factory=lambda: {"acme/chat": [(0, CHAT)]}
    )
    alarms: list[Alarm] = field(default_factory=list)
    terms: dict[str, dict[str, SkuTerms]] = field(default_factory=dict)  # by version
    _sequence: int = 0

    def price_at(self, _: Connection | None, model_id: str, at_ms: int, _org_id: str = "") -> Version | None:
        begun = [v for v in enumerate(self.versions.get(model_id, [])) if v[1][0] <= at_ms]
        return self.version(None, f"{model_id}@{begun[-1][0]}") if begun else None

    def version(self, _: Connection | None, version_id: str) -> Version | None:
        model_id, _at, number = version_id.rpartition("@")
        return Version(version_id, self.versions[model_id][int(number)][1], self.terms.get(version_id, {}))

    def store(self, *events: UsageEvent, now_ms: int = T0) -> None:
        """What the relay does with new events."""
        numbered = []
        for one in events:
            self._sequence += 1
            numbered.append((accepted(one), self._sequence))
        with self.db.begin() as conn:
            insert_usage(conn, numbered, now_ms)

    def sweep(self, lives: Iterable[EndpointLife], now_ms: int, limit: int = 10_000) -> int:
        with self.db.begin() as conn:
            return sweep(conn, lives, now_ms, limit)

    def close(self, now_ms: int) -> int:
        return close_and_post(self.db, self, now_ms, LATENESS, self.alarms.append)

    def preview(
        self, org_id: str = "org_1", start_ms: int = 0, end_ms: int = T0 * 2, now_ms: int = T0
    ) -> Preview:
        with self.db.read() as conn:
            return invoice_preview(conn, org_id, start_ms, end_ms, now_ms, self)

    def check_ledger(self) -> int:
        """Every transaction sums to zero and each amount is quantity × price; returns what customers owe."""
        table = ledger_postings
        with self.db.read() as conn:
            rows = conn.execute(select(table)).all()
            ids = set(conn.execute(select(ledger_transactions.c.id)).scalars())
        sums: dict[str, int] = {}
        owed = 0
        for row in rows:
            sums[row.transaction_id] = sums.get(row.transaction_id, 0) + row.amount_pico
            if row.sku:
                assert row.amount_pico == -row.quantity * row.unit_price_pico
            else:
                owed += row.amount_pico
        assert ids == set(sums)
        assert not any(sums.values())
        return owed


def life(endpoint_id: str = "ep_1", created_ms: int = T0, deleted_ms: int | None = None) -> EndpointLife:
    return EndpointLife(
        endpoint_id, "org_1", "prj_1", "acme/chat", created_ms, deleted_ms, f"name-{endpoint_id}"
    )
