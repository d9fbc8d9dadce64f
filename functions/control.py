"""The control process's HTTP face on its Unix socket: the management API and the gateway's internal calls."""

from typing import Any

from functions.console.handler import create_console
from functions.internal import create_internal
from functions.wiring import Control


def control_app(control: Control) -> Any:
    """One ASGI callable: `/internal/…` for the gateway, everything else is the console.

    The socket is in a folder only this user can enter; nothing of `/internal` is reachable through the gateway.
    """
    console = create_console(control.console)
    internal = create_internal(
        control.runtime, control.console, control.tokens, control.runtime.online_figures
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inner = internal if scope["type"] == "http" and scope["path"].startswith("/internal/") else console
        await inner(scope, receive, send)

    return app
