"""One request and its answer over ASGI: a bounded body, the caller's hang-up, plain and streamed answers.

The only file of the hot path that knows ASGI.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from math import ceil
from typing import Any, Final

import msgspec

from core.errors import FareboxError, Timeout, TooLarge
from core.log import get_logger
from functions.gateway.networks import address_of
from functions.gateway.surfaces import OPENAI, Surface
from wire.openai import render_error
from wire.sse import WAITING_COMMENT

_log = get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

MAX_HEADERS: Final = 128
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CLIENT_ID = 128
BODY_TIMEOUT_S = 60.0  # for a body that did not come in one piece
_LINGER_S = 2.0
FIRST_COMMENT_S = 2.0

_JSON = b"application/json"
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_CLOSE = (b"connection", b"close")
_encoder = msgspec.json.Encoder()


class HangUp(Exception):  # not a failure: the caller left
    """The caller closed the connection."""


def error_headers(error: FareboxError) -> list[Header]:
    """The headers that go with an error: when to come again, how to authenticate."""
    headers = list(error.headers)
    if error.retry_after_s is not None:
        # Rounded up: who comes when the time is not quite over comes in vain.
        headers.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after_s))))
        headers.append((b"retry-after-ms", b"%d" % round(error.retry_after_s * 1000)))
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="farebox"'))
    return headers


def encode_error(error: FareboxError) -> bytes:
    """The body that goes with an error: OpenAI's document."""
    return _encoder.encode(render_error(error))


