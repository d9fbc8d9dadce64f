"""Keys and model names to principals and routes: from memory, filled by SQL on a miss, forgotten on a change.

A warm call does no SQL. What is remembered is as old as the change feed's last poll; a load that a change
overtook is used once and not remembered.
"""

import asyncio
from collections.abc import Callable, Hashable
from itertools import count
from typing import Final, Generic, NamedTuple, TypeVar

from access.principal import Principal
from core.changes import MAX_BATCH, Change
from core.clock import Clock
from core.log import get_logger
from serving.route import Route

_log: Final = get_logger(__name__)

KeyAnswer = Principal | str
"""Who holds a key, or why nobody does: `unknown`, `expired`, `revoked`."""


class RouteName(NamedTuple):
    """What a caller may mean by a name: "" where there is none."""

    project_id: str
    endpoint_id: str  # of an endpoint key
    endpoint_name: str  # from the URL
    model: str  # from the body


def route_name(principal: Principal, endpoint_name: str, model: str) -> RouteName:
    """What is looked up for a caller: within an endpoint key's endpoint, else within the key's project."""
    # As RouteName(…) does it, without the call of Python in between.
    if principal.kind == "endpoint":
        return tuple.__new__(RouteName, ("", principal.endpoint_id, endpoint_name, model))
    return tuple.__new__(RouteName, (principal.project_id, "", endpoint_name, model))


MAX_HITS: Final = 200_000
MAX_MISSES: Final = 20_000
CLEAR: Final = "clear"
_POLICY_KINDS: Final = ("limit", "budget")
POLL_EVERY_S: Final = 0.5
FEED_SILENT_S: Final = 5.0  # without a successful poll for this long, the database counts as unreachable

_generations: Final = count(1)  # for all caches of the process: a key's last call is of one of them

_K = TypeVar("_K", bound=Hashable)
_H = TypeVar("_H")
_M = TypeVar("_M")


class LookupCache(Generic[_K, _H, _M]):
    """A bounded memory of loads: least recently used goes first, one load per key however many wait for it.

    What was used is told apart once it is half full.

    Misses are kept apart, so that a flood of wrong names cannot push out the right ones.
    """

    def __init__(
        self,
        load: Callable[[_K], _H | _M],
        hit_type: type[_H],
        refs_of: Callable[[_H], tuple[str, ...]],
        max_hits: int,
    ) -> None:
        """`refs_of` a hit: the ids by which the change feed will name what it depends on."""
        self._load = load
        self._hit_type = hit_type
        self._refs_of = refs_of
        self._max_hits = max_hits
        self._hits: dict[_K, _H] = {}
        self._misses: dict[_K, _M] = {}
        self._by_ref: dict[str, set[_K]] = {}
        self._loading: dict[_K, asyncio.Task[_H | _M]] = {}
        self.generation = next(_generations)  # another one whenever something may have changed

    def peek(self, key: _K) -> _H | None:
        """The remembered hit, None when there is none."""
        hit = self._hits.get(key)
        if (
            hit is not None and len(self._hits) > self._max_hits // 2
        ):  # before, nothing is about to be forgotten
            del self._hits[key]
            self._hits[key] = hit  # now the youngest
        return hit

    async def find(self, key: _K, load: Callable[[], _H | _M] | None = None) -> _H | _M:
        """The remembered answer, else the one from the source, or from `load` where the key does not tell enough."""
        hit = self.peek(key)
        if hit is not None:
            return hit
        if key in self._misses:
            return self._misses[key]
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.get_running_loop().create_task(self._fill(key, load))
        # A caller who goes away must not cancel the load that others wait for.
        return await asyncio.shield(task)

    async def _fill(self, key: _K, load: Callable[[], _H | _M] | None) -> _H | _M:
        generation = self.generation
        try:
            answer = (
                await asyncio.to_thread(self._load, key) if load is None else await asyncio.to_thread(load)
            )
        finally:
            if self.generation == generation:
                self._loading.pop(key, None)
        if self.generation == generation:
            self._keep(key, answer)
        return answer

    def _keep(self, key: _K, answer: _H | _M) -> None:
        if not isinstance(answer, self._hit_type):
            self._misses[key] = answer  # type: ignore[assignment]  # what is no hit is a miss
            if len(self._misses) > MAX_MISSES:
                del self._misses[next(iter(self._misses))]
            return
        self._hits[key] = answer
        for ref in self._refs_of(answer):
            self._by_ref.setdefault(ref, set()).add(key)
        if len(self._hits) > self._max_hits:
            self.drop(next(iter(self._hits)))

    def drop(self, key: _K) -> None:
        """Forget one hit."""
        hit = self._hits.pop(key, None)
        if hit is None:
            return
        for ref in self._refs_of(hit):
            keys = self._by_ref[ref]
            keys.discard(key)
            if not keys:
                del self._by_ref[ref]

    def forget(self, ref: str) -> None:
        """The row `ref` changed or is new: drop what came of it, all misses, and what is being loaded now."""
        self.generation = next(_generations)
        self._loading = {}
        self._misses.clear()
        for key in list(self._by_ref.get(ref, ())):
            self.drop(key)

    def clear(self) -> None:
        """Forget everything."""
        self.generation = next(_generations)
        self._loading = {}
        self._hits.clear()
        self._misses.clear()
        self._by_ref.clear()

    def __len__(self) -> int:
        return len(self._hits) + len(self._misses)


