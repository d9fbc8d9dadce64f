"""Documents: deterministic, escaped, complete; what is not final says so on every page."""

import io
import re
from dataclasses import replace

import pytest

from billing.documents.content import TAX_NOTE, document_of
from billing.documents.table import render_csv
from billing.invoicing.model import CreditNote, Invoice, InvoiceLine, Parties, Party
from core.errors import Invalid
from core.money import round_to_cents
from functions.documents.html import render_html
from functions.documents.pdf import render_pdf

CUSTOMER = Party("Żółć & <Söhne> Ελλάς Россия", "Straße 1\nÖsterreich", "a@example.org", "ATU1")
ISSUER = Party("Farebox Operations", "1 Road", "b@example.org", "GB1")


def line(number: int, **values: object) -> InvoiceLine:
    base = InvoiceLine(number, "charge", "output", "acme/chat", "", "", "", 1_234_567, 600_000, 0, 0, "")
    amount = base.quantity * base.unit_price_pico
    return replace(base, **{"amount_pico": amount, "amount_cents": round_to_cents(amount)} | values)  # type: ignore[arg-type]


INVOICE = Invoice(
    "inv_1", "org_1", "FB-2026-000001", "monthly", "finalized", 1_793_491_200_000, 1_796_083_200_000, "usd", 1, 74,
    10, 64, "a" * 64, 4711, "b" * 64, 1_796_083_200_000, 1_796_083_500_000, 1_798_675_500_000, 0, 0, "",
    Parties(ISSUER, CUSTOMER), "", "",
)  # fmt: skip
LINES = [
    line(1),
    line(2, sku="endpoint_minute", endpoint_name="=my-chat", endpoint_id="ep_1", unit_price_pico=500_000_000),
    line(
        3,
        kind="credit",
        sku="",
        model_id="",
        text="promotional credit credit_1",
        amount_pico=-(10**11),
        amount_cents=-10,
    ),
]


def pages(content: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b", content))


def test_the_same_invoice_gives_the_same_bytes() -> None:
    document = document_of(INVOICE, LINES, [], CUSTOMER, ISSUER)
    assert render_pdf(document) == render_pdf(document)
    assert render_html(document) == render_html(document)


def test_html_is_escaped_and_complete() -> None:
    note = CreditNote("cn_1", "org_1", "inv_1", "FB-CN-2026-000001", "slow", 14, False, 0)
    text = render_html(document_of(INVOICE, LINES, [note], CUSTOMER, ISSUER)).decode()
    assert "Żółć &amp; &lt;Söhne&gt; Ελλάς Россия" in text
    for shown in (
        "FB-2026-000001",
        "a" * 64,
        "b" * 64,
        "0.6 / M",
        "1,234,567",
        TAX_NOTE,
        "2026-11-01 to 2026-11-30",
    ):
        assert shown in text
    assert re.search(r"Amount due \(USD\)</td><td class=\"number\">0.50<", text)
    assert "<script" not in text and "http" not in text.replace("http-equiv", "")
    assert 'class="watermark"' not in text


@pytest.mark.parametrize(
    ("state", "number", "says"), [("draft", None, "DRAFT"), ("void", "FB-2026-000001", "VOID")]
)
def test_what_does_not_hold_has_a_watermark(state: str, number: str | None, says: str) -> None:
    invoice = replace(INVOICE, state=state, number=number)  # type: ignore[arg-type]
    document = document_of(invoice, LINES, [], CUSTOMER, ISSUER)
    assert document.watermark == says
    assert f'aria-hidden="true">{says}<' in render_html(document).decode()
    assert render_pdf(document) != render_pdf(replace(document, watermark=""))


def test_long_tables_go_over_pages() -> None:
    lines = [line(n) for n in range(1, 200)]
    content = render_pdf(document_of(INVOICE, lines, [], CUSTOMER, ISSUER))
    assert 4 <= pages(content) <= 8
    assert pages(render_pdf(document_of(INVOICE, LINES, [], CUSTOMER, ISSUER))) == 1


def test_the_font_of_the_operator_must_be_one(tmp_path: object) -> None:
    with pytest.raises(Invalid, match="FAREBOX_INVOICE_FONT"):
        render_pdf(document_of(INVOICE, LINES, [], CUSTOMER, ISSUER), f"{tmp_path}/none.ttf")


def test_csv_has_every_line_and_no_formula() -> None:
    rows = render_csv(INVOICE, LINES).decode().splitlines()
    assert len(rows) == 4
    assert ",'=my-chat," in rows[2]
    assert rows[3].endswith("credit,,,,,,-0.1,-0.10,promotional credit credit_1")
    assert io.StringIO(rows[0]).read().startswith("invoice,period_start")
