"""Charges by day, as they are on the ledger: at list price, before what an invoice makes of them."""

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, literal, select

from billing.entries import CHARGE_KINDS
from billing.tables import ledger_days, ledger_postings, ledger_transactions
from core.errors import Invalid

_DAY_MS = 86_400_000
MAX_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class DayCost:
    """What was charged on one UTC day for one SKU of one model. `key_id` is "" unless it was asked for."""

    day_ms: int
    project_id: str
    key_id: str
    model_id: str
    sku: str
    quantity: int
    amount_pico: int


def daily_costs(
    conn: Connection,
    org_id: str,
    start_ms: int,
    end_ms: int,
    *,
    project_ids: Collection[str] | None = None,
    key_ids: Collection[str] | None = None,
    by_key: bool = False,
) -> list[DayCost]:
    """An organization's charges billed in [start, end), both the start of a day; narrowed to projects and keys.

    Keys are only known to the postings themselves; without them the days' roll-up is read.
    """
    transactions, postings = ledger_transactions, ledger_postings
    keyed = by_key or key_ids is not None
    days = transactions.c.minute_ms - transactions.c.minute_ms % _DAY_MS if keyed else ledger_days.c.day_ms
    about = transactions.c if keyed else ledger_days.c
    charge = postings.c if keyed else ledger_days.c
    key: ColumnElement[str] = transactions.c.key_id if by_key else literal("")
    group = [days, about.project_id, key, about.model_id, charge.sku, charge.unit_price_pico]
    query = select(*group, func.sum(charge.quantity)).where(about.org_id == org_id)
    if keyed:
        query = query.join_from(transactions, postings, transactions.c.id == postings.c.transaction_id)
        query = query.where(charge.sku != "", transactions.c.kind.in_(CHARGE_KINDS))
        query = query.where(transactions.c.minute_ms >= start_ms, transactions.c.minute_ms < end_ms)
    else:
        query = query.where(days >= start_ms, days < end_ms)
    if project_ids is not None:
        query = query.where(about.project_id.in_(list(project_ids)))
    if key_ids is not None:
        query = query.where(transactions.c.key_id.in_(list(key_ids)))
    rows = conn.execute(query.group_by(*group).limit(MAX_ROWS + 1)).all()
    if len(rows) > MAX_ROWS:
        raise Invalid(f"more than {MAX_ROWS} rows; choose a shorter period", param="start_time")
    return [DayCost(*row[:5], int(row[6]), int(row[6]) * row[5]) for row in rows]
