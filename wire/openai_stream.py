"""The events of a streamed answer on their way to the caller: usage is read, and shown only to who asked.

The engine is always asked for usage (see `openai.upstream_body`), so the caller's view is restored here:

- did not ask: no `usage` member anywhere, and no final chunk with empty `choices`;
- asked: `usage: null` on every chunk but the final one, which has empty `choices`; it is made up when the
  engine put its usage elsewhere.
"""

import contextlib
import re
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw

from wire.openai import (
    EngineUsage,
    TokenCounts,
    counts_of,
    engine_error_status,
    error_body,
    map_engine_error,
)
from wire.openai_chunks import Chunk, LooseChunk, StreamError
from wire.sse import DONE, DONE_EVENT, EventSplitter, encode_event, event_data
from wire.transcript import Transcript

_chunk: Final = msgspec.json.Decoder(Chunk)
_usage: Final = msgspec.json.Decoder(EngineUsage)
# As vLLM and its like write the beginning of a choice.
_TEXT: Final = b'"choices":[{"index":0,"delta":{"content":"'
_QUOTE: Final = 0x22
_COMMA: Final = 0x2C
_BACKSLASH: Final = 0x5C
_BRACE: Final = 0x7D
_NOT_ZERO: Final = (b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9")
_loose_chunk: Final = msgspec.json.Decoder(LooseChunk)
_members: Final = msgspec.json.Decoder(dict[str, Raw])
_encoder: Final = msgspec.json.Encoder()
# The usage member where engines put it: last. Tried first because it spares decoding the chunk once more.
_USAGE_AT_END: Final = re.compile(rb'"usage":\s?(?:null|\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})\}\Z')


class StreamFilter:
    """Fed with the engine's bytes, gives the bytes for the caller and keeps the counts."""

    terminator = DONE_EVENT  # goes out last, once the usage event is durable

    __slots__ = (
        "_final",
        "_final_chunk",
        "_last_chunk",
        "_latest",
        "_latest_raw",
        "_per_choice",
        "_splitter",
        "_wants_usage",
        "choices_per_prompt",
        "chunks",
        "content_chunks",
        "done",
        "engine_id",
        "error",
        "finish_reason",
        "transcript",
    )

    def __init__(self, *, wants_usage: bool, choices_per_prompt: int = 1, per_choice: bool = False) -> None:
        """`per_choice`: usage on a chunk counts that chunk's choice only (vLLM), not the whole answer."""
        self._wants_usage = wants_usage
        self.choices_per_prompt = choices_per_prompt
        self._per_choice = per_choice
        self._splitter = EventSplitter()
        self._latest: dict[int, EngineUsage] = {}
        self._latest_raw = b""  # newer than that of choice 0; decoded when somebody asks
        self._final: EngineUsage | None = None
        self._final_chunk = b""  # the final usage chunk as the engine wrote it, withheld until the end
        self._last_chunk: Chunk | None = None
        self.chunks = 0  # events with data, errors and [DONE] not counted
        self.content_chunks = 0  # chunks that carried something generated and no count of it
        self.transcript: Transcript | None = None  # of these, until the engine has counted them after all
        self.done = False
        self.error: StreamError | None = None
        self.engine_id = ""
        self.finish_reason = ""

    def feed(self, data: bytes) -> bytes:
        """The bytes to hand on. `[DONE]` and errors are withheld: the one who ends the stream writes them."""
        if self.chunks and not self._splitter.rest:
            quick = self._quick(data)
            if quick:
                return quick
        events = self._splitter.split(data)
        if len(events) == 1:
            return self._event(events[0])
        out = []
        for event in events:
            out.append(self._event(event))
            if self.done or self.error is not None:
                break
        return b"".join(out)

    def end(self) -> bytes:
        """The engine closed the stream: what a last event without its blank line gives."""
        rest = self._splitter.rest.strip()
        return self._event(rest + b"\n\n") if rest.startswith(b"data:") and not self.done else b""

    @property
    def complete(self) -> bool:
        """The engine said all it had to say: it wrote [DONE] or its final usage."""
        return self.done or self._final is not None

    @property
    def counted(self) -> bool:
        """The engine has given counts."""
        return bool(self._latest) or bool(self._latest_raw) or self._final is not None

    def counts(self) -> TokenCounts | None:
        """The latest counts of the whole answer, None when the engine has given none."""
        if self._final is not None:
            return counts_of(self._final)
        if self._latest_raw:
            raw, self._latest_raw = self._latest_raw, b""
            with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
                self._latest[0] = _usage.decode(raw)
        if not self._latest:
            return None
        prompts: dict[int, int] = {}
        output = cached = reasoning = 0
        for index, usage in self._latest.items():
            counts = counts_of(usage)
            group = index // self.choices_per_prompt
            prompts[group] = max(prompts.get(group, 0), counts.input)
            output += counts.output
            cached = max(cached, counts.cached_input)
            reasoning += counts.reasoning
        return TokenCounts(sum(prompts.values()), cached, output, reasoning)

    def closing_events(self, cost_usd: str = "", counted: TokenCounts | None = None) -> bytes:
        """The final usage chunk, when the caller asked for one: the engine's, or made up if it gave none.

        `counted` is what was counted here in place of what the engine left out.
        """
        if not self._wants_usage:
            return b""
        if self._final_chunk and counted is None:
            return _with_cost(self._final_chunk, cost_usd)
        counts, last = counted or self.counts(), self._last_chunk
        if counts is None or last is None:
            return b""
        usage: dict[str, Any] = {
            "prompt_tokens": counts.input,
            "completion_tokens": counts.output,
            "total_tokens": counts.input + counts.output,
            "prompt_tokens_details": {"cached_tokens": counts.cached_input},
            "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
        }
        if cost_usd:
            usage["cost_usd"] = cost_usd
        head = {"id": last.id, "object": last.object, "created": last.created, "model": last.model}
        return encode_event(_encoder.encode(head | {"choices": [], "usage": usage}))

    def _quick(self, data: bytes) -> bytes:
        """What most reads of a long answer are: one event with some text of the only choice. b"": it is not.

        Searched instead of decoded: within a JSON string a quote is escaped, so none of these can be found there.
        """
        text = data.find(_TEXT)
        if (
            text < 0
            or data[text + len(_TEXT)] == _QUOTE  # nothing was generated
            or not data.startswith(b"data: {")
            or data.find(b"\n") != len(data) - 2
            or data[-3:] != b"}\n\n"
            or data.find(b'"finish_reason":null', text) < 0
            or data.count(b'"finish_reason"') != 1
            or data.find(b'"error"') >= 0
        ):
            return b""
        usage = data.rfind(b'"usage":')
        if usage < 0:
            self._note_text(data, text + len(_TEXT))
        else:
            raw = data[usage + 8 : -3]
            counted = raw.find(b'"completion_tokens":')
            if (
                raw[:1] != b"{"
                or raw[-1:] != b"}"
                or data[usage - 1] != _COMMA
                or raw.find(b'"prompt_tokens":') < 0
                or counted < 0
                or raw[counted + 20 : counted + 21] not in _NOT_ZERO
            ):
                return b""
            self._latest_raw = raw
            data = data[: usage - 1] + (b',"usage":null}\n\n' if self._wants_usage else b"}\n\n")
        self.chunks += 1
        return data

    def _event(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:
            # A comment before the first chunk would commit us to a 200 that may still become an error.
            return event if self.chunks else b""
        if data.strip() == DONE:
            self.done = True
            return b""
        try:
            chunk = _chunk.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return self._odd_chunk(event, data)
        if (chunk.error is not UNSET and bytes(chunk.error) != b"null") or chunk.object == "error":
            self._note_error(data)
            return b""
        return self._chunk_event(event, data, chunk)

    def _chunk_event(self, event: bytes, data: bytes, chunk: Chunk) -> bytes:
        if not self.chunks:
            self.engine_id = str(chunk.id or "")[:128]
            self._last_chunk = chunk
        self.chunks += 1
        choices, usage = chunk.choices or (), chunk.usage
        for choice in choices:
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason
        uncounted = not isinstance(usage, EngineUsage) or not usage.completion_tokens
        if uncounted and any(choice.has_content() for choice in choices):
            self._note_uncounted(event)
        if isinstance(usage, EngineUsage):
            index = choices[0].index if choices else None
            self._last_chunk = chunk
            return self._with_usage(event, data, index, usage)
        if usage is None and not self._wants_usage:
            return _replace_usage(data, null=False)
        return event

    def _note_text(self, event: bytes, start: int) -> None:
        end = event.find(b'"', start)
        if event[end - 1] == _BACKSLASH or event[end + 1] != _BRACE:  # a quote in the text, or more than text
            self._note_uncounted(event)
            return
        self.content_chunks += 1
        transcript = self.transcript
        if transcript is None:
            transcript = self.transcript = Transcript()
        transcript.note_escaped(event[start:end])

    def _note_uncounted(self, event: bytes) -> None:
        self.content_chunks += 1
        if self.transcript is None:
            self.transcript = Transcript()
        self.transcript.note(event)

    def _with_usage(self, event: bytes, data: bytes, index: int | None, usage: EngineUsage) -> bytes:
        if usage.completion_tokens:
            self.transcript = None
        if index is None:
            self._final = usage
            self._final_chunk = data if self._wants_usage else b""
            return b""
        choice = index if self._per_choice else 0
        if choice == 0:
            self._latest_raw = b""
        self._latest[choice] = usage
        return _replace_usage(data, null=self._wants_usage)

    def _odd_chunk(self, event: bytes, data: bytes) -> bytes:
        """Not what we know a chunk to be: pass it on, but do not lose its usage."""
        self.chunks += 1
        self._note_uncounted(event)
        try:
            chunk = _loose_chunk.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return event
        if isinstance(chunk.usage, EngineUsage):
            return self._with_usage(event, data, 0 if chunk.choices else None, chunk.usage)
        return event

    def _note_error(self, data: bytes) -> None:
        status = engine_error_status(data)
        self.error = StreamError(status, *map_engine_error(status, data))


def _replace_usage(data: bytes, *, null: bool) -> bytes:
    """The chunk as an event without its usage member, or with null in its place."""
    at = data.rfind(b'"usage"')
    if at > 0 and data[at - 1 : at] == b"," and _USAGE_AT_END.match(data, at):
        return b"data: " + data[: at - 1] + (b',"usage":null}\n\n' if null else b"}\n\n")
    members = _members.decode(data)
    if null:
        members["usage"] = Raw(b"null")
    else:
        members.pop("usage", None)
    return encode_event(_encoder.encode(members))


def _with_cost(data: bytes, cost_usd: str) -> bytes:
    """The final usage chunk as an event, with what the call cost beside its counts."""
    if not cost_usd and b"\n" not in data:
        return encode_event(data)
    members = _members.decode(data)
    usage = _members.decode(members["usage"])
    if cost_usd:
        usage["cost_usd"] = Raw(_encoder.encode(cost_usd))
    members["usage"] = Raw(_encoder.encode(usage))
    return encode_event(_encoder.encode(members))


def error_event(status: int, message: str, code: str, param: str | None = None) -> bytes:
    """OpenAI's error document as an event of a stream."""
    return encode_event(_encoder.encode(error_body(status, message, code=code, param=param)))
