"""A customer's server: keeps what it gets, answers what it is told to."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Got:
    """One request."""

    headers: dict[str, str]
    body: bytes


@dataclass
class Receiver:
    """`statuses`: one answer after the other, the last one for ever."""

    url: str = ""
    statuses: list[int] = field(default_factory=lambda: [204])
    headers: dict[str, str] = field(default_factory=dict)
    got: list[Got] = field(default_factory=list)


@contextmanager
def receiver(*statuses: int, **headers: str) -> Iterator[Receiver]:
    """A server on this machine."""
    found = Receiver(statuses=list(statuses) or [204], headers=headers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.got.append(Got({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(found.statuses.pop(0) if len(found.statuses) > 1 else found.statuses[0])
            for name, value in found.headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found.url = f"http://127.0.0.1:{server.server_port}/hooks"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
