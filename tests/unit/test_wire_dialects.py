"""The dialects beside OpenAI's oldest: whatever way bytes are cut, the same events, counts and ends."""

import io
import itertools
import json
import wave
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadRequest, FareboxError, Invalid, NotFound
from wire import azure, multipart
from wire.anthropic import MessagesStream, error_document
from wire.audio import TranscriptionDialect, estimate_audio_ms
from wire.openai import TokenCounts
from wire.operations import DIALECTS
from wire.responses import ResponsesStream


def events(*documents: dict[str, Any], newline: str = "\n") -> bytes:
    lines = [f"event: {d['type']}{newline}data: {json.dumps(d)}{newline}{newline}" for d in documents]
    return "".join(lines).encode()


def parsed(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]


RESPONSE = {"id": "resp_1", "object": "response", "status": "completed"}
USAGE = {
    "input_tokens": 9,
    "output_tokens": 4,
    "total_tokens": 13,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens_details": {"reasoning_tokens": 2},
}
RESPONSES = (
    {"type": "response.created", "response": RESPONSE | {"status": "in_progress", "usage": None}},
    {"type": "response.output_text.delta", "delta": "ä€𝄞"},
    {"type": "response.output_text.delta", "delta": "b"},
    {"type": "response.completed", "response": RESPONSE | {"usage": USAGE}},
)
MESSAGES = (
    {"type": "message_start", "message": {"id": "m1", "usage": {"input_tokens": 9, "output_tokens": 0}}},
    {"type": "ping"},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "ä€𝄞"}},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn"},
        "usage": {"input_tokens": 4, "output_tokens": 4, "cache_read_input_tokens": 5},
    },
    {"type": "message_stop"},
)


def fed(stream: ResponsesStream | MessagesStream, data: bytes, cuts: list[int]) -> bytes:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    out = b"".join(stream.feed(data[a:b]) for a, b in itertools.pairwise(edges))
    return out + stream.end()


@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_responses_however_cut(cuts: list[int], newline: str) -> None:
    stream = ResponsesStream()
    out = fed(stream, events(*RESPONSES, newline=newline), cuts)
    assert parsed(out) == list(RESPONSES[:-1])
    assert stream.complete and (stream.engine_id, stream.finish_reason) == ("resp_1", "completed")
    assert stream.counts() == TokenCounts(9, 5, 4, 2)
    [last] = parsed(stream.closing_events("0.01") + stream.terminator)
    assert last["response"]["usage"] == USAGE | {"cost_usd": "0.01"}


@given(st.lists(st.integers(0, 10_000), max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_messages_however_cut(cuts: list[int], newline: str) -> None:
    stream = MessagesStream()
    out = fed(stream, events(*MESSAGES, newline=newline), cuts)
    assert parsed(out) == list(MESSAGES[:-2])
    assert stream.complete and (stream.engine_id, stream.finish_reason) == ("m1", "end_turn")
    assert stream.counts() == TokenCounts(9, 5, 4, 0)
    delta, stop = parsed(stream.closing_events("0.01") + stream.terminator)
    assert delta["usage"]["cost_usd"] == "0.01"
    assert stop == {"type": "message_stop"}


def test_streams_that_end_early_are_not_complete() -> None:
    for stream, all_events in ((ResponsesStream(), RESPONSES), (MessagesStream(), MESSAGES)):
        stream.feed(events(*all_events[:3]))
        assert not stream.complete
        assert stream.content_chunks == (2 if all_events is RESPONSES else 1)
        assert stream.closing_events("1") == b""


@pytest.mark.parametrize("data", [
    {"type": "error", "error": {"message": "died", "code": 503}},
    {"type": "error", "code": "server_error", "message": "died"},
    {"type": "response.failed", "response": {"error": {"message": "died", "code": "server_error"}}},
    {"error": {"message": "died", "code": 500}, "type": "x"},
])  # fmt: skip
def test_errors_within_a_stream(data: dict[str, Any]) -> None:
    stream = ResponsesStream()
    assert stream.feed(events(data, *RESPONSES)) == b""
    assert stream.error is not None and stream.error.message == "died"
    assert stream.error.status in (500, 502, 503)


@pytest.mark.parametrize("operation", ["responses", "messages", "rerank", "score", "audio.transcriptions"])
@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["usage", "id", "object", "type", "text", "results", "data", "duration", "seconds", "input_tokens"]
    ), inner, max_size=5),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_odd_answers_never_raise(operation: str, body: bytes) -> None:
    answer = DIALECTS[operation].read_answer(body)
    if answer is not None and answer.counts is not None:
        assert min(answer.counts.input, answer.counts.output, answer.counts.audio_ms) >= 0
        assert answer.counts.cached_input <= answer.counts.input


