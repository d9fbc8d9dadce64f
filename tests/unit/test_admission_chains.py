"""Long chains are let go of link by link: compiled, one that is freed as a whole destroys memory (decision 12).

`make test` runs this with compiled modules too, where a mistake is a crash of the process.
"""

import sys
from collections.abc import Iterator

import pytest

from access.admission.book import PolicyBook
from access.admission.memory import MemoryAdmission
from access.admission.model import WINDOW_MS, Budget, Limits, ScopePolicy
from access.admission.purse import Purse
from access.admission.scope import Scope
from access.admission.values import AdmitRequest, Balance, Grant, Outcome

NOW = 1_760_000_000_000
LONG = 12_000  # more than is kept to be used again
AMPLE = Limits(requests_per_minute=10**9, tokens_per_minute=10**9, parallel_requests=10**9)


class Neighbours:
    """Of the links of a chain in memory, as CPython puts objects of one size side by side: they show what it destroys."""

    def __init__(self) -> None:
        self._content = b"neighbour" * 20
        self._sizes = [size - sys.getsizeof(b"") for size in range(48, 193, 16)]
        self._all: list[bytes] = []

    def add(self) -> None:
        """Beside the link that was made just now, whatever its size."""
        self._all += [self._content[:size] for size in self._sizes]

    def are_well(self) -> bool:
        """Nobody wrote into them."""
        wanted = [self._content[:size] for size in self._sizes] * (len(self._all) // len(self._sizes))
        return self._all == wanted


@pytest.fixture
def neighbours() -> Iterator[Neighbours]:
    made = Neighbours()
    yield made
    assert made.are_well()


def _full_window(neighbours: Neighbours) -> Scope:
    scope = Scope(ScopePolicy("key", "key_1", AMPLE))
    for at_ms in range(NOW, NOW + LONG):
        scope.take(at_ms, 1, 0)
        neighbours.add()
    return scope


def test_a_long_window(neighbours: Neighbours) -> None:
    scope = _full_window(neighbours)
    slot = scope.oldest
    del scope
    assert slot is not None and slot.next is None


def test_long_windows_that_others_left_before_more_than_can_be_used_again(neighbours: Neighbours) -> None:
    scopes = [_full_window(neighbours) for _ in range(3)]
    for scope in scopes:  # of one call: all are looked at before one is taken
        assert scope.has_room(NOW + LONG + WINDOW_MS, 1, 0)
        assert (scope.oldest, scope.requests, scope.tokens) == (None, 0, 0)
    for scope in scopes:
        scope.take(NOW + LONG + WINDOW_MS, 7, 0)
        assert (scope.requests, scope.tokens) == (1, 7)


def test_what_the_record_does_not_have_yet(neighbours: Neighbours) -> None:
    for through in (LONG, 0):
        purse = Purse(Budget("budget_1", "key", "key_1", "org_1", 10**9, "total"))
        for sequence in range(1, LONG + 1):
            purse.charge(1, sequence, NOW)
            neighbours.add()
        purse.record(Balance("budget_1", 0, through, 1, {}), through)
        assert purse.spent() == LONG
        del purse


def test_many_calls_in_flight(neighbours: Neighbours) -> None:
    book = PolicyBook(endpoint_default=None)
    book.replace([ScopePolicy("key", "key_1", AMPLE)])
    admission = MemoryAdmission(book, "gw_1")
    grants = []
    for number in range(LONG):
        expires_ms = NOW + 1000 + number
        asked = AdmitRequest(
            f"r{number}", "org_1", "prj_1", "key_1", "ep_1", 1, 1, NOW + number % 7, expires_ms
        )
        grant = admission.admit(asked)
        assert isinstance(grant, Grant)
        grants.append(grant)
        neighbours.add()
    for grant in grants[::2]:
        admission.settle(grant, Outcome(1, 0, 0, NOW))
    assert admission.holds() == LONG // 2
    del grants, grant
    admission.exchange((), NOW + 1000 + LONG)
    assert admission.holds() == 0
