"""Engines that fail, callers who leave, bodies and keys that are wrong: the right answer, and the right event."""

import http.client
import json
import socket
import threading
import time

import httpx
import openai
import pytest

from access.principal import Principal
from metering.model import Usage
from tests.gateway_fixture import ADMIN_KEY, MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

MESSAGES = [{"role": "user", "content": "one two three"}]
CALL = {"model": MODEL, "messages": MESSAGES}
STREAM = CALL | {"stream": True}
TOO_LONG = "This model's maximum context length is 8192 tokens."
AUTH = {"authorization": f"Bearer {PROJECT_KEY}"}


def post(
    gateway: RunningGateway, body: object, path: str = "/v1/chat/completions", key: str = PROJECT_KEY
) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(
        gateway.url + path, content=content, headers={"authorization": f"Bearer {key}"}, timeout=20
    )


def last_frame(text: str) -> dict:
    return json.loads([line for line in text.splitlines() if line.startswith("data: ")][-1][6:])


# -- bad input: refused, in OpenAI's shape, without an event --


@pytest.mark.parametrize(("body", "param", "code"), [
    (b"", None, "invalid_json"),
    (b"{", None, "invalid_json"),
    (b"[]", None, "invalid_json"),
    (b'"text"', None, "invalid_json"),
    (b'{"model": "m", "x": ' + b"[" * 100_000, None, "invalid_json"),
    (b'{"model": "m"} trailing', None, "invalid_json"),
    (b"\xff\xfe", None, "invalid_json"),
    ({"messages": MESSAGES}, "model", "missing_parameter"),
    ({"model": None}, "model", "invalid_type"),
    ({"model": 1}, "model", "invalid_type"),
    ({"model": ""}, "model", "invalid_value"),
    ({"model": "m" * 300}, "model", "invalid_value"),
    (b'{"model": "\xff"}', "model", "invalid_json"),
    (CALL | {"stream": "yes"}, "stream", "invalid_type"),
    (CALL | {"stream": 1}, "stream", "invalid_type"),
    (STREAM | {"stream_options": []}, "stream_options", "invalid_type"),
    (STREAM | {"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_type"),
    (CALL | {"n": 0}, "n", "invalid_value"),
    (CALL | {"n": 1000}, "n", "invalid_value"),
    (CALL | {"n": 1.5}, "n", "invalid_type"),
    (CALL | {"n": True}, "n", "invalid_type"),
    (CALL | {"max_tokens": "10"}, "max_tokens", "invalid_type"),
    (CALL | {"max_tokens": -1}, "max_tokens", "invalid_value"),
    (CALL | {"max_completion_tokens": []}, "max_completion_tokens", "invalid_type"),
    (CALL | {"best_of": 0}, "best_of", "invalid_value"),
    (CALL | {"use_beam_search": True}, "use_beam_search", "unsupported_value"),
    (CALL | {"use_beam_search": 1}, "use_beam_search", "invalid_type"),
])  # fmt: skip
def test_bad_bodies(
    gateway: RunningGateway, engine: MockEngine, body: object, param: str | None, code: str
) -> None:
    response = post(gateway, body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    assert error["message"]
    assert response.headers["x-request-id"].startswith("req_")
    assert not engine.seen
    assert not gateway.journal.events


@pytest.mark.timing
def test_keys(gateway: RunningGateway) -> None:
    gateway.directory.add_key("fbx_sk_old", "expired")
    gateway.directory.add_key("fbx_sk_gone", "revoked")
    messages = set()
    for key in ("nonsense", "fbx_sk_old", "fbx_sk_gone", "x" * 5000):
        response = post(gateway, CALL, key=key)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (401, "invalid_api_key")
        assert key not in error["message"]
        messages.add(error["message"])
    for headers in ({}, {"authorization": "Basic abc"}, {"authorization": "Bearer"}):
        response = httpx.post(gateway.url + "/v1/chat/completions", json=CALL, headers=headers)
        assert response.status_code == 401
        messages.add(response.json()["error"]["message"])
    assert len(messages) == 4
    assert post(gateway, CALL, key=ADMIN_KEY).status_code == 403
    ends_ms = int(time.time() * 1000) + 2000
    gateway.directory.add_key("fbx_sk_brief", Principal("project", "key_9", "org_1", "prj_1", "", ends_ms))
    assert post(gateway, CALL, key="fbx_sk_brief").status_code == 200
    time.sleep(2.1)
    assert "expired" in post(gateway, CALL, key="fbx_sk_brief").json()["error"]["message"]
    assert httpx.get(gateway.url + "/v1/models").status_code == 401
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key="nonsense", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


@pytest.mark.timing
def test_a_new_key_and_a_revoked_key_are_noticed(gateway: RunningGateway) -> None:
    assert post(gateway, CALL, key="fbx_sk_new").status_code == 401
    gateway.directory.add_key("fbx_sk_new", Principal("project", "key_n", "org_1", "prj_1"))
    gateway.directory.changed("key", "key_n")
    wait_until(lambda: post(gateway, CALL, key="fbx_sk_new").status_code == 200, 2)
    gateway.directory.add_key("fbx_sk_new", "revoked")
    gateway.directory.changed("key", "key_n")
    wait_until(lambda: post(gateway, CALL, key="fbx_sk_new").status_code == 401, 2)


def test_unknown_model(gateway: RunningGateway) -> None:
    response = post(gateway, {"model": "no/such", "messages": MESSAGES})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "/v1/models" in error["message"]
    assert post(gateway, CALL, "/v1/embeddings").status_code == 404


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body(tmp_path, engine: MockEngine, chunked: bool) -> None:
    body = json.dumps(CALL | {"pad": "x" * 3_000_000}).encode()
    with RunningGateway(tmp_path, engine.url, max_body_bytes=100_000) as gateway:
        content = iter([body[i : i + 65536] for i in range(0, len(body), 65536)]) if chunked else body
        response = httpx.post(gateway.url + "/v1/chat/completions", content=content, headers=AUTH)
        assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")
        assert "x-request-id" in response.headers
        # Refused on its length alone, before anything of the body was sent.
        raw = http.client.HTTPConnection("127.0.0.1", gateway.port)
        raw.putrequest("POST", "/v1/chat/completions")
        for name, value in (AUTH | {"content-length": str(10**12)}).items():
            raw.putheader(name, value)
        raw.endheaders()
        assert raw.getresponse().status == 413
        assert not gateway.journal.events


def test_a_large_body_is_no_problem(gateway: RunningGateway, engine: MockEngine) -> None:
    body = CALL | {"pad": "x" * 5_000_000}
    assert post(gateway, body).status_code == 200
    assert len(engine.seen[-1].body["pad"]) == 5_000_000


def test_too_many_headers(gateway: RunningGateway) -> None:
    headers = AUTH | {f"x-{i}": "1" for i in range(200)}
    assert httpx.post(gateway.url + "/v1/chat/completions", json=CALL, headers=headers).status_code == 431


def test_client_ids_are_echoed_capped_logged_and_never_used(
    gateway: RunningGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    headers = AUTH | {"x-client-request-id": "abc" * 100, "x-request-id": "mine"}
    response = httpx.post(gateway.url + "/v1/chat/completions", json=CALL, headers=headers)
    assert response.headers["x-client-request-id"] == ("abc" * 100)[:128]
    request_id = response.headers["x-request-id"]
    assert request_id == gateway.journal.events[0].request_id != "mine"
    [logged] = [record for record in caplog.records if hasattr(record, "client_request_id")]
    assert (logged.client_request_id, logged.request_id) == (("abc" * 100)[:128], request_id)
    assert post(gateway, CALL).status_code == 200
    assert len([record for record in caplog.records if hasattr(record, "client_request_id")]) == 1


# -- engines that fail --


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "error", "expected", "code"), [
    (400, {"error": {"message": "no", "type": "BadRequestError", "param": "n", "code": 400}}, 400, "bad_request"),
    (400, {"object": "error", "message": TOO_LONG, "code": 400}, 400, "context_length_exceeded"),
    (422, {"detail": [{"loc": ["body", "n"], "msg": "wrong"}]}, 422, "bad_request"),
    (429, {"error": {"message": "slow down", "code": "busy"}}, 429, "busy"),
    (500, "<html>stack trace</html>", 500, "upstream_error"),
    (503, {"error": "overloaded"}, 503, "unavailable"),
    (401, {"error": {"message": "secret hint"}}, 502, "upstream_error"),
    (302, "moved", 502, "upstream_error"),
])  # fmt: skip
def test_engine_errors_keep_their_meaning(
    gateway: RunningGateway,
    engine: MockEngine,
    status: int,
    error: object,
    expected: int,
    code: str,
    stream: bool,
) -> None:
    engine.script.append(Behaviour(status=status, error=error, headers={"retry-after": "3"}))
    response = post(gateway, STREAM if stream else CALL)
    found = response.json()["error"]
    assert (response.status_code, found["code"]) == (expected, code)
    assert isinstance(found["message"], str)
    assert "secret" not in found["message"]
    assert "stack" not in found["message"]
    if expected in (429, 503):
        assert response.headers["retry-after"] == "3"
    [event] = gateway.journal.events
    assert (event.status, event.http_status, event.usage, event.usage_source) == (
        "error",
        expected,
        Usage(),
        "none",
    )


@pytest.mark.parametrize("how", ["cut", "clean_end", "error_event", "error_object"])
def test_a_stream_that_breaks(
    gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI, how
) -> None:
    engine.default = Behaviour(tokens=9, fail_after=2, fail_how=how)
    response = post(gateway, STREAM)
    assert "[DONE]" not in response.text
    error = last_frame(response.text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "upstream_error"
    [event] = gateway.journal.events
    assert (event.status, event.usage, event.usage_source) == ("error", Usage(input=3, output=2), "engine")
    with pytest.raises(openai.APIError):
        list(client.chat.completions.create(**STREAM))


def test_a_stream_without_its_done(gateway: RunningGateway, engine: MockEngine) -> None:
    """With the final count it is whole; with neither it broke off, and is flagged, not billed as if it had ended."""
    engine.script.append(Behaviour(done=False))
    assert post(gateway, STREAM).text.endswith("data: [DONE]\n\n")
    gateway.set_route(continuous_usage=False)
    engine.script.append(Behaviour(done=False, usage="missing", continuous=False))
    text = post(gateway, STREAM).text
    assert "[DONE]" not in text and last_frame(text)["error"]["code"] == "upstream_error"
    whole, broken = gateway.journal.wait_events(2)
    assert (whole.status, whole.usage_source, whole.usage) == (
        "completed",
        "engine",
        Usage(input=3, output=4),
    )
    assert (broken.status, broken.usage_source) == ("error", "estimated")


@pytest.mark.parametrize("behaviour", [
    Behaviour(empty=True),
    Behaviour(fail_after=0, fail_how="error_event"),
    Behaviour(fail_after=0, fail_how="clean_end"),
    Behaviour(fail_after=0, fail_how="cut"),
    Behaviour(raw_body=b"not json"),
])  # fmt: skip
def test_a_stream_that_fails_before_its_first_token_has_its_true_status(
    gateway: RunningGateway, engine: MockEngine, behaviour: Behaviour
) -> None:
    engine.script.append(behaviour)
    response = post(gateway, STREAM)
    assert response.status_code in (500, 502)
    assert response.json()["error"]["code"] == "upstream_error"
    [event] = gateway.journal.events
    assert (event.status, event.usage) == ("error", Usage())


def test_an_error_as_the_first_event_keeps_its_status(gateway: RunningGateway, engine: MockEngine) -> None:
    error = {
        "message": "max_tokens is too large",
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }
    engine.script.append(Behaviour(fail_after=0, fail_how="error_event", error=error))
    response = post(gateway, STREAM)
    found = response.json()["error"]
    assert (response.status_code, found["param"], found["code"]) == (400, "max_tokens", "bad_request")
    assert gateway.journal.events[0].http_status == 400


def test_an_unreadable_answer(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.script.append(Behaviour(raw_body=b"[1, 2"))
    response = post(gateway, CALL)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_error")
    assert gateway.journal.events[0].status == "error"


def test_a_reset_before_the_first_byte_is_tried_again(gateway: RunningGateway, engine: MockEngine) -> None:
    gateway.control.answers = [{"state": "ready", "url": engine.url}]
    engine.script.append(Behaviour(reset=True))
    assert post(gateway, CALL).status_code == 200
    first, second = gateway.journal.events
    assert first.request_id == second.request_id
    assert (first.event_id, first.status, first.usage) == (first.request_id, "error", Usage())
    assert (second.event_id, second.status) == (f"{first.request_id}:2", "completed")
    assert gateway.control.wakes == ["dep_1"]
    engine.script.extend([Behaviour(reset=True), Behaviour(reset=True)])
    response = post(gateway, CALL)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "model_unavailable")
    assert len(engine.seen) == 4
    assert [event.status for event in gateway.journal.events[2:]] == ["error", "error"]


def test_timeouts(tmp_path, engine: MockEngine) -> None:
    bounds = {"upstream_first_byte_timeout_s": 1, "upstream_between_bytes_timeout_s": 1}
    with RunningGateway(tmp_path, engine.url, **bounds) as gateway:
        engine.script.append(Behaviour(first_delay=3))
        assert post(gateway, CALL).status_code == 504
        engine.script.append(Behaviour(tokens=5, chunk_delay=0.6))
        assert "[DONE]" in post(gateway, STREAM).text  # slow, but never silent for a second
        engine.script.append(Behaviour(tokens=5, tail_delay=3))
        assert last_frame(post(gateway, STREAM).text)["error"]["code"] == "timeout"
        assert [event.status for event in gateway.journal.events] == ["error", "completed", "error"]
        assert engine.seen[0].disconnected
        assert gateway.journal.events[2].usage == Usage(input=3, output=5)


# -- callers who leave --


def test_hanging_up_on_a_stream(gateway: RunningGateway, engine: MockEngine, client: openai.OpenAI) -> None:
    engine.default = Behaviour(tokens=1000, chunk_delay=0.01)
    stream = client.chat.completions.create(**STREAM)
    for _, _chunk in zip(range(5), stream, strict=False):
        pass
    stream.close()
    seen = engine.wait_seen(1)
    assert seen.ended.wait(2)
    assert seen.disconnected
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.http_status, event.usage_source) == ("client_disconnect", 499, "engine")
    assert event.usage.input == 3
    assert 4 <= event.usage.output <= seen.produced < 100


def test_hanging_up_on_an_engine_without_running_counts(gateway: RunningGateway, engine: MockEngine) -> None:
    gateway.set_route(continuous_usage=False)
    engine.default = Behaviour(tokens=1000, chunk_delay=0.01, continuous=False)
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json=STREAM, headers=AUTH) as response:
        lines = response.iter_lines()
        for _ in range(12):
            next(lines)
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.usage_source) == ("client_disconnect", "estimated")
    assert event.usage.input == 4  # 13 bytes
    assert 4 <= event.usage.output <= engine.seen[0].produced


