"""A small chat client for trying an endpoint out. For programs, use the official OpenAI clients."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import httpx

from farebox.errors import FareboxAPIError, FareboxConfigError, FareboxConnectionError
from farebox.resource import Resource
from farebox.transport import error_of, path_of

_READ_TIMEOUT_S = 660.0  # a model server may have to start first; the server's own bound is 600 s
_EVENT_MAX_CHARS = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ChatEvent:
    """One step of a streamed answer.

    `kind` is `text` (more of the answer), `waiting` (the model server is still starting) or
    `end` (with the `usage` the engine counted and the `finish_reason`).
    """

    kind: str
    text: str = ""
    request_id: str = ""
    finish_reason: str = ""
    usage: Mapping[str, Any] | None = None


class Chat(Resource):
    """Chat calls, to an endpoint's own address or by the name of a model."""

    def complete(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        endpoint: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """The whole answer at once, as OpenAI's chat.completion object."""
        request = self._request(messages, endpoint, model, api_key, options)
        with self._transport.stream(request, _READ_TIMEOUT_S) as response:
            response.read()
            try:
                return cast("dict[str, Any]", response.json())
            except ValueError:
                raise FareboxAPIError(200, "unexpected_answer", "the answer is not JSON") from None

    def stream(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        endpoint: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        **options: Any,
    ) -> Iterator[ChatEvent]:
        """The answer as it is written. FareboxAPIError when the model server fails in the middle."""
        options = {**options, "stream": True, "stream_options": {"include_usage": True}}
        request = self._request(messages, endpoint, model, api_key, options)
        with self._transport.stream(request, _READ_TIMEOUT_S) as response:
            yield from _events(response, self._transport.connection.url)

    def _request(
        self,
        messages: Sequence[Mapping[str, Any]],
        endpoint: str | None,
        model: str | None,
        api_key: str | None,
        options: Mapping[str, Any],
    ) -> httpx.Request:
        name = endpoint or model
        if not name or (endpoint and model):
            raise FareboxConfigError("give either an endpoint or a model")
        path = f"/endpoints{path_of(endpoint)}/v1/chat/completions" if endpoint else "/v1/chat/completions"
        body = {"model": name, "messages": list(messages), **options}
        return self._transport.build("POST", path, json=body, api_key=api_key)


def _events(response: httpx.Response, url: str) -> Iterator[ChatEvent]:
    request_id = response.headers.get("x-request-id", "")
    usage: Mapping[str, Any] | None = None
    finish_reason = ""
    for line in response.iter_lines():
        if line.startswith(":"):
            yield ChatEvent("waiting", request_id=request_id)
            continue
        if not line.startswith("data:"):
            continue
        payload = line[5:].strip()
        if payload == "[DONE]":
            yield ChatEvent("end", request_id=request_id, finish_reason=finish_reason, usage=usage)
            return
        chunk = _chunk(payload, response)
        usage = chunk.get("usage") or usage
        for choice in chunk.get("choices") or []:
            finish_reason = choice.get("finish_reason") or finish_reason
            text = (choice.get("delta") or {}).get("content")
            if text:
                yield ChatEvent("text", str(text), request_id)
    raise FareboxConnectionError("the answer broke off before its end", url=url)


def _chunk(payload: str, response: httpx.Response) -> dict[str, Any]:
    request_id = response.headers.get("x-request-id")
    try:
        chunk = json.loads(payload) if len(payload) <= _EVENT_MAX_CHARS else None
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise FareboxAPIError(
            200, "unexpected_answer", "an event of the stream is not JSON", request_id=request_id
        )
    if "error" in chunk:
        error = error_of(502, chunk, response.headers)
        raise error or FareboxAPIError(502, "error", str(chunk["error"]), request_id=request_id)
    return chunk
