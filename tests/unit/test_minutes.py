"""Which minutes of an endpoint's life are due."""

from hypothesis import given
from hypothesis import strategies as st

from core.clock import minute_floor
from metering.endpoint_minutes import EndpointLife, _Cursor, _due, minute_event_id
from tests.metering_values import MINUTE, T0


def life(created_ms: int, deleted_ms: int | None = None) -> EndpointLife:
    return EndpointLife("ep_1", "org_1", "prj_1", "acme/chat", created_ms, deleted_ms, "chat")


def minutes(created_ms: int, deleted_ms: int | None, now_ms: int) -> list[int]:
    due, _, _ = _due(life(created_ms, deleted_ms), None, now_ms, 10_000)
    return [(m - T0) // MINUTE for m in due]


def test_a_minute_that_has_begun_counts() -> None:
    assert minutes(T0 + 59_999, None, T0 + 59_999) == [0]
    assert minutes(T0 + 59_999, None, T0 + 60_000) == [0, 1]


def test_the_minute_of_deletion_counts_unless_it_had_not_begun() -> None:
    assert minutes(T0, T0 + 60_000, T0 + 600_000) == [0]
    assert minutes(T0, T0 + 60_001, T0 + 600_000) == [0, 1]


def test_an_endpoint_deleted_at_once_existed_in_one_minute() -> None:
    assert minutes(T0 + 5, T0 + 5, T0 + 600_000) == [0]
    assert minutes(T0, T0, T0 + 600_000) == [0]
    assert minutes(T0 + 5, T0 - 600_000, T0 + 600_000) == [0]  # the clock stepped back in between


def test_a_clock_that_steps_back_yields_nothing_twice() -> None:
    due, next_minute, _ = _due(life(T0), _Cursor(T0 + 5 * MINUTE, False, "chat"), T0 + 2 * MINUTE, 100)
    assert (list(due), next_minute) == ([], T0 + 5 * MINUTE)


def test_an_id_names_endpoint_minute_and_sku() -> None:
    assert minute_event_id("ep_1", T0) == "ep_1/20251225T1200Z/endpoint_minute"


@given(
    created=st.integers(min_value=0, max_value=3_000_000),
    length=st.none() | st.integers(min_value=0, max_value=3_000_000),
    ticks=st.lists(st.integers(min_value=0, max_value=9_000_000), min_size=1, max_size=20),
    limit=st.integers(min_value=1, max_value=50),
)
def test_whenever_it_ticks_each_minute_is_due_once(
    created: int, length: int | None, ticks: list[int], limit: int
) -> None:
    created += T0
    one = life(created, None if length is None else created + length)
    cursor: _Cursor | None = None
    billed: list[int] = []
    ticks = [*ticks, max(ticks)]
    for tick in ticks:
        while cursor is None or not cursor.finished:
            due, next_minute, finished = _due(one, cursor, T0 + tick, limit)
            cursor = _Cursor(next_minute, finished, "chat")
            billed += due
            if len(due) < limit:
                break
    end = T0 + max(ticks) if length is None else min(T0 + max(ticks), max(created, created + length - 1))
    expected = list(range(minute_floor(created), minute_floor(end) + MINUTE, MINUTE))
    assert billed == expected
