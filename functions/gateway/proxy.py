"""Everything below `/api/` and `/v1/organization/` goes to the control process, bytes in and out as they come."""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import unquote

import aiohttp
import msgspec
from multidict import CIMultiDict

from core.errors import BadRequest, FareboxError, Timeout, TooLarge, Unavailable, problem
from core.ids import new_id
from functions.gateway.exchange import BODY_TIMEOUT_S, Header, Message, Receive, Scope, Send, error_headers
from functions.gateway.gateway import Gateway
from wire.openai import render_error

_CONNECT_S = 2.0
_SILENCE_S = 300.0

# RFC 9110, 7.6.1: of one connection only.
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
# What we say ourselves; a caller's word for it would be believed.
_OURS = frozenset(
    (b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"forwarded", b"x-request-id")
)


class ControlProxy:
    """The reverse proxy as a bare ASGI callable."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await _ProxiedRequest(self._gateway, scope, receive, send).run()


class _ProxiedRequest:
    def __init__(self, gateway: Gateway, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway = gateway
        self._scope = scope
        self._receive = receive
        self._send = send
        self._request_id = new_id("req", gateway.clock.now_ms())
        self._headers: list[Header] = scope["headers"]
        self._failure: FareboxError | None = None
        self._started = False
        self._body_read = True
        self._declared_bytes: int | None = None

    async def run(self) -> None:
        try:
            await self._forward()
        except FareboxError as error:
            if not self._started:
                await self._send_problem(error)

    async def _forward(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S)
        try:
            async with self._gateway.control.session.request(
                self._scope["method"],
                self._gateway.control.url(self._target()),
                headers=self._request_headers(),
                data=self._request_body(),
                allow_redirects=False,
                timeout=timeout,
                skip_auto_headers=("User-Agent", "Accept-Encoding", "Accept", "Content-Type"),
            ) as response:
                await self._pass_on(response)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            if self._failure is not None:
                raise self._failure from error
            raise Unavailable(
                "The control process does not answer; it may be starting. Model calls are not affected.",
                code="control_unavailable",
                retry_after_s=2,
            ) from error

    def _target(self) -> str:
        raw: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        path = raw.decode("latin-1").partition("?")[0]
        if any(segment in (".", "..") for segment in unquote(path).split("/")):
            raise BadRequest("The path must not contain '.' or '..' segments.", code="invalid_path")
        query = self._scope["query_string"].decode("latin-1")
        return f"{path}?{query}" if query else path

    def _request_headers(self) -> CIMultiDict[str]:
        dropped = _HOP_BY_HOP | _OURS | _named_in_connection(self._headers)
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in self._headers:
            if name not in dropped:
                headers.add(name.decode("latin-1"), value.decode("latin-1"))
        client = self._scope.get("client")
        headers["x-forwarded-for"] = client[0] if client else ""
        headers["x-forwarded-host"] = headers.get("host", "")
        headers["x-forwarded-proto"] = self._scope["scheme"]
        headers["x-request-id"] = self._request_id
        return headers

    def _request_body(self) -> AsyncIterator[bytes] | None:
        names = {name for name, _ in self._headers}
        if b"content-length" not in names and b"transfer-encoding" not in names:
            return None
        length = next((value for name, value in self._headers if name == b"content-length"), b"0")
        if length.isdigit() and int(length) > self._gateway.settings.max_body_bytes:
            raise self._too_large()
        if b"content-length" in names:
            self._declared_bytes = int(length)
        self._body_read = False
        return self._body_parts()

    async def _body_parts(self) -> AsyncIterator[bytes]:
        size, more = 0, True
        while more:
            message = await self._next_message()
            if message["type"] == "http.disconnect":
                self._failure = Unavailable("The caller left.")
                raise ConnectionResetError
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > self._gateway.settings.max_body_bytes:
                self._failure = self._too_large()
                raise ConnectionResetError
            if part:
                yield part
        if self._declared_bytes not in (None, size):
            # uvicorn drops the body of a request that asks for an upgrade; the control process would wait for it.
            self._failure = BadRequest("The body is not as long as its Content-Length says.")
            raise ConnectionResetError
        self._body_read = True

    async def _next_message(self) -> Message:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                return await self._receive()
        except TimeoutError:
            self._failure = Timeout(f"Nothing of the request body came for {BODY_TIMEOUT_S:.0f} s.")
            self._failure.status = 408
            raise

    def _too_large(self) -> TooLarge:
        limit = self._gateway.settings.max_body_bytes
        return TooLarge(f"The request body is larger than the {limit} bytes accepted here.")

    async def _pass_on(self, response: aiohttp.ClientResponse) -> None:
        received = [(name.lower(), value) for name, value in response.raw_headers]
        dropped = _HOP_BY_HOP | _named_in_connection(received) | {b"x-request-id", b"date", b"server"}
        headers = [(name, value) for name, value in received if name not in dropped]
        headers.append((b"x-request-id", self._request_id.encode()))
        self._started = True
        await self._send({"type": "http.response.start", "status": response.status, "headers": headers})
        # A log that is followed may never end by itself.
        watcher = asyncio.create_task(self._close_when_left(response)) if self._body_read else None
        try:
            async for part in response.content.iter_any():
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})
        finally:
            if watcher is not None:
                watcher.cancel()

    async def _close_when_left(self, response: aiohttp.ClientResponse) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        response.close()

    async def _send_problem(self, error: FareboxError) -> None:
        path = self._scope["path"]
        openai = path.startswith("/v1/")
        document = (
            render_error(error) if openai else problem(error, request_id=self._request_id, instance=path)
        )
        body = msgspec.json.encode(document)
        headers = [
            (b"content-type", b"application/json" if openai else b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            (b"x-request-id", self._request_id.encode()),
            *error_headers(error),
        ]
        await self._send({"type": "http.response.start", "status": error.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _named_in_connection(headers: list[Header]) -> set[bytes]:
    """Headers that the sender declared to be of this connection only."""
    return {
        part.strip().lower() for name, value in headers if name == b"connection" for part in value.split(b",")
    }
