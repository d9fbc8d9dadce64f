"""OpenAI's Responses API: `input_tokens`/`output_tokens`, and events that name themselves.

The platform keeps no conversations: what would need a stored response is refused, and the engine is told to
store nothing. (vLLM's own store is one for all callers, and a background response would outlive its metering.)
"""

from dataclasses import dataclass
from typing import Any

from msgspec import Raw

from wire.dialects import (
    Answered,
    Body,
    count_at,
    decode_object,
    encode,
    forward_members,
    object_at,
    refuse_member,
    stream_error,
    text_at,
)
from wire.openai import ModelRequest, TokenCounts, estimate_input_tokens, parse_request, read_member
from wire.openai_chunks import StreamError
from wire.sse import EventSplitter, event_data
from wire.transcript import Transcript, of_response

_JSON = b"application/json"
_FINAL = ("response.completed", "response.incomplete")
_TEXT_DELTAS = ("text.delta", "arguments.delta", "refusal.delta", "input.delta", "code.delta")
_STORED = {
    "previous_response_id": "No responses are stored here: send the whole conversation in 'input'.",
    "conversation": "No conversations are stored here: send the whole conversation in 'input'.",
    "prompt": "No prompt templates are stored here: send 'input' and 'instructions'.",
}


@dataclass(frozen=True, slots=True)
class ResponsesDialect:
    """`/v1/responses`."""

    salted: bool = True

    def parse(self, body: bytes, content_type: bytes) -> ModelRequest:
        request = parse_request(body, limits=("max_output_tokens",))
        if read_member(request, "background", bool):
            raise refuse_member(
                "background", "Background responses are not served: their cost has no caller."
            )
        for name, message in _STORED.items():
            if read_member(request, name, object) is not None:
                raise refuse_member(name, message)
        return request

    def upstream_body(self, request: ModelRequest, *, served_model: str, cache_salt: str | None) -> Body:
        request.members["store"] = Raw(b"false")
        return forward_members(request, served_model, cache_salt)

    def read_answer(self, body: bytes) -> Answered | None:
        document = decode_object(body)
        if document is None or document.get("object") != "response":
            return None
        counts = usage_counts(document)
        head = (text_at(document, "id"), text_at(document, "status"), counts)
        if counts is not None and counts.output:
            return Answered(*head)
        return Answered(*head, _text_tokens(document), of_response(document))

    def render(self, request: ModelRequest, body: bytes) -> Body:
        return Body(_JSON, body)

    def stream(self) -> "ResponsesStream":
        return ResponsesStream()

    def estimate(self, request: ModelRequest) -> TokenCounts:
        return TokenCounts(estimate_input_tokens(request), 0, 0, 0)


def usage_counts(response: dict[str, Any]) -> TokenCounts | None:
    """The counts of a response object."""
    usage = object_at(response, "usage")
    if not usage:
        return None
    given, output = count_at(usage, "input_tokens"), count_at(usage, "output_tokens")
    cached = count_at(object_at(usage, "input_tokens_details"), "cached_tokens")
    reasoning = count_at(object_at(usage, "output_tokens_details"), "reasoning_tokens")
    return TokenCounts(given, min(cached, given), output, min(reasoning, output))


def _text_tokens(response: dict[str, Any]) -> int:
    output = response.get("output")
    return (len(encode(output)) + 3) // 4 if output else 0


class ResponsesStream:
    """Events pass unchanged; the last one, with the usage, is withheld for the end."""

    terminator = b""  # OpenAI ends this stream with its last event, not with [DONE]

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._counts: TokenCounts | None = None
        self._final: tuple[str, dict[str, Any]] | None = None
        self.chunks = 0
        self.content_chunks = 0
        self.transcript: Transcript | None = None
        self.done = False
        self.error: StreamError | None = None
        self.engine_id = ""
        self.finish_reason = ""

    def feed(self, data: bytes) -> bytes:
        out = []
        for event in self._splitter.split(data):
            if self.done or self.error is not None:
                break
            out.append(self._event(event))
        return b"".join(out)

    def end(self) -> bytes:
        rest = self._splitter.rest.strip()
        return self._event(rest + b"\n\n") if rest and not self.done and self.error is None else b""

    @property
    def complete(self) -> bool:
        return self.done

    def counts(self) -> TokenCounts | None:
        return self._counts

    def closing_events(self, cost_usd: str = "", counted: TokenCounts | None = None) -> bytes:
        if self._final is None:
            return b""
        kind, document = self._final
        usage = object_at(object_at(document, "response"), "usage")
        if usage and cost_usd:
            usage["cost_usd"] = cost_usd
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode(document))

    def _event(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None or data.strip() == b"[DONE]":
            return b""
        document = decode_object(data)
        if document is None:
            self.chunks += 1
            self.content_chunks += 1
            return event
        kind = text_at(document, "type")
        response = object_at(document, "response")
        if kind in ("error", "response.failed") or "error" in document:
            self.error = stream_error(encode(response or document), response or document)
            return b""
        self.chunks += 1
        if kind.endswith(".delta"):
            self.content_chunks += 1
            self._note_text(kind, document)
        elif kind == "response.output_item.added":
            name = object_at(document, "item").get("name")
            self._transcript().add((str(document.get("output_index")), "name"), name)
        if response:
            self.engine_id = self.engine_id or text_at(response, "id")
            self._counts = usage_counts(response) or self._counts
            if self._counts is not None and self._counts.output:
                self.transcript = None
        if kind in _FINAL:
            self.finish_reason = text_at(response, "status")
            self._final = (kind, document)
            self.done = True
            return b""
        return event

    def _note_text(self, kind: str, document: dict[str, Any]) -> None:
        if kind.endswith(_TEXT_DELTAS):
            place = [str(document.get(name)) for name in ("output_index", "content_index", "summary_index")]
            self._transcript().add((*place, kind), document.get("delta"))

    def _transcript(self) -> Transcript:
        if self.transcript is None:
            self.transcript = Transcript()
        return self.transcript
