"""Malformed HTTP over a bare socket: answered with a 4xx or a closed connection, never a 5xx, and nothing stays.

Seeded, so that a failure can be repeated; FUZZ_SEED and FUZZ_EXAMPLES for a longer look.
"""

import contextlib
import os
import random
import re
import socket
import time
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.fuzzing import MODEL, Target, running_target

SEED = int(os.environ.get("FUZZ_SEED", "1"))
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "300"))
MAX_GROWTH_BYTES = 8 * 1024 * 1024
_PATIENCE_S = 5.0
_ANSWER_S = 0.1
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")

METHODS = (
    b"GET",
    b"POST",
    b"PUT",
    b"DELETE",
    b"HEAD",
    b"OPTIONS",
    b"TRACE",
    b"CONNECT",
    b"PRI",
    b"get",
    b"G\0T",
)
PATHS = (
    b"/v1/chat/completions",
    b"/endpoints/fuzzed/v1/chat/completions",
    b"/v1/models",
    b"/api/models",
    b"/healthz",
    b"/metrics",
)
ODD_TARGETS = (
    b"*",
    b"",
    b"//",
    b"/" + b"a" * 100_000,
    b"/\xff\xfe",
    b"/%00",
    b"/%",
    b"/%zz",
    b"/..%2f..%2fetc/passwd",
    b"http://[::1",
    b"http://evil/v1/chat/completions",
    b"/v1/chat/completions?" + b"&a=b" * 5000,
    b"/v1/chat/completions#x",
    b"/endpoints//v1/chat/completions",
    b"/endpoints/%F0%9F%92%A9/v1/models",
    b"/api/../v1/models",
    b"/api/%2e%2e/internal/activity",
    b"/api//internal/activity",
    b"/internal/activity",
)
VERSIONS = (
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"HTTP/0.9",
    b"HTTP/2.0",
    b"HTTP/9.9",
    b"HTTP/1.",
    b"http/1.1",
    b"",
    b"\0",
)
ODD_HEADERS = (
    b"content-length: -1",
    b"content-length: 99999999999999999999999",
    b"content-length: 1e3",
    b"content-length: 5\r\ncontent-length: 6",
    b"content-length: 5\r\ntransfer-encoding: chunked",
    b"transfer-encoding: chunked\r\ntransfer-encoding: identity",
    b"transfer-encoding: gzip, chunked",
    b"transfer-encoding: xchunked",
    b"transfer-encoding : chunked",
    b"expect: 100-continue",
    b"expect: the unexpected",
    b"connection: upgrade\r\nupgrade: websocket",
    b"connection: upgrade, http2-settings\r\nupgrade: h2c",
    b"host: a\r\nhost: b",
    b"host:",
    b": no name",
    b"no colon",
    b" folded: x",
    b"x: a\r\n b",
    b"x: \0",
    b"x: " + b"\xff" * 100,
    b"x: " + b"y" * 70_000,
    b"authorization: Bearer " + b"z" * 5000,
    b"authorization: Bearer \xff\xfe",
    b"authorization: \xe2\x98\x83",
    b"content-type: application/json; charset=utf-7",
    b"content-encoding: gzip",
    b"idempotency-key: \xff",
    b"x-request-id: \x7f",
    b"accept-encoding: " + b"gzip," * 1000,
)
BODIES = (
    b"",
    b"{",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"model":' * 20_000,
    b'{"model": "\xff"}',
    b'{"model": "\\ud800", "messages": []}',
    b'{"model": 1e400, "messages": []}',
    b'{"model": "acme/mock-chat", "messages": [], "n": 99999999999999999999}',
    b'{"model": "acme/mock-chat", "model": "b", "messages": []}',
    b"\0" * 1000,
    b"\x1f\x8b" + b"\0" * 100,
    b"5\r\nhello\r\n0\r\n\r\n",
    b"fffffffffffffffff\r\nx",
    b"-1\r\nx\r\n0\r\n\r\n",
    b"zz\r\n\r\n",
    b"5;" + b"e" * 20_000 + b"\r\nhello\r\n0\r\n\r\n",
    b"5\r\nhelloXX0\r\n\r\n",
    b"0\r\nContent-Length: 5\r\n\r\n",
)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with running_target(tmp_path_factory.mktemp("home")) as target:
        yield target
        began = time.monotonic()
        target.platform.stop()
        assert time.monotonic() - began < 15, "something was left running, which the gateway waited for"


