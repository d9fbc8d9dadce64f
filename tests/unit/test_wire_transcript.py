"""What is kept of an answer that its engine does not count: every text of it, once, in order, and not without end."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from wire.anthropic import MessagesStream
from wire.openai_stream import StreamFilter
from wire.responses import ResponsesStream
from wire.transcript import MAX_BYTES, of_answer

PIECES = st.lists(
    st.text(st.characters(codec="utf-8"), min_size=1)
    | st.sampled_from(['"', "\\", '\\"}', '"},{"', "\n\n", "😀"]),
    max_size=40,
)


def event(document: Any, *, ascii_only: bool = False) -> bytes:
    text = json.dumps(document, ensure_ascii=ascii_only, separators=(",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def chunk(delta: dict[str, Any], index: int = 0, usage: Any = ...) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "finish_reason": None}
    return {"id": "c", "choices": [choice]} | ({} if usage is ... else {"usage": usage})


def texts(stream: Any) -> list[str] | None:
    return stream.transcript.texts() if stream.transcript is not None else []


@given(PIECES, st.booleans(), st.integers(1, 4))
def test_the_pieces_make_the_text(pieces: list[str], ascii_only: bool, every: int) -> None:
    stream = StreamFilter(wants_usage=False)
    stream.feed(event(chunk({"role": "assistant", "content": ""})))
    thoughts = ""
    for number, piece in enumerate(pieces):
        delta: dict[str, Any] = {"content": piece}
        if number % every == 0:
            delta["reasoning"] = piece
            thoughts += piece
        stream.feed(event(chunk(delta), ascii_only=ascii_only))
    assert sorted(texts(stream) or []) == sorted(text for text in ("".join(pieces), thoughts) if text)


def test_half_characters_and_several_choices() -> None:
    stream = StreamFilter(wants_usage=False)
    stream.feed(event(chunk({"role": "assistant", "content": ""})))
    for index, half in ((0, "\\ud83d"), (1, "x"), (0, "a"), (1, "y")):
        raw = json.dumps(chunk({"content": "PIECE"}, index), separators=(",", ":")).replace("PIECE", half)
        stream.feed(f"data: {raw}\n\n".encode())
    assert texts(stream) is None  # half a character, and no other half: not a text
    whole = StreamFilter(wants_usage=False)
    whole.feed(event(chunk({"role": "assistant", "content": ""})))
    for half in ("\\ud83d", "\\ude00"):
        raw = json.dumps(chunk({"content": "PIECE"}), separators=(",", ":")).replace("PIECE", half)
        whole.feed(f"data: {raw}\n\n".encode())
    assert texts(whole) == ["😀"]


def test_tool_calls_are_texts() -> None:
    stream = StreamFilter(wants_usage=False)
    for call in ({"name": "look", "arguments": '{"a'}, {"arguments": '": 1}'}):
        stream.feed(event(chunk({"tool_calls": [{"index": 0, "function": call}]})))
    assert texts(stream) == ["look", '{"a": 1}']
    message = {"content": None, "tool_calls": [{"function": {"name": "look", "arguments": "{}"}}]}
    assert of_answer(json.dumps({"choices": [{"message": message}]}).encode()).texts() == ["look", "{}"]


def test_forgotten_once_the_engine_has_counted() -> None:
    stream = StreamFilter(wants_usage=False)
    for _ in range(3):
        stream.feed(event(chunk({"content": "one "})))
    assert texts(stream) == ["one one one "]
    stream.feed(event({"id": "c", "choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}))
    assert stream.transcript is None
    running = StreamFilter(wants_usage=False, per_choice=True)
    for n in range(1, 4):
        running.feed(event(chunk({"content": "one "}, usage={"prompt_tokens": 2, "completion_tokens": n})))
    assert running.transcript is None


def test_bounded() -> None:
    stream = StreamFilter(wants_usage=False)
    stream.feed(event(chunk({"role": "assistant", "content": ""})))
    piece = event(chunk({"content": "x" * 1000}))
    for _ in range(MAX_BYTES // 1000 + 20):
        stream.feed(piece)
    assert texts(stream) is None
    many = StreamFilter(wants_usage=False)
    for index in range(300):
        many.feed(event(chunk({"content": "x"}, index)))
    assert texts(many) is None


def test_the_other_formats() -> None:
    responses = ResponsesStream()
    item = {"type": "function_call", "name": "look"}
    for document in (
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "one "},
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "two"},
        {"type": "response.audio.delta", "output_index": 0, "delta": "AAAA"},
        {"type": "response.output_item.added", "output_index": 1, "item": item},
        {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{}"},
        {"type": "response.output_text.done", "output_index": 0, "content_index": 0, "text": "one two"},
    ):
        responses.feed(event(document))
    assert texts(responses) == ["one two", "look", "{}"]
    messages = MessagesStream()
    for document in (
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {
            "type": "content_block_start",
            "index": 1,
            "content_block": {"type": "tool_use", "name": "look", "input": {}},
        },
        {
            "type": "content_block_delta",
            "index": 1,
            "delta": {"type": "input_json_delta", "partial_json": "{}"},
        },
    ):
        messages.feed(event(document))
    assert texts(messages) == ["hm", "look", "{}"]
