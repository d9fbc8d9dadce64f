"""What is known of one call, the usage events that come of it, and what a failed answer means: for both lanes.

Pure: no I/O, no clock.
"""

import hashlib
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from access.admission.values import Figures, Grant
from access.principal import Principal
from core.errors import Timeout, UpstreamFailed
from functions.gateway.balancing import Server
from functions.gateway.figures import Cost, Tally, cost_lines, cost_of, metered
from metering.model import Status, Usage, UsageEvent, UsageSource
from serving.route import Route
from wire import prompts, transcript
from wire.dialects import JSON, AnswerStream, Body
from wire.openai import (
    ModelRequest,
    Operation,
    TokenCounts,
    counts_of,
    estimate_input_tokens,
    finish_reason_of,
    map_engine_error,
    parse_answer,
    upstream_body,
)
from wire.openai_stream import StreamFilter
from wire.transcript import Transcript

if TYPE_CHECKING:
    from functions.gateway.mirrors import Copy


class CallRecord:
    """One call; `attempt`, `sent_ms` and what follows are of its current attempt."""

    __slots__ = (
        "_answer_estimate",
        "_cost",
        "_input_estimate",
        "_rest",
        "_transcript",
        "attempt",
        "billed",
        "body_bytes",
        "chunks",
        "copy",
        "counts",
        "ended_ms",
        "engine_id",
        "figures",
        "finish_reason",
        "first_byte_ms",
        "grant",
        "last_event",
        "operation",
        "place",
        "principal",
        "received_ms",
        "refused",
        "renew_at_ms",
        "request",
        "request_id",
        "reserved_tokens",
        "route",
        "sent_ms",
        "server",
        "tally",
    )

    def __init__(
        self,
        request_id: str,
        operation: Operation,
        principal: Principal,
        request: ModelRequest,
        route: Route,
        received_ms: int,
    ) -> None:
        self.request_id = request_id
        self.operation = operation
        self.principal = principal
        self.request = request
        self.route = route
        self.received_ms = received_ms
        self.body_bytes = 0  # of the request, as the caller sent it
        self.attempt = 1
        self.sent_ms = 0
        self.first_byte_ms = 0
        self.engine_id = ""
        self.finish_reason = ""
        self.counts: TokenCounts | None = None  # of a plain answer
        self.chunks: AnswerStream | None = None  # of a streamed one
        self.copy: Copy | None = None  # sent to a shadow deployment
        self.refused = False  # by the engine: nothing was produced
        self.billed = Usage()  # by the event that was made last
        self.ended_ms = 0
        self.last_event: UsageEvent | None = None
        self.grant: Grant | None = None  # what is reserved for it, until it is settled
        self.figures: tuple[Figures | None, Figures | None] = (None, None)  # of requests and tokens
        self.renew_at_ms = 0
        self.server = ""  # base URL of the one it was sent to
        self.tally: Tally | None = None  # counted by us, where the engine left something out
        self.reserved_tokens = 0  # its worst case: what it counts for in a queue
        self.place: Server | None = None  # on that server
        self._answer_estimate = 0
        self._cost: Cost | None = None
        self._transcript: Transcript | None = None  # of a plain answer that the engine did not count
        self._input_estimate: TokenCounts | None = None
        self._rest = b""  # of a stream that has ended

    @property
    def attempt_id(self) -> str:
        return self.request_id if self.attempt == 1 else f"{self.request_id}:{self.attempt}"

    @property
    def body_type(self) -> bytes:
        """Content type of the body for the model server."""
        return JSON

    def upstream_body(self) -> bytes:
        """The body for the model server."""
        route = self.route
        return upstream_body(
            self.request,
            served_model=route.served_model,
            continuous_usage=route.continuous_usage,
            cache_salt=cache_salt(route.org_id) if route.continuous_usage else None,
        )

    def leave_place(self) -> None:
        """Its answer is over, or will not come: somebody else may have its place. Harmless when repeated."""
        place = self.place
        if place is not None:
            self.place = None
            place.give_back()

    def next_attempt(self) -> None:
        """The last one is recorded; what is noted from here on is of another."""
        self.attempt += 1
        self.sent_ms = 0

    # -- the answer --

    def note_answer(self, body: bytes) -> None:
        """A plain answer came whole. UpstreamFailed: it is none."""
        answer = parse_answer(body)
        if answer is None:
            raise UpstreamFailed("The model server's answer could not be understood.")
        self.engine_id = str(answer.id or "")[:128]
        self.finish_reason = finish_reason_of(answer)
        self.counts = counts_of(answer.usage) if answer.usage is not None else None
        if self.operation != "embeddings" and (self.counts is None or not self.counts.output):
            said = self._transcript = transcript.of_answer(body)
            size = said.text_bytes()
            self._answer_estimate = answer.estimate_output_tokens() if size is None else (size + 3) // 4

    def render(self, body: bytes) -> Body:
        """A plain answer as the caller gets it."""
        return Body(JSON, body)

    def begin_stream(self) -> AnswerStream:
        """A streamed answer begins."""
        self.chunks = StreamFilter(
            wants_usage=self.request.wants_usage,
            choices_per_prompt=self.request.choices,
            per_choice=self.route.continuous_usage,
        )
        return self.chunks

    def forget_request(self) -> None:
        """Keep a figure, not the caller's text, while the answer streams.

        Until the engine has counted the text it is kept if it is not large: perhaps it must be counted here.
        """
        counts = self.chunks.counts() if self.chunks is not None else None
        if counts is None or not counts.input:
            self._estimated_input()
            if sum(memoryview(raw).nbytes for raw in self.request.members.values()) <= prompts.MAX_BYTES:
                return
        self.request.members.clear()

    def end_stream(self, ended_ms: int) -> bytes:
        """The server closed its stream: the last bytes for the caller. UpstreamFailed: it was not whole.

        `ended_ms` is the time of the usage event too, so that the cost told here is the one that is billed.
        """
        chunks = self.chunks
        assert chunks is not None, "begin_stream() was called"
        last = chunks.end()
        if chunks.error is not None:
            found = chunks.error
            raise engine_error(found.status, found.message, found.code, found.param)
        if not chunks.chunks:
            raise UpstreamFailed("The model server ended its stream without an answer.")
        if not chunks.complete:
            raise UpstreamFailed("The model server broke off within its answer.")
        self.ended_ms = ended_ms
        self._rest = last
        return self.stream_end()

    def stream_end(self) -> bytes:
        """The last bytes of a stream that ended well, by what is counted now."""
        chunks = self.chunks
        assert chunks is not None, "called by end_stream() first"
        usage, source = self._usage("completed")
        counted = None
        if source == "counted":
            counted = TokenCounts(usage.input, usage.cached_input, usage.output, usage.reasoning)
        closing = chunks.closing_events(cost_of(usage, self.route, self.ended_ms).usd, counted)
        return self._rest + closing + chunks.terminator

    def take_rest(self) -> bytes:
        """What the server wrote last, taken out of the end of the stream: it is to be looked at first."""
        rest, self._rest = self._rest, b""
        return rest

    @property
    def finished(self) -> bool:
        """The engine said all it had to say in a stream, whether or not the caller took it."""
        return self.chunks is not None and self.chunks.complete

    # -- figures --

    def event(self, status: Status, http_status: int, ended_ms: int) -> UsageEvent:
        """The usage event of the current attempt if it ended now (or when its cost was told)."""
        route, chunks = self.route, self.chunks
        usage, source = self._usage(status)
        if self.request.choices > 1 and usage.input and self.operation in _WITH_CHOICES:
            usage = msgspec.structs.replace(usage, choices=self.request.choices)
        if status == "completed":
            ended_ms = self.ended_ms = self.ended_ms or ended_ms
            self.billed = usage
        answer = self if chunks is None else chunks
        self._cost = None
        event = self.last_event = UsageEvent(  # by position: names would double the price
            self.request_id,
            route.org_id,
            route.project_id,
            self.principal.key_id,
            route.endpoint_id,
            route.deployment_id,
            route.model_id,
            self.operation,
            self.request.stream,
            status,
            http_status,
            usage,
            source,
            self.received_ms,
            self.sent_ms,
            self.first_byte_ms,
            ended_ms,
            self.attempt,
            answer.engine_id,
            answer.finish_reason,
        )
        return event

    def cost(self) -> Cost:
        """What the last event's usage costs."""
        event = self.last_event
        assert event is not None, "it was made"
        if self._cost is None:
            self._cost = cost_of(event.usage, self.route, event.ended_ms)
        return self._cost

    def _usage(self, status: Status) -> tuple[Usage, UsageSource]:
        """The engine's latest counts; what it left out is counted or estimated, and the whole marked so."""
        chunks = self.chunks
        nothing_came = self.counts is None and (chunks is None or not chunks.chunks)
        if not self.sent_ms or self.refused or (status == "error" and nothing_came):
            return Usage(), "none"
        counts = chunks.counts() if chunks is not None else self.counts
        produced = chunks.content_chunks if chunks is not None else self._answer_estimate
        return metered(counts, produced, self._estimated_input, self.tally)

    @property
    def uncounted(self) -> Transcript | None:
        """What came out that the engine has not counted."""
        return self.chunks.transcript if self.chunks is not None else self._transcript

    def forget_texts(self) -> None:
        """They are counted, or nobody will."""
        self.request.members.clear()
        self._transcript = None
        if self.chunks is not None:
            self.chunks.transcript = None

    def cost_lines(self) -> str:
        """For the head of a plain answer whose event is made: what it counted and cost."""
        return cost_lines(self.billed, self.cost())

    def _estimated_input(self) -> TokenCounts:
        if self._input_estimate is None:
            self._input_estimate = self._estimate()
        return self._input_estimate

    def _estimate(self) -> TokenCounts:
        return TokenCounts(estimate_input_tokens(self.request), 0, 0, 0)


