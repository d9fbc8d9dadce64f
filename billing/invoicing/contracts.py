"""Contracts: what was agreed with an organization by the month. Immutable but for their end."""

from sqlalchemy import Connection, insert, select, update

from billing import store
from billing.invoicing.store import period_invoices
from billing.model import Contract
from billing.tables import contracts
from core.clock import iso, month_bounds
from core.errors import Conflict, Invalid, NotFound
from core.ids import new_id
from metering.store import first_open_minute

_NEVER = 2**62


def make_contract(
    conn: Connection,
    org_id: str,
    *,
    starts_ms: int,
    ends_ms: int,
    discount_bp: int,
    minimum_pico: int,
    now_ms: int,
) -> Contract:
    """A contract of whole UTC months from one that is not closed or invoiced yet; `ends_ms` 0: no end."""
    for name, at_ms in (("starts", starts_ms), ("ends", ends_ms)):
        if at_ms and month_bounds(at_ms)[0] != at_ms:
            raise Invalid(f"{name}: expected the beginning of a UTC month", param=name)
    if ends_ms and ends_ms <= starts_ms:
        raise Invalid("ends: expected a month after the first one", param="ends")
    if not 0 <= discount_bp <= 10_000:
        raise Invalid("discount_percent: expected 0 to 100", param="discount_percent")
    if not discount_bp and not minimum_pico:
        raise Invalid("discount_percent: a contract needs a discount or a minimum", param="discount_percent")
    store.lock_heads(conn, [org_id])
    _check_month(conn, org_id, starts_ms, "starts")
    for other in list_contracts(conn, org_id):
        if other.starts_ms < (ends_ms or _NEVER) and starts_ms < (other.ends_ms or _NEVER):
            raise Conflict(
                f"starts: contract {other.id} from {iso(other.starts_ms)[:7]} on holds in these months; end it first",
                param="starts",
            )
    made = Contract(new_id("contract", now_ms), org_id, starts_ms, ends_ms, discount_bp, minimum_pico, now_ms)
    conn.execute(
        insert(contracts).values(
            id=made.id,
            org_id=org_id,
            starts_ms=starts_ms,
            ends_ms=ends_ms,
            discount_bp=discount_bp,
            minimum_pico=minimum_pico,
            created_ms=now_ms,
        )
    )
    return made


def end_contract(conn: Connection, contract_id: str, ends_ms: int) -> Contract:
    """The contract holds until the month that begins at `ends_ms`; that of its start: it never holds."""
    found = find_contract(conn, contract_id)
    store.lock_heads(conn, [found.org_id])
    found = find_contract(conn, contract_id)
    if month_bounds(ends_ms)[0] != ends_ms or ends_ms < found.starts_ms:
        raise Invalid("ends: expected the beginning of a UTC month of the contract or after it", param="ends")
    if found.ends_ms and ends_ms > found.ends_ms:
        raise Invalid(f"ends: it ends already before {iso(found.ends_ms)[:7]}", param="ends")
    _check_month(conn, found.org_id, ends_ms, "ends")
    conn.execute(update(contracts).where(contracts.c.id == contract_id).values(ends_ms=ends_ms))
    return find_contract(conn, contract_id)


def _check_month(conn: Connection, org_id: str, month_ms: int, name: str) -> None:
    """A month that is over, or has an invoice already, keeps the terms that it had."""
    start_ms, end_ms = month_bounds(month_ms)
    if end_ms <= first_open_minute(conn):
        raise Conflict(f"{name}: {iso(start_ms)[:7]} is closed; its terms stay what they were", param=name)
    if any(each.state != "void" for each in period_invoices(conn, org_id, start_ms, end_ms)):
        raise Conflict(f"{name}: {iso(start_ms)[:7]} has an invoice already", param=name)


def find_contract(conn: Connection, contract_id: str) -> Contract:
    """The contract with that id; NotFound when there is none."""
    row = conn.execute(select(contracts).where(contracts.c.id == contract_id)).first()
    if row is None:
        raise NotFound(
            f"there is no contract {contract_id!r}; see `farebox contract list`", param="contract_id"
        )
    return Contract(*row)


def list_contracts(
    conn: Connection, org_id: str | None = None, *, limit: int = 1000, after: str = ""
) -> list[Contract]:
    """In order of creation: one organization's, or all (for the operator)."""
    query = select(contracts).where(contracts.c.id > after).order_by(contracts.c.id).limit(limit)
    if org_id is not None:
        query = query.where(contracts.c.org_id == org_id)
    return [Contract(*row) for row in conn.execute(query)]
