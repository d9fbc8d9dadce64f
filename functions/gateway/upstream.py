"""Requests to model servers: one connection pool, safe headers, and one word for each way it can fail."""

import io
import os

import aiohttp
from yarl import URL

from core.errors import UpstreamFailed
from core.settings import Settings
from serving.model import Route
from wire.openai import Operation

PATHS: dict[Operation, str] = {
    "chat.completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
}
MAX_ANSWER_BYTES = 128 * 1024 * 1024  # of an answer that is not streamed
MAX_ERROR_BYTES = 64 * 1024
_KEEPALIVE_S = 30.0
_LARGE_BODY = 1024 * 1024
_FORWARDED = (b"traceparent", b"tracestate")


class ServerGone(Exception):  # tells what is so, and that another attempt is safe
    """The server refused or closed the connection before the first byte of an answer."""


class Upstream:
    """The client side of the gateway."""

    def __init__(self, settings: Settings) -> None:
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=settings.upstream_connect_timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Make the pool; needs a running event loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            skip_auto_headers=("User-Agent", "Accept-Encoding", "Content-Type"),
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def post(
        self,
        base_url: str,
        operation: Operation,
        body: bytes,
        *,
        route: Route,
        attempt_id: str,
        caller_headers: dict[bytes, bytes],
    ) -> aiohttp.ClientResponse:
        """Send a call; returns once the answer's head is there.

        ServerGone: no answer began, it may be sent again. UpstreamFailed: anything else.
        """
        assert self._session is not None, "open() was not called"
        headers = _headers(route, attempt_id, caller_headers)
        # aiohttp sends a large `bytes` in one blocking piece.
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        try:
            return await self._session.post(
                _url(base_url, operation), data=data, headers=headers, allow_redirects=False
            )
        except (aiohttp.ClientConnectionError, ConnectionError) as error:
            raise ServerGone(type(error).__name__) from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise UpstreamFailed(f"The model server could not be called ({type(error).__name__}).") from error


async def read_answer(response: aiohttp.ClientResponse, max_bytes: int = MAX_ANSWER_BYTES) -> bytes:
    """A whole body, bounded. UpstreamFailed when it is cut short or too large."""
    body = b""
    try:
        while part := await response.content.readany():
            body = body + part if body else part
            if len(body) > max_bytes:
                raise UpstreamFailed(f"The model server's answer is larger than {max_bytes} bytes.")
    except (aiohttp.ClientError, ConnectionError, TimeoutError) as error:
        raise UpstreamFailed("The model server closed the connection within its answer.") from error
    return body


def _url(base_url: str, operation: Operation) -> URL:
    return URL(base_url.rstrip("/").removesuffix("/v1") + PATHS[operation], encoded=True)


def _headers(route: Route, attempt_id: str, caller_headers: dict[bytes, bytes]) -> dict[str, str]:
    # Compressed, the stream could neither be read for usage nor be passed on piece by piece.
    headers = {"content-type": "application/json", "accept-encoding": "identity", "x-request-id": attempt_id}
    for name in _FORWARDED:
        value = caller_headers.get(name)
        if value is not None and len(value) < 512 and value.isascii():
            headers[name.decode()] = value.decode()
    if route.upstream_key_env:
        key = os.environ.get(route.upstream_key_env)
        if not key:
            raise UpstreamFailed(
                f"The attached server of {route.model_id} needs a key: the operator must set the environment "
                f"variable {route.upstream_key_env} for the gateway.",
                code="upstream_not_configured",
            )
        headers["authorization"] = f"Bearer {key}"
    return headers
