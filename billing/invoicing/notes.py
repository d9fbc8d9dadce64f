"""Credit notes: giving back what a finalized invoice asked for, partly or whole, never more than it."""

from collections.abc import Mapping

from sqlalchemy import Connection

from billing import store
from billing.entries import transfer
from billing.invoicing import credit
from billing.invoicing.issue import Issuer, lock_invoice
from billing.invoicing.model import CreditNote, Invoice, check_state
from billing.invoicing.notes_store import insert_note, notes_of
from billing.invoicing.settle import outstanding_cents
from billing.invoicing.store import lines_of, next_number, set_state
from billing.payments import outbox
from billing.tables import credit_note_numbers
from core.clock import minute_floor
from core.errors import Invalid
from core.ids import new_id
from core.money import PICO_PER_CENT, format_cents

MAX_REASON = 500


def make_note(
    conn: Connection,
    issuer: Issuer,
    invoice_id: str,
    *,
    reason: str,
    now_ms: int,
    amount_cents: int | None = None,
    lines: Mapping[int, int | None] | None = None,
    as_credit: bool = False,
) -> CreditNote:
    """A credit note of an amount, of some lines (None: all of the line), or (neither) of what is left of the invoice.

    As credit for later invoices, or else off what is due; of a paid invoice it is money to be paid back by hand.
    """
    invoice = lock_invoice(conn, invoice_id)
    check_state(invoice, ["finalized", "paid"], "credited")
    if not reason.strip() or len(reason) > MAX_REASON:
        raise Invalid(f"reason: expected 1 to {MAX_REASON} characters", param="reason")
    if amount_cents is not None and lines:
        raise Invalid("amount_usd: give an amount or lines, not both", param="amount_usd")
    earlier = notes_of(conn, invoice.id)
    left = invoice.total_cents - sum(note.amount_cents for note in earlier)
    chosen = _of_lines(conn, invoice, lines, earlier) if lines else ()
    amount = sum(cents for _, cents in chosen) if chosen else left if amount_cents is None else amount_cents
    _check_amount(conn, invoice, amount, left, as_credit)
    year, number = next_number(conn, credit_note_numbers, now_ms)
    note = CreditNote(
        new_id("cn", now_ms),
        invoice.org_id,
        invoice.id,
        f"{issuer.prefix}-CN-{year}-{number:06d}",
        reason,
        amount,
        as_credit,
        now_ms,
        chosen,
    )
    insert_note(conn, note)
    _post(conn, invoice, note, now_ms)
    outbox.note_made(conn, note, now_ms)
    return note


def _of_lines(
    conn: Connection, invoice: Invoice, wanted: Mapping[int, int | None], earlier: list[CreditNote]
) -> tuple[tuple[int, int], ...]:
    rows = {row.line: row for row in lines_of(conn, invoice.id) if row.kind != "credit"}
    given: dict[int, int] = {}
    for note in earlier:
        for line, cents in note.lines:
            given[line] = given.get(line, 0) + cents
    chosen = []
    for line, wanted_cents in sorted(wanted.items()):
        if line not in rows:
            raise Invalid(f"lines: invoice {invoice.number} has no line {line} to give back", param="lines")
        left = rows[line].amount_cents - given.get(line, 0)
        cents = left if wanted_cents is None else wanted_cents
        if not 0 < cents <= left:
            raise Invalid(
                f"lines: of line {line} {format_cents(max(left, 0))} can be given back, got {format_cents(cents)}",
                param="lines",
            )
        chosen.append((line, cents))
    return tuple(chosen)


def _check_amount(conn: Connection, invoice: Invoice, amount: int, left: int, as_credit: bool) -> None:
    if not 0 < amount <= left:
        raise Invalid(
            f"amount_usd: of invoice {invoice.number} {format_cents(max(left, 0))} can be given back, "
            f"got {format_cents(amount)}",
            param="amount_usd",
        )
    if as_credit:
        return
    if invoice.state == "finalized":
        limit, why = outstanding_cents(conn, invoice), "is due"
    else:
        paid_back = sum(note.amount_cents for note in notes_of(conn, invoice.id) if not note.as_credit)
        limit, why = invoice.due_cents - paid_back, "was paid in money and not given back"
    if amount > limit:
        raise Invalid(
            f"amount_usd: only {format_cents(limit)} {why} on invoice {invoice.number}; the rest was paid with credit: "
            "give it back as credit",
            param="amount_usd",
        )


def _post(conn: Connection, invoice: Invoice, note: CreditNote, now_ms: int) -> None:
    org, amount = invoice.org_id, note.amount_cents * PICO_PER_CENT
    if note.as_credit:
        wanted = credit.NewGrant(org, "prepaid", note.amount_cents, note=f"credit note {note.number}")
        credit.add_grant(conn, wanted, now_ms, funded_by="revenue:correction", source=note.id)
        return
    other = f"billed:{org}" if invoice.state == "finalized" else "cash"
    amounts = {"revenue:correction": amount, other: -amount}
    entry = transfer(f"credit_note/{note.id}", "credit_note", org, minute_floor(now_ms), amounts)
    store.insert_transactions(conn, [entry], now_ms)
    if invoice.state == "finalized" and outstanding_cents(conn, invoice) == 0:
        set_state(conn, invoice, "paid", paid_ms=now_ms, payment_reference=f"credit note {note.number}")