@pytest.mark.parametrize("body", [CALL, STREAM])
def test_hanging_up_before_the_first_byte(gateway: RunningGateway, engine: MockEngine, body: dict) -> None:
    engine.default = Behaviour(hold=threading.Event())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(gateway.url + "/v1/chat/completions", json=body, headers=AUTH, timeout=0.3)
    assert engine.wait_seen(1).ended.wait(2)
    assert engine.seen[0].disconnected
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.usage_source, event.usage) == (
        "client_disconnect",
        "estimated",
        Usage(input=4),
    )
    wait_until(lambda: gateway.gateway is not None and gateway.gateway.in_flight == 0)


def test_leaving_right_after_the_last_token_is_a_completed_call(
    gateway: RunningGateway, engine: MockEngine
) -> None:
    gateway.journal.delay_s = 1.5
    with httpx.stream("POST", gateway.url + "/v1/chat/completions", json=STREAM, headers=AUTH) as response:
        lines = response.iter_lines()  # held: an iterator that is let go closes the connection
        for line in lines:
            if '"finish_reason":"stop"' in line:
                break
        time.sleep(0.5)  # ample for the engine's last frames, on a busy machine too
    [event] = gateway.journal.wait_events(1)
    assert (event.status, event.usage) == ("completed", Usage(input=3, output=4))


