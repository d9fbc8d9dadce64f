"""CloudEvents and frames: strict in, exact out."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from metering import segment
from metering.ingest import Accepted, Poison, accept
from tests.metering_values import cloudevent, event
from wire.cloudevents import MAX_EVENT_BYTES, decode_event

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "req_1",
    "source": "/gateway/gw-1",
    "type": "ai.farebox.usage.v1",
    "time": "2026-11-23T12:00:00.123Z",
    "data": {"a": 1},
}


def test_a_minimal_event_is_read() -> None:
    found = decode_event(json.dumps(GOOD).encode())
    assert (found.id, found.source, found.time_ms % 1000, found.sequence) == (
        "req_1",
        "/gateway/gw-1",
        123,
        None,
    )
    assert json.loads(bytes(found.data)) == {"a": 1}


def test_extensions_of_others_are_allowed() -> None:
    assert decode_event(json.dumps({**GOOD, "traceparent": "00-ab-cd-01"}).encode()).id == "req_1"


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type", "time"])
def test_a_missing_attribute_is_refused_never_invented(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        decode_event(json.dumps({k: v for k, v in GOOD.items() if k != name}).encode())
    assert caught.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", 1.0),
        ("id", ""),
        ("id", 7),
        ("id", None),
        ("id", "x" * 257),
        ("source", ""),
        ("source", "a b"),
        ("source", "a\nb"),
        ("type", ""),
        ("time", ""),
        ("time", None),
        ("time", 1_700_000_000),
        ("time", "2026-11-23"),
        ("time", "2026-11-23T12:00:00"),
        ("time", "2026-11-23 12:00:00Z"),
        ("time", "20261123T120000Z"),
        ("time", "2026-13-23T12:00:00Z"),
        ("time", "2026-02-30T12:00:00Z"),
        ("time", "2026-11-23T25:00:00Z"),
        ("time", "yesterday"),
        ("sequence", 5),
        ("sequence", "-1"),
        ("sequence", "abc"),
        ("datacontenttype", "text/xml"),
    ],
)
def test_a_malformed_attribute_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(Invalid) as caught:
        decode_event(json.dumps({**GOOD, name: value}).encode())
    assert caught.value.param == name


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe{}", b"\x00"])
def test_what_is_no_event_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid):
        decode_event(raw)


def test_an_event_over_the_bound_is_refused() -> None:
    with pytest.raises(Invalid, match="at most"):
        decode_event(json.dumps({**GOOD, "data": "x" * MAX_EVENT_BYTES}).encode())


@given(st.integers(min_value=0, max_value=253_402_300_799_999), st.integers(min_value=0, max_value=2**63))
def test_what_is_encoded_is_decoded(time_ms: int, sequence: int) -> None:
    raw = cloudevent(
        event_id="i", source="s", event_type="t", time_ms=time_ms, subject="u", sequence=sequence, data=[1]
    )
    found = decode_event(raw)
    assert (found.time_ms, found.sequence, found.subject, found.partitionkey) == (time_ms, sequence, "u", "u")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_break_the_intake(payload: bytes) -> None:
    assert isinstance(accept(payload, "/gateway/gw-1"), Poison)


@given(
    st.dictionaries(
        st.sampled_from(list(event().__struct_fields__)),
        st.none() | st.integers() | st.text(max_size=5) | st.floats() | st.booleans(),
        min_size=1,
        max_size=4,
    )
)
def test_no_data_breaks_the_intake(changes: dict[str, Any]) -> None:
    data = {**json.loads(json.dumps(_as_json())), **changes}
    time_ms = data["ended_ms"] if type(data["ended_ms"]) is int and 0 <= data["ended_ms"] < 2**47 else 0
    raw = cloudevent(
        event_id=str(data["request_id"] or "x"),
        source="/gateway/gw-1",
        event_type="ai.farebox.usage.v1",
        time_ms=time_ms,
        subject=str(data["org_id"]),
        sequence=1,
        data=data,
    )
    found = accept(raw, "/gateway/gw-1")
    if isinstance(found, Accepted):
        assert all(0 <= v < 2**63 for v in _as_json(found.event).values() if type(v) is int)
    else:
        assert found.reason


def _as_json(found: Any = None) -> dict[str, Any]:
    import msgspec

    built: dict[str, Any] = msgspec.to_builtins(found or event())
    return built


@given(
    st.lists(
        st.tuples(st.sampled_from([2, 3]), st.integers(0, 2**64 - 1), st.binary(max_size=300)), max_size=20
    ),
    st.integers(min_value=0, max_value=400),
)
def test_frames_survive_any_cut(
    tmp_path_factory: Any, frames: list[tuple[int, int, bytes]], cut: int
) -> None:
    path: Path = tmp_path_factory.mktemp("seg") / "x"
    data = b"".join(segment.frame(*one) for one in frames)
    path.write_bytes(data[: max(0, len(data) - cut)])
    found = segment.scan(path, 0, 1000)
    read = [(r.kind, r.seq, r.payload) for r in found.records]
    assert read == frames[: len(read)]
    assert found.at_end
    lost = data[found.offset :]
    assert len(lost) <= cut or not lost or len(lost) - cut < len(segment.frame(*frames[len(read)]))
    path.unlink()
    path.parent.rmdir()
