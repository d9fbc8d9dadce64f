"""A stand-in for a model server's process: starts slowly, dies, hangs, or leaves children, as its options say.

    python -m tests.fake_server --port 9101 [--start-delay S] [--die-at-start TEXT] [--die-after S] …

Only the standard library, so that a start takes tens of milliseconds.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

SLEEPER = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


class Handler(BaseHTTPRequestHandler):
    """`GET /health` as told, anything else 503 (`/metrics`: counters, if told); `GET /die` ends the process."""

    unwell: Path | None = None
    metrics = b""

    def do_GET(self) -> None:
        if self.path == "/die":
            print("RuntimeError: told to die", flush=True)
            os._exit(3)
        if self.path == "/metrics" and self.metrics:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.metrics)
            return
        healthy = self.path == "/health" and not (self.unwell and self.unwell.exists())
        self.send_response(200 if healthy else 503)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the base class names it
        print(f"INFO:     {format % args}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start-delay", type=float, default=0.0)
    parser.add_argument("--die-at-start", default="", metavar="TEXT", help="print it and end with status 1")
    parser.add_argument(
        "--die-at-start-times", default="", metavar="FILE:N", help="…, but only the first N times"
    )
    parser.add_argument("--die-after", type=float, default=0.0, metavar="S")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--grandchild", action="store_true", help="a child that ignores SIGTERM")
    parser.add_argument("--stray", action="store_true", help="the same in a session of its own")
    parser.add_argument("--unwell-while", type=Path, metavar="FILE")
    parser.add_argument("--starts", type=Path, metavar="FILE", help="append our pid to it")
    parser.add_argument("--metrics", action="store_true", help="counters of vLLM, all zero")
    parser.add_argument("--chatter", type=int, default=0, help="bytes of output a second")
    options = parser.parse_args()
    if options.starts:
        with options.starts.open("a") as file:
            file.write(f"{os.getpid()}\n")
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for wanted, own_session in ((options.grandchild, False), (options.stray, True)):
        if wanted:
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=own_session)
    print("INFO:     the fake server starts", flush=True)
    time.sleep(options.start_delay)
    if options.die_at_start and _dies(options.die_at_start_times):
        print(options.die_at_start, flush=True)
        sys.exit(1)
    if options.die_after:
        threading.Timer(options.die_after, os._exit, (7,)).start()
    if options.chatter:
        threading.Thread(target=_chatter, args=(options.chatter,), daemon=True).start()
    Handler.unwell = options.unwell_while
    if options.metrics:
        Handler.metrics = b"vllm:prompt_tokens_total 0\nvllm:generation_tokens_total 0\n"
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


def _dies(times: str) -> bool:
    if not times:
        return True
    name, _, limit = times.rpartition(":")
    counter = Path(name)
    died = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(died + 1))
    return died < int(limit)


def _chatter(bytes_a_second: int) -> None:
    while True:
        print("\n".join(["x" * 99] * (bytes_a_second // 1000)), flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
