"""What a gateway remembers of keys and routes, and when it forgets."""

import asyncio
import threading

from access.principal import Principal
from core.changes import Change
from core.clock import ManualClock
from functions.gateway import lookups
from functions.gateway.lookups import KeyAnswer, LookupCache, Lookups, RouteName
from serving.route import Route
from tests.gateway_fixture import make_route

NAME = RouteName("prj_1", "", "", "m")


class Source:
    """A database that counts its questions."""

    def __init__(self) -> None:
        self.answers: dict[object, object] = {}
        self.asked: list[object] = []
        self.changes: list[Change] = []
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Event()

    def find(self, key: object) -> object:
        self.asked.append(key)
        answer = self.answers.get(key)
        self.arrived.set()
        self.gate.wait(5)
        return answer

    def poll(self, after_seq: int) -> list[Change]:
        return [change for change in self.changes if change.seq > after_seq]

    def changed(self, kind: str, ref: str, seq: int | None = None) -> None:
        self.changes.append(Change(seq or len(self.changes) + 1, kind, ref))


def make(source: Source, clock: ManualClock | None = None) -> Lookups:
    def find_principal(key_hash: str) -> KeyAnswer:
        answer = source.find(key_hash)
        assert isinstance(answer, Principal) or answer is None
        return answer or "unknown"

    def resolve_route(name: RouteName) -> Route | None:
        answer = source.find(name)
        assert isinstance(answer, Route) or answer is None
        return answer

    return Lookups(
        clock=clock or ManualClock(),
        find_principal=find_principal,
        resolve_route=resolve_route,
        poll_changes=source.poll,
        last_seq=lambda: 0,
    )


async def test_hits_and_misses_are_remembered() -> None:
    source = Source()
    source.answers["good"] = Principal("project", "key_1", "org_1", "prj_1")
    found = make(source)
    for _ in range(3):
        assert await found.principal("good") == source.answers["good"]
        assert await found.principal("bad") == "unknown"
        assert await found.routes.find(NAME) is None
    assert source.asked == ["good", "bad", NAME]


async def test_one_load_however_many_ask_and_one_may_leave() -> None:
    source = Source()
    source.answers[NAME] = make_route("http://x")
    source.gate.clear()
    found = make(source)
    asking = [asyncio.create_task(found.routes.find(NAME)) for _ in range(5)]
    await asyncio.to_thread(source.arrived.wait, 5)
    asking[0].cancel()
    source.gate.set()
    assert await asyncio.gather(*asking[1:]) == [source.answers[NAME]] * 4
    assert len(source.asked) == 1


async def test_a_load_that_a_change_overtook_is_not_kept() -> None:
    source = Source()
    source.answers[NAME] = make_route("http://old")
    found = make(source)
    await found.poll()
    source.gate.clear()
    asking = asyncio.create_task(found.routes.find(NAME))
    await asyncio.to_thread(source.arrived.wait, 5)
    source.answers[NAME] = make_route("http://new")
    source.changed("deployment", "dep_1")
    await found.poll()
    source.gate.set()
    assert (await asking).urls == ("http://old",)
    assert (await found.routes.find(NAME)).urls == ("http://new",)


async def test_only_what_changed_is_forgotten() -> None:
    source = Source()
    other = RouteName("prj_1", "", "", "other")
    source.answers |= {
        NAME: make_route("http://x"),
        other: make_route("http://y", deployment_id="dep_2"),
        "a": Principal("project", "key_a"),
        "b": Principal("project", "key_b"),
    }
    found = make(source)
    await found.poll()

    async def ask_all() -> list[object]:
        source.asked.clear()
        await found.routes.find(NAME)
        await found.routes.find(other)
        await found.principal("a")
        await found.principal("b")
        return list(source.asked)

    await ask_all()
    assert await ask_all() == []
    source.changed("deployment", "dep_2")
    source.changed("key", "key_a")
    await found.poll()
    assert await ask_all() == [other, "a"]
    source.changed("endpoint", "ep_new")  # may take over any name
    await found.poll()
    assert await ask_all() == [NAME, other]
    source.changed("deployment", "dep_9", seq=17)  # entries are missing before this one
    await found.poll()
    assert await ask_all() == [NAME, other, "a", "b"]


