"""The quick way of reading a journal record and the thorough one never disagree."""

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from metering.ingest import Accepted, Poison, _as_written, _examined, accept
from metering.journal import source_of
from metering.model import USAGE_EVENT_TYPE, Usage
from tests.metering_values import T0, cloudevent, event

SOURCE = source_of("gw-1")


def record(**fields: Any) -> bytes:
    found = event(**fields)
    return cloudevent(
        event_id=found.event_id,
        source=SOURCE,
        event_type=USAGE_EVENT_TYPE,
        time_ms=found.ended_ms,
        subject=found.org_id,
        sequence=7,
        data=found,
    )


def test_what_a_gateway_writes_is_read_the_quick_way() -> None:
    for payload in (
        record(),
        record(attempt=3),
        record(status="error", usage=Usage()),
        record(model_id="é/ü"),
    ):
        assert _as_written(payload, SOURCE) is not None
        found = accept(payload, SOURCE)
        assert isinstance(found, Accepted)
        assert found == _examined(payload, SOURCE)


_VALUES = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-2, 2),
    st.text(max_size=8),
    st.none(),
    st.booleans(),
    st.floats(allow_nan=False),
    st.sampled_from(
        [10**12, 10**12 + 1, 0, 1, 100, 101, 999, 1000, 1_000_001, "completed", "1.0", "a\x00b", "x" * 257]
    ),
    st.sampled_from(["2025-12-25T12:00:00.500Z", "2025-12-25T13:00:00.500+01:00", "20251225T120000Z", "٣"]),
    st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
)
_PLACES = [
    *json.loads(record()),
    *(f"data.{name}" for name in json.loads(record())["data"]),
    *(
        f"data.usage.{name}"
        for name in ("input", "cached_input", "output", "reasoning", "audio_ms", "choices")
    ),
    "extra",
    "data.extra",
]


@given(st.dictionaries(st.sampled_from(_PLACES), _VALUES, max_size=3), st.booleans())
@example({"time": "2025-12-25T13:00:00.500+01:00"}, False)
@example({"id": "req_2", "data.request_id": "req_2"}, False)
@example({"id": "", "data.request_id": ""}, False)
@example({"subject": "", "data.org_id": ""}, False)
@example({"data.engine_request_id": "\\u0000"}, True)
@example({"data.ended_ms": T0 + 501}, False)
def test_the_quick_way_accepts_nothing_that_the_thorough_one_refuses(
    changes: dict[str, Any], ascii_only: bool
) -> None:
    body = json.loads(record())
    for place, value in changes.items():
        *parents, name = place.split(".")
        at = body
        for parent in parents:
            at = at[parent] if isinstance(at.get(parent), dict) else {}
        at[name] = value
    payload = json.dumps(body, ensure_ascii=ascii_only).encode()
    quick, thorough = _as_written(payload, SOURCE), _examined(payload, SOURCE)
    if quick is not None:
        assert isinstance(thorough, Accepted)
        assert thorough.event == quick
    assert accept(payload, SOURCE) == thorough


def test_a_reason_is_given_for_a_record_that_is_cut_short() -> None:
    found = accept(record()[:-3], SOURCE)
    assert isinstance(found, Poison)
    assert found.reason.startswith("not JSON")
