"""An invoice as one HTML page, complete in itself: no script, nothing fetched."""

from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, StrictUndefined, Template

from billing.documents.content import LINE_HEADINGS, Document

_TEMPLATE = Path(__file__).parent / "invoice.html"


def render_html(document: Document) -> bytes:
    """UTF-8; everything that people wrote is escaped."""
    return _template().render(doc=document, headings=LINE_HEADINGS).encode()


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