class Exchange:
    """One request of a caller. Whatever goes out carries our request id."""

    __slots__ = (
        "_body_read",
        "_comment_timer",
        "_commenting",
        "_header_bytes",
        "_header_count",
        "_receive",
        "_send",
        "_watcher",
        "address",
        "client_request_id",
        "finished",
        "headers",
        "http_version",
        "more_headers",
        "path",
        "query",
        "request_id",
        "sent_bytes",
        "started",
        "status",
        "surface",
    )

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, request_id: str, surface: Surface = OPENAI
    ) -> None:
        self.request_id = request_id
        self.surface = surface
        self.path: str = scope["path"]
        self.http_version: str = scope.get("http_version", "1.1")
        self.address = address_of(scope)
        self.query: bytes = scope.get("query_string", b"")
        headers: list[Header] = scope["headers"]
        self.headers: dict[bytes, bytes] = dict(headers)
        self._header_count = len(headers)
        self._header_bytes = sum([len(name) + len(value) for name, value in headers])
        self.client_request_id = printable(self.headers.get(b"x-client-request-id", b""))
        self.started = False
        self.status = 0  # of the answer; 0: none has begun
        self.finished = False
        self.sent_bytes = 0  # of the answer's body
        self.more_headers: Iterable[Header] = ()  # of whatever is answered
        self._receive = receive
        self._send = send
        self._body_read = False
        self._watcher: asyncio.Task[None] | None = None
        self._comment_timer: asyncio.TimerHandle | None = None
        self._commenting: asyncio.Task[None] | None = None

    def check_headers(self) -> None:
        """Refuse more headers than anybody needs."""
        if self._header_count > MAX_HEADERS or self._header_bytes > MAX_HEADER_BYTES:
            error = TooLarge(
                f"At most {MAX_HEADERS} headers of {MAX_HEADER_BYTES} bytes in all are accepted."
            )
            error.status = 431
            raise error

    # -- the request --

    async def read_body(self, max_bytes: int) -> bytes:
        """The whole body. TooLarge as soon as it is known to be; HangUp when the caller leaves meanwhile."""
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > max_bytes:
            raise _too_large(max_bytes)
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._collect_body(max_bytes)
        except TimeoutError:
            error = Timeout(f"The request body did not arrive within {BODY_TIMEOUT_S:.0f} s.")
            error.status = 408
            raise error from None

    async def _collect_body(self, max_bytes: int) -> bytes:
        body, more = b"", True
        while more:
            part, more = await self._next_part()
            body = body + part if body else part
            if len(body) > max_bytes:
                raise _too_large(max_bytes)
        self._body_read = True
        return body

    async def _next_part(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise HangUp
        return message.get("body", b""), message.get("more_body", False)

    def watch(self, on_hang_up: Callable[[], None]) -> None:
        """From now on call `on_hang_up` when the caller closes the connection before the answer's end."""
        self._watcher = asyncio.get_running_loop().create_task(self._watch(on_hang_up))

    async def _watch(self, on_hang_up: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.finished:
            on_hang_up()

    # -- the answer --

    async def answer(
        self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = _JSON
    ) -> None:
        """A whole answer, JSON unless said otherwise."""
        await self.stop_comments()
        length = (b"content-length", str(len(body)).encode())
        await self._start(status, [(b"content-type", content_type), length, *headers])
        self.sent_bytes += len(body)
        if not self._body_read:
            # Closing on a caller who still writes would reset the connection and lose the answer.
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._discard_rest()
            body = b""
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def answer_error(self, error: FareboxError, headers: Iterable[Header] = ()) -> None:
        """An error as the caller's API has it."""
        status, body, more = self.surface.error(error, self.request_id)
        extra = [*error_headers(error), *more, *headers]
        if not self._body_read:
            extra.append(_CLOSE)
        await self.answer(status, body, extra)

    def error_event(self, error: FareboxError) -> bytes:
        """An error as the last event of a stream."""
        return self.surface.error_event(error, self.request_id)

    async def write(self, data: bytes) -> None:
        """A piece of a streamed answer; returns when the caller's connection can take more."""
        if not self.started:
            await self._start(200, STREAM_HEADERS)
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def begin(self, status: int, headers: Iterable[Header]) -> None:
        """The head of an answer that is passed on as it comes; `write` and `finish` follow."""
        await self._start(status, headers)

    async def finish(self, data: bytes) -> None:
        """The last piece of a streamed answer."""
        if not self.started:
            await self._start(200, STREAM_HEADERS)
        self.finished = True
        self.sent_bytes += len(data)
        await self._send({"type": "http.response.body", "body": data})

    async def _start(self, status: int, headers: Iterable[Header]) -> None:
        self.started, self.status = True, status
        ours = [
            *self.more_headers,
            (b"x-request-id", self.request_id.encode()),
            *self.surface.headers(self.request_id),
        ]
        if self.client_request_id:
            ours.append((b"x-client-request-id", self.client_request_id))
        if ms_id := azure_client_id(self.headers.get(b"x-ms-client-request-id", b"")):
            ours.append((b"x-ms-client-request-id", ms_id))
        if self.client_request_id or ms_id:
            log_client_id(self.request_id, self.client_request_id or ms_id)
        await self._send({"type": "http.response.start", "status": status, "headers": [*headers, *ours]})

    async def _discard_rest(self) -> None:
        with contextlib.suppress(TimeoutError, HangUp):
            async with asyncio.timeout(_LINGER_S):
                more = True
                while more:
                    _, more = await self._next_part()

    # -- comments to a waiting caller --

    def start_comments(self, every_s: float) -> None:
        """Until `stop_comments`, show a streaming caller after a while, and then regularly, that it waits.

        The first comment commits the answer to status 200; errors are events of the stream from then on.
        """
        loop = asyncio.get_running_loop()
        first_s = min(FIRST_COMMENT_S, every_s)
        self._comment_timer = loop.call_later(first_s, self._begin_comments, every_s)

    def _begin_comments(self, every_s: float) -> None:
        self._commenting = asyncio.get_running_loop().create_task(self._comment(every_s))

    async def _comment(self, every_s: float) -> None:
        while True:
            await self.write(WAITING_COMMENT)
            await asyncio.sleep(every_s)

    async def stop_comments(self) -> None:
        """Nothing but the answer itself is written from here on."""
        if self._comment_timer is not None:
            self._comment_timer.cancel()
            self._comment_timer = None
        if self._commenting is not None:
            task, self._commenting = self._commenting, None
            task.cancel()
            await asyncio.wait({task})

    async def close(self) -> None:
        """End what runs beside the request."""
        if self._watcher is not None:
            self._watcher.cancel()
        await self.stop_comments()


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"The request body is larger than the {max_bytes} bytes accepted here.")


def log_client_id(request_id: str, client_id: bytes) -> None:
    """So that a call can be found by the id its caller gave it. `client_id` is capped and printable already."""
    _log.info(
        "a call with an id of its caller's",
        extra={"request_id": request_id, "client_request_id": client_id.decode("ascii")},
    )


def azure_client_id(value: bytes) -> bytes:
    """The same by Azure's rule: letters, digits, `-` and `_`, at most 40."""
    return value[:40] if value[:40].replace(b"-", b"a").replace(b"_", b"a").isalnum() else b""


def printable(value: bytes) -> bytes:
    """A caller's own id as far as it is harmless: printable ASCII, capped."""
    return bytes(byte for byte in value[:MAX_CLIENT_ID] if 0x20 < byte < 0x7F)
