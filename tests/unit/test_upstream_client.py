"""The client side against a scripted server: answers cut anywhere, framed in every way, cut off, or no HTTP at all."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from core.errors import FareboxError, UpstreamFailed
from core.settings import Settings
from functions.gateway.deadlines import Deadlines
from functions.gateway.origin import target_of
from functions.gateway.pool import MAX_IDLE_S
from functions.gateway.upstream import Answer, ServerGone, Upstream, read_answer, request_head
from tests.gateway_fixture import make_route

BODY = b'{"answer": 1}'
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + BODY
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5;x=y\r\n{"ans\r\n8\r\nwer": 1}\r\n0\r\nX-Trailer: 1\r\n\r\n'
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + BODY
EARLY_HINTS = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    """Answers every request by a script; counts connections and requests, and notices who leaves."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.requests: list[bytes] = []
        self.left = asyncio.Event()

    async def __aenter__(self) -> "Server":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                await self._script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.left.set()
        finally:
            writer.close()


def says(data: bytes, piece: int = 0, close: bool = False) -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for at in range(0, len(data), piece or len(data) or 1):
            writer.write(data[at : at + (piece or len(data))])
            await writer.drain()
            if piece:
                await asyncio.sleep(0)
        if close:
            writer.close()

    return script


def open_upstream(**changes: Any) -> Upstream:
    upstream = Upstream(Settings(home="/nowhere", **changes))  # type: ignore[arg-type]  # not looked at
    upstream.open()
    return upstream


async def post(upstream: Upstream, url: str, body: bytes = b"{}") -> Answer:
    return await upstream.post(
        url, "chat.completions", body, route=make_route(url), attempt_id="req_1", caller_headers={}
    )


