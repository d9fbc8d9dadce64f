"""Hundreds of callers who leave at random moments: one event for each call the engine saw, and nothing leaks."""

import asyncio
import random

import httpx

from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

CALLS = 300
SEED = 20261123


async def _call(client: httpx.AsyncClient, stream: bool, leave_after_s: float) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "one two three"}], "stream": stream}
    try:
        async with asyncio.timeout(leave_after_s):
            await client.post("/v1/chat/completions", json=body)
    except TimeoutError:
        pass


def _all_over(gateway: RunningGateway, engine: MockEngine) -> bool:
    assert gateway.gateway is not None
    return not gateway.gateway.in_flight and all(seen.ended.is_set() for seen in engine.seen)


def _both_kinds(gateway: RunningGateway) -> bool:
    """Enough calls were seen through, and enough were left, to show anything."""
    statuses = [event.status for event in gateway.journal.events]
    return min(statuses.count("completed"), statuses.count("client_disconnect")) > CALLS / 10


async def test_random_hang_ups(gateway: RunningGateway, engine: MockEngine) -> None:
    chance = random.Random(SEED)
    engine.default = Behaviour(tokens=20, chunk_delay=0.02, first_delay=0.05)
    limits = httpx.Limits(max_connections=CALLS, max_keepalive_connections=0)
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers, limits=limits, timeout=60) as client:
        # On a busy machine calls take longer, and most who leave are gone before they arrive: then until it is enough.
        for batch in range(12):
            if batch >= 3 and _both_kinds(gateway):
                break
            longest = 1.5 * 2 ** (batch // 3)
            calls = [
                _call(client, chance.random() < 0.7, chance.choice((chance.uniform(0, longest), 60)))
                for _ in range(CALLS // 3)
            ]
            await asyncio.gather(*calls)
    await asyncio.to_thread(wait_until, lambda: _all_over(gateway, engine), 20)
    events = {event.event_id: event for event in gateway.journal.events}
    assert len(events) == len(gateway.journal.events)  # never two for one attempt
    seen_ids = {seen.headers["x-request-id"] for seen in engine.seen}
    assert seen_ids <= set(events)  # whatever reached the engine was recorded
    for missing in set(events) - seen_ids:  # left before it was sent
        assert events[missing].status == "client_disconnect"
    for seen in engine.seen:
        event = events[seen.headers["x-request-id"]]
        assert event.usage.output <= seen.produced
        if event.status == "completed":
            assert (event.usage.output, event.usage_source) == (20, "engine")
        else:
            assert event.status == "client_disconnect"
    assert _both_kinds(gateway)
