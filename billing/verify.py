"""Walking an organization's chain: is the ledger what it was when each transaction was posted?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, select

from billing import chain
from billing.entries import LedgerTransaction, Posting
from billing.store import chain_head
from billing.tables import ledger_postings, ledger_transactions

_BATCH = 1000
MAX_FAULTS = 100
_EVERY = 2**62


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a walk found. `faults` are for people, at most `MAX_FAULTS`."""

    org_id: str
    transactions: int
    head: str
    faults: tuple[str, ...]


def verify_chain(
    conn: Connection, org_id: str, *, until_seq: int | None = None, until_hash: str | None = None
) -> ChainReport:
    """Recompute the chain, up to `until_seq`, whose hash must be `until_hash` (by default: to its recorded end).

    Every transaction must balance, follow the one before it, and have the hash that its content gives. Bounded
    memory: transactions are read in batches of 1,000.
    """
    end_seq, end_hash = chain_head(conn, org_id)
    if until_seq is not None:
        end_seq, end_hash = until_seq, until_hash or ""
    faults: list[str] = []
    seq, previous = 0, chain.GENESIS
    for row, transaction in _transactions(conn, org_id, until_seq or _EVERY):
        seq += 1
        if row.seq != seq:
            faults.append(f"transactions {seq} to {row.seq - 1} are missing before {row.id}")
            seq = row.seq
        if not transaction.postings:
            faults.append(f"{row.id}: has no postings")
        elif sum(posting.amount_pico for posting in transaction.postings):
            faults.append(f"{row.id}: does not sum to zero")
        if chain.link(previous, seq, transaction, row.posted_ms) != row.hash:
            faults.append(
                f"{row.id}: its content or what was before it is not what was posted (number {seq})"
            )
        previous = row.hash
        if len(faults) >= MAX_FAULTS:
            break
    else:
        if (seq, previous) != (end_seq, end_hash):
            faults.append(
                f"the chain ends at number {seq} with {previous[:16]}…, not at {end_seq} with {end_hash[:16]}…"
            )
    return ChainReport(org_id, seq, previous, tuple(faults))


def _transactions(
    conn: Connection, org_id: str, end_seq: int
) -> Iterator[tuple[Row[Any], LedgerTransaction]]:
    table, after = ledger_transactions, 0
    while True:
        rows = conn.execute(
            select(table)
            .where(table.c.org_id == org_id, table.c.seq > after, table.c.seq <= end_seq)
            .order_by(table.c.seq)
            .limit(_BATCH)
        ).all()
        if not rows:
            return
        postings = _postings(conn, [row.id for row in rows])
        for row in rows:
            yield row, _transaction(row, postings.get(row.id, ()))
        after = rows[-1].seq


def _postings(conn: Connection, ids: Sequence[str]) -> dict[str, tuple[Posting, ...]]:
    table = ledger_postings
    found: dict[str, tuple[Posting, ...]] = {}
    for start in range(0, len(ids), 500):
        rows = conn.execute(
            select(table)
            .where(table.c.transaction_id.in_(ids[start : start + 500]))
            .order_by(table.c.transaction_id, table.c.line)
        )
        for transaction_id, group in groupby(rows, key=lambda row: str(row.transaction_id)):
            found[transaction_id] = tuple(
                Posting(p.account, p.sku, p.quantity, p.unit_price_pico, p.price_version, p.amount_pico)
                for p in group
            )
    return found


class _Unchecked(LedgerTransaction):
    """As it is in the database, balanced or not."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """What is wrong with it is reported, not raised."""


def _transaction(row: Row[Any], postings: tuple[Posting, ...]) -> LedgerTransaction:
    return _Unchecked(
        row.id,
        row.kind,
        row.org_id,
        row.minute_ms,
        postings,
        row.project_id,
        row.key_id,
        row.endpoint_id,
        row.model_id,
        row.service_minute_ms,
    )
