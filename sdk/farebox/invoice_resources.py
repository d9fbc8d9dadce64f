"""Invoices, credit, credit notes, contracts, and how organizations are invoiced."""

from collections.abc import Mapping
from typing import cast

from farebox.invoice_types import (
    BillingProfile,
    Contract,
    Credit,
    CreditBalance,
    CreditNote,
    EventsPage,
    FullInvoiceLine,
    Invoice,
    InvoiceVerification,
    MinutesPage,
)
from farebox.resource import Resource, given
from farebox.transport import path_of
from farebox.types import InvoicePreview

# Inside a class with a method named `list`, that name is the method.
_Invoices = list[Invoice]
_Lines = list[FullInvoiceLine]
_Credits = list[Credit]
_Notes = list[CreditNote]
_Contracts = list[Contract]
_Names = list[str]


class Invoices(Resource):
    """What is owed, and why. An invoice is named by its id or its number."""

    def preview(self, organization: str | None = None, *, period: str | None = None) -> InvoicePreview:
        """The invoice as it would be now. `period` is a month, `YYYY-MM`; default: the current one (UTC)."""
        params = {"organization": organization, "period": period}
        return cast(InvoicePreview, self._transport.json("GET", "/api/invoices/preview", params=params))

    def preview_document(
        self, organization: str | None = None, *, period: str | None = None, kind: str = "pdf"
    ) -> bytes:
        """The same as pdf or html, with a watermark."""
        params = given(organization=organization, period=period, format=kind)
        return self._transport.send("GET", "/api/invoice-previews/document", params=params).content

    def create(self, organization: str, period: str, *, draft: bool = False) -> _Invoices:
        """Of what of a month that is over is charged and not invoiced; usually the invoicer has done it."""
        body = {"organization": organization, "period": period, "draft": draft}
        return cast(_Invoices, self._transport.json("POST", "/api/invoices", json=body)["data"])

    def list(
        self, *, organization: str | None = None, state: str | None = None, period: str | None = None
    ) -> _Invoices:
        """Newest first."""
        return self._all("/api/invoices", organization=organization, state=state, period=period)

    def get(self, invoice: str) -> Invoice:
        return cast(Invoice, self._transport.json("GET", _path(invoice)))

    def finalize(self, invoice: str) -> Invoice:
        """A draft becomes final."""
        return cast(Invoice, self._transport.json("POST", _path(invoice) + "/finalize"))

    def void(self, invoice: str) -> Invoice:
        """Taken back: reversed on the ledger, credit given back."""
        return cast(Invoice, self._transport.json("POST", _path(invoice) + "/void"))

    def pay(self, invoice: str, *, reference: str, amount_usd: str | None = None) -> Invoice:
        """Record a payment of all that is due."""
        body = given(reference=reference, amount_usd=amount_usd)
        return cast(Invoice, self._transport.json("POST", _path(invoice) + "/pay", json=body))

    def lines(self, invoice: str) -> _Lines:
        return self._all(_path(invoice) + "/lines")

    def minutes(
        self, invoice: str, line: int, *, limit: int | None = None, after: str | None = None
    ) -> MinutesPage:
        """A page of the closed minutes behind a line of charges."""
        path = f"{_path(invoice)}/lines/{line}/minutes"
        return cast(MinutesPage, self._transport.json("GET", path, params=given(limit=limit, after=after)))

    def events(
        self, invoice: str, minute: str, sku: str, *, limit: int | None = None, after: str | None = None
    ) -> EventsPage:
        """A page of the events behind a minute; the receipt of a call is found by its `request_id`."""
        params = given(minute=minute, sku=sku, limit=limit, after=after)
        return cast(EventsPage, self._transport.json("GET", _path(invoice) + "/events", params=params))

    def document(self, invoice: str, kind: str = "pdf") -> bytes:
        """The invoice as pdf, html, csv or json."""
        path = _path(invoice) + "/document"
        return self._transport.send("GET", path, params={"format": kind}).content

    def verify(self, invoice: str) -> InvoiceVerification:
        """Recompute it from raw events; takes a while for millions of them."""
        return cast(InvoiceVerification, self._transport.json("GET", _path(invoice) + "/verification"))


