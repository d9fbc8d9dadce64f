"""Notices that nothing came for too long, at the cost of one assignment per sign of life."""

import asyncio
from collections.abc import Callable


class Watchdog:
    """Calls `on_silence` once when `limit_s` pass without `touch`."""

    __slots__ = ("_last", "_limit_s", "_loop", "_on_silence", "_timer")

    def __init__(self, on_silence: Callable[[], None], limit_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_silence = on_silence
        self._limit_s = limit_s
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = self._loop.call_later(limit_s, self._look)

    def touch(self, limit_s: float | None = None) -> None:
        """A sign of life; `limit_s` is the patience from here on."""
        self._last = self._loop.time()
        if limit_s is not None:
            self.stop()
            self._limit_s = limit_s
            self._timer = self._loop.call_later(limit_s, self._look)

    def stop(self) -> None:
        """Watch no longer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # Re-armed here rather than in `touch`: a stream has thousands of signs of life and few looks.
        left = self._last + self._limit_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._timer = None
            self._on_silence()