@given(st.binary(max_size=100), st.text("abc", min_size=1, max_size=5))
def test_forms_go_round(value: bytes, name: str) -> None:
    boundary = b"bound"
    parts = [multipart.field(name, value), multipart.field("other", b"\r\n-")]
    if b"\r\n--bound" in b"\r\n" + value:
        return
    found, seen = multipart.parse(multipart.encode(parts, boundary), b"multipart/form-data; boundary=bound")
    assert seen == boundary
    assert [(p.name, p.value) for p in found] == [(name, value), ("other", b"\r\n-")]


@given(st.binary(max_size=300), st.binary(max_size=60))
def test_odd_forms_are_refused(body: bytes, content_type: bytes) -> None:
    for kind in (content_type, b"multipart/form-data; boundary=x"):
        with pytest.raises(BadRequest):
            TranscriptionDialect().parse(body, kind)


@pytest.mark.parametrize(("answer", "audio_ms"), [
    ({"text": "", "usage": {"type": "duration", "seconds": 3}}, 3000),
    ({"text": "", "duration": 2.1}, 2100),
    ({"text": "", "duration": 2.0001}, 2001),
    ({"text": "", "duration": 0}, None),
    ({"text": "", "duration": -4}, None),
    ({"text": "", "duration": 1e300}, None),
    ({"text": "", "usage": {"seconds": True}}, None),
    ({"text": ""}, None),
])  # fmt: skip
def test_the_length_of_audio(answer: dict[str, Any], audio_ms: int | None) -> None:
    found = TranscriptionDialect().read_answer(json.dumps(answer).encode())
    assert found is not None
    assert (found.counts.audio_ms if found.counts else None) == audio_ms


def test_the_length_of_a_file() -> None:
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(1000)
        file.writeframes(b"x" * 1234)
    whole = data.getvalue()
    assert estimate_audio_ms(whole) == 1234
    assert (
        estimate_audio_ms(whole[:100]) == estimate_audio_ms(b"x" * 100) == 7
    )  # a header that lies is not believed
    assert estimate_audio_ms(b"") == 1


@given(st.binary(max_size=400))
def test_any_file_has_a_length(data: bytes) -> None:
    assert estimate_audio_ms(b"RIFF" + data) >= 1


@given(st.binary(max_size=60))
def test_api_versions(query: bytes) -> None:
    with pytest.raises(BadRequest):
        azure.check_api_version(query)


def test_a_good_api_version() -> None:
    for version in ("2024-05-01", "2024-04-01-preview"):
        azure.check_api_version(f"a=b&api-version={version}".encode())


def test_azures_errors() -> None:
    lacks = FareboxError("no", code="bad_request", param="response_format")
    lacks.status = 400
    status, code, body = azure.error_document(lacks)
    assert (status, code, body["detail"]["loc"]) == (
        422,
        "parameter_not_supported",
        ["body", "response_format"],
    )
    status, _, body = azure.error_document(Invalid("no", param="input_type", extra={"input": "query"}))
    assert (status, body["detail"]) == (422, {"loc": ["body", "input_type"], "input": "query"})
    assert azure.error_document(NotFound("no"))[:2] == (404, "not_found")


def test_anthropics_errors() -> None:
    kinds = {
        status: error_document(status, "m", "req_1")["error"]["type"] for status in (400, 409, 418, 500, 502)
    }
    assert kinds == {
        400: "invalid_request_error",
        409: "invalid_request_error",
        418: "invalid_request_error",
        500: "api_error",
        502: "api_error",
    }
