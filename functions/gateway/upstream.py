"""Requests to model servers: safe headers, kept connections, and one word for each way it can fail.

The fast lane takes a connection and is its sink; the slow lane awaits an `Answer`. Both send the same bytes.
"""

import asyncio
import os
from collections import deque
from functools import lru_cache
from typing import Final

from core.errors import UpstreamFailed
from core.settings import Settings
from functions.gateway.origin import Target, target_of
from functions.gateway.pool import Pool
from functions.gateway.upstream_protocol import ServerGone, UpstreamConnection
from serving.route import Route
from wire.openai import FreeOperation, Operation

__all__ = ["PATHS", "Answer", "ServerGone", "Upstream", "read_answer", "request_head"]

PATHS: Final[dict[Operation | FreeOperation, str]] = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
    "rerank": "/v1/rerank",
    "score": "/v1/score",
    "audio.transcriptions": "/v1/audio/transcriptions",
    "tokenize": "/tokenize",
    "messages.count_tokens": "/v1/messages/count_tokens",
}
MAX_ANSWER_BYTES: Final = 128 * 1024 * 1024  # of an answer that is not streamed
MAX_ERROR_BYTES: Final = 64 * 1024
_MAX_WAITING_BYTES: Final = 256 * 1024  # of an answer nobody reads; the server is held back beyond


class Upstream:
    """The client side of the gateway."""

    def __init__(self, settings: Settings) -> None:
        self.pool = Pool(settings.upstream_connect_timeout_s)

    def open(self) -> None:
        """Make the pool; needs a running event loop."""
        self.pool.open()

    def close(self) -> None:
        """Close every connection."""
        self.pool.close()

    async def post(
        self,
        base_url: str,
        operation: Operation | FreeOperation,
        body: bytes,
        *,
        route: Route,
        attempt_id: str,
        caller_headers: dict[bytes, bytes],
        body_type: bytes = b"application/json",
    ) -> "Answer":
        """Send a call; returns once the answer's head is there.

        ServerGone: no answer began, it may be sent again. UpstreamFailed: anything else.
        """
        target = server_of(base_url)
        head = request_head(
            target,
            operation,
            len(body),
            route=route,
            attempt_id=attempt_id,
            traceparent=caller_headers.get(b"traceparent"),
            tracestate=caller_headers.get(b"tracestate"),
            body_type=body_type,
        )
        return await self._send(target, head, body)

    async def send(self, base_url: str, head: bytes, body: bytes) -> "Answer":
        """The same for a request whose head is made already."""
        return await self._send(server_of(base_url), head, body)

    async def _send(self, target: Target, head: bytes, body: bytes) -> "Answer":
        connection = self.pool.take(target.origin) or await self.pool.connect(target.origin)
        answer = Answer(connection)
        connection.send(head, body, answer)
        try:
            await answer.wait_for_head()
        except asyncio.CancelledError:
            answer.close()
            raise
        return answer


class Answer:
    """An answer that a task reads."""

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection: UpstreamConnection | None = connection
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._error: ServerGone | UpstreamFailed | None = None
        self._something: asyncio.Future[None] | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}

    @property
    def content_type(self) -> str:
        """Without its parameters."""
        return content_type(self.headers)

    @property
    def at_end(self) -> bool:
        """All of it came, or no more will."""
        return self._connection is None

    async def wait_for_head(self) -> None:
        """Return when `status` is known."""
        while not self.status:
            await self._wait()

    async def read(self) -> bytes:
        """What has come, at least a byte; b"" at the end. UpstreamFailed: cut short."""
        while not self._parts:
            if self._connection is None and self._error is None:
                return b""
            await self._wait()
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._connection is not None:
            self._connection.resume()
        return data

    def close(self) -> None:
        """Close the connection unless the answer was read to its end: the server then stops its work."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._something = asyncio.get_running_loop().create_future()
        try:
            await self._something
        finally:
            self._something = None

    def _wake(self) -> None:
        if self._something is not None and not self._something.done():
            self._something.set_result(None)

    # -- the connection's side --

    def head_received(self, status: int, headers: dict[bytes, bytes]) -> None:
        self.status, self.headers = status, headers
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > _MAX_WAITING_BYTES and self._connection is not None:
            self._connection.pause()
        self._wake()

    def answer_ended(self) -> None:
        self._connection = None
        self._wake()

    def answer_failed(self, error: ServerGone | UpstreamFailed) -> None:
        self._connection = None
        self._error = error
        self._wake()


async def read_answer(answer: Answer, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """A whole body, bounded. UpstreamFailed when it is cut short or too large."""
    body = b""
    while part := await answer.read():
        body = body + part if body else part
        if len(body) > max_bytes:
            raise too_large_an_answer(max_bytes)
    return body


def too_large_an_answer(max_bytes: int) -> UpstreamFailed:
    """An answer beyond its bound."""
    return UpstreamFailed(f"The model server's answer is larger than {max_bytes} bytes.")


def content_type(headers: dict[bytes, bytes]) -> str:
    """An answer's media type, without parameters."""
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")


def server_of(base_url: str) -> Target:
    """The server of a route. UpstreamFailed: the route's URL is none."""
    try:
        return target_of(base_url)
    except ValueError as error:
        raise UpstreamFailed(f"The model server's address is wrong: {error}.") from None


def request_head(
    target: Target,
    operation: Operation | FreeOperation,
    length: int,
    route: Route,
    attempt_id: str,
    traceparent: bytes | None = None,
    tracestate: bytes | None = None,
    body_type: bytes = b"application/json",
) -> bytes:
    """The head of a request to a model server. UpstreamFailed: its key is not there."""
    key = _key_of(route) if route.upstream_key_env else ""
    own = f"x-request-id: {attempt_id}\r\ncontent-length: {length}\r\n"  # text is put together faster than bytes
    head = b"%bcontent-type: %b\r\n%b" % (
        _fixed_head(target.host_header, target.path_prefix, PATHS[operation], key),
        body_type,
        own.encode("latin-1"),
    )
    if traceparent is not None or tracestate is not None:
        for name, value in ((b"traceparent", traceparent), (b"tracestate", tracestate)):
            if value is not None and len(value) < 512 and value.isascii():
                head += b"%b: %b\r\n" % (name, value)
    return head + b"\r\n"


@lru_cache(maxsize=4096)
def _fixed_head(host: bytes, prefix: bytes, path: str, key: str) -> bytes:
    lines = [
        b"POST %b%b HTTP/1.1" % (prefix, path.encode()),
        b"host: " + host,
        # Compressed, the stream could neither be read for usage nor be passed on piece by piece.
        b"accept-encoding: identity",
    ]
    if key:
        lines.append(b"authorization: Bearer " + key.encode())
    return b"\r\n".join(lines) + b"\r\n"


def _key_of(route: Route) -> str:
    key = os.environ.get(route.upstream_key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise UpstreamFailed(
            f"The attached server of {route.model_id} needs a key: the operator must set the environment "
            f"variable {route.upstream_key_env} for the gateway.",
            code="upstream_not_configured",
        )
    return key