def test_a_caller_who_does_not_read_is_held_back_and_let_go(tmp_path, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=400_000)
    with RunningGateway(tmp_path, engine.url, upstream_between_bytes_timeout_s=1) as gateway:
        raw = socket.create_connection(("127.0.0.1", gateway.port))
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(STREAM).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {PROJECT_KEY}\r\n"
        raw.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        [event] = gateway.journal.wait_events(1)
        assert event.status == "client_disconnect"
        assert engine.seen[0].ended.wait(2)
        assert engine.seen[0].produced < 300_000  # it was held back, not buffered
        raw.close()


# -- bounds and draining --


def test_too_many_calls_at_once(tmp_path, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    with RunningGateway(tmp_path, engine.url, max_concurrent_requests=1) as gateway:
        first = threading.Thread(target=post, args=(gateway, CALL))
        first.start()
        engine.wait_seen(1)
        response = post(gateway, CALL)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "overloaded")
        assert "retry-after" in response.headers
        release.set()
        first.join()
        assert post(gateway, CALL).status_code == 200


def test_draining(gateway: RunningGateway, engine: MockEngine) -> None:
    release = threading.Event()
    engine.default = Behaviour(hold=release)
    answers: list[httpx.Response] = []
    first = threading.Thread(target=lambda: answers.append(post(gateway, CALL)))
    first.start()
    engine.wait_seen(1)
    drained: list[bool] = []
    assert gateway.gateway is not None
    drainer = threading.Thread(target=lambda: drained.append(gateway.in_loop(gateway.gateway.drain)))
    drainer.start()
    wait_until(lambda: gateway.gateway.draining)
    refused = post(gateway, CALL)
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert httpx.get(gateway.url + "/readyz").status_code == 503
    assert not drained
    release.set()
    drainer.join()
    first.join()
    assert drained == [True]
    assert answers[0].status_code == 200
    assert len(gateway.journal.events) == 1


def test_a_forced_end_settles_what_is_in_flight(tmp_path, engine: MockEngine) -> None:
    engine.default = Behaviour(tokens=1000, chunk_delay=0.02)
    texts: list[str] = []
    with RunningGateway(tmp_path, engine.url) as gateway:
        caller = threading.Thread(target=lambda: texts.append(post(gateway, STREAM).text))
        caller.start()
        wait_until(lambda: bool(engine.seen) and engine.seen[0].produced > 5)
    caller.join()
    [event] = gateway.journal.events
    assert event.status == "interrupted"
    assert 5 <= event.usage.output < 1000
    assert last_frame(texts[0])["error"]["code"] == "unavailable"
