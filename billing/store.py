"""SQL of billing: the ledger and what is held."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, case, delete, func, insert, literal, or_, select, tuple_

from billing.model import ENDPOINT_MINUTE_SKU, Held, Item
from billing.tables import held_quantities, ledger_postings, ledger_transactions
from metering.records import ClosedMinute

ADJUSTMENT = "adjustment"  # posted in an open minute, for one that is closed
_CHUNK = 500


@dataclass(frozen=True, slots=True)
class Posting:
    """One side of a transaction: positive is a debit, negative a credit."""

    account: str
    sku: str
    quantity: int
    unit_price_pico: int
    price_version: str
    amount_pico: int


@dataclass(frozen=True, slots=True)
class LedgerTransaction:
    """A balanced entry for one minute."""

    id: str
    kind: str  # usage | endpoint_minute | adjustment
    minute: ClosedMinute
    postings: tuple[Posting, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """Posted quantities that share a line of an invoice."""

    sku: str
    model_id: str
    endpoint_id: str
    unit_price_pico: int
    quantity: int


def posted_ids(conn: Connection, ids: Sequence[str]) -> set[str]:
    """Of `ids`, those that are on the ledger."""
    return _existing(conn, ledger_transactions.c.id, ids)


def held_ids(conn: Connection, minute_ids: Sequence[str]) -> set[str]:
    """Of `minute_ids`, those of which something is held."""
    return _existing(conn, held_quantities.c.minute_id, minute_ids)


def _existing(conn: Connection, column: Column[str], ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        found.update(conn.execute(select(column).where(column.in_(chunk))).scalars())
    return found


def insert_transactions(conn: Connection, transactions: Sequence[LedgerTransaction], now_ms: int) -> None:
    """Append to the ledger; a repeated id is an error (see `posted_ids`)."""
    if not transactions:
        return
    conn.execute(insert(ledger_transactions), [_transaction_row(t, now_ms) for t in transactions])
    conn.execute(
        insert(ledger_postings),
        [
            {
                "transaction_id": transaction.id,
                "line": line,
                "account": posting.account,
                "sku": posting.sku,
                "quantity": posting.quantity,
                "unit_price_pico": posting.unit_price_pico,
                "price_version": posting.price_version,
                "amount_pico": posting.amount_pico,
            }
            for transaction in transactions
            for line, posting in enumerate(transaction.postings)
        ],
    )


def _transaction_row(transaction: LedgerTransaction, now_ms: int) -> dict[str, object]:
    columns = _minute_columns(transaction.minute)
    return {"id": transaction.id, **columns, "kind": transaction.kind, "posted_ms": now_ms}


def _minute_columns(minute: ClosedMinute) -> dict[str, object]:
    return {
        "kind": minute.kind,
        "org_id": minute.org_id,
        "project_id": minute.project_id,
        "key_id": minute.key_id,
        "endpoint_id": minute.endpoint_id,
        "model_id": minute.model_id,
        "minute_ms": minute.billing_minute_ms,
        "service_minute_ms": minute.service_minute_ms,
    }


def posted_totals(
    conn: Connection, org_id: str, start_ms: int, end_ms: int, first_open_ms: int
) -> list[Total]:
    """Quantities on the ledger by invoice line, of minutes closed at `first_open_ms`, and adjustments.

    Summed by quantity: see core/money_column.py for why not by amount.
    """
    transactions, postings = ledger_transactions, ledger_postings
    # An endpoint's minutes are a line of their own; tokens are one line per model over all endpoints.
    endpoint = case((postings.c.sku == ENDPOINT_MINUTE_SKU, transactions.c.endpoint_id), else_=literal(""))
    key = [postings.c.sku, transactions.c.model_id, endpoint, postings.c.unit_price_pico]
    rows = conn.execute(
        select(*key, func.sum(postings.c.quantity))
        .join(transactions, transactions.c.id == postings.c.transaction_id)
        .where(
            transactions.c.org_id == org_id,
            transactions.c.minute_ms >= start_ms,
            transactions.c.minute_ms < end_ms,
            or_(transactions.c.minute_ms < first_open_ms, transactions.c.kind == ADJUSTMENT),
            postings.c.sku != "",
        )
        .group_by(*key)
    )
    return [Total(row[0], row[1], row[2], row[3], int(row[4])) for row in rows]


def hold(conn: Connection, minute: ClosedMinute, skus: Sequence[str], reason: str, now_ms: int) -> None:
    """Keep quantities aside until they have a price."""
    conn.execute(
        insert(held_quantities),
        [
            {
                "minute_id": minute.id,
                "sku": sku,
                **_minute_columns(minute),
                "quantity": minute.quantities[sku],
                "reason": reason,
                "held_ms": now_ms,
            }
            for sku in skus
        ],
    )


def held_lines(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[Held]:
    """What of an organization's closed minutes in [start, end) waits for a price."""
    table = held_quantities
    key = [table.c.sku, table.c.model_id, table.c.endpoint_id]
    rows = conn.execute(
        select(*key, func.sum(table.c.quantity), table.c.reason)
        .where(table.c.org_id == org_id, table.c.minute_ms >= start_ms, table.c.minute_ms < end_ms)
        .group_by(*key, table.c.reason)
    )
    return [Held(row[0], row[1], row[2], int(row[3]), row[4]) for row in rows]


def held_minutes(conn: Connection, limit: int) -> list[ClosedMinute]:
    """The oldest minutes of which something is held, with the held quantities only."""
    table = held_quantities
    rows = conn.execute(select(table).order_by(table.c.held_ms, table.c.minute_id, table.c.sku).limit(limit))
    minutes: dict[str, ClosedMinute] = {}
    for row in rows:
        earlier = minutes.get(row.minute_id)
        minutes[row.minute_id] = ClosedMinute(
            id=row.minute_id,
            kind=row.kind,
            billing_minute_ms=row.minute_ms,
            service_minute_ms=row.service_minute_ms,
            org_id=row.org_id,
            project_id=row.project_id,
            key_id=row.key_id,
            endpoint_id=row.endpoint_id,
            model_id=row.model_id,
            quantities={**(earlier.quantities if earlier else {}), row.sku: row.quantity},
        )
    return list(minutes.values())


def release(conn: Connection, minute_id: str, items: Sequence[Item]) -> None:
    """These quantities are on the ledger now."""
    table = held_quantities
    conn.execute(
        delete(table).where(
            tuple_(table.c.minute_id, table.c.sku).in_([(minute_id, item.sku) for item in items])
        )
    )
