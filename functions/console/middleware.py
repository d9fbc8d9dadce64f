"""Around every request, as plain ASGI: a request id, a bound on the body, an answer when all else fails."""

import json
from typing import Any

from core.errors import FareboxError, TooLarge, problem
from core.ids import is_id, new_id
from core.log import get_logger
from wire.openai import render_error

MAX_BODY_BYTES = 1024 * 1024  # of what this API takes; the largest is a model's YAML

_log = get_logger(__name__)


class Edge:
    """Gives every answer its `x-request-id`. The gateway's id is kept: one id from door to log."""

    def __init__(self, app: Any, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self._app(scope, _replay(body, receive), send_with_id)
        except FareboxError as error:
            await send_problem(send_with_id, error, request_id, scope["path"])
        except Exception:
            # A bug: everything to the log, nothing to the caller but the id to find it by.
            _log.exception("unexpected error", extra={"request_id": request_id, "path": scope["path"]})
            if started:
                raise
            unknown = FareboxError("an unexpected error; see the log")
            await send_problem(send_with_id, unknown, request_id, scope["path"])

    async def _body(self, scope: Any, receive: Any) -> bytes | None:
        """The whole body; None when the caller hung up."""
        too_large = TooLarge(f"the body is larger than the {self._max_body_bytes} bytes that are allowed")
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value[:20]) > self._max_body_bytes:
                raise too_large
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                raise too_large
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)


async def send_problem(send: Any, error: FareboxError, request_id: str, path: str) -> None:
    """Answer with the document of `error`."""
    status, kind, body = error_document(error, request_id, path)
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem_headers(error).items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def error_document(error: FareboxError, request_id: str, path: str) -> tuple[int, str, bytes]:
    """Status, media type and body: OpenAI's error object under /v1, where 422 is 400; elsewhere a problem document.

    ASCII, so that any text a caller sent can be quoted.
    """
    if path.startswith("/v1/"):
        status = 400 if error.status == 422 else error.status
        return status, "application/json", json.dumps(render_error(error)).encode()
    return (
        error.status,
        "application/problem+json",
        json.dumps(problem(error, request_id=request_id)).encode(),
    )


def problem_headers(error: FareboxError) -> dict[str, str]:
    """Headers that belong to the error."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    return headers


def _request_id(scope: Any) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = str(value, "latin-1")
            if is_id(text, "req"):
                return text
    return new_id("req")


def _replay(body: bytes, receive: Any) -> Any:
    """A receive that gives the body that was read, then whatever comes after it."""
    given = False

    async def replay() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