async def test_a_key_ends_on_time_though_remembered() -> None:
    source, clock = Source(), ManualClock()
    source.answers["k"] = Principal("project", "key_1", expires_ms=clock.now_ms() + 1000)
    found = make(source, clock)
    assert isinstance(await found.principal("k"), Principal)
    clock.advance(1000)
    assert await found.principal("k") == "expired"


async def test_memory_is_bounded_and_wrong_names_push_out_no_right_ones(monkeypatch) -> None:
    monkeypatch.setattr(lookups, "MAX_MISSES", 10)
    cache: LookupCache[str, int, None] = LookupCache(
        lambda key: int(key) if key.isdigit() else None, int, lambda hit: str(hit % 2), max_hits=3
    )
    for key in ("1", "2", "3"):
        await cache.find(key)
    for i in range(50):
        await cache.find(f"wrong{i}")
    assert len(cache) == 13
    assert cache.peek("1") == 1  # now the youngest
    await cache.find("4")
    assert [cache.peek(key) for key in ("1", "2", "3", "4")] == [1, None, 3, 4]
    cache.forget("1")
    assert [cache.peek(key) for key in ("1", "3", "4")] == [None, None, 4]
    cache.clear()
    assert len(cache) == 0


async def test_a_load_that_fails_is_tried_again() -> None:
    answers = [OSError("gone"), 7]

    def load(_key: str) -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache: LookupCache[str, int, None] = LookupCache(load, int, str, max_hits=3)
    try:
        await cache.find("k")
    except OSError:
        assert await cache.find("k") == 7
    assert not answers


async def test_the_database_counts_as_lost_after_a_while() -> None:
    source, clock = Source(), ManualClock()
    found = make(source, clock)
    assert not found.database_reachable
    await found.poll()
    assert found.database_reachable
    clock.advance(5000)
    assert not found.database_reachable


async def test_a_holders_last_call_leads_where_the_next_one_asks_for_the_same() -> None:
    source = Source()
    other = RouteName("prj_1", "", "", "other")
    source.answers |= {NAME: make_route("http://x"), other: make_route("http://y", deployment_id="dep_2")}
    found, holder = make(source), Principal("project", "key_1", "org_1", "prj_1")
    await found.poll()
    assert found.known_route(holder, "", "m") is None, "nobody has looked it up yet"
    for name in (NAME, other):
        await found.routes.find(name)
    for model, url in (("m", "http://x"), ("m", "http://x"), ("other", "http://y"), ("m", "http://x")):
        route = found.known_route(holder, "", model)
        assert route is not None and route.urls == (url,)
    assert found.known_route(holder, "other", "m") is None, "another address is another name"
    assert found.known_route(Principal("project", "key_2", "org_1", "prj_2"), "", "m") is None


async def test_a_last_call_leads_nowhere_once_something_changed() -> None:
    source = Source()
    source.answers[NAME] = make_route("http://old")
    found, holder = make(source), Principal("project", "key_1", "org_1", "prj_1")
    await found.poll()
    for kind, ref in (("deployment", "dep_1"), ("endpoint", "ep_new"), ("clear", "")):
        await found.routes.find(NAME)
        assert found.known_route(holder, "", "m") is not None
        source.changed(kind, ref)
        await found.poll()
        assert found.known_route(holder, "", "m") is None, kind


async def test_a_last_call_is_of_one_gateway() -> None:
    sources, holder = (Source(), Source()), Principal("project", "key_1", "org_1", "prj_1")
    both = []
    for source, url in zip(sources, ("http://one", "http://two"), strict=True):
        source.answers[NAME] = make_route(url)
        both.append(make(source))
        await both[-1].routes.find(NAME)
    for _ in range(2):
        urls = [route.urls for each in both if (route := each.known_route(holder, "", "m")) is not None]
        assert urls == [("http://one",), ("http://two",)]
