"""What a caller sees of a stream, and what is counted, for engines of many habits."""

import json
import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.openai import TokenCounts
from wire.openai_stream import StreamFilter, error_event


def event(value: object) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def chunk(text: str, index: int = 0, usage: object = ..., finish: str | None = None) -> dict:
    body = {"id": "c1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
    body["choices"] = [{"index": index, "delta": {"content": text}, "finish_reason": finish}]
    return body if usage is ... else body | {"usage": usage}


def usage(prompt: int, output: int, **more: object) -> dict:
    return {"prompt_tokens": prompt, "total_tokens": prompt + output, "completion_tokens": output, **more}


def decoded(out: bytes) -> list[dict]:
    return [json.loads(line[6:]) for line in out.split(b"\n\n") if line.startswith(b"data: ")]


def run(stream: StreamFilter, *values: object) -> bytes:
    return b"".join(stream.feed(event(value)) for value in values)


def test_untouched_bytes_stay_untouched() -> None:
    odd = b'data: {"choices": [{"delta": {"content":"caf\\u00e9 \xc3\xa9"}}],  "x":1.50}\n\n'
    assert StreamFilter(wants_usage=False).feed(odd) == odd


@pytest.mark.parametrize("wants", [False, True])
@pytest.mark.parametrize("position", ["last", "middle", "first", "only"])
def test_running_usage_is_hidden_wherever_it_stands(wants: bool, position: str) -> None:
    counts = usage(3, 1, prompt_tokens_details={"cached_tokens": 2})
    body = chunk('a","usage":{"b":1}}')
    names = list(body)
    at = {"last": len(names), "middle": 2, "first": 0, "only": 0}[position]
    items = list(body.items())
    items.insert(at, ("usage", counts))
    body = dict(items if position != "only" else [("choices", body["choices"]), ("usage", counts)])
    for separators in ((",", ":"), (", ", ": ")):
        stream = StreamFilter(wants_usage=wants)
        [shown] = decoded(stream.feed(event(json.dumps(body, separators=separators).encode())))
        assert shown == body | {"usage": None} if wants else "usage" not in shown
        assert shown["choices"] == body["choices"]
        assert stream.counts() == TokenCounts(3, 2, 1, 0)


@pytest.mark.parametrize("wants", [False, True])
def test_the_final_chunk(wants: bool) -> None:
    stream = StreamFilter(wants_usage=wants)
    final = {
        "id": "c1",
        "choices": [],
        "usage": usage(3, 2, completion_tokens_details={"reasoning_tokens": 1}),
    }
    out = run(stream, chunk("a", usage=usage(3, 1)), chunk("b", usage=usage(3, 2), finish="length"), final)
    assert stream.complete
    assert not stream.done
    assert len(decoded(out)) == 2
    assert decoded(stream.closing_events()) == ([final] if wants else [])
    if wants:
        [priced] = decoded(stream.closing_events("0.01"))
        assert priced == final | {"usage": final["usage"] | {"cost_usd": "0.01"}}
    assert stream.feed(b"data: [DONE]\n\n") == b""
    assert stream.done
    assert stream.counts() == TokenCounts(3, 0, 2, 1)
    assert (stream.engine_id, stream.finish_reason) == ("c1", "length")


def test_usage_given_elsewhere_becomes_a_final_chunk() -> None:
    stream = StreamFilter(wants_usage=True)
    run(stream, chunk("a"), chunk("b", usage=usage(3, 2), finish="stop"), b"[DONE]")
    [final] = decoded(stream.closing_events())
    assert (final["choices"], final["usage"]["total_tokens"], final["id"]) == ([], 5, "c1")
    [priced] = decoded(stream.closing_events("0.5"))
    assert priced["usage"]["cost_usd"] == "0.5"
    silent = StreamFilter(wants_usage=False)
    run(silent, chunk("b", usage=usage(3, 2)), b"[DONE]")
    assert silent.closing_events() == b""


def test_null_usage_shows_only_to_who_asked() -> None:
    assert decoded(run(StreamFilter(wants_usage=True), chunk("a", usage=None)))[0]["usage"] is None
    assert "usage" not in decoded(run(StreamFilter(wants_usage=False), chunk("a", usage=None)))[0]


def test_per_choice_counts_are_summed_and_prompts_counted_once_each() -> None:
    stream = StreamFilter(wants_usage=False, choices_per_prompt=2, per_choice=True)
    for index, output, prompt in ((0, 1, 5), (1, 1, 5), (2, 1, 7), (0, 2, 5), (3, 4, 7)):
        run(stream, chunk("x", index, usage(prompt, output)))
    assert stream.counts() == TokenCounts(12, 0, 2 + 1 + 1 + 4, 0)
    whole = StreamFilter(wants_usage=False)
    for index, output in ((0, 1), (1, 2), (0, 3)):
        run(whole, chunk("x", index, usage(5, output)))
    assert whole.counts() == TokenCounts(5, 0, 3, 0)


def test_counts_are_clamped_to_what_can_be() -> None:
    details = {
        "prompt_tokens_details": {"cached_tokens": 9},
        "completion_tokens_details": {"reasoning_tokens": 9},
    }
    stream = StreamFilter(wants_usage=False)
    run(stream, {"choices": [], "usage": usage(3, 2, **details)})
    assert stream.counts() == TokenCounts(3, 3, 2, 2)
    run(stream, {"choices": [], "usage": usage(-3, 2)})
    assert stream.counts() == TokenCounts(0, 0, 2, 0)


@pytest.mark.parametrize("delta", [
    {"content": "a"},
    {"content": None, "reasoning_content": "hm"},
    {"reasoning": "hm"},
    {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
    {"refusal": "no"},
])  # fmt: skip
def test_content_is_counted_where_the_engine_does_not(delta: dict) -> None:
    stream = StreamFilter(wants_usage=False)
    empty = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    run(stream, empty, {"choices": [{"index": 0, "delta": delta}]}, end)
    assert (stream.chunks, stream.content_chunks, stream.counts()) == (3, 1, None)


@pytest.mark.parametrize(("value", "status", "code"), [
    ({"error": {"message": "bad", "type": "BadRequestError", "code": 400}}, 400, "bad_request"),
    ({"error": {"message": "boom", "code": "500"}}, 500, "upstream_error"),
    ({"error": "overloaded"}, 502, "upstream_error"),
    ({"object": "error", "message": "boom", "code": 503}, 503, "unavailable"),
    ({"error": {"message": "x", "code": 200}}, 502, "upstream_error"),
])  # fmt: skip
def test_errors_in_the_stream(value: object, status: int, code: str) -> None:
    stream = StreamFilter(wants_usage=False)
    assert run(stream, value, b"[DONE]") == b""
    assert stream.error is not None
    assert (stream.error.status, stream.error.code) == (status, code)


def test_odd_chunks_pass_and_keep_their_usage() -> None:
    stream = StreamFilter(wants_usage=False)
    assert stream.feed(b"data: not json\n\n") == b"data: not json\n\n"
    odd = chunk("a", usage=usage(3, 9)) | {"model": ["a", "list"]}
    assert "usage" not in decoded(run(stream, odd))[0]
    assert stream.counts() == TokenCounts(3, 0, 9, 0)
    assert stream.content_chunks == 2


def test_comments_pass_once_the_stream_has_begun() -> None:
    stream = StreamFilter(wants_usage=False)
    assert stream.feed(b": ping\n\n") == b""
    run(stream, chunk("a"))
    assert stream.feed(b": ping\n\n") == b": ping\n\n"


def test_a_last_event_without_its_blank_line() -> None:
    stream = StreamFilter(wants_usage=False)
    stream.feed(event(chunk("a")) + b"data: [DONE]")
    assert not stream.complete
    assert stream.end() == b""
    assert stream.complete
    cut = StreamFilter(wants_usage=False)
    cut.feed(event(chunk("a")) + b"activator request timeout")
    assert cut.end() == b""
    assert not cut.complete


@given(st.lists(st.integers(1, 60), max_size=20), st.booleans())
def test_the_cut_of_the_bytes_does_not_matter(cuts: list[int], wants: bool) -> None:
    values = [
        chunk("a", usage=usage(3, 1)),
        chunk("é", usage=usage(3, 2)),
        {"choices": [], "usage": usage(3, 2)},
    ]
    data = b"".join(event(value) for value in [*values, b"[DONE]"])
    whole, pieces = StreamFilter(wants_usage=wants), StreamFilter(wants_usage=wants)
    expected = whole.feed(data)
    out, rest = b"", data
    for cut in cuts:
        out, rest = out + pieces.feed(rest[:cut]), rest[cut:]
    assert out + pieces.feed(rest) == expected
    assert pieces.done
    assert pieces.counts() == whole.counts()


def test_our_own_error_event() -> None:
    [shown] = decoded(error_event(503, "later", "unavailable"))
    assert shown == {
        "error": {"message": "later", "type": "server_error", "param": None, "code": "unavailable"}
    }


class _Thorough(StreamFilter):
    """Decodes every event."""

    __slots__ = ()

    def _quick(self, data: bytes) -> bytes:
        return b""


def _random_stream(chance: random.Random, choices: int) -> list[bytes]:
    deltas: list[dict] = [
        {"content": "a"},
        {"content": ""},
        {"content": None},
        {"role": "assistant", "content": ""},
        {"content": '"usage":{"finish_reason":null,"error"\n'},
        {"reasoning": "a"},
    ]
    events = []
    for _ in range(chance.randint(1, 8)):
        made = [
            {
                "index": chance.randrange(choices),
                "delta": chance.choice(deltas),
                "finish_reason": chance.choice([None, None, None, "stop"]),
            }
            for _ in range(chance.choice([0, 1, 1, 1, 1, 2]))
        ]
        event: dict = {"id": "i", "object": "chat.completion.chunk", "choices": made}
        usage = {"prompt_tokens": chance.randrange(3), "completion_tokens": chance.randrange(12)}
        details = {"prompt_tokens_details": {"cached_tokens": 1}}
        event |= chance.choice([{}, {}, {"usage": None}, {"usage": usage}, {"usage": usage | details}])
        if chance.random() < 0.05:
            event["error"] = {"message": "x", "code": 500}
        separators = chance.choice([(",", ":"), (",", ":"), (", ", ": ")])
        text = json.dumps(event, separators=separators).encode()
        events.append(b"data: " + text + chance.choice([b"\n\n", b"\n\n", b"\r\n\r\n"]))
    return events


def test_searching_finds_what_decoding_finds() -> None:
    chance = random.Random(20261123)
    for _ in range(3000):
        choices = chance.choice([1, 1, 2])
        data = [*_random_stream(chance, choices), b"data: [DONE]\n\n"]
        if chance.random() < 0.3:
            whole = b"".join(data)
            cuts = sorted(chance.randrange(len(whole)) for _ in range(3))
            data = [whole[a:b] for a, b in pairwise([0, *cuts, len(whole)]) if b > a]
        wants, each = chance.random() < 0.5, chance.random() < 0.7
        seen = []
        for kind in (StreamFilter, _Thorough):
            made = kind(wants_usage=wants, choices_per_prompt=choices, per_choice=each)
            out = b"".join([made.feed(part) for part in data if not made.error])
            seen.append(
                (
                    out,
                    made.counts(),
                    made.chunks,
                    made.content_chunks,
                    made.finish_reason,
                    made.done,
                    made.error,
                )
            )
        assert seen[0] == seen[1], data
