"""Engine counters against events: a simulated engine that is read every minute, calls of all kinds, then one thing wrong.

The engine here produces its tokens along the way, as a real one does; readings fall where they fall.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.engine_counters import Reading
from metering.engine_match import CountedEvent, EngineMatch, EngineMatcher
from metering.engine_spans import engine_spans

HOUR, MINUTE = 3_600_000, 60_000
T0 = 1_766_664_000_000
NOW = T0 + 10 * HOUR


def call(number: int, sent_ms: int, took_ms: int, **fields: object) -> CountedEvent:
    base = CountedEvent(
        event_id=f"req_{number}", deployment_id="dep_1", operation="chat.completions", stream=True,
        status="completed", usage_source="engine", http_status=200, input=100, cached_input=20, output=50,
        audio_ms=0, choices=1, sent_ms=sent_ms, first_byte_ms=sent_ms + took_ms // 4,
        ended_ms=sent_ms + took_ms,
    )  # fmt: skip
    return replace(base, **fields)  # type: ignore[arg-type]  # named by the tests


@dataclass
class Engine:
    """What one process counts. `more`: tokens it produced for a call beyond what its event says."""

    started_ms: int
    series: str = "rep_1"
    calls: list[tuple[CountedEvent, int]] = field(default_factory=list)

    def serve(self, event: CountedEvent, more: int = 0) -> CountedEvent:
        self.calls.append((event, more))
        return event

    def read(self, at_ms: int, reason: str = "minute") -> Reading:
        prompt = cached = output = 0
        for event, more in self.calls:
            if at_ms >= event.first_byte_ms:
                prompt += event.input * event.choices
                cached += event.cached_input
            length = max(1, event.ended_ms - event.first_byte_ms)
            share = min(length, max(0, at_ms - event.first_byte_ms))
            output += event.output * share // length + (more if at_ms >= event.ended_ms + 200 else 0)
        return Reading(
            "dep_1", self.series, at_ms, at_ms + 5, reason, "read", self.started_ms, prompt, cached, output,
            len(self.calls), 0,
        )  # type: ignore[arg-type]  # fmt: skip

    def every_minute(self, start_ms: int, end_ms: int) -> list[Reading]:
        return [self.read(at_ms + 100) for at_ms in range(start_ms, end_ms + 1, MINUTE)]


def match(
    readings: Sequence[Reading],
    events: Sequence[CountedEvent],
    hours: int = 1,
    *,
    restarts: Sequence[int] = (),
    external: bool = False,
) -> list[EngineMatch]:
    boundaries = [T0 + i * HOUR for i in range(hours + 1)]
    spans = engine_spans(readings, boundaries, restarts)
    matchers = [EngineMatcher("dep_1", span, 4096, external) for span in spans]
    for event in events:
        for i, matcher in enumerate(matchers):
            matcher.add(
                event, in_hour=boundaries[i] <= event.ended_ms - event.ended_ms % MINUTE < boundaries[i + 1]
            )
    found = [matcher.result(NOW) for matcher in matchers]
    for each in found:
        if each.engine is not None:  # the causes account for the difference, token by token
            for i in range(3):
                assert each.engine[i] == each.events[i] + sum(cause.tokens[i] for cause in each.causes)
    return found


def kinds(found: EngineMatch) -> dict[str, tuple[int, int, int]]:
    return {cause.kind: cause.tokens for cause in found.causes}


def test_whole_calls_within_the_hour_are_equal() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    events = [engine.serve(call(i, T0 + i * 7 * MINUTE + 5_000, 3_000)) for i in range(8)]
    (found,) = match(engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), events)
    assert (found.engine, found.events, found.causes) == ((800, 160, 400), (800, 160, 400), ())


def test_a_call_across_the_hours_edge_is_in_flight_in_one_and_at_its_edge_in_the_other() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    event = engine.serve(call(1, T0 + HOUR - 30_000, 60_000))
    first, second = match(engine.every_minute(T0 - MINUTE, T0 + 2 * HOUR + MINUTE), [event], 2)
    assert first.explained and second.explained
    assert set(kinds(first)) == {"in_flight"} and first.events == (0, 0, 0)
    assert set(kinds(second)) == {"in_flight"} and second.events == (100, 20, 50)
    assert (first.engine or ())[2] + (second.engine or ())[2] == 50


@pytest.mark.parametrize(("more", "explained"), [(0, True), (5, True), (16, True), (5_000, False)])
def test_a_hang_up_may_have_produced_a_little_more(more: int, explained: bool) -> None:
    engine = Engine(T0 - 5 * MINUTE)
    event = engine.serve(call(1, T0 + 5 * MINUTE, 2_000, status="client_disconnect"), more)
    (found,) = match(engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), [event])
    assert found.explained is explained
    if more and explained:
        assert kinds(found) == {"hang_up": (0, 0, more)}


def test_failed_attempts_are_counted_by_the_engine_alone() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    broke = engine.serve(call(1, T0 + 5 * MINUTE, 2_000, status="error", http_status=502))
    refused = call(2, T0 + 9 * MINUTE, 50, status="error", http_status=400, input=0, cached_input=0, output=0)
    (found,) = match(engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), [broke, refused])
    assert kinds(found) == {"unbilled_error": (100, 20, 50)} and found.events == (0, 0, 0)


def test_several_answers_repeat_the_prompt() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    event = engine.serve(call(1, T0 + 5 * MINUTE, 2_000, choices=3))
    (found,) = match(engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), [event])
    assert kinds(found) == {"repeated_prompt": (200, 0, 0)} and found.explained


def test_a_lost_event_and_calls_past_the_gateway_are_told() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    events = [engine.serve(call(i, T0 + i * 7 * MINUTE + 5_000, 3_000)) for i in range(8)]
    (found,) = match(engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), events[1:])
    assert not found.explained and kinds(found) == {"unmetered": (100, 20, 50)}


def test_a_doubled_event_is_told() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    event = engine.serve(call(1, T0 + 5 * MINUTE, 2_000))
    (found,) = match(
        engine.every_minute(T0 - MINUTE, T0 + HOUR + MINUTE), [event, replace(event, event_id="req_2")]
    )
    assert not found.explained and kinds(found) == {"overmetered": (-100, -20, -50)}


def test_an_engine_that_was_killed_takes_what_it_counted_last_with_it() -> None:
    first, second = Engine(T0 - 5 * MINUTE), Engine(T0 + 31 * MINUTE, "rep_2")
    events = [
        first.serve(call(1, T0 + 10 * MINUTE, 2_000)),
        first.serve(call(2, T0 + 30 * MINUTE + 5_000, 2_000)),
    ]
    events.append(second.serve(call(3, T0 + 40 * MINUTE, 2_000)))
    readings = first.every_minute(T0 - MINUTE, T0 + 30 * MINUTE)
    readings += [second.read(T0 + 31 * MINUTE, "ready"), *second.every_minute(T0 + 32 * MINUTE, T0 + HOUR)]
    (found,) = match(readings, events)
    assert found.explained and kinds(found) == {"unread": (-100, -20, -50)}
    assert found.engine == (200, 40, 100)


def test_an_engine_that_was_stopped_on_purpose_is_known_to_the_last_token() -> None:
    first, second = Engine(T0 - 5 * MINUTE), Engine(T0 + 31 * MINUTE, "rep_2")
    events = [first.serve(call(1, T0 + 10 * MINUTE, 2_000)), second.serve(call(2, T0 + 40 * MINUTE, 2_000))]
    readings = [
        *first.every_minute(T0 - MINUTE, T0 + 20 * MINUTE),
        first.read(T0 + 20 * MINUTE + 30_000, "stop"),
    ]
    readings += [second.read(T0 + 31 * MINUTE, "ready"), *second.every_minute(T0 + 32 * MINUTE, T0 + HOUR)]
    (found,) = match(readings, events)
    assert (found.engine, found.causes) == ((200, 40, 100), ())
    (lost,) = match(readings, events[1:])
    assert kinds(lost) == {"unmetered": (100, 20, 50)}


def test_an_attached_server_that_restarts_counts_from_zero() -> None:
    first = Engine(T0 - HOUR)
    second = Engine(T0 + 25 * MINUTE + 20_000)
    events = [
        first.serve(call(1, T0 + 10 * MINUTE, 2_000)),
        second.serve(call(2, T0 + 25 * MINUTE + 40_000, 2_000)),
    ]
    readings = first.every_minute(T0 - MINUTE, T0 + 25 * MINUTE) + second.every_minute(
        T0 + 26 * MINUTE, T0 + HOUR
    )
    (found,) = match(readings, events, external=True)
    assert (found.engine, found.causes) == ((200, 40, 100), ())


def test_an_address_of_several_servers_cannot_be_compared() -> None:
    one, two = Engine(T0 - HOUR), Engine(T0 - 2 * HOUR)
    readings = [(one if i % 2 else two).read(T0 + i * MINUTE) for i in range(20)]
    (found,) = match(readings, [call(1, T0 + MINUTE, 1_000)], external=True)
    assert found.engine is None and "more than one server" in found.problem


def test_no_counters_is_no_error() -> None:
    (found,) = match([Reading("dep_1", "rep_1", T0, T0, "minute", "none")], [call(1, T0 + MINUTE, 1_000)])
    assert found.engine is None and found.explained and "no counters" in found.problem
    (failed,) = match([Reading("dep_1", "rep_1", T0, T0, "minute", "failed")], [])
    assert "could not be read" in failed.problem


def test_cached_tokens_that_an_attached_engine_does_not_tell() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    event = engine.serve(call(1, T0 + 5 * MINUTE, 2_000))
    readings = engine.every_minute(T0 - MINUTE, T0 + HOUR)
    (found,) = match(readings, [replace(event, cached_input=0)], external=True)
    assert found.explained and kinds(found) == {"cached_not_told": (0, 20, 0)}
    (own,) = match(readings, [replace(event, cached_input=0)])
    assert not own.explained, "ours does tell"


def test_calls_that_died_with_a_gateway_are_bounded_by_what_was_counted_about_then() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    engine.serve(call(1, T0 + 10 * MINUTE + 5_000, 2_000))  # the gateway died before it could be recorded
    readings = engine.every_minute(T0 - MINUTE, T0 + HOUR)
    (found,) = match(readings, [], restarts=[T0 + 10 * MINUTE + 8_000])
    assert found.explained and kinds(found) == {"gateway_restart": (100, 20, 50)}
    (late,) = match(readings, [], restarts=[T0 + 30 * MINUTE])
    assert not late.explained, "a restart explains nothing that was long ago"


def test_what_many_starts_of_gateways_explain_is_counted_once() -> None:
    engine = Engine(T0 - 5 * MINUTE)
    events = [engine.serve(call(i, T0 + 10 * MINUTE + i * 4_000, 2_000)) for i in range(3)]
    readings = engine.every_minute(T0 - MINUTE, T0 + HOUR)
    starts = [T0 + 10 * MINUTE + i * 1_000 for i in range(20)]
    (span,) = engine_spans(readings, [T0, T0 + HOUR], starts)
    assert (span.near_restarts, len(span.restarts)) == ((300, 60, 150), 1)
    (found,) = match(readings, events, restarts=starts)
    assert (found.engine, found.causes) == ((300, 60, 150), ())
    (doubled,) = match(readings, [*events, call(9, T0 + 10 * MINUTE, 2_000)], restarts=starts)
    assert not doubled.explained


@given(seed=st.integers(0, 2**32), busy=st.integers(1, 40))
def test_any_day_is_explained_and_any_loss_is_found(seed: int, busy: int) -> None:
    dice = random.Random(seed)
    engine = Engine(T0 - 5 * MINUTE)
    events = []
    for number in range(busy):
        took = dice.choice([300, 3_000, 40_000, 200_000])
        event = call(
            number, T0 - 2 * MINUTE + dice.randrange(3 * HOUR), took, input=dice.randrange(1, 500),
            cached_input=0, output=dice.randrange(1, 400), choices=dice.choice([1, 1, 1, 2]),
        )  # fmt: skip
        more = 0
        if dice.random() < 0.2:
            event, more = replace(event, status="client_disconnect"), dice.randrange(16)
        events.append(engine.serve(event, more))
    readings = engine.every_minute(T0 - 10 * MINUTE, T0 + 4 * HOUR)
    assert all(found.explained for found in match(readings, events, 3))
    # A whole call in the middle of an hour that vanishes is seen, unless what is uncertain there is larger.
    lost = engine.serve(call(999, T0 + HOUR + 20 * MINUTE, 1_000, input=10**6, cached_input=0, output=10**6))
    readings = engine.every_minute(T0 - 10 * MINUTE, T0 + 4 * HOUR)
    assert not match(readings, events, 3)[1].explained
    assert all(found.explained for found in match(readings, [*events, lost], 3))
