"""Anthropic's Messages API as vLLM serves it: bodies, events, errors.

Anthropic's `input_tokens` leaves cached tokens out; our counts include them.
"""

from dataclasses import dataclass
from typing import Any

from wire.dialects import (
    Answered,
    Body,
    count_at,
    decode_object,
    encode,
    forward_members,
    object_at,
    stream_error,
    text_at,
)
from wire.openai import ModelRequest, TokenCounts, estimate_input_tokens, parse_request
from wire.openai_chunks import StreamError
from wire.sse import EventSplitter, event_data
from wire.transcript import Transcript, add_block, of_message

_JSON = b"application/json"
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    422: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class MessagesDialect:
    """`/v1/messages`."""

    salted: bool = True

    def parse(self, body: bytes, content_type: bytes) -> ModelRequest:
        return parse_request(body, limits=("max_tokens",))

    def upstream_body(self, request: ModelRequest, *, served_model: str, cache_salt: str | None) -> Body:
        return forward_members(request, served_model, cache_salt)

    def read_answer(self, body: bytes) -> Answered | None:
        document = decode_object(body)
        if document is None or document.get("type") != "message":
            return None
        usage = object_at(document, "usage")
        counts = _counts(usage, count_at(usage, "output_tokens")) if usage else None
        head = (text_at(document, "id"), text_at(document, "stop_reason"), counts)
        if counts is not None and counts.output:
            return Answered(*head)
        produced = (len(encode(document.get("content"))) + 3) // 4
        return Answered(*head, produced, of_message(document))

    def render(self, request: ModelRequest, body: bytes) -> Body:
        return Body(_JSON, body)

    def stream(self) -> "MessagesStream":
        return MessagesStream()

    def estimate(self, request: ModelRequest) -> TokenCounts:
        return TokenCounts(estimate_input_tokens(request), 0, 0, 0)


def _counts(usage: dict[str, Any], output: int) -> TokenCounts:
    cached = count_at(usage, "cache_read_input_tokens")
    given = count_at(usage, "input_tokens") + cached + count_at(usage, "cache_creation_input_tokens")
    return TokenCounts(given, cached, output, 0)


class MessagesStream:
    """Events pass unchanged; the last two, with the final usage and the end, are withheld for the end."""

    terminator = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._counts: TokenCounts | None = None
        self._delta: dict[str, Any] | None = None  # the last message_delta, withheld
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
        return self.done or self._delta is not None

    def counts(self) -> TokenCounts | None:
        return self._counts

    def closing_events(self, cost_usd: str = "", counted: TokenCounts | None = None) -> bytes:
        if self._delta is None:
            return b""
        usage = object_at(self._delta, "usage")
        if usage and cost_usd:
            usage["cost_usd"] = cost_usd
        return b"event: message_delta\ndata: %b\n\n" % encode(self._delta)

    def _event(self, event: bytes) -> bytes:
        data = event_data(event)
        if data is None:
            return b""
        document = decode_object(data)
        if document is None:
            self.chunks += 1
            self.content_chunks += 1
            return event
        kind = text_at(document, "type")
        if kind == "error" or "error" in document:
            self.error = stream_error(data, document)
            return b""
        if kind == "ping" and not self.chunks:
            return b""  # it would commit us to a 200 that may still become an error
        self.chunks += 1
        if kind == "message_stop":
            self.done = True
            return b""
        if kind == "content_block_delta":
            self.content_chunks += 1
            self._note_text(document, "delta")
        elif kind == "content_block_start":
            self._note_text(document, "content_block")
        elif kind == "message_start":
            message = object_at(document, "message")
            self.engine_id = text_at(message, "id")
            self._note(object_at(message, "usage"), final=False)
        elif kind == "message_delta":
            self.finish_reason = text_at(object_at(document, "delta"), "stop_reason") or self.finish_reason
            self._note(object_at(document, "usage"), final=True)
            self._delta = document
            return b""
        return event

    def _note(self, usage: dict[str, Any], *, final: bool) -> None:
        """Usage is cumulative. The output of the first event is the engine's first guess, so it is not kept."""
        if not usage:
            return
        found = _counts(usage, count_at(usage, "output_tokens") if final else 0)
        before = self._counts
        if before is not None and not found.input:
            found = TokenCounts(before.input, before.cached_input, found.output, 0)
        self._counts = found
        if final and found.output:
            self.content_chunks = 0  # they are counted now
            self.transcript = None

    def _note_text(self, document: dict[str, Any], name: str) -> None:
        if self.transcript is None:
            self.transcript = Transcript()
        add_block(self.transcript.add, count_at(document, "index"), object_at(document, name))


def error_document(status: int, message: str, request_id: str) -> dict[str, Any]:
    """Anthropic's error document."""
    kind = _ERROR_TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
