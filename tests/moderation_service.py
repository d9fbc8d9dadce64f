"""A moderation service in OpenAI's shape: flags texts with one of the given words, and keeps what it was shown."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Moderation:
    """What it does, and what it saw."""

    words: dict[str, str]  # a word, and the category it belongs to
    url: str = ""
    status: int = 200
    body: bytes | None = None  # instead of a proper answer
    delay_s: float = 0.0
    shown: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """All inputs, in order."""
        return [text for each in self.shown for text in each["input"]]

    def answer(self, asked: dict[str, Any]) -> bytes:
        results = [
            {
                "flagged": any(word in text for word in self.words),
                "categories": {name: word in text for word, name in self.words.items()},
            }
            for text in asked["input"]
        ]
        return json.dumps({"id": "modr-1", "model": "m", "results": results}).encode()


@contextmanager
def moderation(**words: str) -> Iterator[Moderation]:
    """A service on this machine; `moderation(bomb="violence")`."""
    service = Moderation(words)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            service.shown.append(asked)
            service.headers.append({name.lower(): value for name, value in self.headers.items()})
            time.sleep(service.delay_s)
            body = service.answer(asked) if service.body is None else service.body
            self.send_response(service.status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}/v1/moderations"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