def silent() -> Timeout:
    """Nothing came from the model server for too long."""
    return Timeout("The model server did not answer in time.")


def cut_short(record: CallRecord) -> tuple[Timeout, Status]:
    """The answer took longer than any may in all. What of a stream was delivered is billed."""
    delivered = record.chunks is not None and record.chunks.chunks > 0
    error = Timeout("The answer took longer than any may; ask for fewer tokens.", code="answer_too_long")
    return error, "interrupted" if delivered else "error"


_WITH_CHOICES: Final[tuple[Operation, ...]] = ("chat.completions", "completions")  # the others know no `n`
_NOT_SERVED: Final = (404, 405, 501)  # the route, or this model on it


@lru_cache(maxsize=4096)
def cache_salt(org_id: str) -> str:
    """One organization's prompts share the engine's prefix cache; nobody can probe another's."""
    return hashlib.sha256(b"farebox prefix cache " + org_id.encode()).hexdigest()[:32]


def engine_error(status: int, message: str, code: str, param: str | None) -> UpstreamFailed:
    """The engine's own error, with its status."""
    error = UpstreamFailed(message, code=code, param=param)
    error.status = status
    return error


def refusal(status: int, headers: dict[bytes, bytes], body: bytes) -> UpstreamFailed:
    """What an engine's answer other than 200 means to the caller."""
    if status in (401, 403) or status < 400:
        return UpstreamFailed("The model server refused the gateway's request; tell the operator.")
    if status in _NOT_SERVED:
        said = map_engine_error(status, body)[0]
        text = f"This model's server cannot do this (it answered {status}: {said})"
        return engine_error(404, text, "model_not_found", "model")
    error = engine_error(status, *map_engine_error(status, body))
    after = headers.get(b"retry-after", b"")
    if after.isdigit() and len(after) < 10:
        error.retry_after_s = int(after)
    return error
