"""SQL of credit: grants, what invoices took of them, what expired. The caller holds the organization's lock.

Every change is a transaction of the ledger: `credit:{org}` is, negated, what is left of all grants together.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from billing import store
from billing.entries import transfer
from billing.invoicing.model import CreditScope, Grant, GrantKind
from billing.invoicing.periods import Span
from billing.invoicing.spend import Segment, Share, Use, boundaries
from billing.tables import credit_grants, credit_uses, invoices
from core.clock import minute_floor
from core.errors import Conflict, Invalid, NotFound
from core.ids import new_id
from core.money import PICO_PER_CENT, format_pico

MAX_GRANTS = 1000  # of one organization that have credit left
MAX_SCOPE = 50
MAX_CENTS = 10**11  # a billion dollars
_FUNDS: Mapping[GrantKind, str] = {"prepaid": "cash", "promotional": "promotion"}
_WRITTEN_OFF: Mapping[GrantKind, str] = {"prepaid": "revenue:breakage", "promotional": "promotion"}


@dataclass(frozen=True, slots=True)
class NewGrant:
    """A credit as it is asked for."""

    org_id: str
    kind: GrantKind
    amount_cents: int
    priority: int = 50
    scope: CreditScope = field(default_factory=CreditScope)
    starts_ms: int = 0
    expires_ms: int = 0
    note: str = ""


def grant_credit(conn: Connection, wanted: NewGrant, now_ms: int) -> Grant:
    """Give an organization credit. Invalid, naming the field, for one that could never be spent."""
    _check(wanted, now_ms)
    store.lock_heads(conn, [wanted.org_id])
    if len(usable_grants(conn, wanted.org_id)) >= MAX_GRANTS:
        raise Conflict(
            f"the organization has {MAX_GRANTS} credits with something left; use or void some first"
        )
    return add_grant(conn, wanted, now_ms, funded_by=_FUNDS[wanted.kind])


def add_grant(conn: Connection, wanted: NewGrant, now_ms: int, *, funded_by: str, source: str = "") -> Grant:
    """The grant and its entry: `credit:{org}` against the account `funded_by`."""
    amount = wanted.amount_cents * PICO_PER_CENT
    made = Grant(
        new_id("credit", now_ms),
        wanted.org_id,
        wanted.kind,
        amount,
        amount,
        wanted.priority,
        wanted.scope,
        wanted.starts_ms,
        wanted.expires_ms,
        0,
        0,
        wanted.note,
        now_ms,
        source,
    )
    values = {each.name: getattr(made, each.name) for each in fields(Grant)}
    scope = {name: list(names) for name, names in asdict(made.scope).items() if names}
    conn.execute(insert(credit_grants).values(**values | {"scope": json.dumps(scope)}))
    amounts = {funded_by: amount, f"credit:{made.org_id}": -amount}
    entry = transfer(f"credit/{made.id}", "credit_grant", made.org_id, minute_floor(now_ms), amounts)
    store.insert_transactions(conn, [entry], now_ms)
    return made


def _check(wanted: NewGrant, now_ms: int) -> None:
    if not 1 <= wanted.amount_cents <= MAX_CENTS:
        raise Invalid("amount_usd: expected 0.01 to a billion dollars", param="amount_usd")
    if not 0 <= wanted.priority <= 100:
        raise Invalid("priority: expected 0 (spent first) to 100", param="priority")
    for name, names in asdict(wanted.scope).items():
        if len(names) > MAX_SCOPE:
            raise Invalid(f"{name}: expected at most {MAX_SCOPE}", param=name)
    if wanted.expires_ms and wanted.expires_ms <= now_ms:
        raise Invalid(
            "expires_at: that is past; a credit that is expired pays for nothing", param="expires_at"
        )
    if wanted.expires_ms and wanted.expires_ms <= wanted.starts_ms:
        raise Invalid("expires_at: expected a time after starts_at", param="expires_at")
    if wanted.starts_ms % 60_000 or wanted.expires_ms % 60_000:
        raise Invalid(
            "starts_at, expires_at: expected full minutes, as usage is billed by the minute",
            param="starts_at",
        )


def find_grant(conn: Connection, grant_id: str) -> Grant:
    """The grant with that id; NotFound when there is none."""
    row = conn.execute(select(credit_grants).where(credit_grants.c.id == grant_id)).first()
    if row is None:
        raise NotFound(f"there is no credit {grant_id!r}; see `farebox credit list`", param="credit_id")
    return _grant(row)


def list_grants(
    conn: Connection, *, org_id: str | None = None, limit: int = 50, after: str = ""
) -> list[Grant]:
    """In order of creation: one organization's, or all (for the operator)."""
    table = credit_grants
    query = select(table).where(table.c.id > after).order_by(table.c.id).limit(limit)
    if org_id is not None:
        query = query.where(table.c.org_id == org_id)
    return [_grant(row) for row in conn.execute(query)]


def usable_grants(conn: Connection, org_id: str, start_ms: int = 0, end_ms: int = 2**62) -> list[Grant]:
    """Grants with something left that pay for usage in [start, end)."""
    table = credit_grants
    rows = conn.execute(
        select(table).where(
            table.c.org_id == org_id,
            table.c.voided_ms == 0,
            table.c.expired_ms == 0,
            table.c.starts_ms < end_ms,
        )
    )
    found = [_grant(row) for row in rows]
    return [g for g in found if g.left_pico > 0 and (not g.expires_ms or g.expires_ms > start_ms)]


def segments_of(conn: Connection, org_id: str, span: Span, grants: Sequence[Grant]) -> list[Segment]:
    """A closed period cut where grants begin and end; one piece needs no figures."""
    spans = boundaries(span, grants)
    if len(spans) == 1:
        return [Segment(span, {})]
    return [Segment(each, _charged(conn, org_id, each)) for each in spans]


