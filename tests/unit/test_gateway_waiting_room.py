"""Callers who wait for a start: single flight, bounds, ends; and the watchdog on silence."""

import asyncio

import pytest

from core.clock import SystemClock
from core.errors import Unavailable
from functions.gateway import waking
from functions.gateway.metrics import Metrics
from functions.gateway.waking import WaitingRoom
from functions.gateway.watchdog import Watchdog
from serving.model import WakeStatus


class Control:
    """Answers each wake with the next of its answers; the last one stays."""

    def __init__(self, *answers: WakeStatus | Exception) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.delay_s = 0.01

    async def wake(self, _deployment_id: str, _wait_ms: int) -> WakeStatus:
        self.asked += 1
        await asyncio.sleep(self.delay_s)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def status(
    state: str, url: str | None = None, retry_after_s: int = 0, expected_ready_ms: int = 0
) -> WakeStatus:
    return WakeStatus(state, url, "because", 1, expected_ready_ms, retry_after_s)


READY = status("ready", "http://x")
STARTING = status("starting", retry_after_s=9)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_ASK_AGAIN_S", 0.02)


def room(control: Control, max_waiting: int = 3) -> tuple[WaitingRoom, list[str]]:
    ready: list[str] = []
    return WaitingRoom(
        control, SystemClock(), max_waiting=max_waiting, on_ready=ready.append, metrics=Metrics()
    ), ready


async def test_all_who_wait_share_one_start() -> None:
    control = Control(STARTING, STARTING, READY)
    waiting, ready = room(control)
    urls = await asyncio.gather(*(waiting.wait("dep", 5) for _ in range(3)))
    assert urls == ["http://x"] * 3
    assert (control.asked, ready) == (3, ["dep"])
    assert await waiting.wait("dep", 5) == "http://x"  # a new start
    assert control.asked == 4


async def test_the_queue_is_bounded_per_deployment() -> None:
    waiting, _ = room(Control(STARTING), max_waiting=1)
    first = asyncio.create_task(waiting.wait("dep", 5))
    await asyncio.sleep(0.03)
    with pytest.raises(Unavailable, match="already wait") as caught:
        await waiting.wait("dep", 5)
    assert (caught.value.code, caught.value.retry_after_s) == ("queue_full", 9)
    waiting.check_room("other")
    first.cancel()
    await asyncio.wait({first})
    waiting.check_room("dep")
    await waiting.close()


async def test_time_runs_out_with_the_best_guess_of_when_to_come_again() -> None:
    now_ms = SystemClock().now_ms()
    waiting, _ = room(Control(status("starting", expected_ready_ms=now_ms + 60_000)))
    with pytest.raises(Unavailable) as caught:
        await waiting.wait("dep", 0.1)
    assert caught.value.code == "model_starting"
    assert caught.value.retry_after_s is not None
    assert 55 < caught.value.retry_after_s <= 60
    await waiting.close()


async def test_a_failed_start_is_told_to_all_and_then_tried_anew() -> None:
    control = Control(status("failed", retry_after_s=4), READY)
    waiting, _ = room(control)
    outcomes = await asyncio.gather(*(waiting.wait("dep", 5) for _ in range(2)), return_exceptions=True)
    assert [getattr(o, "code", None) for o in outcomes] == ["model_start_failed"] * 2
    assert await waiting.wait("dep", 5) == "http://x"


async def test_a_control_process_that_comes_back_is_asked_again() -> None:
    waiting, _ = room(Control(Unavailable("gone"), Unavailable("gone"), READY))
    assert await waiting.wait("dep", 5) == "http://x"


async def test_a_control_process_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waking, "_UNREACHABLE_FOR_S", 0.1)
    waiting, _ = room(Control(Unavailable("gone")))
    with pytest.raises(Unavailable, match="gone"):
        await waiting.wait("dep", 5)


async def test_a_bug_in_the_waker_strands_nobody() -> None:
    waiting, _ = room(Control(ValueError("bug")))
    with pytest.raises(Unavailable):
        await waiting.wait("dep", 5)


async def test_closing_lets_everybody_go() -> None:
    waiting, _ = room(Control(STARTING))
    waiter = asyncio.create_task(waiting.wait("dep", 5))
    await asyncio.sleep(0.03)
    await waiting.close()
    with pytest.raises(Unavailable, match="stopping"):
        await waiter


async def test_the_watchdog_barks_once_after_silence() -> None:
    barks: list[int] = []
    dog = Watchdog(lambda: barks.append(1), 0.1)
    for _ in range(6):
        await asyncio.sleep(0.04)
        dog.touch()
    assert not barks
    dog.touch(0.05)
    await asyncio.sleep(0.2)
    assert barks == [1]
    quiet = Watchdog(lambda: barks.append(2), 0.05)
    quiet.stop()
    await asyncio.sleep(0.1)
    assert barks == [1]
