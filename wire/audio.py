"""Transcription: a form with a file goes in, its text comes out, and the audio's length is what is counted.

vLLM tells the length in its plain answers only (`usage.seconds`, or `duration` of `verbose_json`), and streams in
a format of its own without it. So the engine is always asked for a plain answer; a caller who wants events gets
OpenAI's, all at once.
"""

import io
import math
import wave
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import msgspec

from core.errors import BadRequest
from wire import multipart
from wire.dialects import (
    Answered,
    AnswerStream,
    Body,
    decode_object,
    encode,
    object_at,
    refuse_member,
    text_at,
)
from wire.multipart import Part
from wire.openai import MAX_MODEL_NAME, PRIVATE_MEMBERS, TokenCounts
from wire.requests import AudioRequest, ModelRequest
from wire.sse import encode_event

_FORMATS = ("json", "text", "verbose_json")
_UNSERVED_FORMATS = ("srt", "vtt", "diarized_json")
_OURS = ("model", "response_format", "stream", "stream_include_usage", "stream_continuous_usage_stats")
_TRUE, _FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no", "")
_BYTES_PER_SECOND = 16_000  # 128 kbit/s, the usual rate of compressed speech and music
_MAX_SECONDS = 10**9


class _Exact(msgspec.Struct):
    duration: Decimal | None = None


_exact = msgspec.json.Decoder(_Exact)


@dataclass(frozen=True, slots=True)
class TranscriptionDialect:
    """`/v1/audio/transcriptions`."""

    salted: bool = False

    def parse(self, body: bytes, content_type: bytes) -> ModelRequest:
        parts, boundary = multipart.parse(body, content_type)
        fields = {part.name: _text(part) for part in parts if part.name in _OURS}
        files = [part for part in parts if part.name == "file"]
        if not files:
            raise BadRequest("You must provide a file.", param="file", code="missing_parameter")
        if len(files) > 1 or not files[0].is_file or not files[0].value:
            raise BadRequest("'file' must be one file that is not empty.", param="file", code="invalid_value")
        model = fields.get("model")
        if model is not None and not 0 < len(model) <= MAX_MODEL_NAME:
            raise BadRequest(
                f"'model' must have 1 to {MAX_MODEL_NAME} characters.", param="model", code="invalid_value"
            )
        request = AudioRequest(model)
        request.parts, request.boundary = parts, boundary
        request.response_format = _format(fields.get("response_format") or "json")
        request.as_events = _flag("stream", fields.get("stream", ""))
        if request.as_events and request.response_format != "json":
            raise refuse_member("response_format", "A streamed transcription has the format 'json'.")
        return request

    def upstream_body(self, request: ModelRequest, *, served_model: str, cache_salt: str | None) -> Body:
        assert isinstance(request, AudioRequest), "made by parse"
        wanted = "verbose_json" if request.response_format == "verbose_json" else "json"
        kept = [part for part in request.parts if part.name not in (*_OURS, *PRIVATE_MEMBERS)]
        ours = [
            multipart.field("model", served_model.encode()),
            multipart.field("response_format", wanted.encode()),
        ]
        data = multipart.encode(ours + kept, request.boundary)
        return Body(b'multipart/form-data; boundary="%b"' % request.boundary, data)

    def read_answer(self, body: bytes) -> Answered | None:
        document = decode_object(body)
        if document is None or not isinstance(document.get("text"), str):
            return None
        audio_ms = _audio_ms(body, document)
        counts = TokenCounts(0, 0, 0, 0, audio_ms) if audio_ms else None
        return Answered(text_at(document, "id"), "", counts)

    def render(self, request: ModelRequest, body: bytes) -> Body:
        assert isinstance(request, AudioRequest), "made by parse"
        document = decode_object(body) or {}
        if request.response_format == "text":
            return Body(b"text/plain; charset=utf-8", f"{document.get('text')}\n".encode())
        if not request.as_events:
            return Body(b"application/json", body)
        text = document.get("text")
        done = {"type": "transcript.text.done", "text": text, "usage": document.get("usage")}
        events = [{"type": "transcript.text.delta", "delta": text}, done]
        data = b"".join(encode_event(encode(event)) for event in events)
        return Body(b"text/event-stream; charset=utf-8", data)

    def stream(self) -> AnswerStream:
        raise AssertionError("the engine is never asked to stream")

    def estimate(self, request: ModelRequest) -> TokenCounts:
        assert isinstance(request, AudioRequest), "made by parse"
        data = next((part.value for part in request.parts if part.name == "file"), b"")
        return TokenCounts(0, 0, 0, 0, audio_ms=estimate_audio_ms(data))


def estimate_audio_ms(data: bytes) -> int:
    """How long a file plays: by its header if it is a WAV file, else by its size. At least one millisecond."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            frames, rate = int(file.getnframes()), int(file.getframerate())
            if 0 < frames * file.getsampwidth() * file.getnchannels() <= len(data) and rate > 0:
                return max(1, -(-frames * 1000 // rate))
    except (wave.Error, EOFError, OSError, ValueError, ArithmeticError):
        pass
    return max(1, -(-len(data) * 1000 // _BYTES_PER_SECOND))


def _audio_ms(body: bytes, document: dict[str, object]) -> int:
    """Milliseconds, rounded up; 0 when the engine did not tell. Exact: no float on the way to money."""
    seconds = object_at(document, "usage").get("seconds")
    if isinstance(seconds, int) and not isinstance(seconds, bool) and 0 < seconds < _MAX_SECONDS:
        return seconds * 1000
    try:
        duration = _exact.decode(body).duration
        if duration is not None and 0 < duration < _MAX_SECONDS:
            return math.ceil(duration * 1000)
    except (msgspec.DecodeError, InvalidOperation):
        pass
    return 0


def _text(part: Part) -> str:
    if part.is_file or len(part.value) > 4 * MAX_MODEL_NAME:
        raise BadRequest(f"'{part.name}' must be a short text.", param=part.name, code="invalid_type")
    return part.value.decode("utf-8", "replace").strip()


def _format(value: str) -> str:
    if value in _FORMATS:
        return value
    why = "is not served" if value in _UNSERVED_FORMATS else "is unknown"
    raise refuse_member(
        "response_format", f"The response_format '{value[:40]}' {why}; choose from {', '.join(_FORMATS)}."
    )


def _flag(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise BadRequest(f"'{name}' must be true or false.", param=name, code="invalid_type")
