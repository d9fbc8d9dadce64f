"""Posting to customers' addresses: the one file of this package that speaks HTTP."""

import asyncio
import ipaddress
import socket
import time
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from core.clock import Clock
from webhooks.address import is_public
from webhooks.outbox import Attempt

TIMEOUT_S = 20  # the specification: 15 to 30
MAX_CONNECTIONS = 32
_MAX_ERROR = 300
_MAX_RETRY_AFTER_S = 86_400


class PrivateAddressError(OSError):
    """The name leads to an address that must not be called."""


class _PublicResolver(AbstractResolver):
    """Names to addresses, without those inside. What is connected to is what was looked at here."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        public = [each for each in found if is_public(each["host"])]
        if not public:
            raise PrivateAddressError(f"{host} is a private or reserved address")
        return public

    async def close(self) -> None:
        await self._inner.close()


class Courier:
    """Posts messages. Make it inside a running event loop, and close it."""

    def __init__(self, clock: Clock, *, allow_private: bool, timeout_s: float = TIMEOUT_S) -> None:
        self._clock, self._allow_private = clock, allow_private
        resolver: dict[str, Any] = {} if allow_private else {"resolver": _PublicResolver()}
        connector = aiohttp.TCPConnector(
            limit=MAX_CONNECTIONS, use_dns_cache=False, force_close=True, **resolver
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
        )

    async def post(self, url: str, headers: dict[str, str], body: bytes) -> Attempt:
        """One attempt; never raises for what the other side does. Its answer's body is not read."""
        at_ms, began = self._clock.now_ms(), time.monotonic()
        status, error, retry_after = 0, "", 0
        try:
            if not self._allow_private:
                _refuse_literal(url)
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status = response.status
                retry_after = _seconds(response.headers.get("Retry-After", ""))
            if not 200 <= status <= 299:
                error = f"answered {status}"
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as failure:
            error = _explain(failure)
        duration_ms = int((time.monotonic() - began) * 1000)
        return Attempt(at_ms, duration_ms, status, error, retry_after)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()


def _refuse_literal(url: str) -> None:
    """An address in digits goes past the resolver."""
    host = urlsplit(url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return
    if not is_public(host):
        raise PrivateAddressError(f"{host} is a private or reserved address")


def _seconds(text: str) -> int:
    return min(int(text), _MAX_RETRY_AFTER_S) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _explain(failure: BaseException) -> str:
    if isinstance(failure, asyncio.TimeoutError):
        return "no answer in time"
    return (str(failure) or type(failure).__name__)[:_MAX_ERROR]
