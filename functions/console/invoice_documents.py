"""Invoices as files, and exports."""

from typing import Annotated, Any, Literal

from fastapi import Query
from fastapi.responses import Response

from access.store import find_organization
from billing.documents.content import Document, document_of, preview_document
from billing.documents.table import render_csv
from billing.invoicing.focus import focus_csv
from billing.invoicing.issue import customer_of
from billing.invoicing.notes_store import notes_of
from billing.invoicing.settle import outstanding_cents
from billing.invoicing.store import find_invoice, lines_of
from billing.preview import invoice_preview
from catalog import price_book
from functions.console.dependencies import Caller, ConsoleDependencies, Deps
from functions.console.invoice_shapes import InvoiceLineOut, InvoiceOut, invoice_line_out, invoice_out
from functions.console.periods import month
from functions.console.routing import console_router
from functions.console.scope import read_scope
from functions.console.usage import Named
from functions.documents.html import render_html

router = console_router("invoices")
Format = Literal["pdf", "html", "csv", "json"]
_TYPES = {
    "pdf": "application/pdf",
    "html": "text/html; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
}
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {kind: {} for kind in _TYPES.values()}}
}


class WholeInvoice(InvoiceOut):
    """An invoice with all its lines."""

    lines: list[InvoiceLineOut]


@router.get("/invoices/{invoice_id}/document", summary="An invoice as a file", responses=_FILES)
def document(
    invoice_id: str,
    deps: Deps,
    kind: Annotated[Format, Query(alias="format", description="pdf, html, csv or json.")] = "pdf",
) -> Response:
    """The same bytes each time for a final invoice, until it is paid, void or gets a credit note."""
    with deps.db.read() as connection:
        invoice = find_invoice(connection, invoice_id)
        lines = lines_of(connection, invoice.id)
        notes = notes_of(connection, invoice.id)
        customer = customer_of(connection, invoice.org_id)
        open_cents = outstanding_cents(connection, invoice)
    if kind == "csv":
        content = render_csv(invoice, lines)
    elif kind == "json":
        head = invoice_out(invoice, open_cents).model_dump()
        content = WholeInvoice(**head, lines=[invoice_line_out(x) for x in lines]).model_dump_json().encode()
    else:
        shown = document_of(invoice, lines, notes, customer, deps.issuer.party)
        content = _rendered(shown, kind, deps)
    return _file(content, f"{invoice.number or invoice.id}.{kind}", _TYPES[kind])


@router.get("/invoice-previews/document", summary="A preview as a file", responses=_FILES)
def preview_file(
    deps: Deps,
    caller: Caller,
    organization: Named = None,
    period: Annotated[str | None, Query(max_length=20, description="YYYY-MM (UTC).")] = None,
    kind: Annotated[Literal["pdf", "html"], Query(alias="format")] = "pdf",
) -> Response:
    """What the month's invoice would look like if it were made now, with a watermark that says so."""
    deps.catch_up()
    now_ms = deps.clock.now_ms()
    span = month(period, now_ms)
    with deps.db.read() as connection:
        chosen = read_scope(connection, caller, organization).organization
        found = invoice_preview(connection, chosen.id, *span, now_ms, price_book)
        shown = preview_document(found, customer_of(connection, chosen.id), deps.issuer.party)
    content = _rendered(shown, kind, deps)
    return _file(content, f"preview-{chosen.id}.{kind}", _TYPES[kind])


@router.get(
    "/exports/focus",
    summary="A month as FOCUS",
    responses={200: {"description": "CSV.", "content": {"text/csv": {}}}},
)
def focus(
    organization: Annotated[str, Query(max_length=200, description="Its id or name.")],
    period: Annotated[str, Query(max_length=20, description="YYYY-MM (UTC).", examples=["2026-11"])],
    deps: Deps,
) -> Response:
    """Cost and usage by the FinOps Open Cost and Usage Specification 1.4. 409 while the month is open or not
    invoiced. The sum of BilledCost of each InvoiceId was compared with what is payable on it."""
    with deps.db.read() as connection:
        found = find_organization(connection, organization)
        content = focus_csv(connection, found.id, month(period, 0))
    return _file(content.encode(), f"focus-{found.id}-{period}.csv", _TYPES["csv"])


def _file(content: bytes, name: str, kind: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "x-content-type-options": "nosniff"}
    return Response(content, media_type=kind, headers=headers)


def _rendered(shown: Document, kind: str, deps: ConsoleDependencies) -> bytes:
    if kind == "html":
        return render_html(shown)
    from functions.documents.pdf import (
        render_pdf,  # fpdf takes a third of a second, which no start should wait for
    )

    return render_pdf(shown, deps.settings.invoice_font)
