"""Callers who wait for a place on a model server: in which order they are served, who is refused, who may leave."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from access.admission.model import Limits, ScopePolicy
from metering.model import Usage
from tests.api.gateway.test_gateway_limits import LimitedGateway
from tests.gateway_fixture import MODEL, OTHER_KEY, PROJECT_KEY, RunningGateway, make_route
from tests.mock_engine import Behaviour, MockEngine, wait_until

HEAVY, LIGHT = 4000, 200  # tokens a call of either tenant may have


def post(gateway: RunningGateway, key: str = PROJECT_KEY, name: str = "", **more: Any) -> httpx.Response:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "user": name} | more
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(gateway.url + "/v1/chat/completions", json=body, headers=headers, timeout=20)


@contextmanager
def running(tmp_path: Path, url: str, **settings: Any) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path, url, **{"max_parallel_per_replica": 1} | settings) as gateway:
        first = gateway.directory.routes[0]
        second = make_route(url, endpoint_id="ep_2", org_id="org_2", project_id="prj_2")
        gateway.directory.routes = [first, second]
        gateway.directory.changed("endpoint", "ep_2")
        gateway.wait_for_changes()
        gateway._warm_up()
        yield gateway


def waiting(gateway: RunningGateway) -> int:
    assert gateway.gateway is not None
    return sum(gateway.gateway.places.waiting().values())


class Callers:
    """Calls in threads of their own, begun one after the other."""

    def __init__(self, gateway: RunningGateway) -> None:
        self._gateway = gateway
        self._threads: list[threading.Thread] = []
        self.answers: list[httpx.Response] = []

    def begin(self, count: int, **call: Any) -> None:
        for number in range(count):
            self.run(lambda n=number: post(self._gateway, name=f"{n}", **call))

    def queue(self, count: int, **call: Any) -> None:
        """The same, each once the one before it waits in the queue."""
        for number in range(count):
            before = waiting(self._gateway)
            self.run(lambda n=number: post(self._gateway, name=f"{n}", **call))
            wait_until(lambda b=before: waiting(self._gateway) == b + 1)

    def run(self, call: Callable[[], httpx.Response]) -> None:
        thread = threading.Thread(target=lambda: self.answers.append(call()))
        thread.start()
        self._threads.append(thread)

    def join(self) -> list[int]:
        for thread in self._threads:
            thread.join(20)
        return [answer.status_code for answer in self.answers]


def served(engine: MockEngine) -> list[Any]:
    """The token limits of the calls, as the engine saw them."""
    return [seen.body.get("max_tokens") for seen in engine.seen]


def test_no_more_calls_than_places(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    with running(tmp_path, engine.url, max_parallel_per_replica=2) as gateway:
        callers = Callers(gateway)
        callers.begin(6)
        engine.wait_seen(2)
        wait_until(lambda: waiting(gateway) == 4)
        time.sleep(0.1)
        assert len(engine.seen) == 2
        gauges = httpx.get(gateway.url + "/metrics").text
        assert 'farebox_gateway_waiting{deployment="dep_1"} 4' in gauges
        assert 'farebox_gateway_places_taken{deployment="dep_1"} 2' in gauges
        release.set()
        assert callers.join() == [200] * 6
        assert len(gateway.journal.events) == 6
        assert waiting(gateway) == 0
        assert "farebox_gateway_queue_seconds_count 4" in httpx.get(gateway.url + "/metrics").text


def test_the_route_says_how_many_places_there_are(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    with RunningGateway(tmp_path, engine.url) as gateway:
        gateway.set_route(max_parallel=3)
        callers = Callers(gateway)
        callers.begin(5)
        wait_until(lambda: waiting(gateway) == 2)
        engine.wait_seen(3)
        release.set()
        assert callers.join() == [200] * 5


def test_a_light_tenant_does_not_wait_behind_a_heavy_one(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.script.append(Behaviour(hold=release))
    with running(tmp_path, engine.url) as gateway:
        callers = Callers(gateway)
        callers.begin(1)
        engine.wait_seen(1)
        callers.queue(12, key=PROJECT_KEY, max_tokens=HEAVY)
        callers.queue(10, key=OTHER_KEY, max_tokens=LIGHT)  # all of them later
        release.set()
        assert callers.join() == [200] * 23
    order = served(engine)[1:]
    last_light = max(i for i, tokens in enumerate(order) if tokens == LIGHT)
    # Ten light calls come to fewer tokens than one heavy call: at most one goes before them, one between.
    assert order[: last_light + 1].count(HEAVY) <= 2, order
    events = {event.org_id for event in gateway.journal.events}
    assert events == {"org_1", "org_2"}


def test_those_who_wait_for_a_start_are_let_in_fairly(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    with running(tmp_path, "", max_parallel_per_replica=2) as gateway:
        gateway.control.answers = [{"state": "ready", "url": engine.url}]
        gateway.control.hold.clear()
        callers = Callers(gateway)
        callers.queue(8, key=PROJECT_KEY, max_tokens=HEAVY)
        callers.queue(6, key=OTHER_KEY, max_tokens=LIGHT)
        gateway.directory.routes = [replace(r, urls=(engine.url,)) for r in gateway.directory.routes]
        gateway.control.hold.set()
        engine.wait_seen(2)
        time.sleep(0.2)
        assert len(engine.seen) == 2, "not all at once"
        release.set()
        assert callers.join() == [200] * 14
        assert gateway.control.wakes == ["dep_1"]
    order = served(engine)
    assert order[:7].count(LIGHT) >= 5, order


def test_nobody_overtakes_the_queue(tmp_path: Path, engine: MockEngine) -> None:
    release, stop = threading.Event(), threading.Event()
    engine.script.append(Behaviour(hold=release))
    with running(tmp_path, engine.url) as gateway:
        callers = Callers(gateway)
        callers.begin(1, max_tokens=5)
        engine.wait_seen(1)
        callers.queue(8, max_tokens=7)

        def hurry() -> None:
            while not stop.is_set():
                assert post(gateway, name="late", max_tokens=9).status_code == 200

        late = [threading.Thread(target=hurry) for _ in range(3)]
        for thread in late:
            thread.start()
        wait_until(lambda: waiting(gateway) == 11)
        release.set()
        assert callers.join() == [200] * 9
        stop.set()
        for thread in late:
            thread.join(10)
    assert [seen.body["user"] for seen in engine.seen[1:9]] == [str(n) for n in range(8)]


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_in_the_queue(tmp_path: Path, engine: MockEngine, stream: bool) -> None:
    release = threading.Event()
    engine.script.append(Behaviour(hold=release))
    with running(tmp_path, engine.url) as gateway:
        callers = Callers(gateway)
        callers.begin(1)
        engine.wait_seen(1)
        body = {"model": MODEL, "messages": [], "stream": stream}
        headers = {"authorization": f"Bearer {PROJECT_KEY}"}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(gateway.url + "/v1/chat/completions", json=body, headers=headers, timeout=0.3)
        wait_until(lambda: waiting(gateway) == 0)
        [event] = gateway.journal.wait_events(1)
        assert (event.status, event.usage, event.usage_source, event.sent_ms) == (
            "client_disconnect",
            Usage(),
            "none",
            0,
        )
        release.set()
        assert callers.join() == [200]
        assert post(gateway).status_code == 200
        assert len(engine.seen) == 2


def test_a_full_queue_refuses_and_one_organization_cannot_fill_it(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    bounds = {"max_waiting_per_deployment": 3, "max_waiting_per_organization": 2}
    with running(tmp_path, engine.url, **bounds) as gateway:
        callers = Callers(gateway)
        callers.begin(1)
        engine.wait_seen(1)
        callers.queue(2, key=PROJECT_KEY)
        own = post(gateway, PROJECT_KEY)
        assert (own.status_code, own.json()["error"]["code"]) == (429, "queue_full")
        callers.queue(1, key=OTHER_KEY)
        whole = post(gateway, OTHER_KEY)
        assert (whole.status_code, whole.json()["error"]["code"]) == (503, "queue_full")
        for refused in (own, whole):
            assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
            assert int(refused.headers["retry-after"]) >= 1
        release.set()
        assert callers.join() == [200] * 4
        assert len(gateway.journal.events) == 4
        text = httpx.get(gateway.url + "/metrics").text
        assert 'farebox_gateway_refusals_total{http_status="429",code="queue_full"} 1' in text
        assert 'farebox_gateway_refusals_total{http_status="503",code="queue_full"} 1' in text


def test_waiting_too_long_for_a_place(tmp_path: Path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.script.append(Behaviour(hold=release))
    patience = {"hold_plain_call_s": 1, "wait_for_start_s": 2, "sse_comment_every_s": 1}
    with LimitedGateway(tmp_path, engine.url, max_parallel_per_replica=1, **patience) as gateway:
        gateway.set(ScopePolicy("key", "key_1", Limits(parallel_requests=2)))
        callers = Callers(gateway)
        callers.begin(1)
        engine.wait_seen(1)
        plain = post(gateway)
        assert (plain.status_code, plain.json()["error"]["code"]) == (503, "queue_full")
        assert int(plain.headers["retry-after"]) >= 1
        stream = post(gateway, stream=True)  # its hold is free again, so this fits the limit
        assert stream.text.startswith(": waiting\n\n")
        last = stream.text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "queue_full"
        assert waiting(gateway) == 0
        release.set()
        assert callers.join() == [200]
        assert [event.status for event in gateway.journal.events] == ["completed"]


def test_a_storm_at_the_cap_loses_nothing(tmp_path: Path, engine: MockEngine) -> None:
    engine.default = Behaviour(first_delay=0.01)
    with running(tmp_path, engine.url, max_parallel_per_replica=3) as gateway:
        callers = Callers(gateway)

        def several(key: str) -> httpx.Response:
            with httpx.Client() as client:
                for _ in range(15):
                    body = {"model": MODEL, "messages": [], "stream": True}
                    headers = {"authorization": f"Bearer {key}"}
                    answer = client.post(gateway.url + "/v1/chat/completions", json=body, headers=headers)
                    assert "[DONE]" in answer.text
            return answer

        for number in range(12):
            callers.run(lambda n=number: several((PROJECT_KEY, OTHER_KEY)[n % 2]))
        assert callers.join() == [200] * 12
        assert len(gateway.journal.wait_events(180)) == 180
        assert gateway.gateway is not None
        [(_, servers)] = gateway.gateway.places.servers()
        wait_until(lambda: (servers.in_flight, servers.free) == (0, 3))
