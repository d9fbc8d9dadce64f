"""Is on the ledger what the events say, each minute once? Compares posting by posting, and explains what it can."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from sqlalchemy import Connection, Row, select

from billing.entries import CHARGE_KINDS
from billing.tables import held_quantities, ledger_postings, ledger_transactions
from metering.recount import BATCH, Fact, Finding, minute_quantities

_CHUNK = 200  # organizations, ids in one query
MAX_FINDINGS = 1000  # in one slice; what is beyond is counted by the last of them

EndpointFinding = tuple[str, int, Finding]  # endpoint, minute, finding


@dataclass(slots=True)
class Posted:
    """One transaction of the ledger."""

    kind: str
    org_id: str
    endpoint_id: str
    minute_ms: int
    quantities: dict[str, int] = field(default_factory=dict)
    sum_pico: int = 0
    wrong: bool = False  # an amount is not quantity × unit price


@dataclass(frozen=True, slots=True)
class LedgerSlice:
    """What is on the ledger for some minutes: transactions by id, and how that differs from the facts."""

    posted: Mapping[str, Posted]
    findings: Sequence[EndpointFinding]


def check_ledger(
    conn: Connection, start_ms: int, end_ms: int, facts: Sequence[Fact], org_ids: Sequence[str]
) -> LedgerSlice:
    """The charges of minutes in [start, end) against the facts of the same minutes."""
    orgs = sorted({*org_ids, *(fact.org_id for fact in facts)})
    posted = _posted(conn, start_ms, end_ms, orgs)
    held = _held(conn, [fact.id for fact in facts if fact.closed])
    findings = [*_unbalanced(posted)]
    known: set[str] = set()
    lacking: list[tuple[Fact, str, int]] = []
    for fact in facts:
        known.add(fact.id)
        transaction = posted.get(fact.id) if fact.id else None
        findings += _place_differs(fact, transaction)
        on_ledger = transaction.quantities if transaction else {}
        for sku in sorted({*fact.quantities, *on_ledger}):
            wanted, has = fact.quantities.get(sku, 0), on_ledger.get(sku, 0)
            kept = held.get((fact.id, sku), 0)
            if not fact.closed:
                findings += _of_open(fact, sku, wanted, has)
            elif wanted != has and kept:
                findings.append(_finding(fact, "held", True, "held until there is a price", sku, kept))
                has += kept
            if fact.closed and wanted != has:
                lacking.append((fact, sku, wanted - has))
    findings += _adjusted(conn, lacking)
    findings += _strangers(conn, posted, known)
    return LedgerSlice(posted, findings[:MAX_FINDINGS])


def _posted(conn: Connection, start_ms: int, end_ms: int, org_ids: Sequence[str]) -> dict[str, Posted]:
    found: dict[str, Posted] = {}
    table = ledger_transactions
    for start in range(0, len(org_ids), _CHUNK):
        query = _with_postings().where(
            table.c.org_id.in_(org_ids[start : start + _CHUNK]),
            table.c.minute_ms >= start_ms,
            table.c.minute_ms < end_ms,
            table.c.kind.in_(CHARGE_KINDS),
        )
        for row in conn.execute(query.execution_options(yield_per=BATCH)):
            _take(found, row)
    return found


def _with_postings() -> Any:
    t, p = ledger_transactions, ledger_postings
    columns = (t.c.id, t.c.kind, t.c.org_id, t.c.endpoint_id, t.c.minute_ms)
    return select(*columns, p.c.sku, p.c.quantity, p.c.unit_price_pico, p.c.amount_pico).outerjoin(
        p, p.c.transaction_id == t.c.id
    )


def _take(found: dict[str, Posted], row: Row[Any]) -> None:
    each = found.setdefault(row.id, Posted(row.kind, row.org_id, row.endpoint_id, row.minute_ms))
    if row.amount_pico is None:  # a transaction without postings
        return
    each.sum_pico += row.amount_pico
    if row.sku:
        each.quantities[row.sku] = each.quantities.get(row.sku, 0) + row.quantity
        each.wrong |= row.amount_pico != -row.quantity * row.unit_price_pico


def _held(conn: Connection, minute_ids: Sequence[str]) -> dict[tuple[str, str], int]:
    table = held_quantities
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(minute_ids), _CHUNK):
        query = select(table.c.minute_id, table.c.sku, table.c.quantity).where(
            table.c.minute_id.in_(minute_ids[start : start + _CHUNK])
        )
        found.update({(row[0], row[1]): row[2] for row in conn.execute(query)})
    return found


def _unbalanced(posted: Mapping[str, Posted]) -> Iterator[EndpointFinding]:
    for transaction_id, each in posted.items():
        if each.sum_pico or each.wrong:
            text = (
                "a transaction does not sum to zero" if each.sum_pico else "an amount is not quantity × price"
            )
            found = Finding("unbalanced", False, text, ids=(transaction_id,))
            yield each.endpoint_id, each.minute_ms, found


def _place_differs(fact: Fact, transaction: Posted | None) -> Iterator[EndpointFinding]:
    if transaction is None:
        return
    there = (transaction.org_id, transaction.endpoint_id, transaction.minute_ms)
    if there != (fact.org_id, fact.endpoint_id, fact.billing_minute_ms):
        text = f"posted for {there[0]}, {there[1]} instead of {fact.org_id}, {fact.endpoint_id}"
        yield _finding(fact, "posted_elsewhere", False, text, "", 0)


def _of_open(fact: Fact, sku: str, wanted: int, has: int) -> Iterator[EndpointFinding]:
    if wanted:
        yield _finding(fact, "open", True, "the minute is not closed yet", sku, wanted)
    if has:
        yield _finding(fact, "posted_open", False, "posted although the minute is open", sku, -has)


def _adjusted(conn: Connection, lacking: Sequence[tuple[Fact, str, int]]) -> Iterator[EndpointFinding]:
    """What a minute lacks may have been held, and posted later under an id that is made of the minute's."""
    later = _by_id(
        conn, [i for fact, sku, missing in lacking if missing > 0 for i in _adjustment_ids(fact, sku)]
    )
    for fact, sku, missing in lacking:
        for candidate in _adjustment_ids(fact, sku) if missing > 0 else ():
            found = later.get(candidate)
            if found is not None and found.quantities.get(sku):
                quantity = found.quantities[sku]
                yield _finding(fact, "adjusted", True, f"posted later as {candidate}", sku, quantity)
                missing -= quantity
        if missing > 0:
            yield _finding(fact, "not_posted", False, "events that are not on the ledger", sku, missing)
        elif missing < 0:
            text = "more on the ledger than its events say"
            yield _finding(fact, "posted_too_much", False, text, sku, missing)


