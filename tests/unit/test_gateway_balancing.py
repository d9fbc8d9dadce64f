"""Which server of a deployment is next: least loaded, not one that fails, none that left."""

import random
from collections import Counter

import pytest

from functions.gateway import balancing
from functions.gateway.balancing import EJECT_AFTER, EJECTED_AT_MOST_S, EJECTED_FIRST_S, Server, Servers

A, B, C = "http://a", "http://b", "http://c"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def group(clock: Clock, *urls: str, each: int = 10) -> Servers:
    made = Servers(clock)
    made.follow(urls, each)
    return made


def eject(servers: Servers, url: str) -> Server:
    held = []
    while True:
        server = servers.take()
        held.append(server)
        if server.url == url:
            break
    for _ in range(EJECT_AFTER):
        server.failed()
    for each in held:
        each.give_back()
    return server


def test_least_calls_in_flight_is_next_and_equals_take_turns(clock: Clock) -> None:
    servers = group(clock, A, B, C)
    taken = [servers.take() for _ in range(9)]
    assert Counter(server.url for server in taken) == {A: 3, B: 3, C: 3}
    for server in taken:
        if server.url == B:
            server.give_back()
    assert [servers.take().url for _ in range(3)] == [B] * 3
    rested = group(clock, A, B, C)
    order = []
    for _ in range(6):
        server = rested.take()
        order.append(server.url)
        server.give_back()
    assert Counter(order) == {A: 2, B: 2, C: 2}


def test_places_are_counted(clock: Clock) -> None:
    servers = group(clock, A, B, each=2)
    assert servers.free == 4
    held = [servers.take() for _ in range(4)]
    assert servers.free == 0
    held.pop().give_back()
    assert servers.free == 1
    servers.follow((A,), 2)
    assert servers.free == 2 - sum(server.url == A for server in held)
    servers.follow((), 2)
    assert servers.free == 0


def test_three_failures_in_a_row_eject_and_one_answer_between_does_not(clock: Clock) -> None:
    servers = group(clock, A, B)
    server = next(s for s in (servers.take(), servers.take()) if s.url == A)
    for _ in range(EJECT_AFTER - 1):
        server.failed()
    server.answered(200)
    for _ in range(EJECT_AFTER - 1):
        server.answered(500)
    assert servers.counts() == (2, 0)
    server.answered(503)
    assert servers.counts() == (1, 1)
    assert {servers.take().url for _ in range(5)} == {B}


def test_an_ejected_server_gets_one_trial_and_comes_back(clock: Clock) -> None:
    servers = group(clock, A, B)
    eject(servers, A)
    assert servers.free == 10  # only the other's
    clock.now += EJECTED_FIRST_S
    trial = servers.take()
    assert trial.url == A
    assert {servers.take().url for _ in range(4)} == {B}, "one at a time"
    trial.answered(200)
    assert servers.counts() == (2, 0)
    assert servers.take().url == A  # the least loaded


def test_failed_trials_double_the_time_up_to_a_bound(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balancing, "_chance", random.Random(1))
    servers = group(clock, A, B)
    server = eject(servers, A)
    for number in range(1, 12):
        longest = min(EJECTED_FIRST_S * 2**number, EJECTED_AT_MOST_S)
        clock.now = server.ejected_until
        trial = servers.take()
        assert trial is server
        trial.failed()
        trial.give_back()
        assert 0.5 * longest <= server.ejected_until - clock.now <= longest
    assert servers.ejected_total == 12


def test_a_trial_whose_caller_left_shows_nothing_and_is_repeated(clock: Clock) -> None:
    servers = group(clock, A, B)
    eject(servers, A)
    clock.now += EJECTED_FIRST_S
    trial = servers.take()
    trial.give_back()
    assert servers.take() is trial


def test_when_all_are_ejected_the_first_to_come_back_serves(clock: Clock) -> None:
    servers = group(clock, A, B)
    eject(servers, A)
    clock.now += 0.1
    second = eject(servers, B)
    assert servers.counts() == (0, 2)
    first = servers.take()
    assert first.ejected_until <= second.ejected_until
    assert servers.free > 0
    first.answered(200)
    assert servers.counts() == (1, 1)


def test_a_single_server_is_never_ejected(clock: Clock) -> None:
    servers = group(clock, A)
    server = servers.take()
    for _ in range(10):
        server.failed()
    assert servers.counts() == (1, 0)
    assert servers.take() is server


def test_a_server_that_left_finishes_and_gets_nothing_new(clock: Clock) -> None:
    servers = group(clock, A, B)
    held = {server.url: server for server in (servers.take(), servers.take())}
    servers.follow((B, C), 10)
    assert {servers.take().url for _ in range(8)} == {B, C}
    free = servers.free
    held[A].give_back()
    assert servers.free == free, "its place is nobody's"
    assert A not in servers._known


def test_another_server_for_the_next_attempt(clock: Clock) -> None:
    servers = group(clock, A, B)
    first = servers.take()
    other = servers.another(first)
    assert other is not None
    moved = servers.move(first, other.url)
    assert (moved, first.in_flight, moved.in_flight, servers.free) == (other, 0, 1, 19)
    alone = group(clock, A)
    assert alone.another(alone.take()) is None


def test_who_waits_hears_of_every_free_place(clock: Clock) -> None:
    servers = group(clock, A, each=1)
    held = servers.take()
    heard: list[int] = []
    servers.on_free = lambda: heard.append(servers.free)
    held.give_back()
    servers.follow((A, B), 1)
    assert heard == [1, 2]


def test_random_use_never_loses_a_place(clock: Clock) -> None:
    chance = random.Random(11)
    servers = group(clock, A, B, C, each=5)
    held: list[Server] = []
    for _ in range(20_000):
        clock.now += chance.random() / 5
        what = chance.random()
        if what < 0.45 and servers.free > 0:
            held.append(servers.take())
        elif what < 0.9 and held:
            server = held.pop(chance.randrange(len(held)))
            server.answered(chance.choice([200, 200, 200, 500, 503]))
            server.give_back()
        elif what > 0.995:
            urls = chance.sample([A, B, C, "http://d"], chance.randint(1, 4))
            servers.follow(tuple(urls), chance.randint(1, 5))
        opened = [s for s in servers._known.values() if s.open]
        assert servers.free == servers.each * len(opened) - sum(s.in_flight for s in opened)
        assert servers.in_flight == len(held)
    for server in held:
        server.give_back()
    assert servers.in_flight == 0