@pytest.fixture(autouse=True)
def afterwards(target: Target) -> Iterator[None]:
    """Whatever was sent: the same process serves the next caller, and all that was used is on the ledger."""
    before = target.gateway()
    yield
    answer = httpx.post(
        target.url + "/v1/chat/completions",
        headers={"authorization": f"Bearer {target.key}"},
        json={"model": MODEL, "messages": [{"role": "user", "content": "still there?"}]},
    )
    assert answer.status_code == 200, answer.text
    assert target.gateway() == before, "it was restarted"
    target.check_ledger()


def send(target: Target, data: bytes, *, patience_s: float = _PATIENCE_S, close: bool = True) -> bytes:
    """All that comes back until the connection is closed; TimeoutError when it is not.

    `close`: hang up our side at once, else after the answers.
    """
    port = int(target.url.rsplit(":", 1)[1])
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=patience_s) as connection:
        try:
            connection.sendall(data)
            if not close:
                connection.settimeout(_ANSWER_S)
                with contextlib.suppress(TimeoutError):
                    while part := connection.recv(65536):
                        received += part
                connection.settimeout(patience_s)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except (ConnectionError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
    return bytes(received)


def statuses(received: bytes) -> list[int]:
    return [int(status) for status in _STATUS.findall(received)]


def check(target: Target, data: bytes, *, close: bool = False) -> list[int]:
    """Send it; whatever is answered is not our failure."""
    try:
        received = send(target, data, close=close)
    except TimeoutError:
        raise AssertionError(f"hangs on {data[:300]!r} … {data[-100:]!r}") from None
    found = statuses(received)
    failures = [status for status in found if status >= 500 and status != 505]
    assert not failures, f"{found} to {data[:300]!r} … {data[-100:]!r}: {received[:600]!r}"
    return found


def garbage(target: Target, chance: random.Random) -> bytes:
    """A request with a few things wrong."""
    method = chance.choice(METHODS) if chance.random() < 0.3 else b"POST"
    path = chance.choice(ODD_TARGETS) if chance.random() < 0.3 else chance.choice(PATHS)
    version = chance.choice(VERSIONS) if chance.random() < 0.2 else b"HTTP/1.1"
    headers = [b"host: x", b"content-type: application/json"]
    if chance.random() < 0.7:
        headers.append(b"authorization: Bearer " + target.key.encode())
    headers += chance.choices(ODD_HEADERS, k=chance.choice((0, 1, 1, 2)))
    body = chance.choice(BODIES)
    if chance.random() < 0.6:
        headers.append(b"content-length: %d" % len(body))
    elif chance.random() < 0.5:
        headers.append(b"transfer-encoding: chunked")
    chance.shuffle(headers)
    end = b"\r\n" if chance.random() < 0.9 else b"\n"
    data = b" ".join((method, path, version)) + end + end.join(headers) + end + end + body
    if chance.random() < 0.1:
        data = data[: chance.randrange(len(data))]
    if chance.random() < 0.1:
        place = chance.randrange(len(data) + 1)
        data = data[:place] + chance.randbytes(chance.randrange(1, 20)) + data[place:]
    return data


def rss(process: psutil.Process) -> int:
    return int(process.memory_info().rss)


@pytest.mark.timeout(300)
def test_garbage(target: Target) -> None:
    chance = random.Random(SEED)
    found: set[int] = set()
    for _ in range(EXAMPLES):
        found.update(check(target, garbage(target, chance), close=chance.random() < 0.5))
    assert {400, 401, 404} <= found, f"the requests do not reach far: {found}"


def test_bytes_that_are_no_http_at_all(target: Target) -> None:
    chance = random.Random(SEED)
    for size in (1, 2, 10, 100, 10_000, 1_000_000):
        assert all(status < 500 for status in check(target, chance.randbytes(size)))
    check(target, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + chance.randbytes(300))  # TLS
    check(target, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + chance.randbytes(100))
    check(target, b"\r\n" * 50_000)


def test_a_hundred_bad_requests_in_one_go(target: Target) -> None:
    chance = random.Random(SEED + 1)
    bad = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\ncontent-length: 1\r\n\r\n{"
    found = check(target, bad % target.key.encode() * 100)
    assert set(found) == {400} and 1 <= len(found) <= 100
    check(target, b"".join(garbage(target, chance) for _ in range(100)))


def test_floods_of_headers(target: Target) -> None:
    start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
    assert check(target, start + b"".join(b"h%d: v\r\n" % n for n in range(2000)) + b"\r\n") in (
        [431],
        [401],
        [],
    )
    assert check(target, start + b"a: " + b"b" * 5_000_000) in ([431], [400], [])
    assert check(target, b"GET /" + b"a" * 5_000_000) in ([431], [414], [400], [])


def test_truncated_bodies_are_let_go(target: Target) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer %b\r\n" % target.key.encode()
    )
    seen = len(target.engine.seen)
    check(target, head + b'content-length: 100\r\n\r\n{"model": "acme/mock-chat"')
    check(target, head + b'transfer-encoding: chunked\r\n\r\n5\r\n{"mod')
    check(target, head + b"content-length: 100\r\nexpect: 100-continue\r\n\r\n")
    assert len(target.engine.seen) == seen


def test_a_chunked_body_is_read_strictly(target: Target) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        b"authorization: Bearer %b\r\n\r\n" % target.key.encode()
    )
    seen = len(target.engine.seen)
    body = b'{"model":"acme/mock-chat","messages":[]}'
    for sizes in (b"+28", b"0x28", b"-28", b"28 8", b"G", b"1" * 17):
        assert set(check(target, head + sizes + b"\r\n" + body + b"\r\n0\r\n\r\n")) <= {400}
    assert len(target.engine.seen) == seen


