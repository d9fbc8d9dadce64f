"""Bandwidth of online endpoints: how long who is over it waits."""

import pytest

from core.errors import Invalid
from functions.gateway.bandwidth import Bandwidth, delay_header, parse_exceptions


def test_a_second_at_once_and_then_by_the_rate() -> None:
    bandwidth = Bandwidth(1000, {})
    assert bandwidth.take("ep_1", "one", 1000, 100.0) == 0.0
    assert bandwidth.take("ep_1", "one", 500, 100.0) == pytest.approx(0.5)
    assert bandwidth.take("ep_1", "one", 500, 100.0) == pytest.approx(1.0), "the next one waits longer"
    assert bandwidth.take("ep_2", "two", 500, 100.0) == 0.0, "another endpoint has its own"
    assert bandwidth.take("ep_1", "one", 100, 103.0) == 0.0, "it was paid off"
    total = sum(1 for _ in range(100) if bandwidth.take("ep_3", "three", 100, 200.0) <= 9.0)
    assert total == 100


def test_off_and_exceptions() -> None:
    assert Bandwidth(0, {}).take("ep_1", "one", 10**12, 0.0) == 0.0
    some = Bandwidth(1000, parse_exceptions("one=0, two = 10"))
    assert some.take("ep_1", "one", 10**12, 0.0) == 0.0
    assert some.take("ep_2", "two", 20, 0.0) == pytest.approx(1.0)
    assert delay_header(b"x", 0.0) == [] and delay_header(b"x", 0.0005) == [(b"x", b"0")]


@pytest.mark.parametrize("text", ["one", "one=", "=5", "one=-1", "one=1.5", "a=1,b"])
def test_exceptions_with_mistakes(text: str) -> None:
    with pytest.raises(Invalid, match="NAME=BYTES_PER_SECOND"):
        parse_exceptions(text)


def test_it_keeps_no_endpoint_for_ever() -> None:
    bandwidth = Bandwidth(1000, {})
    for number in range(20_000):
        bandwidth.take(f"ep_{number}", "x", 1, number * 0.01)
    assert len(bandwidth._free_at) <= 10_000
