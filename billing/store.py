"""SQL of billing: the ledger, its chains and its days, and what is held."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Column, Connection, delete, func, insert, select, tuple_, update

from billing import chain
from billing.entries import LedgerTransaction
from billing.model import Contract, Held, Item
from billing.tables import (
    contracts,
    held_quantities,
    ledger_days,
    ledger_heads,
    ledger_postings,
    ledger_transactions,
)
from core.inserts import insert_adding, insert_ignoring
from metering.records import ClosedMinute

_CHUNK = 500
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Total:
    """Posted quantities of one SKU at one price."""

    sku: str
    model_id: str
    endpoint_id: str
    price_version: str
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
    """Append to the ledger and to its organizations' chains; a repeated id is an error (see `posted_ids`)."""
    if not transactions:
        return
    rows = []
    heads = lock_heads(conn, sorted({each.org_id for each in transactions}))
    for each in transactions:
        seq, previous = heads[each.org_id]
        seq, hash_ = seq + 1, chain.link(previous, seq + 1, each, now_ms)
        heads[each.org_id] = (seq, hash_)
        rows.append(_transaction_row(each, now_ms, seq, hash_))
    conn.execute(insert(ledger_transactions), rows)
    conn.execute(insert(ledger_postings), [row for each in transactions for row in _posting_rows(each)])
    for org_id, (seq, hash_) in heads.items():
        conn.execute(update(ledger_heads).where(ledger_heads.c.org_id == org_id).values(seq=seq, hash=hash_))
    _add_to_days(conn, transactions)


def lock_heads(conn: Connection, org_ids: Sequence[str]) -> dict[str, tuple[int, str]]:
    """The ends of these organizations' chains (number, hash), locked until the transaction ends."""
    insert_ignoring(
        conn, ledger_heads, [{"org_id": org_id, "seq": 0, "hash": chain.GENESIS} for org_id in org_ids]
    )
    heads: dict[str, tuple[int, str]] = {}
    for start in range(0, len(org_ids), _CHUNK):
        table = ledger_heads
        query = select(table).where(table.c.org_id.in_(org_ids[start : start + _CHUNK]))
        for row in conn.execute(query.order_by(table.c.org_id).with_for_update()):
            heads[row.org_id] = (row.seq, row.hash)
    return heads


def chain_head(conn: Connection, org_id: str) -> tuple[int, str]:
    """The end of an organization's chain: how many transactions, and the hash of the last."""
    row = conn.execute(select(ledger_heads).where(ledger_heads.c.org_id == org_id)).first()
    return (0, chain.GENESIS) if row is None else (row.seq, row.hash)


def _transaction_row(each: LedgerTransaction, now_ms: int, seq: int, hash_: str) -> dict[str, object]:
    return {
        "id": each.id,
        "kind": each.kind,
        "org_id": each.org_id,
        "project_id": each.project_id,
        "key_id": each.key_id,
        "endpoint_id": each.endpoint_id,
        "model_id": each.model_id,
        "minute_ms": each.minute_ms,
        "service_minute_ms": each.service_minute_ms,
        "posted_ms": now_ms,
        "seq": seq,
        "hash": hash_,
    }


def _posting_rows(each: LedgerTransaction) -> Iterator[dict[str, object]]:
    for line, posting in enumerate(each.postings):
        yield {
            "transaction_id": each.id,
            "line": line,
            "account": posting.account,
            "sku": posting.sku,
            "quantity": posting.quantity,
            "unit_price_pico": posting.unit_price_pico,
            "price_version": posting.price_version,
            "amount_pico": posting.amount_pico,
        }


