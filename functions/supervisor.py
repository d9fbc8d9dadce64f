"""Keeps the gateway process running: one child, given its listening socket, restarted when it dies.

The socket is bound here and inherited, so callers queue in the kernel during a restart instead of being refused.
The child holds the reading end of a pipe whose writing end only this process has: when this process dies, however
it dies, the child reads end-of-file and ends too.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping

from core.log import get_logger

_log = get_logger(__name__)
_BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
_STEADY_AFTER_S = 30.0


class ChildProcess:
    """Supervises `python -m MODULE` until `stop`."""

    def __init__(
        self,
        module: str,
        environ: Mapping[str, str],
        listener: socket.socket,
        grace_s: float,
        longest_pause_s: float = _BACKOFF_S[-1],
    ) -> None:
        self._module, self._environ, self._listener, self._grace_s = module, dict(environ), listener, grace_s
        self._longest_pause_s = longest_pause_s
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False

    @property
    def pid(self) -> int | None:
        """Process id of the child now running, None between two lives."""
        return self._process.pid if self._process else None

    async def run(self) -> None:
        """Start, and start again with backoff whenever it ends unasked. Returns after `stop`."""
        read_end, write_end = os.pipe()
        quick_deaths = 0
        try:
            while not self._stopping:
                started = time.monotonic()
                self._process = await self._start(read_end)
                status = await self._process.wait()
                self._process = None
                if self._stopping:
                    return
                quick_deaths = quick_deaths + 1 if time.monotonic() - started < _STEADY_AFTER_S else 0
                _log.error("%s ended unasked, starting it again", self._module, extra={"exit_status": status})
                pause_s = _BACKOFF_S[min(quick_deaths, len(_BACKOFF_S) - 1)]
                await asyncio.sleep(min(pause_s, self._longest_pause_s))
        finally:
            os.close(read_end)
            os.close(write_end)

    async def _start(self, parent_pipe: int) -> asyncio.subprocess.Process:
        descriptor = self._listener.fileno()
        environ = self._environ | {
            "FAREBOX_LISTEN_FD": str(descriptor),
            "FAREBOX_PARENT_FD": str(parent_pipe),
        }
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            self._module,
            env=environ,
            pass_fds=(descriptor, parent_pipe),
            start_new_session=True,
        )

    async def stop(self) -> None:
        """SIGTERM, wait for the drain, SIGKILL what remains. Nobody is to queue for what will not come back."""
        self._stopping = True
        self._listener.close()
        process = self._process
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), self._grace_s)
        except TimeoutError:
            _log.warning("%s did not end within %s s, killing it", self._module, self._grace_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()


async def parent_gone(parent_pipe: int) -> None:
    """Return when the supervising process is gone (the child's side of the pipe)."""
    loop = asyncio.get_running_loop()
    gone = loop.create_future()
    os.set_blocking(parent_pipe, False)

    def _readable() -> None:
        # Nobody ever writes: readable means end-of-file.
        loop.remove_reader(parent_pipe)
        if not gone.done():
            gone.set_result(None)

    loop.add_reader(parent_pipe, _readable)
    await gone
