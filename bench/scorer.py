"""`make bench ARGS=--scorer`: our scorer beside Azure's own inference server, and two replicas beside one.

Both serve the same trivial script, one process each on the measured core, to the same callers on the other. CPU is
that of the server's processes over the calls. The replicas' script is bound by CPU: its calls a second with two replicas
over those with one is the gain.
"""

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import machine, toolchain
from bench.machine import LOAD_CORE, PROXY_CORE
from serving.processes import free_port

AZURE = ("azureml-inference-server-http==1.5.1",)
SCORER = Path(__file__).resolve().parents[1] / "functions" / "scorer"
TRIVIAL = "import json\ndef init():\n    pass\ndef run(data):\n    return json.loads(data)\n"
BUSY = "def init():\n    pass\ndef run(data):\n    return sum(i * i for i in range(60000))\n"
CALLERS = 8
BODY = json.dumps({"data": [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]] * 2}).encode()


@dataclass(frozen=True, slots=True)
class Scored:
    """One window. CPU in microseconds a call."""

    calls: int
    per_s: float
    cpu_us: float
    p50_ms: float


@contextlib.contextmanager
def serving(command: list[str], folder: Path, port: int, environ: dict[str, str], core: int) -> Iterator[int]:
    """The server's process id, once it answers."""
    process = subprocess.Popen(
        command, cwd=folder, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        preexec_fn=machine.on_core(core),
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait(20)


def measure(ports: list[int], pids: list[int], seconds: float) -> Scored:
    """A closed loop of callers over kept connections."""
    over = threading.Event()
    times: list[list[float]] = [[] for _ in range(CALLERS)]
    head = (
        b"POST /score HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        % len(BODY)
    )

    def call(number: int) -> None:
        connection: socket.socket | None = None
        while not over.is_set():
            began = time.perf_counter()
            connection = connection or _connect(ports[number % len(ports)])
            connection.sendall(head + BODY)
            if not _read_answer(connection):
                connection.close()
                connection = None
            times[number].append(time.perf_counter() - began)
        if connection is not None:
            connection.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    before, done, began = _cpu_seconds(pids), sum(map(len, times)), time.perf_counter()
    time.sleep(seconds)
    used = _cpu_seconds(pids) - before
    calls, took = sum(map(len, times)) - done, time.perf_counter() - began
    over.set()
    for thread in threads:
        thread.join()
    middle = sorted(value for each in times for value in each)
    return Scored(calls, calls / took, used * 1e6 / calls, middle[len(middle) // 2] * 1000)


def _cpu_seconds(pids: list[int]) -> float:
    """With their workers."""
    return sum(map(machine.cpu_seconds, pids))


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _read_answer(connection: socket.socket) -> bool:
    """Whether the connection can take another call; Azure's server closes it after each."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise toolchain.BenchError(f"the script was not served: {head[:200]!r}")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    while len(body) < length:
        body += _more(connection)
    return b"\r\nconnection: close" not in head.lower()


def _more(connection: socket.socket) -> bytes:
    part = connection.recv(65536)
    if not part:
        raise toolchain.BenchError("the server closed a connection")
    return part


def main(argv: list[str]) -> int:
    """Exit status 0 when all was measured."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=--scorer", description=__doc__)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(argv)
    machine.pin(os.getpid(), LOAD_CORE)
    sys.stdout.write(f"{machine.describe()}, load average {machine.load_average()}\n")
    with tempfile.TemporaryDirectory() as folder:
        _beside_azure(Path(folder), options.seconds, options.runs)
        _replicas(Path(folder), options.seconds)
    return 0


def _beside_azure(folder: Path, seconds: float, runs: int) -> None:
    azure = toolchain.virtualenv(toolchain.cache_folder(), "azure-scorer", AZURE)
    (folder / "score.py").write_text(TRIVIAL)
    for number in range(runs):
        found = {}
        for name in ("azure", "farebox"):
            port = free_port()
            command = _farebox(folder, port) if name == "farebox" else _azure(azure, folder, port)
            with serving(command, folder, port, _environ(), PROXY_CORE) as pid:
                time.sleep(3)
                found[name] = measure([port], [pid], seconds)
        ours, theirs = found["farebox"], found["azure"]
        shown = [
            f"{name} {each.cpu_us:.0f} µs of CPU a call, {each.per_s:.0f} calls/s, p50 {each.p50_ms:.2f} ms"
            for name, each in (("farebox", ours), ("azureml-inference-server-http", theirs))
        ]
        ratio = ours.cpu_us / theirs.cpu_us
        sys.stdout.write(f"round {number + 1}: {'; '.join(shown)}; ratio of CPU {ratio:.2f}\n")


def _replicas(folder: Path, seconds: float) -> None:
    (folder / "score.py").write_text(BUSY)
    rates = []
    for count in (1, 2):
        ports = [free_port() for _ in range(count)]
        with contextlib.ExitStack() as stack:
            pids = [
                stack.enter_context(serving(_farebox(folder, port), folder, port, _environ(), core))
                for port, core in zip(ports, (PROXY_CORE, LOAD_CORE), strict=False)
            ]
            time.sleep(1)
            rates.append(measure(ports, pids, seconds).per_s)
    sys.stdout.write(
        f"bound by CPU: {rates[0]:.1f} calls/s with one replica, {rates[1]:.1f} with two: {rates[1] / rates[0]:.2f} ×\n"
    )


def _environ() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SCORER)}


def _farebox(folder: Path, port: int) -> list[str]:
    return [
        sys.executable,
        "-m",
        "farebox_scorer",
        "--entry-script",
        str(folder / "score.py"),
        "--port",
        str(port),
    ]


def _azure(environment: Path, folder: Path, port: int) -> list[str]:
    server = str(environment / "bin" / "azmlinfsrv")
    return [
        server,
        "--entry_script",
        str(folder / "score.py"),
        "--port",
        str(port),
        "--model_dir",
        str(folder),
    ]