def test_a_body_that_an_upgrade_swallows_leaves_nothing_waiting(target: Target) -> None:
    """uvicorn reads no body of a request that asks for an upgrade; `target` sees that nobody waits for it."""
    head = (
        b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: %b\r\ncontent-type: application/json\r\n"
        b"authorization: Bearer %b\r\ncontent-length: 2\r\n\r\n{}"
    )
    for protocol in (b"websocket", b"h2c"):
        for close in (True, False):
            key = target.platform.admin_key.encode()
            assert set(check(target, head % (b"/api/organizations", protocol, key), close=close)) <= {400}
            path, key = b"/v1/chat/completions", target.key.encode()
            assert set(check(target, head % (path, protocol, key), close=close)) <= {400}


def test_memory_stays(target: Target) -> None:
    process = target.gateway()
    chance = random.Random(SEED + 2)
    _round(target, chance)  # buffers, caches and arenas
    before = rss(process)
    for _ in range(3):
        _round(target, chance)
    time.sleep(0.2)
    growth = rss(process) - before
    assert growth < MAX_GROWTH_BYTES, f"{growth / 1e6:.1f} MB"
    assert process.num_fds() < 200


def _round(target: Target, chance: random.Random) -> None:
    for _ in range(EXAMPLES // 4):
        check(target, garbage(target, chance), close=True)
    for _ in range(5):
        check(target, b"GET /" + b"a" * 1_000_000)
        check(target, chance.randbytes(100_000))
