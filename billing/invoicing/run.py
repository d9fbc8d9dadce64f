"""What the invoicer does each time it looks: months that are over, thresholds, credit that expired.

Safe at any time, any number of times, from several processes. A month is looked at until all organizations have its
invoice; from then on only invoices that a person asks for are made of it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, func, select, update

from billing import store
from billing.invoicing import credit
from billing.invoicing.issue import Issuer, invoice_period
from billing.invoicing.model import Invoice, Profile
from billing.invoicing.periods import Span, months, uncovered
from billing.invoicing.store import period_invoices, threshold_profiles
from billing.preview import closed_lines
from billing.tables import contracts, ledger_days
from core.clock import month_bounds
from core.database import Database
from core.log import get_logger
from metering.store import first_open_minute, insert_ignoring
from metering.tables import metering_state

_log = get_logger(__name__)
INVOICED_UNTIL = "invoiced_until"
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run did."""

    invoices: tuple[Invoice, ...]
    expired_grants: int


def run_invoicer(db: Database, issuer: Issuer, now_ms: int, *, automatic: bool = True) -> Outcome:
    """Everything that is due. Not `automatic`: months get drafts, for a person to finalize; no thresholds."""
    made = list(_close_months(db, issuer, now_ms, automatic))
    if automatic:
        made += _reach_thresholds(db, issuer, now_ms)
    return Outcome(tuple(made), _expire(db, now_ms))


def _close_months(db: Database, issuer: Issuer, now_ms: int, automatic: bool) -> Iterator[Invoice]:
    with db.read() as conn:
        since, until = invoiced_until(conn), month_bounds(first_open_minute(conn))[0]
        since = since or first_charge(conn, until)
    for month in months(since, until):
        with db.read() as conn:
            orgs = organizations_of(conn, month)
        for org_id in orgs:
            with db.begin() as conn:
                yield from invoice_period(
                    conn, issuer, org_id, month, now_ms, finalized=automatic, again=False
                )
        with db.begin() as conn:
            _set_invoiced_until(conn, month[1])


def organizations_of(conn: Connection, month: Span) -> list[str]:
    """Those with charges in a month, or a contract with a minimum."""
    days = ledger_days
    charged = conn.execute(
        select(days.c.org_id).where(days.c.day_ms >= month[0], days.c.day_ms < month[1]).distinct()
    ).scalars()
    found = set(charged)
    for row in conn.execute(select(contracts).where(contracts.c.starts_ms <= month[0])):
        contract = store.contract_at(conn, row.org_id, month[0])
        if contract is not None and contract.minimum_pico > 0:
            found.add(row.org_id)
    return sorted(found)


def invoiced_until(conn: Connection) -> int:
    """Months before this instant were looked at for every organization; 0: none was."""
    table = metering_state
    return conn.execute(select(table.c.value).where(table.c.name == INVOICED_UNTIL)).scalar() or 0


def _set_invoiced_until(conn: Connection, at_ms: int) -> None:
    table = metering_state
    insert_ignoring(conn, table, [{"name": INVOICED_UNTIL, "value": 0}])
    conn.execute(
        update(table).where(table.c.name == INVOICED_UNTIL, table.c.value < at_ms).values(value=at_ms)
    )


def first_charge(conn: Connection, until: int) -> int:
    """The first day of anybody's charges, or month of a contract; `until` when there is none."""
    firsts = [
        conn.execute(select(func.min(column))).scalar()
        for column in (ledger_days.c.day_ms, contracts.c.starts_ms)
    ]
    return min([first for first in firsts if first is not None], default=until)


def _reach_thresholds(db: Database, issuer: Issuer, now_ms: int) -> list[Invoice]:
    with db.read() as conn:
        profiles = threshold_profiles(conn)
        open_ms = first_open_minute(conn)
    month = month_bounds(open_ms)
    made: list[Invoice] = []
    for profile in profiles:
        with db.read() as conn:
            span = _open_part(conn, profile, month, open_ms)
            reached = span is not None and _reached(conn, profile, span, issuer)
        if span is not None and reached:
            with db.begin() as conn:
                made += invoice_period(
                    conn, issuer, profile.org_id, span, now_ms, kind="threshold", again=False
                )
    return made


def _open_part(conn: Connection, profile: Profile, month: Span, open_ms: int) -> Span | None:
    """From the month's last invoice to the first open minute, which must lie within the month."""
    living = [i for i in period_invoices(conn, profile.org_id, *month) if i.state != "void"]
    parts = (
        uncovered(month[0], open_ms, [(i.start_ms, i.end_ms) for i in living]) if open_ms > month[0] else []
    )
    return parts[-1] if parts and parts[-1][1] == open_ms else None


def _reached(conn: Connection, profile: Profile, span: Span, issuer: Issuer) -> bool:
    # Whole days are cheap to add up and hold at least as much, so most of the time they are enough.
    first_day = span[0] - span[0] % _DAY_MS
    if _charged(conn, profile.org_id, (first_day, month_bounds(span[0])[1])) < profile.threshold_pico:
        return False
    lines = closed_lines(conn, profile.org_id, *span, issuer.book)
    return sum(line.amount_pico for line in lines) >= profile.threshold_pico


def _charged(conn: Connection, org_id: str, span: Span) -> int:
    totals = store.posted_totals(conn, org_id, *span)
    return sum(total.quantity * total.unit_price_pico for total in totals)


def _expire(db: Database, now_ms: int) -> int:
    """Write expired credit off, once everything that it could pay for is invoiced."""
    with db.read() as conn:
        until = invoiced_until(conn)
        due = [g for g in credit.expired_grants(conn, now_ms) if month_bounds(g.expires_ms - 1)[1] <= until]
        due = [grant for grant in due if not _waiting(conn, grant.org_id, grant.expires_ms)]
    count = 0
    for grant in due:
        with db.begin() as conn:
            count += bool(credit.expire(conn, grant, now_ms))
    return count


def _waiting(conn: Connection, org_id: str, before_ms: int) -> bool:
    """Whether a draft, or the period of a void invoice, before that time is still to be invoiced."""
    found = period_invoices(conn, org_id, 0, before_ms)
    living = [(i.start_ms, i.end_ms) for i in found if i.state not in ("void", "draft")]
    return any(uncovered(i.start_ms, i.end_ms, living) for i in found if i.state in ("void", "draft"))


def unfinished(conn: Connection, org_id: str, spans: Iterable[Span]) -> list[Span]:
    """Of these closed months: what has charges and no finalized invoice."""
    found: list[Span] = []
    for month in spans:
        invoices = period_invoices(conn, org_id, *month)
        final = [(i.start_ms, i.end_ms) for i in invoices if i.state in ("finalized", "paid")]
        found += [part for part in uncovered(*month, final) if store.posted_totals(conn, org_id, *part)]
    return found
