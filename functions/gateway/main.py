"""The gateway process: serves on an inherited socket, ends when told to or when its supervisor is gone."""

import asyncio
import contextlib
import os
import socket
import sys

import uvicorn
import uvloop
from fastapi import FastAPI

from core.errors import FareboxError
from core.garbage import look_seldom
from core.log import configure_logging, get_logger
from core.settings import Settings, load_settings
from functions.gateway.handler import Gateway, create_gateway, fast_protocol
from functions.gateway.wiring import open_gateway
from functions.supervisor import parent_gone

_log = get_logger(__name__)
# Whoever started us was killed: what is in flight gets this long, then it is settled as cut.
_ORPHAN_GRACE_S = 1.0


def main() -> int:
    """Run until SIGTERM; exit status 0 after a clean drain, 1 when it could not start."""
    settings = load_settings(os.environ)
    configure_logging("gateway", settings.log_level, str(settings.logs_path / "gateway.log"))
    try:
        uvloop.run(_serve(settings))
    except FareboxError as error:
        _log.error("the gateway cannot start: %s", error.message)
        print(f"farebox gateway: {error.message}", file=sys.stderr)  # noqa: T201  also where the user looks
        return 1
    return 0


async def _serve(settings: Settings) -> None:
    async with open_gateway(settings) as dependencies:
        listener = socket.socket(fileno=int(os.environ["FAREBOX_LISTEN_FD"]))
        app = create_gateway(dependencies)
        server = _Server(_server_config(app, settings), app.state.gateway)
        watcher = asyncio.create_task(_end_with_parent(server))
        look_seldom(middle=20, old=50)  # looking at what was imported on each collection costs tail latency
        try:
            await server.serve(sockets=[listener])
        finally:
            watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watcher


class _Server(uvicorn.Server):
    """uvicorn, and the gateway knows from the signal on that it is to take no new calls."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        draining = asyncio.create_task(self._gateway.drain())
        try:
            # Closes the listener and idle connections, waits for the busy ones within the grace, ends the rest.
            await super().shutdown(sockets)
        finally:
            draining.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                _log.info("ended", extra={"all_calls_finished": await draining})


def _server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=fast_protocol(app),
        ws="none",
        loop="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.drain_grace_s,
        backlog=2048,
    )


async def _end_with_parent(server: uvicorn.Server) -> None:
    descriptor = os.environ.get("FAREBOX_PARENT_FD")
    if descriptor is None:
        return
    await parent_gone(int(descriptor))
    _log.warning("the supervising process is gone, ending")
    server.should_exit = True
    await asyncio.sleep(_ORPHAN_GRACE_S)
    server.force_exit = True
