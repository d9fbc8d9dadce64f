"""What a period would cost under other prices: a dry run, nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from sqlalchemy import Connection, select

from billing.model import Line, Price, PriceBook
from billing.preview import lines_of, totals_so_far
from billing.rate import unit_price_of
from billing.store import Total
from billing.tables import ledger_days
from catalog.terms import Terms
from core.money import round_to_cents

MAX_ORGANIZATIONS = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """Prices that hold nowhere yet: of a model, for everybody or (`org_id`) for one organization."""

    model_id: str
    org_id: str
    unit_prices: Mapping[str, int]
    terms: Terms
    id: str = "candidate"


@dataclass(frozen=True, slots=True)
class Rerated:
    """One organization's period as it is and as it would be. `unpriced`: SKUs that the candidate does not price."""

    org_id: str
    before: tuple[Line, ...]
    after: tuple[Line, ...]
    unpriced: tuple[str, ...]

    @property
    def before_cents(self) -> int:
        return sum(round_to_cents(line.amount_pico) for line in self.before)

    @property
    def after_cents(self) -> int:
        return sum(round_to_cents(line.amount_pico) for line in self.after)


def organizations_using(conn: Connection, model_id: str, start_ms: int, end_ms: int) -> list[str]:
    """Who was charged for the model in [start, end), in whole days; at most `MAX_ORGANIZATIONS`."""
    table = ledger_days
    rows = conn.execute(
        select(table.c.org_id)
        .where(table.c.model_id == model_id, table.c.day_ms >= start_ms, table.c.day_ms < end_ms)
        .distinct()
        .order_by(table.c.org_id)
        .limit(MAX_ORGANIZATIONS)
    )
    return list(rows.scalars())


def rerate(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, candidate: Candidate, book: PriceBook
) -> Rerated:
    """Everything that the organization used of the model in [start, end) at the candidate's prices.

    A candidate for everybody leaves alone what was charged at a price of the organization's own.
    """
    totals, _ = totals_so_far(conn, org_id, start_ms, end_ms, book)
    changed: list[Total] = []
    unpriced: set[str] = set()
    for total in totals:
        if total.model_id != candidate.model_id or _spared(conn, total, candidate, book):
            changed.append(total)
            continue
        price = unit_price_of(candidate.unit_prices, total.sku)
        if price is None:
            unpriced.add(total.sku)
        else:
            changed.append(replace(total, price_version=candidate.id, unit_price_pico=price))
    return Rerated(
        org_id,
        tuple(lines_of(conn, totals, org_id, start_ms, end_ms, book)),
        tuple(lines_of(conn, changed, org_id, start_ms, end_ms, _WithCandidate(book, candidate))),
        tuple(sorted(unpriced)),
    )


def _spared(conn: Connection, total: Total, candidate: Candidate, book: PriceBook) -> bool:
    version = book.version(conn, total.price_version)
    return not candidate.org_id and version is not None and bool(getattr(version, "org_id", ""))


class _WithCandidate:
    """The price book, with one version more."""

    def __init__(self, book: PriceBook, candidate: Candidate) -> None:
        self._book, self._candidate = book, candidate

    def price_at(self, connection: Connection, model_id: str, at_ms: int, org_id: str, /) -> Price | None:
        return self._book.price_at(connection, model_id, at_ms, org_id)

    def version(self, connection: Connection, version_id: str, /) -> Price | None:
        if version_id == self._candidate.id:
            return self._candidate
        return self._book.version(connection, version_id)
