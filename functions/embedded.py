"""`farebox up`: the whole platform on one machine, as two processes.

This process is the supervisor and everything but the gateway: management API (on a Unix socket, reached through
the gateway), meter sink, minute tick, model servers. The gateway is its child.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn
import uvloop

from core.errors import FareboxError, Unavailable
from core.garbage import look_seldom
from core.log import configure_logging, get_logger
from core.settings import Settings, load_settings, settings_environment
from functions.control import control_app
from functions.gateway.checking import check_settings
from functions.home import lock_home, prepare_home
from functions.supervisor import ChildProcess
from functions.wiring import Control, open_control

_log = get_logger(__name__)
_BACKLOG = 2048
_PORT_PATIENCE_S = 3.0

_EPILOG = """\
examples:
  farebox up                                  serve on http://127.0.0.1:8080, state in ~/.farebox
  farebox up --home ./state --port 9000       a second installation beside it
  FAREBOX_SCALE_TO_ZERO_AFTER_S=60 farebox up stop idle model servers after a minute

The admin key is in HOME/admin.key after the first start. No engine is needed until an endpoint is called.
Exit status: 0 after Ctrl-C or SIGTERM, 1 when it could not start, 2 for a wrong option.
"""


def main(argv: Sequence[str]) -> int:
    """Run in the foreground until SIGINT or SIGTERM; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        settings = load_settings(
            os.environ, home=_absolute(arguments.home), host=arguments.host, port=arguments.port
        )
        check_settings(settings)
        prepare_home(settings)
        with lock_home(settings), _listen(settings.host, settings.port) as listener:
            configure_logging("control", settings.log_level, str(settings.logs_path / "platform.log"))
            uvloop.run(_serve(settings, listener))
    except FareboxError as error:
        print(f"farebox up: {error.message}", file=sys.stderr)  # noqa: T201  the user's terminal, not a log
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="farebox up",
        description="Start the platform on this machine, in the foreground.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--home", metavar="DIR", help="where everything is kept (default: $FAREBOX_HOME or ~/.farebox)"
    )
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=_port, help="port to listen on (default: 8080)")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"expected a port from 1 to 65535, got {text!r}")
    return int(text)


def _absolute(home: str | None) -> Path | None:
    return Path(home).expanduser().absolute() if home else None


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket that the gateway inherits. Unavailable, with what to do, when the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    give_up = time.monotonic() + _PORT_PATIENCE_S
    while True:
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
            return listener
        except OSError as error:
            # A gateway whose supervisor was just killed needs a moment to let go of the port.
            if error.errno != errno.EADDRINUSE or time.monotonic() > give_up:
                listener.close()
                raise Unavailable(_explain_listen(host, port, error)) from error
            time.sleep(0.1)


def _explain_listen(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use by another program; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; choose one above 1023 with --port"
    return f"cannot listen on {host}:{port}: {error.strerror or error}; check --host and --port"


async def _serve(settings: Settings, listener: socket.socket) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    gateway = ChildProcess(
        "functions.gateway",
        os.environ | settings_environment(settings),
        listener,
        grace_s=settings.drain_grace_s + 5,
        longest_pause_s=settings.restart_pause_s,
    )
    with open_control(settings) as control:
        _announce(settings)
        look_seldom()
        await _run_until(stopping, control, gateway)


async def _run_until(stopping: asyncio.Event, control: Control, gateway: ChildProcess) -> None:
    server = _ControlServer(_control_server(control))
    tasks = [
        asyncio.create_task(coroutine, name=name)
        for name, coroutine in (
            ("control server", server.serve()),
            ("gateway", gateway.run()),
            ("meter sink", control.sink.run()),
            ("minute tick", control.tick.run()),
            ("invoicer", control.invoicer.run()),
            ("webhook sender", control.webhooks.run()),
            ("payments", control.payments.run()),
            ("runtime", control.runtime.run()),
            ("reconciliation", control.reconciliation.run()),
            ("engine counters", control.runtime.counters.run()),
        )
    ]
    stopped = asyncio.create_task(stopping.wait())
    try:
        done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {stopped}:
            _log.error("%s ended unasked, stopping the platform", task.get_name(), exc_info=task.exception())
    finally:
        await _shut_down(control, gateway, server, tasks)


async def _shut_down(
    control: Control, gateway: ChildProcess, server: uvicorn.Server, tasks: list[asyncio.Task[None]]
) -> None:
    """Callers first, then the model servers, then what is left in the journal."""
    await gateway.stop()
    await control.runtime.stop_all()
    server.should_exit = True
    for task in tasks[2:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(control.sink.catch_up)


class _ControlServer(uvicorn.Server):
    """uvicorn without its signal handling: that would end this server first, and with it the gateway's backing."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _control_server(control: Control) -> uvicorn.Config:
    path = control.settings.control_socket
    path.unlink(missing_ok=True)
    return uvicorn.Config(
        control_app(control),
        uds=str(path),
        http="httptools",
        loop="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


def _announce(settings: Settings) -> None:
    shown = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host
    print(  # noqa: T201  the user's terminal, not a log
        f"Farebox serves on http://{shown}:{settings.port}   API docs: /docs and /api/docs\n"
        f"state in {settings.home}, admin key in {settings.admin_key_path}, log in {settings.logs_path / 'platform.log'}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
