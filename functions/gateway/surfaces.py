"""Whose API a caller speaks: how errors look there, and which headers go with every answer."""

from typing import Protocol

import msgspec

from core.errors import FareboxError
from wire import anthropic, azure
from wire.openai import render_error
from wire.openai_stream import error_event

Header = tuple[bytes, bytes]

_encoder = msgspec.json.Encoder()


class Surface(Protocol):
    """One API."""

    def error(self, error: FareboxError, request_id: str) -> tuple[int, bytes, list[Header]]:
        """Status, body and further headers of an answer that is an error."""
        ...

    def error_event(self, error: FareboxError, request_id: str) -> bytes:
        """The last event of a stream that failed."""
        ...

    def headers(self, request_id: str) -> list[Header]:
        """Further headers of every answer."""
        ...


class OpenAISurface:
    """OpenAI's, but for Responses' streams."""

    def error(self, error: FareboxError, request_id: str) -> tuple[int, bytes, list[Header]]:
        return error.status, _encoder.encode(render_error(error)), []

    def error_event(self, error: FareboxError, request_id: str) -> bytes:
        return error_event(error.status, error.message, error.code, error.param)

    def headers(self, request_id: str) -> list[Header]:
        return []


class ResponsesSurface(OpenAISurface):
    """OpenAI's Responses: an error within a stream is an event of its own kind."""

    def error_event(self, error: FareboxError, request_id: str) -> bytes:
        body = {"type": "error", "code": error.code, "message": error.message, "param": error.param}
        return b"event: error\ndata: %b\n\n" % _encoder.encode(body)


class AnthropicSurface:
    """Anthropic's Messages."""

    def error(self, error: FareboxError, request_id: str) -> tuple[int, bytes, list[Header]]:
        body = anthropic.error_document(error.status, error.message, request_id)
        return error.status, _encoder.encode(body), []

    def error_event(self, error: FareboxError, request_id: str) -> bytes:
        body = anthropic.error_document(error.status, error.message, request_id)
        return b"event: error\ndata: %b\n\n" % _encoder.encode(body)

    def headers(self, request_id: str) -> list[Header]:
        return [(b"request-id", request_id.encode())]


class AzureSurface:
    """Azure's Model Inference API."""

    def error(self, error: FareboxError, request_id: str) -> tuple[int, bytes, list[Header]]:
        status, code, body = azure.error_document(error)
        header = code.encode("ascii", "replace")[:128]
        return status, _encoder.encode(body), [(b"x-ms-error-code", header)]

    def error_event(self, error: FareboxError, request_id: str) -> bytes:
        return b"data: %b\n\n" % _encoder.encode(azure.error_document(error)[2])

    def headers(self, request_id: str) -> list[Header]:
        return [(b"x-ms-request-id", request_id.encode())]


OPENAI = OpenAISurface()
RESPONSES = ResponsesSurface()
ANTHROPIC = AnthropicSurface()
AZURE = AzureSurface()