def _charged(conn: Connection, org_id: str, span: Span) -> dict[Share, int]:
    sums: dict[Share, int] = {}
    for total in store.posted_totals(conn, org_id, *span):
        share = (total.sku, total.model_id)
        sums[share] = sums.get(share, 0) + total.quantity * total.unit_price_pico
    return sums


def take(conn: Connection, invoice_id: str, uses: Sequence[Use], now_ms: int) -> None:
    """The invoice takes this; the entry is part of the invoice's."""
    for use in uses:
        amount = use.cents * PICO_PER_CENT
        assert 0 < amount <= use.grant.left_pico
        _set_left(conn, use.grant.id, use.grant.left_pico - amount)
        conn.execute(
            insert(credit_uses).values(
                invoice_id=invoice_id,
                grant_id=use.grant.id,
                org_id=use.grant.org_id,
                amount_pico=amount,
                used_ms=now_ms,
            )
        )


def give_back(conn: Connection, invoice_id: str) -> None:
    """The invoice is void: what it took is there again, also of a grant that was void or expired since."""
    rows = conn.execute(select(credit_uses).where(credit_uses.c.invoice_id == invoice_id)).all()
    for row in rows:
        _set_left(
            conn,
            row.grant_id,
            find_grant(conn, row.grant_id).left_pico + row.amount_pico,
            expired_ms=0,
            voided_ms=0,
        )


def void_grant(conn: Connection, grant_id: str, now_ms: int) -> Grant:
    """Take back what is left: of a prepaid one the money is paid back, of a promotional one it never was any."""
    found = find_grant(conn, grant_id)
    store.lock_heads(conn, [found.org_id])
    found = find_grant(conn, grant_id)
    if found.voided_ms:
        raise Conflict(f"credit {grant_id} is void already", code="credit_state")
    if found.left_pico <= 0:
        why = "it has expired" if found.expired_ms else "invoices took all of it"
        raise Conflict(f"credit {grant_id}: nothing is left to take back: {why}", code="credit_state")
    _write_off(conn, found, "void", _FUNDS[found.kind], now_ms)
    _set_left(conn, grant_id, 0, voided_ms=now_ms)
    return find_grant(conn, grant_id)


def expire(conn: Connection, grant: Grant, now_ms: int) -> int:
    """Write off what is left of a grant whose time is over; returns how much. Harmless when it is done already."""
    store.lock_heads(conn, [grant.org_id])
    found = find_grant(conn, grant.id)
    if found.left_pico <= 0 or found.expired_ms or found.voided_ms or not 0 < found.expires_ms <= now_ms:
        return 0
    _write_off(conn, found, "credit_expiry", _WRITTEN_OFF[found.kind], now_ms)
    _set_left(conn, found.id, 0, expired_ms=now_ms)
    return found.left_pico


def expired_grants(conn: Connection, now_ms: int, limit: int = MAX_GRANTS) -> list[Grant]:
    """Grants whose time is over and that have something left."""
    table = credit_grants
    rows = conn.execute(
        select(table)
        .where(
            table.c.expires_ms > 0,
            table.c.expires_ms <= now_ms,
            table.c.expired_ms == 0,
            table.c.voided_ms == 0,
            table.c.left_pico != 0,
        )
        .order_by(table.c.expires_ms, table.c.id)
        .limit(limit)
    )
    return [_grant(row) for row in rows]


def spent_on_invoices(conn: Connection, org_id: str) -> dict[str, int]:
    """By grant: what invoices that are not void took."""
    query = (
        select(credit_uses.c.grant_id, credit_uses.c.amount_pico)
        .join(invoices, invoices.c.id == credit_uses.c.invoice_id)
        .where(credit_uses.c.org_id == org_id, invoices.c.state != "void")
    )
    sums: dict[str, int] = {}
    for row in conn.execute(query):
        sums[row.grant_id] = sums.get(row.grant_id, 0) + row.amount_pico
    return sums


def grants_of(conn: Connection, source: str) -> list[Grant]:
    """Grants that came from an invoice or credit note."""
    rows = conn.execute(select(credit_grants).where(credit_grants.c.source == source))
    return [_grant(row) for row in rows]


def revoke_from_source(conn: Connection, source: str, now_ms: int) -> None:
    """Take back the credit that an invoice gave; Conflict when some of it is spent."""
    for grant in grants_of(conn, source):
        if grant.left_pico != grant.amount_pico:
            raise Conflict(
                f"credit {grant.id} of {format_pico(grant.amount_pico)} USD came from it and is spent in part",
                code="invoice_state",
            )
        _set_left(conn, grant.id, 0, voided_ms=now_ms)


def _write_off(conn: Connection, grant: Grant, kind: Any, account: str, now_ms: int) -> None:
    amounts = {f"credit:{grant.org_id}": grant.left_pico, account: -grant.left_pico}
    # Credit that a void invoice gave back may be written off a second time, so the id has the time.
    entry = transfer(f"{kind}/{grant.id}/{now_ms}", kind, grant.org_id, minute_floor(now_ms), amounts)
    store.insert_transactions(conn, [entry], now_ms)


def _set_left(conn: Connection, grant_id: str, left_pico: int, **values: int) -> None:
    assert left_pico >= 0
    table = credit_grants
    conn.execute(update(table).where(table.c.id == grant_id).values(left_pico=left_pico, **values))


def _grant(row: Row[Any]) -> Grant:
    scope = json.loads(row.scope)
    found = CreditScope(tuple(scope.get("models", ())), tuple(scope.get("skus", ())))
    return Grant(**dict(row._mapping) | {"scope": found})