@pytest.mark.parametrize("piece", [0, 1, 2, 3, 7])
@pytest.mark.parametrize(("answer", "connections"), [
    (PLAIN, 1),
    (CHUNKED, 1),
    (EARLY_HINTS + PLAIN, 1),
    (PLAIN.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"), 3),
    (PLAIN.replace(b"HTTP/1.1", b"HTTP/1.0"), 3),
])  # fmt: skip
async def test_answers_cut_anywhere(answer: bytes, connections: int, piece: int) -> None:
    async with Server(says(answer, piece)) as server:
        upstream = open_upstream()
        for _ in range(3):
            got = await post(upstream, server.url)
            assert got.status == 200
            assert await read_answer(got) == BODY
            assert got.at_end
        assert server.connections == connections
        upstream.close()


async def test_what_is_sent() -> None:
    async with Server(says(PLAIN)) as server:
        upstream = open_upstream()
        body = b"x" * 3_000_000
        assert await read_answer(await post(upstream, server.url + "/prefix/v1/", body)) == BODY
        head, _, sent = server.requests[0].partition(b"\r\n\r\n")
        assert sent == body
        lines = head.split(b"\r\n")
        assert lines[0] == b"POST /prefix/v1/chat/completions HTTP/1.1"
        names = [line.partition(b":")[0] for line in lines[1:]]
        assert sorted(names) == sorted(set(names))
        assert b"accept-encoding: identity" in lines
        assert b"x-request-id: req_1" in lines
        assert f"host: {server.url[7:]}".encode() in lines
        upstream.close()


async def test_a_body_until_the_connection_closes() -> None:
    async with Server(says(UNTIL_CLOSE, close=True)) as server:
        upstream = open_upstream()
        for _ in range(2):
            assert await read_answer(await post(upstream, server.url)) == BODY
        assert server.connections == 2
        upstream.close()


@pytest.mark.parametrize("data", [
    b"garbage\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000 + b"\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 20_000 + b"Content-Length: 0\r\n\r\n",
])  # fmt: skip
async def test_what_is_no_answer(data: bytes) -> None:
    async with Server(says(data)) as server:
        with pytest.raises(UpstreamFailed, match="could not be understood"):
            await asyncio.wait_for(post(open_upstream(), server.url), 3)


@pytest.mark.parametrize(("data", "fault"), [
    (PLAIN[:-3], "broke off"),
    (CHUNKED[:-20], "broke off"),
    (CHUNKED[: CHUNKED.index(b"8\r\nwer")] + b"zz\r\n", "broke off"),
])  # fmt: skip
async def test_answers_that_are_cut_short(data: bytes, fault: str) -> None:
    async with Server(says(data, close=True)) as server:
        answer = await post(open_upstream(), server.url)
        with pytest.raises(UpstreamFailed, match=fault):
            await read_answer(answer)


async def test_trailers_without_end() -> None:
    trailers = b"X: 1\r\n" * 50_000
    async with Server(says(CHUNKED[:-21] + b"\r\n0\r\n" + trailers)) as server:
        answer = await post(open_upstream(), server.url)
        with pytest.raises(UpstreamFailed):
            await asyncio.wait_for(read_answer(answer), 3)


async def test_a_server_that_is_gone() -> None:
    async with Server(says(b"", close=True)) as server:
        with pytest.raises(ServerGone):
            await post(open_upstream(), server.url)
    with pytest.raises(ServerGone):
        await post(open_upstream(), "http://127.0.0.1:9")
    with pytest.raises(UpstreamFailed, match="address"):
        await post(open_upstream(), "ftp://127.0.0.1")


async def test_more_than_was_asked_for_is_not_the_next_answer() -> None:
    async with Server(says(PLAIN + PLAIN)) as server:
        upstream = open_upstream()
        for _ in range(3):
            assert await read_answer(await post(upstream, server.url)) == BODY
        assert server.connections == 3
        upstream.close()


async def test_connections_are_kept_used_last_first_and_not_for_long() -> None:
    async with Server(says(PLAIN)) as server:
        upstream = open_upstream()
        answers = await asyncio.gather(*(post(upstream, server.url) for _ in range(5)))
        for answer in answers:
            await read_answer(answer)
        assert server.connections == 5
        await read_answer(await post(upstream, server.url))
        assert server.connections == 5
        upstream.pool.expire(asyncio.get_running_loop().time() + MAX_IDLE_S + 1)
        await read_answer(await post(upstream, server.url))
        assert server.connections == 6
        upstream.close()


async def test_leaving_closes_the_connection_at_once() -> None:
    async with Server(says(PLAIN[:-3])) as server:
        upstream = open_upstream()
        answer = await post(upstream, server.url)
        answer.close()
        await asyncio.wait_for(server.left.wait(), 1)
    silence = says(b"")
    async with Server(silence) as server:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(post(upstream, server.url), 0.1)
        await asyncio.wait_for(server.left.wait(), 1)


async def test_a_server_is_held_back_by_who_does_not_read() -> None:
    sent = 0

    async def flood(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    async with Server(flood) as server:
        answer = await post(open_upstream(), server.url)
        await asyncio.sleep(0.3)
        assert sent < 20_000_000  # what the kernel holds
        with pytest.raises(UpstreamFailed, match="larger"):
            await read_answer(answer, 50_000_000)
        answer.close()


def test_origins() -> None:
    assert target_of("http://h/").origin == ("h", 80, False)
    assert target_of("https://h:8443/a/v1").path_prefix == b"/a"
    assert target_of("http://[::1]:80").host_header == b"[::1]:80"
    for wrong in ("", "h:80", "ftp://h", "http://", "http://h/a b", "http://h/ä", "http://h:x"):
        with pytest.raises(ValueError):  # noqa: PT011  any will do
            target_of(wrong)


def test_trace_headers_are_passed_on_when_they_are_harmless() -> None:
    def head(value: bytes) -> bytes:
        route = make_route("")
        return request_head(
            target_of("http://h"), "embeddings", 2, route=route, attempt_id="a", traceparent=value
        )

    assert b"traceparent: 00-1-2-01\r\n" in head(b"00-1-2-01")
    assert b"traceparent" not in head(b"x" * 600)
    assert b"traceparent" not in head(b"\xff")


async def test_a_key_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    route = make_route("http://h", upstream_key_env="ACME_KEY")
    for value in ("", "two\nlines"):
        monkeypatch.setenv("ACME_KEY", value)
        with pytest.raises(FareboxError, match="ACME_KEY"):
            request_head(target_of("http://h"), "embeddings", 2, route=route, attempt_id="a")


@pytest.mark.timing
async def test_deadlines() -> None:
    class Late:
        deadline = 0.0
        called = 0

        def on_deadline(self) -> None:
            self.called += 1
            deadlines.forget(self)

    deadlines = Deadlines()
    loop = asyncio.get_running_loop()
    soon, later, forgotten = Late(), Late(), Late()
    soon.deadline, later.deadline, forgotten.deadline = loop.time() + 0.1, loop.time() + 60, loop.time()
    for each in (soon, later, forgotten):
        deadlines.watch(each)
    deadlines.forget(forgotten)
    deadlines.start()
    began = time.monotonic()
    while not soon.called and time.monotonic() < began + 2:  # noqa: ASYNC110  # it is what is timed
        await asyncio.sleep(0.01)
    assert 0.1 <= time.monotonic() - began < 0.6
    assert (soon.called, later.called, forgotten.called) == (1, 0, 0)
    deadlines.stop()
