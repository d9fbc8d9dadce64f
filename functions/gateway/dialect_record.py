"""A call whose bodies are not those of OpenAI's oldest three operations: its dialect reads and writes them."""

from core.errors import UpstreamFailed
from functions.gateway.record import CallRecord, cache_salt
from wire.dialects import JSON, AnswerStream, Body
from wire.openai import TokenCounts
from wire.operations import DIALECTS


class DialectRecord(CallRecord):
    """As its base, for the operations in `DIALECTS`."""

    __slots__ = ("_body_type",)

    @property
    def body_type(self) -> bytes:
        return getattr(self, "_body_type", JSON)

    def upstream_body(self) -> bytes:
        dialect, route = DIALECTS[self.operation], self.route
        salt = cache_salt(route.org_id) if dialect.salted and route.continuous_usage else None
        body = dialect.upstream_body(self.request, served_model=route.served_model, cache_salt=salt)
        self._body_type = body.content_type
        return body.data

    def note_answer(self, body: bytes) -> None:
        answer = DIALECTS[self.operation].read_answer(body)
        if answer is None:
            raise UpstreamFailed("The model server's answer could not be understood.")
        self.engine_id = answer.engine_id
        self.finish_reason = answer.finish_reason
        self.counts = answer.counts
        self._answer_estimate = answer.produced
        self._transcript = answer.transcript

    def render(self, body: bytes) -> Body:
        return DIALECTS[self.operation].render(self.request, body)

    def begin_stream(self) -> AnswerStream:
        self.chunks = DIALECTS[self.operation].stream()
        return self.chunks

    def _estimate(self) -> TokenCounts:
        return DIALECTS[self.operation].estimate(self.request)
