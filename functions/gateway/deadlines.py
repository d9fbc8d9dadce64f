"""Bounds on time for thousands of calls and connections at the cost of one look at all of them now and then."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

LOOK_EVERY_S: Final = 0.25


class Waiting(Protocol):
    """Something that may take too long. `deadline` is moved by assignment; nothing need be told."""

    deadline: float  # in the event loop's time

    def on_deadline(self) -> None: ...


class Deadlines:
    """Calls `on_deadline` of what is watched, once its deadline is over and at most a quarter second late.

    It goes on being watched: whoever is late either moves its deadline or forgets itself.
    """

    def __init__(self, on_look: Callable[[float], None] | None = None) -> None:
        self._watched: dict[Waiting, None] = {}
        self._on_look = on_look
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look; needs a running event loop."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            self._timer = loop.call_later(LOOK_EVERY_S, look)
            self._look(loop.time())

        self._timer = loop.call_later(LOOK_EVERY_S, look)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def watch(self, waiting: Waiting) -> None:
        """From now on, until `forget`."""
        self._watched[waiting] = None

    def forget(self, waiting: Waiting) -> None:
        """No longer; it need not have been watched."""
        self._watched.pop(waiting, None)

    def watched(self) -> list[Waiting]:
        """Whatever is watched now."""
        return list(self._watched)

    def _look(self, now: float) -> None:
        if self._on_look is not None:
            self._on_look(now)
        for waiting in [waiting for waiting in self._watched if waiting.deadline <= now]:
            if waiting in self._watched:
                waiting.on_deadline()
