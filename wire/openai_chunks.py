"""What is read of the events of a streamed answer, as values: apart from `openai_stream.py`, which is compiled."""

import msgspec
from msgspec import UNSET, Raw, UnsetType

from wire.openai_shapes import EngineUsage

_NOTHING = (b"", b'""', b"null", b"[]", b"{}")


class Delta(msgspec.Struct):
    content: Raw = Raw()
    reasoning_content: Raw = Raw()
    reasoning: Raw = Raw()
    refusal: Raw = Raw()
    tool_calls: Raw = Raw()
    function_call: Raw = Raw()


class StreamChoice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    delta: Delta | None = None
    text: Raw = Raw()

    def has_content(self) -> bool:
        """True when the chunk carries something generated, be it text, reasoning or a tool call."""
        if bytes(self.text) not in _NOTHING:
            return True
        delta = self.delta
        return delta is not None and any(
            bytes(part) not in _NOTHING
            for part in (
                delta.content,
                delta.reasoning_content,
                delta.reasoning,
                delta.tool_calls,
                delta.refusal,
                delta.function_call,
            )
        )


class Chunk(msgspec.Struct):
    id: str | int | None = None
    object: str | None = None
    created: int | float | None = None
    model: str | None = None
    choices: list[StreamChoice] | None = None
    usage: EngineUsage | UnsetType | None = UNSET
    error: Raw | UnsetType = UNSET


class LooseChunk(msgspec.Struct):
    """For an engine that gives other members types of its own: only what money depends on."""

    choices: list[msgspec.Raw] | None = None
    usage: EngineUsage | UnsetType | None = UNSET


class StreamError(msgspec.Struct, frozen=True):
    """An error object that came inside the stream."""

    status: int
    message: str
    code: str
    param: str | None
