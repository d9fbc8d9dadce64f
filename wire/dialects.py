"""What differs between the operations that are not OpenAI's oldest three: how a request is read and sent on,
how an answer is counted. One `Dialect` per operation, found in `wire/operations.py`; no I/O.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from core.errors import BadRequest
from wire.openai import ModelRequest, TokenCounts, drop_private, map_engine_error
from wire.openai_chunks import StreamError
from wire.transcript import Transcript

JSON = b"application/json"

_anything = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Body:
    """Bytes, and what they are."""

    content_type: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What is read of an answer that is not streamed."""

    engine_id: str
    finish_reason: str
    counts: TokenCounts | None  # None: the engine gave none
    produced: int = 0  # tokens of output by our own guess, where the engine did not count them
    transcript: Transcript | None = None  # of the output, where the engine did not count it


class AnswerStream(Protocol):
    """A streamed answer on its way: fed with the engine's bytes, gives the caller's, keeps the counts."""

    chunks: int  # events that carried something; a stream without any is a failure
    content_chunks: int  # of those: with something generated that the engine did not count
    transcript: Transcript | None  # of these; None once the engine has counted them
    done: bool
    error: StreamError | None
    engine_id: str
    finish_reason: str
    terminator: bytes  # goes out last, once the usage event is durable

    @property
    def complete(self) -> bool:
        """The engine said all it had to say."""
        ...

    def feed(self, data: bytes) -> bytes:
        """The bytes to hand on."""
        ...

    def end(self) -> bytes:
        """The engine closed the stream."""
        ...

    def counts(self) -> TokenCounts | None:
        """The latest counts of the whole answer."""
        ...

    def closing_events(self, cost_usd: str = "", counted: TokenCounts | None = None) -> bytes:
        """What was withheld, because no client takes the stream as whole without it; `terminator` follows.

        `counted`: by us, for an engine that gave no counts.
        """
        ...


class Dialect(Protocol):
    """One operation's bodies."""

    @property
    def salted(self) -> bool:
        """The engine's request takes vLLM's `cache_salt`."""
        ...

    def parse(self, body: bytes, content_type: bytes) -> ModelRequest:
        """What is known of a request. BadRequest names the member that is wrong."""
        ...

    def upstream_body(self, request: ModelRequest, *, served_model: str, cache_salt: str | None) -> Body:
        """The body for the model server."""
        ...

    def read_answer(self, body: bytes) -> Answered | None:
        """A whole answer; None when it is not what it should be."""
        ...

    def render(self, request: ModelRequest, body: bytes) -> Body:
        """A whole answer as the caller gets it."""
        ...

    def stream(self) -> AnswerStream:
        """For a streamed answer."""
        ...

    def estimate(self, request: ModelRequest) -> TokenCounts:
        """What went in, for an engine that does not tell."""
        ...


def forward_members(request: ModelRequest, served_model: str, cache_salt: str | None) -> Body:
    """A JSON body for the model server: its own model name, nothing engine-private."""
    members = request.members
    drop_private(members)
    members["model"] = Raw(_encoder.encode(served_model))
    if cache_salt is not None:
        members["cache_salt"] = Raw(_encoder.encode(cache_salt))
    return Body(JSON, _encoder.encode(members))


def decode_object(data: bytes) -> dict[str, Any] | None:
    """A JSON object, None when it is none."""
    try:
        document = _anything.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    return document if isinstance(document, dict) else None


def object_at(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A member that should be an object; an empty one when it is not."""
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def count_at(document: dict[str, Any], name: str) -> int:
    """A count, whatever the engine says: whole and not negative."""
    value = document.get(name)
    return max(0, int(value)) if isinstance(value, int | float) and not isinstance(value, bool) else 0


def text_at(document: dict[str, Any], name: str) -> str:
    """A short text of the engine's, such as an id."""
    value = document.get(name)
    return value[:128] if isinstance(value, str) else ""


def encode(document: Any) -> bytes:
    """As JSON."""
    return _encoder.encode(document)


def stream_error(data: bytes, document: dict[str, Any]) -> StreamError:
    """An error event of the engine's, in whatever dialect."""
    error = object_at(document, "error") or document
    code = error.get("code")
    status = code if isinstance(code, int) and 400 <= code <= 599 else 502
    return StreamError(status, *map_engine_error(status, data))


def refuse_member(name: str, message: str) -> BadRequest:
    """A member whose value cannot be served here."""
    return BadRequest(message, param=name, code="unsupported_value")