def _adjustment_ids(fact: Fact, sku: str) -> Iterator[str]:
    skus = sorted(name for name, quantity in fact.quantities.items() if quantity)
    for size in range(1, len(skus) + 1):
        for chosen in combinations(skus, size):
            if sku in chosen:
                yield f"{fact.id}/{'+'.join(chosen)}"


def _by_id(conn: Connection, ids: Sequence[str]) -> dict[str, Posted]:
    found: dict[str, Posted] = {}
    for start in range(0, len(ids), _CHUNK):
        query = _with_postings().where(ledger_transactions.c.id.in_(ids[start : start + _CHUNK]))
        for row in conn.execute(query):
            _take(found, row)
    return found


def _strangers(conn: Connection, posted: Mapping[str, Posted], known: set[str]) -> Iterator[EndpointFinding]:
    """Transactions that are of no minute here: adjustments of earlier ones, or doubles, or inventions."""
    strangers = {i: each for i, each in posted.items() if i not in known}
    bases = {i: i.rpartition("/")[0] for i, each in strangers.items() if each.kind == "adjustment"}
    originals = _by_id(conn, sorted(set(bases.values())))
    minutes = minute_quantities(conn, sorted(set(bases.values())))
    for transaction_id, each in strangers.items():
        base = bases.get(transaction_id, "")
        posted_before = originals[base].quantities if base in originals else {}
        for sku, quantity in each.quantities.items():
            if sku not in posted_before and minutes.get(base, {}).get(sku) == quantity:
                text = "posted here for an earlier minute, which had no price then"
                found = Finding("adjustment", True, text, sku, -quantity, 1, (transaction_id,))
            else:
                text = "on the ledger without a minute that it is for"
                found = Finding("posted_without_usage", False, text, sku, -quantity, 1, (transaction_id,))
            yield each.endpoint_id, each.minute_ms, found


def _finding(fact: Fact, kind: str, explained: bool, detail: str, sku: str, quantity: int) -> EndpointFinding:
    ids = (fact.id, *fact.ids) if fact.id else fact.ids
    return fact.endpoint_id, fact.billing_minute_ms, Finding(kind, explained, detail, sku, quantity, 1, ids)
