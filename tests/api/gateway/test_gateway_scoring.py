"""Online endpoints seen by callers: the split, the header, mirroring, and every status of Azure's table."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.route import Route
from serving.traffic import Scoring, Split
from tests.gateway_fixture import ENDPOINT, ENDPOINT_KEY, OTHER_KEY, PROJECT_KEY, RunningGateway, make_route
from tests.mock_engine import MockEngine, wait_until
from tests.mock_scorer import MockScorer

SCORE = f"/endpoints/{ENDPOINT}/score"
DEPLOYMENT = "azureml-model-deployment"


@pytest.fixture
def blue() -> Iterator[MockScorer]:
    with MockScorer("blue") as scorer:
        yield scorer


@pytest.fixture
def green() -> Iterator[MockScorer]:
    with MockScorer("green") as scorer:
        yield scorer


def deployment(scorer: MockScorer | None, name: str, **scoring: Any) -> Route:
    settings = Scoring(name, **scoring)
    return replace(
        make_route(scorer.url if scorer else ""),
        deployment_id=f"dep_{name}",
        model_id=f"model-{name}",
        task="scoring",
        max_parallel=settings.each,
        scoring=settings,
    )


def serve(
    gateway: RunningGateway, *routes: Route, traffic: str = "", mirror: tuple[str, int] | None = None
) -> None:
    """Put deployments behind the endpoint; `traffic` as on the command line: `blue=90 green=10`."""
    shares = tuple((name, int(share)) for name, _, share in (part.partition("=") for part in traffic.split()))
    by_name = {route.scoring.deployment: route for route in routes if route.scoring is not None}
    gateway.set_route(urls=(), split=Split(by_name, shares, mirror))


def score(
    gateway: RunningGateway, body: bytes = b'{"data":[1]}', key: str = PROJECT_KEY, **headers: str
) -> httpx.Response:
    sent = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(gateway.url + SCORE, content=body, headers=sent, timeout=20)


def test_a_call_reaches_the_script_and_its_answer_the_caller(
    gateway: RunningGateway, blue: MockScorer
) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.headers = {"x-ms-run-fn-exec-ms": "1.234", "set-cookie": "a=b", "x-own": "yes"}
    answer = score(gateway, b'{"data":[1,2]}', x_custom="kept", x_ms_client_request_id="a" * 60, cookie="c=d")
    assert (answer.status_code, answer.json()) == (200, {"from": "blue"})
    assert answer.headers[DEPLOYMENT] == "blue"
    assert answer.headers["x-ms-run-fn-exec-ms"] == "1.234"
    assert answer.headers["x-own"] == "yes"
    assert answer.headers["x-ms-client-request-id"] == "a" * 40
    assert "set-cookie" not in answer.headers
    asked = blue.seen[-1]
    assert (asked.method, asked.path, asked.body) == ("POST", "/score", b'{"data":[1,2]}')
    assert asked.headers["x-custom"] == "kept"
    assert asked.headers["x-request-id"] == answer.headers["x-request-id"]
    assert not asked.headers.keys() & {"authorization", "cookie", "api-key"}, "secrets stay here"
    [event] = gateway.journal.wait_events(1)
    assert (event.operation, event.status, event.http_status) == ("scoring", "completed", 200)
    assert (event.deployment_id, event.usage.input, event.usage.output) == ("dep_blue", 0, 0)
    assert event.request_id == answer.headers["x-request-id"]


def test_the_split_is_as_told(gateway: RunningGateway, blue: MockScorer, green: MockScorer) -> None:
    serve(
        gateway,
        deployment(blue, "blue", each=64),
        deployment(green, "green", each=64),
        traffic="blue=90 green=10",
    )
    with httpx.Client(headers={"authorization": f"Bearer {ENDPOINT_KEY}"}) as client:
        for _ in range(600):
            assert client.post(gateway.url + SCORE, content=b"{}").status_code == 200
    # Six standard deviations of a binomial with p = 0.1 are 44.
    assert abs(len(green.seen) - 60) < 45
    assert len(blue.seen) + len(green.seen) == 600


def test_a_header_names_any_deployment(gateway: RunningGateway, blue: MockScorer, green: MockScorer) -> None:
    serve(
        gateway,
        deployment(blue, "blue"),
        deployment(green, "green"),
        traffic="blue=100",
        mirror=("green", 50),
    )
    for _ in range(20):
        assert score(gateway, azureml_model_deployment="green").json() == {"from": "green"}
        assert score(gateway, azureml_model_deployment="blue").json() == {"from": "blue"}
    time.sleep(0.2)
    assert (len(blue.seen), len(green.seen)) == (20, 20), "no copies of calls that say where to"
    missing = score(gateway, azureml_model_deployment="gren")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "deployment_not_found"
    assert "`green`" in missing.json()["error"]["message"]


def test_without_traffic_there_is_nothing(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"))
    answer = score(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_traffic")
    assert not blue.seen


def test_a_script_that_takes_too_long_is_408(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue", timeout_ms=200), traffic="blue=100")
    blue.delay_s = 5
    began = time.monotonic()
    answer = score(gateway)
    assert answer.status_code == 408
    assert answer.json()["error"]["code"] == "request_timeout"
    assert "200 ms" in answer.json()["error"]["message"]
    assert time.monotonic() - began < 2
    wait_until(lambda: blue.cancelled == 1)  # its work is stopped
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.http_status) == ("error", 408)


@pytest.mark.parametrize("status", [400, 404, 418, 500, 503])
def test_whatever_the_script_answers_but_success_is_424(
    gateway: RunningGateway, blue: MockScorer, status: int
) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.status, blue.body = status, b'{"message": "no column a"}'
    for _ in range(5):  # not one of them is the server's fault: it is not left alone
        answer = score(gateway)
        assert answer.status_code == 424
        assert answer.headers["ms-azureml-model-error-statuscode"] == str(status)
        assert "no column a" in answer.headers["ms-azureml-model-error-reason"]
        assert answer.json() == {"message": "no column a"}
    assert len(blue.seen) == 5, "a script that ran is not run again"
    assert {event.http_status for event in gateway.journal.wait_events(5)} == {424}
    blue.status, blue.body = 200, None
    assert score(gateway).status_code == 200


def test_more_than_twice_what_the_instances_take_is_429(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.delay_s = 0.5
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: score(gateway), range(5)))
    assert Counter(answer.status_code for answer in answers) == {200: 2, 429: 3}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.json()["error"]["code"] == "too_many_pending_requests"
    assert int(refused.headers["retry-after"]) >= 1
    assert blue.most_at_once == 1, "one instance takes one at a time"
    blue.delay_s = 0
    assert score(gateway).status_code == 200
    gateway.journal.wait_events(3)


def test_instances_share_the_calls(gateway: RunningGateway, blue: MockScorer, green: MockScorer) -> None:
    both = replace(deployment(blue, "blue", each=2, instances=2), urls=(blue.url, green.url))
    serve(gateway, both, traffic="blue=100")
    blue.delay_s = green.delay_s = 0.3
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: score(gateway), range(8)))
    assert Counter(answer.status_code for answer in answers) == {200: 8}
    assert (blue.most_at_once, green.most_at_once) == (2, 2)


def test_copies_touch_nobody(gateway: RunningGateway, blue: MockScorer, green: MockScorer) -> None:
    green.status, green.delay_s = 500, 0.05
    serve(
        gateway,
        deployment(blue, "blue", each=8),
        deployment(green, "green", each=64),
        traffic="blue=100",
        mirror=("green", 50),
    )
    with httpx.Client(headers={"authorization": f"Bearer {PROJECT_KEY}"}) as client:
        for _ in range(100):
            answer = client.post(gateway.url + SCORE, content=b'{"a":1}')
            assert (answer.status_code, answer.json()) == (200, {"from": "blue"})
    wait_until(lambda: len(gateway.journal.events) == 100 + len(green.seen))
    assert 15 < len(green.seen) < 85
    assert green.seen[0].body == b'{"a":1}'
    copies = [event for event in gateway.journal.events if event.deployment_id == "dep_green"]
    assert {(event.status, event.http_status) for event in copies} == {("error", 500)}
    assert len({event.request_id for event in gateway.journal.events}) == 100 + len(green.seen)
    assert gateway.gateway is not None
    [comparison] = gateway.gateway.mirrors.comparisons("ep_1")
    shown = comparison.document()
    assert shown["pairs"] == len(green.seen)
    assert shown["deployment_figures"]["statuses"] == {"200": len(green.seen)}
    assert shown["shadow_figures"]["statuses"] == {"500": len(green.seen)}
    assert shown["shadow_figures"]["p50_at_most_ms"] >= 50


def test_answers_are_compared(gateway: RunningGateway, blue: MockScorer, green: MockScorer) -> None:
    blue.body, green.body = b"[1.0, 2]", b"[1.00000001,2.0]"
    serve(
        gateway,
        deployment(blue, "blue", each=8),
        deployment(green, "green", each=64),
        traffic="blue=100",
        mirror=("green", 50),
    )
    for _ in range(20):
        score(gateway)
    wait_until(lambda: len(gateway.journal.events) == 20 + len(green.seen))
    seen = len(green.seen)
    green.body = b"[1.0, 3]"
    for _ in range(20):
        score(gateway)
    wait_until(lambda: len(gateway.journal.events) == 40 + len(green.seen))
    assert gateway.gateway is not None
    [comparison] = gateway.gateway.mirrors.comparisons()
    answers = {"same": seen, "different": len(green.seen) - seen}
    assert comparison.document()["answers"] == answers
    address = f"{gateway.url}/endpoints/{ENDPOINT}/comparison"
    assert httpx.get(address).status_code == 401
    shown = httpx.get(address, headers={"authorization": f"Bearer {ENDPOINT_KEY}"}).json()["data"]
    assert [(each["deployment"], each["shadow"], each["answers"]) for each in shown] == [
        ("blue", "green", answers)
    ]
    page = httpx.get(gateway.url + "/metrics").text
    assert (
        f'farebox_gateway_mirror_same_total{{endpoint="{ENDPOINT}",deployment="blue",shadow="green"}} {seen}'
        in page
    )


def test_a_slow_shadow_gets_no_more_than_it_takes(
    gateway: RunningGateway, blue: MockScorer, green: MockScorer
) -> None:
    green.delay_s = 3
    serve(
        gateway,
        deployment(blue, "blue", each=8),
        deployment(green, "green", each=2),
        traffic="blue=100",
        mirror=("green", 50),
    )
    began = time.monotonic()
    for _ in range(40):
        assert score(gateway).status_code == 200
    assert time.monotonic() - began < 3
    assert len(green.seen) == 2
    assert gateway.gateway is not None
    [comparison] = gateway.gateway.mirrors.comparisons()
    assert comparison.left_out >= 1


def test_a_hang_up_stops_the_script(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.delay_s = 5
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            gateway.url + SCORE,
            content=b"{}",
            headers={"authorization": f"Bearer {PROJECT_KEY}"},
            timeout=0.3,
        )
    wait_until(lambda: blue.cancelled == 1)
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.http_status) == ("client_disconnect", 499)
    blue.delay_s = 0
    assert score(gateway).status_code == 200


def test_an_answer_in_pieces_is_passed_on_as_it_comes(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    blue.pieces = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    headers = {"authorization": f"Bearer {PROJECT_KEY}"}
    with httpx.stream("POST", gateway.url + SCORE, content=b"{}", headers=headers) as answer:
        pieces = list(answer.iter_bytes())
        assert answer.headers["content-type"] == "text/event-stream"
    assert b"".join(pieces) == b"".join(blue.pieces)
    assert len(pieces) > 1, "not gathered first"
    [event] = gateway.journal.wait_events(1)
    assert event.status == "completed"


def test_swagger_needs_the_key(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    address = f"{gateway.url}/endpoints/{ENDPOINT}/swagger.json?version=3"
    assert httpx.get(address).status_code == 401
    assert httpx.get(address, headers={"authorization": f"Bearer {PROJECT_KEY}"}).status_code == 200
    assert (blue.seen[-1].method, blue.seen[-1].path) == ("GET", "/swagger.json?version=3")


def test_other_paths_are_for_servers_of_ones_own(
    gateway: RunningGateway, blue: MockScorer, green: MockScorer
) -> None:
    own = deployment(green, "green", path="/v1/models/half:predict", any_path=True)
    serve(gateway, deployment(blue, "blue"), own, traffic="blue=100")
    base, auth = f"{gateway.url}/endpoints/{ENDPOINT}", {"authorization": f"Bearer {PROJECT_KEY}"}
    assert httpx.post(base + "/predict", headers=auth).status_code == 404
    to_green = auth | {DEPLOYMENT: "green"}
    assert httpx.post(base + "/predict", headers=to_green).json() == {"from": "green"}
    assert httpx.post(base + "/score", headers=to_green).status_code == 200
    assert [asked.path for asked in green.seen] == ["/predict", "/v1/models/half:predict"]
    assert httpx.post(base + "/a/../b", headers=to_green).status_code in (404, 200)
    assert ".." not in "".join(asked.path for asked in green.seen), "nothing climbs up"


def test_nobody_else_gets_in(gateway: RunningGateway, blue: MockScorer) -> None:
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    assert httpx.post(gateway.url + SCORE, content=b"{}").status_code == 401
    assert score(gateway, key="fbx_sk_wrong").status_code == 401
    assert score(gateway, key=OTHER_KEY).status_code == 404
    assert not blue.seen
    assert score(gateway, key=ENDPOINT_KEY).status_code == 200


def test_an_instance_that_is_gone_costs_no_call(
    gateway: RunningGateway, blue: MockScorer, green: MockScorer
) -> None:
    with MockScorer("short-lived") as dying:
        both = replace(deployment(blue, "blue", each=4, instances=2), urls=(dying.url, blue.url))
        serve(gateway, both, traffic="blue=100")
    for _ in range(10):
        assert score(gateway).status_code == 200
    assert len(blue.seen) == 10


def test_a_sleeping_deployment_is_503_unless_the_caller_holds(
    gateway: RunningGateway, blue: MockScorer
) -> None:
    serve(gateway, deployment(None, "blue"), traffic="blue=100")
    gateway.control.answers = [{"state": "ready", "url": blue.url}]
    gateway.control.hold.clear()
    at_once = score(gateway)
    assert (at_once.status_code, at_once.json()["error"]["code"]) == (503, "model_starting")
    assert "retry-after" in at_once.headers
    threading.Timer(0.5, gateway.control.hold.set).start()
    held = score(gateway, x_scale_up_timeout="10")
    assert (held.status_code, held.json()) == (200, {"from": "blue"})


def test_a_serverless_endpoint_has_no_score(gateway: RunningGateway) -> None:
    answer = score(gateway)
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unknown_url")
    assert "/v1/chat/completions" in answer.json()["error"]["message"]


def test_models_of_openai_can_be_split_and_mirrored_too(
    gateway: RunningGateway, engine: MockEngine, blue: MockScorer
) -> None:
    with MockEngine() as other:
        chat = replace(
            make_route(engine.url), deployment_id="dep_a", scoring=Scoring("a", each=8), max_parallel=8
        )
        copy = replace(
            make_route(other.url), deployment_id="dep_b", scoring=Scoring("b", each=8), max_parallel=8
        )
        serve(gateway, chat, copy, deployment(blue, "blue"), traffic="a=100", mirror=("b", 50))
        url = f"{gateway.url}/endpoints/{ENDPOINT}/v1/chat/completions"
        call = {"messages": [{"role": "user", "content": "one two"}]}
        auth = {"authorization": f"Bearer {PROJECT_KEY}"}
        for number in range(40):
            answer = httpx.post(url, json=call | {"stream": bool(number % 2)}, headers=auth)
            assert answer.status_code == 200, answer.text
        wait_until(lambda: len(gateway.journal.events) == 40 + len(other.seen))
        assert 5 < len(other.seen) < 35
        copies = [event for event in gateway.journal.events if event.deployment_id == "dep_b"]
        assert {(event.status, event.usage.input, event.usage.output) for event in copies} == {
            ("completed", 2, 4)
        }
        named = httpx.post(url, json=call, headers=auth | {DEPLOYMENT: "blue"})
        assert named.status_code == 404, "a script does no chat"
        assert json.loads(named.text)["error"]["code"] == "model_not_found"


def test_calls_that_ended_are_told_with_what_they_took(gateway: RunningGateway, blue: MockScorer) -> None:
    """Rules of autoscale go by them; each call is told once."""
    serve(gateway, deployment(blue, "blue"), traffic="blue=100")
    for _ in range(3):
        assert score(gateway).status_code == 200
    told: list[Any] = []

    def all_told() -> bool:
        told[:] = [each["dep_blue"] for each in gateway.control.activity if "dep_blue" in each]
        return sum(each.get("ended", 0) for each in told) == 3

    wait_until(all_told)
    durations = [each for one in told for each in one.get("durations_ms", [])]
    assert len(durations) == 3 and all(0 <= each < 5_000 for each in durations)


def test_connections_of_callers_are_counted(gateway: RunningGateway) -> None:
    """By the protocol that the gateway always has; the slow lane's tests run on uvicorn's own."""
    if gateway.lane == "slow":
        pytest.skip("it has no such protocol")
    with httpx.Client() as client:
        client.get(gateway.url + "/healthz")
        page = client.get(gateway.url + "/metrics").text
        values = dict(
            line.split(" ") for line in page.splitlines() if line.startswith("farebox_gateway_connections")
        )
        assert int(values["farebox_gateway_connections"]) >= 1
        made = int(values["farebox_gateway_connections_total"])
    again = httpx.get(gateway.url + "/metrics").text
    assert f"farebox_gateway_connections_total {made + 1}\n" in again
