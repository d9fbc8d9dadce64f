"""Asks a server on this machine whether it is well: one plain HTTP exchange, no pool to keep."""

import asyncio
import contextlib
from typing import Literal

Health = Literal["well", "refused", "unwell", "silent"]
_HEAD_LIMIT = 16 * 1024


async def check_health(port: int, path: str, timeout_s: float) -> Health:
    """`well`: answered 2xx; `unwell`: otherwise; `refused`: nobody listens; `silent`: no answer in time."""
    try:
        async with asyncio.timeout(timeout_s):
            return await _ask(port, path)
    except TimeoutError:
        return "silent"
    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
        return "refused"
    except (OSError, ValueError, asyncio.IncompleteReadError):
        return "unwell"


async def _ask(port: int, path: str) -> Health:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=_HEAD_LIMIT)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
        status = (await reader.readline()).split(b" ", 2)
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            await writer.wait_closed()
    if not status[0].startswith(b"HTTP/") or len(status) < 2:
        return "unwell"
    return "well" if status[1].startswith(b"2") else "unwell"
