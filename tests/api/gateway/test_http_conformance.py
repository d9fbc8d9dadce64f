"""The same raw HTTP through the fast lane, uvicorn's own protocol, and an ordinary route: equally strict everywhere.

What is compared is what the connection does: the statuses of the answers, in order, and whether it is closed.
"""

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from functions.gateway import fast_protocol
from tests.gateway_fixture import MODEL, PROJECT_KEY, RunningGateway
from tests.mock_engine import Behaviour, MockEngine, wait_until

HOT = "/v1/chat/completions"
BODY = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "one two three"}]}).encode()
AUTH = f"Authorization: Bearer {PROJECT_KEY}\r\n"
LAST = b"GET /last-of-all HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ANSWER_TO_LAST = b'"instance":"/last-of-all"}'


@pytest.fixture
def slow_gateway(
    tmp_path: Path, engine: MockEngine, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningGateway]:
    monkeypatch.setattr(RunningGateway, "lane", "slow")
    with RunningGateway(tmp_path / "slow", engine.url) as running:
        yield running


def request(path: str = HOT, headers: str = "", body: bytes = BODY, version: str = "1.1") -> bytes:
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\n{AUTH}{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def chunked(*chunks: bytes, path: str = HOT, headers: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{AUTH}{headers}Transfer-Encoding: chunked\r\n\r\n"
    return head.encode() + b"".join(chunks)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Wire:
    """One raw connection and what came back on it."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.socket = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        self.data = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, silence_s: float = 0.5) -> bool:
        """Read until nothing came for a while; True when the gateway closed the connection."""
        self.socket.settimeout(silence_s)
        try:
            while part := self.socket.recv(65536):
                self.data += part
        except TimeoutError:
            return False
        except ConnectionResetError:
            pass
        return True

    def finish(self) -> tuple[list[int], bool]:
        """The statuses of all answers, and whether the gateway closed the connection.

        Open is what still answers one more request: whatever was to come before that has then come, however busy
        the machine.
        """
        closed = self.read(0.05)
        for _ in range(100):
            if closed or self.data:
                break
            closed = self.read(0.05)
        if not closed:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send(LAST)
            closed = self.read(5)
        self.socket.close()
        if self.data.endswith(ANSWER_TO_LAST):
            return self.statuses()[:-1], False
        return self.statuses(), closed

    def statuses(self) -> list[int]:
        """Of all answers, in order."""
        return [
            int(line[9:12]) for line in self.data.replace(b"}HTTP/1.1", b"}\nHTTP/1.1").split(b"\n")
            if line.startswith(b"HTTP/1.1 ")
        ]  # fmt: skip


def outcome(gateway: RunningGateway, data: bytes, pieces: int = 1) -> tuple[list[int], bool]:
    wire = Wire(gateway)
    size = max(1, -(-len(data) // pieces))
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of it was sent
        for at in range(0, len(data), size):
            wire.send(data[at : at + size])
            if pieces > 1:
                time.sleep(0.01)
    return wire.finish()


def bad(head: str, body: bytes = b"") -> bytes:
    return head.replace("\n", "\r\n").encode() + body


REFUSED = {
    "length and chunked": bad(f"POST {HOT} HTTP/1.1\nContent-Length: 4\nTransfer-Encoding: chunked\n\n", b"0\r\n\r\n"),
    "chunked and length": bad(f"POST {HOT} HTTP/1.1\nTransfer-Encoding: chunked\nContent-Length: 4\n\n", b"0\r\n\r\n"),
    "two lengths": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: 2\nContent-Length: 3\n\n", b"{}1"),
    "the same length twice": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: 2\nContent-Length: 2\n\n", b"{}"),
    "a list of lengths": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: 2, 2\n\n", b"{}"),
    "negative length": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: -1\n\n"),
    "signed length": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: +2\n\n", b"{}"),
    "huge length": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: 99999999999999999999999\n\n"),
    "chunked twice removed": bad(f"POST {HOT} HTTP/1.1\nHost: x\nTransfer-Encoding: chunked, identity\n\n", b"0\r\n\r\n"),
    "space before the colon": bad(f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length : 2\n\n", b"{}"),
    "continued header": bad(f"POST {HOT} HTTP/1.1\nHost: x\nX-A: 1\n 2\nContent-Length: 2\n\n", b"{}"),
    "bare line feeds": f"POST {HOT} HTTP/1.1\nHost: x\nContent-Length: 2\n\n{{}}".encode(),
    "a NUL in a header": bad(f"POST {HOT} HTTP/1.1\nHost: x\nX-A: 1\x002\nContent-Length: 2\n\n", b"{}"),
    "a bare CR in a header": f"POST {HOT} HTTP/1.1\r\nHost: x\r\nX-A: 1\r2\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    "no header name": bad(f"POST {HOT} HTTP/1.1\nHost: x\n: 1\nContent-Length: 2\n\n", b"{}"),
    "wrong chunk size": chunked(b"zz\r\n{}\r\n0\r\n\r\n"),
    "signed chunk size": chunked(b"+2\r\n{}\r\n0\r\n\r\n"),
    "hexadecimal prefix": chunked(b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than told": chunked(b"1\r\n{}\r\n0\r\n\r\n"),
    "chunk size overflows": chunked(b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n"),
    "unknown version": request(version="3.7"),
    "no version": f"POST {HOT}\r\n\r\n".encode(),
    "unknown method": request().replace(b"POST", b"POTS", 1),
    "a space in the path": request(path="/v1/chat/comp letions"),
    "nonsense": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 64,
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 7])
@pytest.mark.parametrize("name", REFUSED)
def test_bad_requests_are_refused_alike(
    gateway: RunningGateway, slow_gateway: RunningGateway, engine: MockEngine, name: str, pieces: int
) -> None:
    fast = outcome(gateway, REFUSED[name], pieces)
    assert fast == outcome(slow_gateway, REFUSED[name], pieces)
    # An ordinary route answers before its body is read; what the parser refuses, it refuses there too.
    ordinary = outcome(gateway, REFUSED[name].replace(HOT.encode(), b"/v1/no/such/route"), pieces)
    assert (400 in fast[0], fast[1]) == (400 in ordinary[0], ordinary[1])
    assert fast[1] or name == "the same length twice"
    assert 200 not in fast[0]
    assert not engine.seen


SERVED = {
    "plain": (request(), [200], False),
    "close": (request(headers="Connection: close\r\n"), [200], True),
    "keep-alive": (request(headers="Connection: keep-alive\r\n"), [200], False),
    "HTTP/1.0": (request(version="1.0"), [200], True),
    "two in one packet": (request() + request(), [200, 200], False),
    "five in one packet": (request() * 5, [200] * 5, False),
    "another route between": (
        request() + b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + request(), [200, 200, 200], False),
    "a refused one between": (request() + request(body=b"{") + request(), [200, 400, 200], False),
    "close within a pipeline": (request() + request(headers="Connection: close\r\n") + request(), [200, 200], True),
    "chunked": (chunked(chunk(BODY), b"0\r\n\r\n"), [200], False),
    "chunked with extensions and trailers": (
        chunked(b"%x;a=b\r\n%b\r\n" % (len(BODY), BODY), b"0\r\nX-Trailer: 1\r\n\r\n"), [200], False),
    "chunked in the smallest pieces": (
        chunked(*(chunk(BODY[at : at + 1]) for at in range(len(BODY))), b"0\r\n\r\n"), [200], False),
    "expect": (request(headers="Expect: 100-continue\r\n"), [100, 200], False),
    "absolute form": (request(path=f"http://x{HOT}"), [200], False),
    "encoded path": (request(path="/v1/chat/%63ompletions"), [200], False),
    "query": (request(path=HOT + "?a=b"), [200], False),
    "blank lines before": (b"\r\n\r\n" + request(), [200], False),
}  # fmt: skip


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize("name", SERVED)
def test_odd_and_ordinary_requests_are_served_alike(
    gateway: RunningGateway, slow_gateway: RunningGateway, name: str, pieces: int
) -> None:
    data, statuses, closed = SERVED[name]
    assert outcome(gateway, data, pieces) == outcome(slow_gateway, data, pieces) == (statuses, closed)
    assert len(gateway.journal.events) == len(slow_gateway.journal.events)


def test_upgrades_are_not_made(gateway: RunningGateway, slow_gateway: RunningGateway) -> None:
    for protocol in ("h2c", "websocket", "nonsense"):
        data = request(headers=f"Connection: upgrade\r\nUpgrade: {protocol}\r\n")
        fast, slow = Wire(gateway), Wire(slow_gateway)
        for wire in (fast, slow):
            wire.send(data)
        assert fast.read() == slow.read()
        assert fast.statuses() == slow.statuses()
        assert 101 not in fast.statuses()
        for wire in (fast, slow):
            wire.socket.close()
    assert served(gateway) == 0


def test_one_byte_at_a_time(gateway: RunningGateway) -> None:
    assert outcome(gateway, request(), len(request())) == ([200], False)
    assert served(gateway) == 1


def served(gateway: RunningGateway) -> int:
    """By the fast lane."""
    return gateway.fast_lane.served


def test_which_requests_the_fast_lane_serves(gateway: RunningGateway) -> None:
    for name in ("plain", "close", "keep-alive"):
        before = served(gateway)
        outcome(gateway, SERVED[name][0])
        assert served(gateway) == before + 1, name
    for name in ("HTTP/1.0", "chunked", "expect", "query", "encoded path"):
        before = served(gateway)
        outcome(gateway, SERVED[name][0])
        assert served(gateway) == before, name


def test_both_lanes_answer_with_the_same_bytes(gateway: RunningGateway, slow_gateway: RunningGateway) -> None:
    engine_made = (b"date", b"x-request-id", b"content-length")
    for data in (request(), request(body=BODY[:-1] + b', "stream": true}')):
        heads = []
        for which in (gateway, slow_gateway):
            wire = Wire(which)
            wire.send(data)
            wire.read()
            status, *lines = wire.data.partition(b"\r\n\r\n")[0].split(b"\r\n")
            heads.append((status, sorted(line for line in lines if not line.lower().startswith(engine_made))))
            wire.socket.close()
        assert heads[0] == heads[1]


def test_a_slow_body_is_the_slow_lanes(gateway: RunningGateway) -> None:
    data = request()
    wire = Wire(gateway)
    wire.send(data[:-10])
    time.sleep(1.5)
    wire.send(data[-10:])
    assert not wire.read()
    assert wire.statuses() == [200]
    assert served(gateway) == 0


def test_a_large_body_in_time(gateway: RunningGateway, engine: MockEngine) -> None:
    body = json.dumps({**json.loads(BODY), "pad": "x" * 900_000}).encode()
    assert outcome(gateway, request(body=body))[0] == [200]
    assert served(gateway) == 1
    body = json.dumps({**json.loads(BODY), "pad": "x" * 1_100_000}).encode()
    assert outcome(gateway, request(body=body))[0] == [200]
    assert served(gateway) == 1
    assert len(engine.seen[-1].raw) > 1_100_000


def test_a_large_head(gateway: RunningGateway, slow_gateway: RunningGateway, engine: MockEngine) -> None:
    """64 KiB of headers are taken, more is refused, whichever lane it is, and wherever the request before it ended."""
    for size, status, closes in ((60_000, 200, False), (70_000, 431, True)):
        large = request(headers=f"X-Pad: {'a' * size}\r\n")
        assert outcome(gateway, large) == outcome(slow_gateway, large) == ([status], closes)
        assert outcome(gateway, request() + large) == ([200, status], closes)


def test_many_requests_at_once(gateway: RunningGateway, engine: MockEngine) -> None:
    """A megabyte of requests, in pieces that end anywhere: none of them is taken for one endless head."""
    ask = f"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Pad: {'a' * 2500}\r\n\r\n".encode()
    assert outcome(gateway, ask * 400) == ([200] * 400, False)


def test_a_head_that_does_not_end(gateway: RunningGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_protocol, "_HEAD_TIMEOUT_S", 0.5)
    for start in (b"P", b"POST /v1/chat/comp", request()[:60], b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "):
        wire = Wire(gateway)
        wire.send(start)
        assert wire.read(3)
        assert wire.statuses() == [408]
    wire = Wire(gateway)
    wire.send(b"GET /healthz HTTP/1.1\r\nX-A: ")
    sent = 0
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while sent < 4_000_000:
            sent += wire.socket.send(b"x" * 4096)
            time.sleep(0.001)
    assert sent < 1_000_000


def test_idle_connections_are_closed(tmp_path: Path, engine: MockEngine) -> None:
    with RunningGateway(tmp_path, engine.url) as gateway:  # uvicorn's own default is five seconds
        wire = Wire(gateway)
        wire.send(request())
        assert not wire.read(1)
        assert wire.read(6)
        silent = Wire(gateway)
        assert silent.read(7)
        assert silent.data == b""


def test_half_closed_connections(gateway: RunningGateway, slow_gateway: RunningGateway) -> None:
    for which in (gateway, slow_gateway):
        wire = Wire(which)
        wire.send(request()[:40])
        wire.socket.shutdown(socket.SHUT_WR)
        assert wire.read(2)
        assert wire.statuses() in ([], [400])


def test_leaving_within_the_body(gateway: RunningGateway, engine: MockEngine) -> None:
    wire = Wire(gateway)
    wire.send(request()[:-5])
    time.sleep(0.1)
    wire.socket.close()
    time.sleep(1.5)
    assert not engine.seen
    assert not gateway.journal.events
    assert gateway.gateway is not None and gateway.gateway.in_flight == 0


def test_leaving_with_requests_in_the_pipeline(gateway: RunningGateway, engine: MockEngine) -> None:
    engine.default = Behaviour(first_delay=0.3)
    wire = Wire(gateway)
    wire.send(request() * 3)
    engine.wait_seen(1)
    wire.socket.close()
    assert gateway.gateway is not None
    wait_until(lambda: gateway.gateway is not None and gateway.gateway.in_flight == 0)
    assert len(gateway.journal.events) == len(engine.seen)
