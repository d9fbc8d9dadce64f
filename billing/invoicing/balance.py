"""What an organization's credit stands at, with what usage that is not invoiced yet will take of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection

from billing.invoicing import credit
from billing.invoicing.model import Grant
from billing.invoicing.periods import Span, months, uncovered
from billing.invoicing.run import first_charge, invoiced_until
from billing.invoicing.spend import Segment, Share, boundaries, spend
from billing.invoicing.store import period_invoices
from billing.model import Line, PriceBook
from billing.preview import invoice_preview
from core.clock import month_bounds
from core.money import PICO_PER_CENT


@dataclass(frozen=True, slots=True)
class GrantBalance:
    """A grant: `amount = spent + reserved + available + gone` (expired or taken back)."""

    grant: Grant
    spent_pico: int  # on invoices
    reserved_pico: int  # by usage that is not invoiced yet, as its invoice would be now

    @property
    def available_pico(self) -> int:
        return self.grant.left_pico - self.reserved_pico


def credit_balance(
    conn: Connection, org_id: str, now_ms: int, book: PriceBook, *, limit: int = 1000
) -> list[GrantBalance]:
    """Every grant of an organization with its balance. `conn` reads one snapshot."""
    grants = credit.list_grants(conn, org_id=org_id, limit=limit)
    spent = credit.spent_on_invoices(conn, org_id)
    reserved = _reserved(conn, org_id, [g for g in grants if g.left_pico > 0], now_ms, book)
    return [GrantBalance(g, spent.get(g.id, 0), reserved.get(g.id, 0)) for g in grants]


def _reserved(
    conn: Connection, org_id: str, grants: Sequence[Grant], now_ms: int, book: PriceBook
) -> dict[str, int]:
    left = {grant.id: grant for grant in grants}
    taken: dict[str, int] = {}
    for span in _not_invoiced(conn, org_id, now_ms):
        usable = [
            g for g in left.values() if g.starts_ms < span[1] and (not g.expires_ms or g.expires_ms > span[0])
        ]
        if not usable:
            continue
        lines = invoice_preview(conn, org_id, *span, now_ms, book).lines
        pieces = boundaries(span, usable)
        segments = [
            Segment(
                piece,
                _charged(invoice_preview(conn, org_id, *piece, now_ms, book).lines) if pieces[1:] else {},
            )
            for piece in pieces
        ]
        for use in spend(lines, usable, segments):
            amount = use.cents * PICO_PER_CENT
            taken[use.grant.id] = taken.get(use.grant.id, 0) + amount
            left[use.grant.id] = replace(use.grant, left_pico=use.grant.left_pico - amount)
    return taken


def _not_invoiced(conn: Connection, org_id: str, now_ms: int) -> list[Span]:
    """What of the months that the invoicer has not done, and of void invoices and drafts, is not final."""
    month = month_bounds(now_ms)
    since = invoiced_until(conn)
    spans: list[Span] = []
    first = period_invoices(conn, org_id, 0, since)
    final = [(i.start_ms, i.end_ms) for i in first if i.state in ("finalized", "paid")]
    for i in first:
        if i.state in ("void", "draft"):
            spans += [part for part in uncovered(i.start_ms, i.end_ms, final) if part not in spans]
    for each in months(since or first_charge(conn, month[0]), month[1]):
        made = period_invoices(conn, org_id, *each)
        spans += uncovered(*each, [(i.start_ms, i.end_ms) for i in made if i.state in ("finalized", "paid")])
    return sorted(spans)


def _charged(lines: Sequence[Line]) -> dict[Share, int]:
    sums: dict[Share, int] = {}
    for line in lines:
        if line.kind == "charge":
            sums[line.sku, line.model_id] = sums.get((line.sku, line.model_id), 0) + line.amount_pico
    return sums
