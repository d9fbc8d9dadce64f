"""Lists of networks, as settings give them."""

import pytest

from core.errors import Invalid
from core.networks import Networks


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("::ffff:10.1.2.3", True),
        ("fd00::1", True),
        ("fe80::1%eth0", False),
        ("2001:db8::1", False),
        ("", False),
        ("testclient", False),
    ],
)
def test_what_is_in_them(address: str, inside: bool) -> None:
    assert (address in Networks("10.0.0.0/8, 192.0.2.7, fc00::/7", "X")) == inside


def test_an_empty_list_holds_nothing() -> None:
    assert not Networks("", "X") and "127.0.0.1" not in Networks("", "X")


@pytest.mark.parametrize("text", ["10.0.0.1/8", "private", "10.0.0.0/33", "1.2.3"])
def test_what_is_no_network_is_refused_with_the_variable_s_name(text: str) -> None:
    with pytest.raises(Invalid, match="FAREBOX_X: expected networks like"):
        Networks(text, "FAREBOX_X")