class Exports(Resource):
    """Billing data in the formats of others."""

    def focus(self, organization: str, period: str) -> bytes:
        """A month of finalized invoices as FOCUS, CSV; its sums are the invoices'."""
        params = {"organization": organization, "period": period}
        return self._transport.send("GET", "/api/exports/focus", params=params).content


class Credits(Resource):
    """Prepaid and promotional credit of organizations."""

    def grant(
        self,
        organization: str,
        amount_usd: str,
        *,
        kind: str | None = None,
        priority: int | None = None,
        starts_at: str | None = None,
        expires_at: str | None = None,
        models: _Names | None = None,
        skus: _Names | None = None,
        note: str | None = None,
        raise_budget: bool = False,
    ) -> Credit:
        """`raise_budget`: calls are refused when the credit is used up."""
        body = given(
            organization=organization,
            amount_usd=amount_usd,
            kind=kind,
            priority=priority,
            starts_at=starts_at,
            expires_at=expires_at,
            models=models or None,
            skus=skus or None,
            note=note,
            raise_budget=raise_budget or None,
        )
        return cast(Credit, self._transport.json("POST", "/api/credits", json=body))

    def list(self, *, organization: str | None = None) -> _Credits:
        return self._all("/api/credits", organization=organization)

    def balance(self, organization: str | None = None) -> CreditBalance:
        """Live, with usage that is not invoiced yet."""
        params = {"organization": organization}
        return cast(CreditBalance, self._transport.json("GET", "/api/credits/balance", params=params))

    def void(self, credit_id: str) -> Credit:
        """Take back what is left."""
        return cast(Credit, self._transport.json("DELETE", "/api/credits" + path_of(credit_id)))


class CreditNotes(Resource):
    """What was given back of invoices."""

    def create(
        self,
        invoice: str,
        *,
        reason: str,
        amount_usd: str | None = None,
        lines: Mapping[str, str | None] | None = None,
        as_credit: bool = False,
    ) -> CreditNote:
        """Of an amount, of lines (number to amount, None: all of it), or of all that is left."""
        body = given(
            invoice=invoice,
            reason=reason,
            amount_usd=amount_usd,
            lines=dict(lines) if lines else None,
            as_credit=as_credit or None,
        )
        return cast(CreditNote, self._transport.json("POST", "/api/credit-notes", json=body))

    def list(self, *, organization: str | None = None) -> _Notes:
        """Newest first."""
        return self._all("/api/credit-notes", organization=organization)

    def get(self, note: str) -> CreditNote:
        """By its id or number."""
        return cast(CreditNote, self._transport.json("GET", "/api/credit-notes" + path_of(note)))


class Contracts(Resource):
    """Discounts and minimums by the month."""

    def create(
        self,
        organization: str,
        starts: str,
        *,
        ends: str | None = None,
        discount_percent: str | None = None,
        minimum_usd: str | None = None,
    ) -> Contract:
        """`starts` and `ends` (not included) are months, `YYYY-MM`."""
        body = given(
            organization=organization,
            starts=starts,
            ends=ends,
            discount_percent=discount_percent,
            minimum_usd=minimum_usd,
        )
        return cast(Contract, self._transport.json("POST", "/api/contracts", json=body))

    def list(self, *, organization: str | None = None) -> _Contracts:
        return self._all("/api/contracts", organization=organization)

    def end(self, contract_id: str, ends: str) -> Contract:
        """`ends` is the month that it no longer holds in."""
        path = f"/api/contracts{path_of(contract_id)}/end"
        return cast(Contract, self._transport.json("POST", path, json={"ends": ends}))


class BillingProfiles(Resource):
    """How organizations are invoiced."""

    def get(self, organization: str) -> BillingProfile:
        path = "/api/billing-profiles" + path_of(organization)
        return cast(BillingProfile, self._transport.json("GET", path))

    def change(self, organization: str, **values: str | int | None) -> BillingProfile:
        """legal_name, address, email, tax_id, due_days, threshold_usd, provider; what is None stays."""
        path = "/api/billing-profiles" + path_of(organization)
        return cast(BillingProfile, self._transport.json("PATCH", path, json=given(**values)))


def _path(invoice: str) -> str:
    return "/api/invoices" + path_of(invoice)
