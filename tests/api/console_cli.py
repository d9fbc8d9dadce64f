"""The command line on a console of its own: `with cli_of(platform) as cli: cli("price", "list")`."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from click.testing import CliRunner, Result
from farebox.cli.main import cli as command_line

from tests.api.console_platform import ConsolePlatform

RunCommand = Callable[..., Result]


@contextlib.contextmanager
def cli_of(platform: ConsolePlatform, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunCommand]:
    """Runs commands with the platform's admin key (or `key=`); the exit code must be `code`."""
    config = uvicorn.Config(platform.app, port=0, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    monkeypatch.setenv("FAREBOX_URL", f"http://127.0.0.1:{port}")

    def run(*arguments: str, code: int = 0, key: str | None = None, stdin: str | None = None) -> Result:
        monkeypatch.setenv("FAREBOX_API_KEY", key or platform.admin_key)
        result = CliRunner().invoke(command_line, list(arguments), input=stdin)
        assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
        return result

    try:
        yield run
    finally:
        server.should_exit = True
        thread.join()
