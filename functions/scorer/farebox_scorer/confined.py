"""Run a server that reaches no network: `confined.py --port PORT -- COMMAND…`. Calls to the port get through to it.

The port is bound outside, then this process moves into a network of its own (`egress`) and starts the command there,
which listens on the same port inside. Connections are passed on byte by byte. It ends when the command does, with its
status.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # it is started by its path

from farebox_scorer import egress  # noqa: E402  found by the line above

_CHUNK = 64 * 1024
_HOST = "127.0.0.1"
_BACKLOG = 1024
_FLUSH_S = 2  # what the command has written before its end still gets out
_NOT_FOUND = 127


def main():
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((_HOST, options.port))
    try:
        egress.close()
    except OSError as error:
        egress.explain(error)
        return egress.NOT_POSSIBLE
    return asyncio.run(_run(listener, options.port, options.command))


async def _run(listener, port, command):
    try:
        child = await asyncio.create_subprocess_exec(*command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return _NOT_FOUND
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _pass_on, child, number)
    calls = set()

    async def call(reader, writer):
        calls.add(asyncio.current_task())
        try:
            await _relay(reader, writer, port)
        finally:
            calls.discard(asyncio.current_task())

    server = await asyncio.start_server(call, sock=listener, backlog=_BACKLOG, limit=_CHUNK)
    status = await child.wait()
    server.close()
    if calls:
        await asyncio.wait(calls, timeout=_FLUSH_S)
    return status if status >= 0 else 128 - status


def _pass_on(child, number):
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(number)


async def _relay(reader, writer, port):
    """One connection. Where nobody listens inside yet it is closed, as it would be outside."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection(_HOST, port, limit=_CHUNK)
    except OSError:
        writer.transport.abort()
        return
    ways = [_copy(reader, inner_writer), _copy(inner_reader, writer)]
    try:
        with contextlib.suppress(OSError):  # one of the two has hung up: so does the other
            await asyncio.gather(*ways)
    finally:
        writer.transport.abort()
        inner_writer.transport.abort()


async def _copy(reader, writer):
    while chunk := await reader.read(_CHUNK):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


if __name__ == "__main__":
    sys.exit(main())