def _add_to_days(conn: Connection, transactions: Sequence[LedgerTransaction]) -> None:
    quantities: dict[tuple[object, ...], tuple[int, int]] = {}
    for each in transactions:
        for posting in each.postings:
            if posting.sku:
                day_ms = each.minute_ms - each.minute_ms % _DAY_MS
                key = (
                    each.org_id,
                    day_ms,
                    each.project_id,
                    each.endpoint_id,
                    each.model_id,
                    posting.sku,
                    posting.price_version,
                )
                _, quantity = quantities.get(key, (0, 0))
                quantities[key] = (posting.unit_price_pico, quantity + posting.quantity)
    if not quantities:
        return
    table = ledger_days
    names = [column.name for column in table.primary_key]
    # In order, so that two writers in PostgreSQL never wait for each other.
    rows = [
        {**dict(zip(names, key, strict=True)), "unit_price_pico": price, "quantity": quantity}
        for key, (price, quantity) in sorted(quantities.items(), key=lambda item: item[0])
    ]
    insert_adding(conn, table, rows, ["quantity"])


def posted_totals(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[Total]:
    """Charges on the ledger that are billed in [start, end): whole days from the roll-up, the edges from postings.

    Summed by quantity: see core/money_column.py for why not by amount.
    """
    first_day = -(-start_ms // _DAY_MS) * _DAY_MS
    last_day = end_ms - end_ms % _DAY_MS
    if first_day >= last_day:
        return _totals_of_postings(conn, org_id, start_ms, end_ms)
    return [
        *(_totals_of_postings(conn, org_id, start_ms, first_day) if start_ms < first_day else ()),
        *_totals_of_days(conn, org_id, first_day, last_day),
        *(_totals_of_postings(conn, org_id, last_day, end_ms) if last_day < end_ms else ()),
    ]


def _totals_of_days(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[Total]:
    table = ledger_days
    key = [table.c.sku, table.c.model_id, table.c.endpoint_id, table.c.price_version, table.c.unit_price_pico]
    rows = conn.execute(
        select(*key, func.sum(table.c.quantity))
        .where(table.c.org_id == org_id, table.c.day_ms >= start_ms, table.c.day_ms < end_ms)
        .group_by(*key)
    )
    return [Total(*row[:5], int(row[5])) for row in rows]


def _totals_of_postings(conn: Connection, org_id: str, start_ms: int, end_ms: int) -> list[Total]:
    transactions, postings = ledger_transactions, ledger_postings
    key = [
        postings.c.sku,
        transactions.c.model_id,
        transactions.c.endpoint_id,
        postings.c.price_version,
        postings.c.unit_price_pico,
    ]
    rows = conn.execute(
        select(*key, func.sum(postings.c.quantity))
        .join(transactions, transactions.c.id == postings.c.transaction_id)
        .where(
            transactions.c.org_id == org_id,
            transactions.c.minute_ms >= start_ms,
            transactions.c.minute_ms < end_ms,
            postings.c.sku != "",
        )
        .group_by(*key)
    )
    return [Total(*row[:5], int(row[5])) for row in rows]


def contract_at(conn: Connection, org_id: str, at_ms: int) -> Contract | None:
    """The organization's contract at an instant."""
    table = contracts
    row = conn.execute(
        select(table)
        .where(table.c.org_id == org_id, table.c.starts_ms <= at_ms)
        .order_by(table.c.starts_ms.desc())
        .limit(1)
    ).first()
    if row is None or 0 < row.ends_ms <= at_ms:
        return None
    return Contract(*row)


def hold(conn: Connection, minute: ClosedMinute, skus: Sequence[str], reason: str, now_ms: int) -> None:
    """Keep quantities aside until they have a price."""
    conn.execute(
        insert(held_quantities),
        [
            {
                "minute_id": minute.id,
                "sku": sku,
                "kind": minute.kind,
                "org_id": minute.org_id,
                "project_id": minute.project_id,
                "key_id": minute.key_id,
                "endpoint_id": minute.endpoint_id,
                "model_id": minute.model_id,
                "minute_ms": minute.billing_minute_ms,
                "service_minute_ms": minute.service_minute_ms,
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
