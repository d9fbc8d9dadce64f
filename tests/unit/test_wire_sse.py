"""Cutting a byte stream into events, whatever the pieces and line ends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UpstreamFailed
from wire import sse
from wire.sse import EventSplitter, encode_event, event_data

_data = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1).map(
    str.encode
)


@given(st.lists(_data, max_size=6), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_any_cut_gives_the_same_events(parts: list[bytes], newline: bytes, draw: st.DataObject) -> None:
    stream = b"".join(b"data: " + part + newline * 2 for part in parts) + b": end" + newline * 2 + b"x"
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    splitter, events = EventSplitter(), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        events += splitter.split(stream[start:end])
    assert [event_data(event) for event in events] == [*parts, None]
    assert splitter.rest == b"x"
    assert b"".join(events) + splitter.rest == stream


def test_several_data_lines_other_fields_and_comments() -> None:
    assert event_data(b"event: x\ndata: a\nid: 1\ndata:b\n\n") == b"a\nb"
    assert event_data(b": ping\n\n") is None
    assert event_data(b"data\n\n") == b""
    assert event_data(b": ping\r\ndata: a\r\n\r\n") == b"a"


def test_a_crlf_cut_in_half() -> None:
    splitter = EventSplitter()
    assert splitter.split(b"data: a\r\n\r") == []
    assert splitter.split(b"\ndata: b\r\n\r\n") == [b"data: a\r\n\r\n", b"data: b\r\n\r\n"]


def test_extra_blank_lines_are_no_events() -> None:
    assert [event_data(e) for e in EventSplitter().split(b"\n\n\n\ndata: a\n\n\n\n")] == [b"a"]


def test_an_endless_event_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT_BYTES", 1000)
    splitter = EventSplitter()
    splitter.split(b"x" * 1000)
    with pytest.raises(UpstreamFailed):
        splitter.split(b"x")


def test_encoding() -> None:
    assert event_data(encode_event(b"{}")) == b"{}"