class Lookups:
    """Both caches and the poller that keeps them true."""

    def __init__(
        self,
        *,
        clock: Clock,
        find_principal: Callable[[str], KeyAnswer],
        resolve_route: Callable[[RouteName], Route | None],
        poll_changes: Callable[[int], list[Change]],
        last_seq: Callable[[], int],
        on_policy: Callable[[Change | None], None] = lambda _: None,
    ) -> None:
        """`on_policy` hears of changed limits and budgets; None: anything may have changed."""
        self._clock = clock
        self._poll_changes = poll_changes
        self._last_seq = last_seq
        self._on_policy = on_policy
        self.principals: LookupCache[str, Principal, str] = LookupCache(
            find_principal, Principal, lambda principal: (principal.key_id, principal.endpoint_id), MAX_HITS
        )
        self.routes: LookupCache[RouteName, Route, None] = LookupCache(
            resolve_route, Route, lambda route: route.refs, MAX_HITS
        )
        self.seq = -1  # of the last change that was read; not known yet
        self._polled_ms: int | None = None

    async def principal(self, key_hash: str) -> KeyAnswer:
        """Who holds the key, or why nobody does."""
        answer = await self.principals.find(key_hash)
        if isinstance(answer, Principal) and 0 < answer.expires_ms <= self._clock.now_ms():
            return "expired"
        return answer

    def known_route(self, principal: Principal, endpoint_name: str, model: str) -> Route | None:
        """The remembered route of a call, None where there is none."""
        last, routes = principal.last_call, self.routes
        if (
            last.route_number == routes.generation
            and last.model == model
            and last.endpoint_name == endpoint_name
        ):
            known: Route = last.route
            return known
        route = routes.peek(route_name(principal, endpoint_name, model))
        if route is not None:
            last.route, last.route_number = route, routes.generation
            last.model, last.endpoint_name = model, endpoint_name
        return route

    async def bearer(self, token_hash: str, load: Callable[[], Principal]) -> Principal:
        """Who sent a token that the database does not know; `load` is asked again when what it said is too old."""
        known = self.principals.peek(token_hash)
        if known is not None and known.expires_ms <= self._clock.now_ms():
            self.principals.drop(token_hash)
        answer = await self.principals.find(token_hash, load)
        assert isinstance(answer, Principal), "load refuses by raising"
        return answer

    @property
    def database_reachable(self) -> bool:
        """Whether the change feed was read within the last seconds."""
        return (
            self._polled_ms is not None
            and self._clock.monotonic_ms() - self._polled_ms < FEED_SILENT_S * 1000
        )

    async def run(self) -> None:
        """Poll until cancelled."""
        while True:
            try:
                await self.poll()
            except Exception as error:
                # Calls go on with what is remembered; `readyz` tells when this lasts.
                if self.database_reachable:
                    _log.warning("the change feed cannot be read", extra={"reason": type(error).__name__})
            await asyncio.sleep(POLL_EVERY_S)

    async def poll(self) -> None:
        """Read the feed once and forget what changed."""
        if self.seq < 0:
            self.seq = await asyncio.to_thread(self._last_seq)
            self.principals.clear()
            self.routes.clear()
            self._on_policy(None)
        while True:
            batch = await asyncio.to_thread(self._poll_changes, self.seq)
            self._polled_ms = self._clock.monotonic_ms()
            for change in batch:
                self._apply(change)
            if len(batch) < MAX_BATCH:
                return

    def _apply(self, change: Change) -> None:
        gap = change.seq != self.seq + 1
        self.seq = change.seq
        if gap or change.kind == CLEAR:
            self.principals.clear()
            self.routes.clear()
            self._on_policy(None)
        elif change.kind in _POLICY_KINDS:
            self._on_policy(change)
        elif change.kind == "key":
            self.principals.forget(change.ref)
        elif change.kind == "deployment":
            self.routes.forget(change.ref)
        else:
            self.principals.forget(change.ref)  # its way of authentication may be another now
            # A new endpoint or model can take over a name that now leads elsewhere.
            self.routes.clear()
