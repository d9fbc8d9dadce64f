"""Tokens billed are tokens produced: thousands of mixed calls and random hang-ups against the engine's own counters.

By docs/billing-policy.md, call by call: what was seen through is billed as the engine counted it; what broke is not
billed; of a caller who left, never less than reached the caller and never more than the engine made. So the engine's
counters are the billed tokens, and what was made for calls that broke, and the rest of those whose caller left.
"""

import asyncio
import random
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from metering.model import UsageEvent
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, Seen, wait_until
from wire.prometheus import EngineCounts, engine_counts

CALLS = 1250  # in each lane
AT_ONCE = 48
SEED = 20261125
TALK = [{"role": "user", "content": "one two three"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": TALK},
    "/v1/completions": {"model": MODEL, "prompt": "one two three"},
    "/v1/responses": {"model": MODEL, "input": "one two three"},
    "/v1/messages": {"model": MODEL, "messages": TALK, "max_tokens": 99},
}
_TOKEN = re.compile(rb'"(?:content|text|delta)": ?"tok\d+ ')


@dataclass
class Caller:
    """One call as its caller saw it."""

    request_id: str = ""
    received: int = 0  # tokens of a stream
    whole: bool = False


@dataclass(frozen=True)
class Ask:
    """What a call is, and when its caller leaves."""

    path: str
    body: dict[str, Any]
    leave_after_tokens: int | None = None
    leave_after_s: float | None = None


def draw(chance: random.Random) -> Ask:
    path = chance.choices(list(BODIES), (8, 4, 1, 1))[0]
    body = dict(BODIES[path])
    body["stream"] = chance.random() < 0.6
    if path in ("/v1/chat/completions", "/v1/completions"):
        if chance.random() < 0.2:
            body["n"] = 2
        if body["stream"] and chance.random() < 0.5:
            body["stream_options"] = {"include_usage": True}
    kind = chance.random()
    if kind < 0.2 and body["stream"]:
        return Ask(path, body, leave_after_tokens=chance.randrange(1, 6))
    if kind < 0.3:
        return Ask(path, body, leave_after_s=chance.uniform(0, 0.3))
    return Ask(path, body)


def behave(chance: random.Random) -> Behaviour:
    given = chance.randrange(1, 500)
    made = Behaviour(
        tokens=chance.randrange(1, 9),
        prompt_tokens=given,
        cached_tokens=chance.randrange(given),
        first_delay=chance.choice((0, 0, 0.02)),
        chunk_delay=chance.choice((0, 0.002, 0.01)),
    )
    kind = chance.random()
    if kind < 0.02:
        made.status = chance.choice((400, 500))
    elif kind < 0.05:
        made.fail_after = chance.randrange(1, 4)
    return made


async def call(client: aiohttp.ClientSession, ask: Ask) -> Caller:
    seen = Caller()
    try:
        async with asyncio.timeout(ask.leave_after_s):
            response = await client.post(ask.path, json=ask.body)
            seen.request_id = response.headers["x-request-id"]
            async for line in response.content:
                seen.received += bool(ask.body["stream"] and _TOKEN.search(line))
                if ask.leave_after_tokens is not None and seen.received >= ask.leave_after_tokens:
                    response.close()
                    return seen
            seen.whole = True
    except (TimeoutError, aiohttp.ClientError):
        pass
    return seen


async def make_calls(gateway: RunningGateway, chance: random.Random) -> list[Caller]:
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}
    asks = iter([draw(chance) for _ in range(CALLS)])
    callers: list[Caller] = []

    async def work(client: aiohttp.ClientSession) -> None:
        for ask in asks:
            callers.append(await call(client, ask))

    connector = aiohttp.TCPConnector(limit=AT_ONCE)
    async with aiohttp.ClientSession(gateway.url, headers=headers, connector=connector) as client:
        await asyncio.gather(*(work(client) for _ in range(AT_ONCE)))
    return callers


def check(seen: Seen, event: UsageEvent, caller: Caller | None) -> None:
    """One attempt: the engine's own figures, our event, and what the caller saw of it."""
    usage = event.usage
    if event.status == "completed":
        assert event.usage_source == "engine" and seen.finished, event
        assert (usage.input, usage.output) == (seen.prompt_tokens, seen.produced), event
        if event.stream or event.operation != "responses":
            assert usage.cached_input == seen.cached_tokens, event
    elif event.status == "client_disconnect":
        received = caller.received if caller is not None else 0
        assert received <= usage.output <= seen.produced, (event, received)
        assert caller is None or not caller.whole
    else:
        assert (event.status, event.http_status) in (("error", 400), ("error", 500), ("error", 502)), event


def counters(engine: MockEngine) -> EngineCounts:
    """From its Prometheus page."""
    counts = engine_counts(httpx.get(engine.url + "/metrics").content)
    assert counts is not None
    return counts


async def test_tokens_billed_are_tokens_produced(gateway: RunningGateway, engine: MockEngine) -> None:
    chance = random.Random(SEED)
    engine.script.extend(behave(chance) for _ in range(CALLS))
    callers = {one.request_id: one for one in await make_calls(gateway, chance)}
    await asyncio.to_thread(wait_until, lambda: _all_over(gateway, engine), 30)
    events = {event.event_id: event for event in gateway.journal.events}
    assert len(events) == len(gateway.journal.events), "never two for one attempt"
    seen_of = {seen.headers["x-request-id"]: seen for seen in engine.seen}
    assert set(seen_of) <= set(events), "whatever reached the engine is on record"
    billed = unbilled = rest = prompts = 0
    for attempt, event in events.items():
        seen = seen_of.get(attempt)
        if seen is None:  # the caller left, or the connection broke, before the engine read it
            assert event.status != "completed" and not event.usage.output, event
            continue
        check(seen, event, callers.get(event.request_id))
        billed += event.usage.output if event.status != "error" else 0
        unbilled += seen.produced if event.status == "error" else 0
        rest += seen.produced - event.usage.output if event.status == "client_disconnect" else 0
        prompts += seen.prompt_tokens * (seen.body.get("n") or 1) if seen.prefilled else 0
    page = counters(engine)
    assert page.output == billed + unbilled + rest
    assert page.input == prompts
    assert page.running == 0, "every call that was left was stopped"
    statuses = [event.status for event in events.values()]
    assert statuses.count("completed") > CALLS / 3
    assert statuses.count("client_disconnect") > CALLS / 20 and statuses.count("error") > CALLS / 100
    assert billed > 4 * rest, (billed, unbilled, rest)  # what was under way; more of it on a busy machine


def _all_over(gateway: RunningGateway, engine: MockEngine) -> bool:
    assert gateway.gateway is not None
    return not gateway.gateway.in_flight and all(seen.ended.is_set() for seen in engine.seen)
