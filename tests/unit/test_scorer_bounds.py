"""What a scorer does not let anybody do to it: endless requests, slow ones, too many, too large together."""

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.unit.test_scorer import ECHO, Scorer

_LIMITED = (
    "import sys; from farebox_scorer import server; from farebox_scorer.__main__ import main\n"
    "for each in sys.argv.pop(1).split():\n"
    "    name, _, value = each.partition('='); assert hasattr(server, name); setattr(server, name, float(value))\n"
    "sys.exit(main())"
)


@contextmanager
def limited(folder: Path, script: str, limits: str) -> Iterator[Scorer]:
    """A scorer with other bounds than the usual ones."""

    class Limited(Scorer):
        def start(self, command: list[str]) -> list[str]:
            return [sys.executable, "-c", _LIMITED, limits, *command[3:]]

    scorer = Limited(folder, script)
    try:
        yield scorer.wait()
    finally:
        scorer.end()


def connect(scorer: Scorer) -> socket.socket:
    made = socket.create_connection(("127.0.0.1", scorer.port), timeout=10)
    made.settimeout(10)
    return made


def answer_of(connection: socket.socket) -> bytes:
    """Everything until it is closed."""
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def dribble(caller: socket.socket, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        caller.sendall(b"1")
        time.sleep(0.05)


def test_a_trailer_without_end(tmp_path: Path) -> None:
    with limited(tmp_path, ECHO, "READ_S=60") as scorer, connect(scorer) as caller:
        caller.sendall(
            b"POST /score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\n1\r\n0\r\nx: "
        )
        try:
            for _ in range(100):
                caller.sendall(b"a" * 4096)
                time.sleep(0.001)
        except (BrokenPipeError, ConnectionResetError):
            pass
        # Closed, with unread bytes: the answer itself may be lost on the way.
        assert answer_of(caller)[:13] in (b"", b"HTTP/1.1 431 ")
        assert scorer.post({}).status_code == 200


def test_trailers_and_many_chunks_are_fine(tmp_path: Path) -> None:
    with limited(tmp_path, ECHO, "READ_S=60") as scorer, connect(scorer) as caller:
        chunks = b"".join(b"1\r\n1\r\n" for _ in range(30_000))
        head = b"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        caller.sendall(head + b'1\r\n"\r\n' + chunks + b'1\r\n"\r\n0\r\nx-checksum: 1\r\n\r\n')
        found = answer_of(caller)
        assert found.startswith(b"HTTP/1.1 200 ") and found.endswith(b'"' + b"1" * 30_000 + b'"')


def test_a_piece_that_ends_within_a_chunks_head(tmp_path: Path) -> None:
    """What came before that head in the same piece is no part of it."""
    head = b"POST /score HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    with limited(tmp_path, ECHO, "READ_S=60") as scorer, connect(scorer) as caller:
        for piece in (head + b"1\r\n", b'"\r\n' + b"1\r\n1\r\n" * 20_000 + b"1\r\n", b'"\r\n0\r\n\r\n'):
            caller.sendall(piece)
            time.sleep(0.2)
        found = answer_of(caller)
        assert found.startswith(b"HTTP/1.1 200 ") and found.endswith(b'"' + b"1" * 20_000 + b'"')


def test_a_request_that_dribbles_is_ended(tmp_path: Path) -> None:
    with limited(tmp_path, ECHO, "READ_S=1") as scorer, connect(scorer) as caller:
        caller.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n")
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            dribble(caller, 8)
        assert time.monotonic() - began < 5
        assert scorer.post({}).status_code == 200


def test_bodies_together_are_bounded_and_what_they_took_is_given_back(tmp_path: Path) -> None:
    with limited(tmp_path, ECHO, "MAX_HELD=3000000") as scorer:
        head = b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n"
        with connect(scorer) as one, connect(scorer) as other:
            one.sendall(head + b"1" * 1_900_000)
            time.sleep(0.3)
            other.sendall(head.replace(b"x\r\n", b"x\r\nconnection: close\r\n") + b"1" * 2_000_000)
            found = answer_of(other)
            assert found.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in found
        time.sleep(0.3)
        for _ in range(4):
            assert scorer.post(b'"%s"' % (b"1" * 2_000_000)).status_code == 200


def test_connections_are_bounded(tmp_path: Path) -> None:
    with limited(tmp_path, ECHO, "MAX_CONNECTIONS=3") as scorer:
        time.sleep(0.2)
        held = [connect(scorer) for _ in range(3)]
        time.sleep(0.2)
        with connect(scorer) as one_more:
            assert answer_of(one_more) == b""
        for each in held:
            each.close()
        time.sleep(0.2)
        assert httpx.get(scorer.url + "/").status_code == 200


def test_a_caller_who_does_not_read_gets_no_further_answers_meanwhile(tmp_path: Path) -> None:
    script = (
        "count = 0\ndef init():\n    pass\n"
        "def run(data):\n    global count\n    count += 1\n"
        "    return 'x' * 4_000_000 if data != '\"count\"' else count\n"
    )
    with limited(tmp_path, script, "READ_S=60") as scorer, connect(scorer) as caller:
        caller.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}" * 40)
        time.sleep(1)
        assert scorer.post("count").json() < 10, "40 answers of 4 MB would lie in memory"


def test_a_call_without_end_does_not_keep_the_process(tmp_path: Path) -> None:
    script = "import time\ndef init():\n    pass\ndef run(data):\n    time.sleep(60)\n"
    with limited(tmp_path, script, "DRAIN_S=1") as scorer, connect(scorer) as caller:
        caller.sendall(b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        time.sleep(0.3)
        began = time.monotonic()
        scorer.process.terminate()
        scorer.process.wait(10)
        assert time.monotonic() - began < 6


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("WORKER_COUNT", "two", "WORKER_COUNT: expected a whole number of one or more, got 'two'"),
        ("WORKER_COUNT", "0", "WORKER_COUNT: expected"),
        ("SCORING_TIMEOUT_MS", "-1", "SCORING_TIMEOUT_MS: expected"),
        ("AZUREML_LOG_LEVEL", "loud", "AZUREML_LOG_LEVEL: expected one of DEBUG"),
    ],
)
def test_a_variable_that_is_wrong_is_named(tmp_path: Path, variable: str, value: str, says: str) -> None:
    scorer = Scorer(tmp_path, ECHO, **{variable: value})
    _, errors = scorer.process.communicate(timeout=20)
    assert scorer.process.returncode == 2
    assert errors.decode().startswith(says) and "Traceback" not in errors.decode()


def test_workers_that_die_at_once_are_not_started_all_the_time(tmp_path: Path) -> None:
    script = (
        "import os\nopen('starts', 'a').write('x')\ndef init():\n    os._exit(9)\ndef run(data):\n    pass\n"
    )
    scorer = Scorer(tmp_path, script, "--worker-count", "2")
    try:
        time.sleep(4)
        starts = len((tmp_path / "starts").read_text())
        assert 4 <= starts <= 10, "0, 0.5, 1.5 and 3.5 s after the first, of each"
    finally:
        scorer.process.terminate()
        scorer.process.communicate(timeout=10)
