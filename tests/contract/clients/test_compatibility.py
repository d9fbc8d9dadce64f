"""docs/compatibility.md says what the tests of this folder show."""

from tests.contract.clients.claims import DOCUMENT, document


def test_the_page_is_not_stale() -> None:
    assert DOCUMENT.read_text() == document(), "write it anew: python -m tests.contract.clients.claims"
