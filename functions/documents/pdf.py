"""An invoice as PDF, by fpdf2: the same invoice gives the same bytes.

DejaVu Sans Condensed is embedded (Latin, Greek, Cyrillic, Arabic, Hebrew and more); what it lacks, Chinese for example,
comes from a font that the operator names (FAREBOX_INVOICE_FONT).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF, FontFace
from fpdf.enums import TableBordersLayout, TableCellFillMode, XPos, YPos

from billing.documents.content import LINE_HEADINGS, Document
from billing.invoicing.model import Party
from core.errors import Invalid

_HERE = Path(__file__).parent
_FONT, _MORE = "DejaVu", "More"
_GREY, _BLACK, _RED = (90, 102, 117), (28, 36, 48), (244, 214, 215)
_MARGIN_MM, _WIDTH_MM = 18, 174
_LINE_WIDTHS = (8, 59, 25, 28, 32, 22)
_LINE_ALIGN = ("LEFT", "LEFT", "RIGHT", "RIGHT", "RIGHT", "RIGHT")


def render_pdf(document: Document, extra_font: str = "") -> bytes:
    """A4, as many pages as the lines need. Invalid when the extra font cannot be read."""
    pdf = _Paper(document, extra_font)
    pdf.add_page()
    _head(pdf, document)
    _lines(pdf, document)
    _sums(pdf, document.sums)
    _foot(pdf, document)
    return bytes(pdf.output())


class _Paper(FPDF):
    """Fonts, page numbers, and the watermark below everything else."""

    def __init__(self, document: Document, extra_font: str) -> None:
        super().__init__(orientation="portrait", unit="mm", format="A4")
        self._document = document
        made = datetime.fromtimestamp(document.made_ms // 1000, tz=UTC)
        self.set_creation_date(made)
        self.set_title(f"{document.title} {document.number}")
        self.set_author(document.issuer.name)
        self.set_creator("Farebox")
        self.set_lang("en")
        self.set_margins(_MARGIN_MM, _MARGIN_MM, _MARGIN_MM)
        self.set_auto_page_break(True, margin=22)
        self.add_font(_FONT, "", _HERE / "DejaVuSansCondensed.ttf")
        self.add_font(_FONT, "B", _HERE / "DejaVuSansCondensed-Bold.ttf")
        if extra_font:
            try:
                self.add_font(_MORE, "", extra_font)
            except (OSError, ValueError, RuntimeError) as error:
                raise Invalid(f"FAREBOX_INVOICE_FONT: {extra_font} cannot be used: {error}") from error
            self.set_fallback_fonts([_MORE], exact_match=False)
        self.set_font(_FONT, "", 9)

    def header(self) -> None:
        """The watermark of what is not final."""
        if self._document.watermark:
            self.set_font(_FONT, "B", 110)
            self.set_text_color(*_RED)
            width = self.get_string_width(self._document.watermark)
            with self.rotation(45, x=self.w / 2, y=self.h / 2):
                self.text((self.w - width) / 2, self.h / 2 + 15, self._document.watermark)
            self.set_text_color(*_BLACK)
            self.set_font(_FONT, "", 9)

    def footer(self) -> None:
        """Which invoice, which page of how many."""
        self.set_y(-15)
        self.set_font(_FONT, "", 7.5)
        self.set_text_color(*_GREY)
        self.cell(_WIDTH_MM / 2, 4, f"{self._document.title} {self._document.number}")
        self.cell(_WIDTH_MM / 2, 4, f"Page {self.page_no()} of {{nb}}", align="R")


def _head(pdf: FPDF, document: Document) -> None:
    top = pdf.get_y()
    pdf.set_font(_FONT, "B", 20)
    pdf.set_text_color(*_BLACK)
    pdf.cell(100, 10, document.title, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.set_font(_FONT, "", 10)
    pdf.multi_cell(100, 5, document.number, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    left = pdf.get_y()
    pdf.set_xy(_MARGIN_MM + 104, top)
    _party(pdf, document.issuer, 70, "R")
    pdf.set_y(max(left, pdf.get_y()) + 10)
    top = pdf.get_y()
    pdf.set_font(_FONT, "B", 7.5)
    pdf.set_text_color(*_GREY)
    pdf.cell(90, 5, "Billed to", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    _party(pdf, document.customer, 90, "L")
    left = pdf.get_y()
    pdf.set_y(top)
    for name, value in document.facts:
        pdf.set_x(_MARGIN_MM + 94)
        pdf.set_font(_FONT, "", 9)
        pdf.set_text_color(*_GREY)
        pdf.cell(28, 5, name)
        pdf.set_text_color(*_BLACK)
        pdf.cell(52, 5, value, align="R", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    pdf.set_y(max(left, pdf.get_y()) + 8)


def _party(pdf: FPDF, party: Party, width: float, align: str) -> None:
    x = pdf.get_x()
    pdf.set_text_color(*_BLACK)
    tax_id = f"Tax ID {party.tax_id}" if party.tax_id else ""
    for style, text in (("B", party.name), ("", party.address), ("", party.email), ("", tax_id)):
        if text:
            pdf.set_font(_FONT, style, 9)
            pdf.set_x(x)
            pdf.multi_cell(width, 4.6, text, align=align, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _lines(pdf: FPDF, document: Document) -> None:
    pdf.set_font(_FONT, "", 8.5)
    pdf.set_draw_color(221, 227, 234)
    with pdf.table(
        width=_WIDTH_MM,
        col_widths=_LINE_WIDTHS,
        text_align=_LINE_ALIGN,
        line_height=4.4,
        padding=(1.2, 1),
        borders_layout=TableBordersLayout.HORIZONTAL_LINES,
        cell_fill_mode=TableCellFillMode.NONE,
        headings_style=FontFace(emphasis="BOLD", size_pt=7.5, color=_GREY),
        repeat_headings=1,
        first_row_as_headings=True,
    ) as table:
        for cells in (LINE_HEADINGS, *(line.cells() for line in document.lines)):
            row = table.row()
            for cell in cells:
                row.cell(cell)


def _sums(pdf: FPDF, sums: Sequence[tuple[str, str]]) -> None:
    height = 6 * len(sums) + 3
    if pdf.will_page_break(height):
        pdf.add_page()
    pdf.set_y(pdf.get_y() + 3)
    pdf.set_text_color(*_BLACK)
    for number, (name, amount) in enumerate(sums):
        last = number == len(sums) - 1
        pdf.set_font(_FONT, "B" if last else "", 10 if last else 9)
        pdf.set_x(_MARGIN_MM + 84)
        pdf.cell(62, 6, name, border="T" if last else 0)
        pdf.cell(28, 6, amount, align="R", border="T" if last else 0, new_x=XPos.LMARGIN, new_y=YPos.NEXT)


def _foot(pdf: FPDF, document: Document) -> None:
    if pdf.will_page_break(8 + 4 * len(document.notes) + 9 * len(document.proof)):
        pdf.add_page()
    pdf.set_y(pdf.get_y() + 8)
    pdf.set_text_color(*_GREY)
    pdf.set_font(_FONT, "", 7.5)
    for text in document.notes:
        pdf.multi_cell(_WIDTH_MM, 3.8, text, new_x=XPos.LMARGIN, new_y=YPos.NEXT)
    for name, value in document.proof:
        pdf.set_y(pdf.get_y() + 1)
        pdf.multi_cell(_WIDTH_MM, 3.8, f"{name}\n{value}", new_x=XPos.LMARGIN, new_y=YPos.NEXT)
