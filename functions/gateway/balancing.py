"""The servers of one deployment: how many calls they can take, who gets the next one, who is left alone for a while.

Both lanes use it, from one event loop. A call holds a *place* on a server from before it is sent until its answer
is over. Least calls in flight is next. A server that fails several times in a row before the first byte of an answer is
*ejected* for a time that doubles, and then tried with one call. When all are ejected, the one whose time ends first
serves. With one server none of this costs more than counting.
"""

import math
import random
from collections.abc import Callable
from typing import Final

EJECT_AFTER: Final = 3  # failures in a row
EJECTED_FIRST_S: Final = 1.0
EJECTED_AT_MOST_S: Final = 60.0
_NEVER: Final = math.inf
_chance: Final = random.Random()


class Server:
    """One server of a deployment."""

    __slots__ = ("ejected_until", "ejections", "failures", "group", "in_flight", "on_trial", "open", "troubled",
                 "url")  # fmt: skip

    def __init__(self, url: str, group: "Servers") -> None:
        self.url = url
        self.group = group
        self.in_flight = 0
        self.troubled = False  # it failed since it last answered
        self.failures = 0  # in a row
        self.ejections = 0  # in a row
        self.ejected_until = 0.0  # in the loop's time; 0: it is not ejected
        self.on_trial = False
        self.open = False  # gets calls as usual

    def give_back(self) -> None:
        """A call's place is free again."""
        self.group.give_back(self)

    def failed(self) -> None:
        """A call found it gone, silent or broken before the first byte of an answer."""
        self.troubled = True
        self.failures += 1
        if self.ejected_until or self.failures >= EJECT_AFTER:
            self.group.eject(self)

    def answered(self, status: int) -> None:
        """The head of an answer came. Only a 5xx, or the answer of a troubled server, needs to be told."""
        if status >= 500:
            self.failed()
            return
        self.troubled = False
        self.failures = self.ejections = 0
        if self.ejected_until:
            self.group.readmit(self)


class Servers:
    """Those of one deployment. `free`: places that can be taken now; at most 0: none."""

    __slots__ = ("_ejected", "_known", "_now", "_open", "_trial_at", "_turn", "each", "ejected_total", "free",
                 "on_free", "urls")  # fmt: skip

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: dict[str, Server] = {}  # current ones, and those that calls in flight still hold
        self._open: list[Server] = []
        self._ejected: list[Server] = []
        self._trial_at = _NEVER
        self._turn = 0
        self.urls: tuple[str, ...] = ()
        self.each = 0  # places of one server
        self.free = 0
        self.ejected_total = 0
        self.on_free: Callable[[], None] | None = None  # while somebody waits

    @property
    def in_flight(self) -> int:
        """Calls that hold a place, on servers that left too."""
        return sum(server.in_flight for server in self._known.values())

    def counts(self) -> tuple[int, int]:
        """Current servers that are open, and that are ejected."""
        ejected = [bool(server.ejected_until) for server in self._current()]
        return ejected.count(False), ejected.count(True)

    def follow(self, urls: tuple[str, ...], each: int) -> None:
        """These are the servers now, each with so many places. One that left finishes its calls and gets no more."""
        self.urls, self.each = urls, each
        for url in urls:
            if url not in self._known:
                self._known[url] = Server(url, self)
        for server in [s for s in self._known.values() if s.url not in urls and not s.in_flight]:
            del self._known[server.url]
        self._recount()

    # -- places --

    def take(self) -> Server:
        """A place on the least loaded server; there must be one, free or not."""
        opened = self._open
        server = opened[0] if len(opened) == 1 and not self._ejected else self._choose()
        server.in_flight += 1
        if server.open:
            self.free -= 1
        return server

    def another(self, than: Server) -> Server | None:
        """The server that a call goes to instead of `than`, which keeps its place; None when there is no other."""
        others = [server for server in self._open if server is not than]
        return self._least_loaded(others) if others else None

    def look(self) -> Server | None:
        """The server that would be next, without taking a place."""
        return self._least_loaded(self._open) if self._open else None

    def move(self, held: Server, url: str) -> Server:
        """Give a place back for one on the server at `url`, whether or not one is free there."""
        server = self._known.get(url)
        if server is None:
            server = self._known[url] = Server(url, self)
        server.in_flight += 1
        if server.open:
            self.free -= 1
        self.give_back(held)
        return server

    def give_back(self, server: Server) -> None:
        """A place is free again; who waits gets it at once."""
        server.in_flight -= 1
        server.on_trial = False  # it ended, whatever it has shown
        if server.open:
            self.free += 1
            if self.on_free is not None:
                self.on_free()
        elif server.url in self.urls:
            self._set_trial()
        elif not server.in_flight:
            self._known.pop(server.url, None)

    def _choose(self) -> Server:
        if self._now() >= self._trial_at:
            server = min((s for s in self._ejected if not s.on_trial), key=lambda s: s.ejected_until)
            server.on_trial = True
            self._set_trial()
            return server
        return self._least_loaded(self._open)

    def _least_loaded(self, servers: list[Server]) -> Server:
        """Of equals another one each time."""
        self._turn += 1
        start = self._turn % len(servers)
        best = servers[start]
        for server in (*servers[start + 1 :], *servers[:start]):
            if server.in_flight < best.in_flight:
                best = server
        return best

    # -- who is left alone --

    def eject(self, server: Server) -> None:
        """No calls for a while, where there are others to take them."""
        if len(self.urls) < 2 or server.url not in self.urls:
            return
        server.failures = 0
        server.ejections += 1
        server.on_trial = False
        longest = min(EJECTED_FIRST_S * 2 ** min(server.ejections - 1, 16), EJECTED_AT_MOST_S)
        # Jitter, so that several gateways do not try it in the same instant.
        server.ejected_until = self._now() + longest * _chance.uniform(0.5, 1.0)
        self.ejected_total += 1
        self._recount()

    def readmit(self, server: Server) -> None:
        """It serves again."""
        server.ejected_until = 0.0
        server.on_trial = False
        self._recount()

    def _current(self) -> list[Server]:
        return [self._known[url] for url in dict.fromkeys(self.urls)]

    def _recount(self) -> None:
        for server in self._known.values():
            server.open = False
        current = self._current()
        opened = [server for server in current if not server.ejected_until]
        if current and not opened:
            opened = [min(current, key=lambda server: server.ejected_until)]
        for server in opened:
            server.open = True
        self._open = opened
        self._ejected = [server for server in current if not server.open]
        self._set_trial()
        self.free = self.each * len(opened) - sum(server.in_flight for server in opened)
        if self.free > 0 and self.on_free is not None:
            self.on_free()

    def _set_trial(self) -> None:
        waiting = [server.ejected_until for server in self._ejected if not server.on_trial]
        self._trial_at = min(waiting, default=_NEVER)
