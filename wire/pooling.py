"""Rerank (Jina's and Cohere's format) and score: as vLLM serves them, counted by what went in."""

from dataclasses import dataclass

from wire.dialects import (
    Answered,
    AnswerStream,
    Body,
    count_at,
    decode_object,
    forward_members,
    object_at,
    refuse_member,
    text_at,
)
from wire.openai import ModelRequest, TokenCounts, estimate_input_tokens, parse_request

_JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class PoolingDialect:
    """`/v1/rerank` and `/v1/score`; `results` is the member that an answer must have."""

    results: str
    salted: bool = True  # vLLM caches the prefixes of what it only reads, too

    def parse(self, body: bytes, content_type: bytes) -> ModelRequest:
        request = parse_request(body)
        if request.stream:
            raise refuse_member("stream", "This route has nothing to stream.")
        return request

    def upstream_body(self, request: ModelRequest, *, served_model: str, cache_salt: str | None) -> Body:
        return forward_members(request, served_model, cache_salt)

    def read_answer(self, body: bytes) -> Answered | None:
        document = decode_object(body)
        if document is None or not isinstance(document.get(self.results), list):
            return None
        usage = object_at(document, "usage")
        given = count_at(usage, "prompt_tokens") or count_at(usage, "total_tokens")
        return Answered(text_at(document, "id"), "", TokenCounts(given, 0, 0, 0) if given else None)

    def render(self, request: ModelRequest, body: bytes) -> Body:
        return Body(_JSON, body)

    def stream(self) -> AnswerStream:
        raise AssertionError("refused by parse")

    def estimate(self, request: ModelRequest) -> TokenCounts:
        return TokenCounts(estimate_input_tokens(request), 0, 0, 0)
