"""The order in which those who wait are served: fair by tokens, between organizations and within one."""

import random
from collections import Counter

import pytest

from core.errors import RateLimited, Unavailable
from functions.gateway import fair_queue
from functions.gateway.fair_queue import FairQueue, Ticket


def queue(at_most: int = 10_000, per_org: int = 10_000) -> FairQueue[Ticket]:
    return FairQueue(at_most, per_org)


def served(waiting: FairQueue[Ticket], count: int) -> list[Ticket]:
    return [waiting.pop() for _ in range(count)]


def test_many_calls_of_one_do_not_delay_the_few_of_another() -> None:
    waiting = queue()
    for _ in range(100):
        waiting.push(Ticket("heavy", "p", 1000))
    for _ in range(5):
        waiting.push(Ticket("light", "p", 1000))  # last, and yet
    order = [ticket.org_id for ticket in served(waiting, 10)]
    assert order == ["heavy", "light"] * 5


def test_who_asks_for_large_calls_gets_fewer_of_them() -> None:
    waiting = queue()
    for _ in range(100):
        waiting.push(Ticket("large", "p", 8000))
        waiting.push(Ticket("small", "p", 100))
    order = served(waiting, 81)
    counts = Counter(ticket.org_id for ticket in order)
    assert counts == {"small": 80, "large": 1}  # 8,000 tokens each


def test_tokens_are_shared_evenly_whatever_the_sizes() -> None:
    chance = random.Random(5)
    waiting = queue()
    for _ in range(2000):
        waiting.push(Ticket("a", "p", chance.randint(1, 4000)))
        waiting.push(Ticket("b", "p", chance.randint(1, 400)))
        waiting.push(Ticket("c", "p", 50))
    given: Counter[str] = Counter()
    for ticket in served(waiting, 1500):
        given[ticket.org_id] += ticket.tokens
        assert max(given.values()) - min(given[name] for name in "abc") <= 2 * 4000


def test_projects_share_what_their_organization_gets() -> None:
    waiting = queue()
    for _ in range(60):
        waiting.push(Ticket("one", "p1", 100))
        waiting.push(Ticket("one", "p2", 100))
        waiting.push(Ticket("other", "p3", 100))
    counts = Counter(ticket.project_id for ticket in served(waiting, 80))
    assert counts == {"p1": 20, "p2": 20, "p3": 40}


def test_within_a_project_first_come_first_served() -> None:
    waiting = queue()
    tickets = [Ticket("o", "p", size) for size in (900, 1, 50)]
    for ticket in tickets:
        waiting.push(ticket)
    assert served(waiting, 3) == tickets


def test_time_without_calls_gives_no_claim_to_more() -> None:
    waiting = queue()
    for _ in range(50):
        waiting.push(Ticket("busy", "p", 100))
    served(waiting, 20)
    for _ in range(50):
        waiting.push(Ticket("late", "p", 100))
    counts = Counter(ticket.org_id for ticket in served(waiting, 20))
    assert counts == {"busy": 10, "late": 10}


def test_large_calls_one_after_another_count_too() -> None:
    waiting = queue()
    for _ in range(200):
        waiting.push(Ticket("steady", "p", 100))
    waiting.push(Ticket("single", "p", 1000))
    counts: Counter[str] = Counter()
    for _ in range(110):
        ticket = waiting.pop()
        counts[ticket.org_id] += 1
        if ticket.org_id == "single":  # never two of them at once
            waiting.push(Ticket("single", "p", 1000))
    assert counts == {"steady": 100, "single": 10}


def test_who_leaves_is_not_served_and_frees_the_room() -> None:
    waiting = queue(at_most=2)
    first, second = Ticket("a", "p", 1), Ticket("b", "p", 1)
    waiting.push(first)
    waiting.push(second)
    assert isinstance(waiting.full_for("c"), Unavailable)
    waiting.remove(first)
    waiting.remove(first)
    assert waiting.full_for("c") is None
    assert (len(waiting), waiting.oldest(), waiting.pop(), len(waiting)) == (1, second, second, 0)


def test_one_organization_cannot_fill_the_queue() -> None:
    waiting = queue(at_most=10, per_org=3)
    for _ in range(3):
        waiting.push(Ticket("a", "p", 1))
    refused = waiting.full_for("a")
    assert isinstance(refused, RateLimited)
    assert (refused.code, refused.status) == ("queue_full", 429)
    assert waiting.full_for("b") is None


def test_memory_of_tenants_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair_queue, "_REMEMBERED", 16)
    waiting = queue()
    waiting.push(Ticket("stays", "p", 10**9))
    waiting.push(Ticket("stays", "p", 10**9))
    for number in range(500):
        waiting.push(Ticket(f"o{number}", "p", 5))
        waiting.pop()
    assert len(waiting._orgs._tenants) <= 18
